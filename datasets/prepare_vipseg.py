#!/usr/bin/env python
"""Convert VIPSeg to 720p and to COCO's panoptic format (see datasets/README.md).

    python datasets/prepare_vipseg.py --source VIPSeg --target datasets/VIPSeg/VIPSeg_720P

The source has imgs, panomasks, train.txt, val.txt and test.txt.
A stopped conversion continues when the command is repeated.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvis.cli import clear_errors
from dvis.data.prepare import convert_vipseg


def main(arguments: list[str] | None = None) -> None:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=root / "VIPSeg", help="folder as published")
    parser.add_argument("--target", type=Path, default=root / "VIPSeg/VIPSeg_720P", help="folder to write")
    parser.add_argument("--height", type=int, default=720, help="of the converted frames, in pixels")
    parser.add_argument("--workers", type=int, default=None, help="processes; one per core if not given")
    parser.add_argument("--force", action="store_true", help="convert again what is complete")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with clear_errors():
        convert_vipseg(options.source, options.target, options.height, options.workers, options.force)


if __name__ == "__main__":
    main()
