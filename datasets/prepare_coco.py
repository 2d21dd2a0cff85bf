#!/usr/bin/env python
"""Write COCO instances of the categories of YouTube-VIS and OVIS, for joint training.

    python datasets/prepare_coco.py                    # datasets/coco/annotations/coco2<target>_<split>.json

Files that are there already stay.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvis.cli import clear_errors
from dvis.data.prepare import filter_coco


def main(arguments: list[str] | None = None) -> None:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--annotations", type=Path, default=root / "coco/annotations", help="folder of instances_*2017.json"
    )
    parser.add_argument("--splits", nargs="+", choices=("train", "val"), default=["train", "val"])
    parser.add_argument("--force", action="store_true", help="write files again")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with clear_errors():
        for split in options.splits:
            filter_coco(options.annotations, split, options.force)


if __name__ == "__main__":
    main()
