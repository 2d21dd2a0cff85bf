#!/usr/bin/env python
"""Divide YouTube-VIS 2022 into its short and its long videos, which papers report separately.

    python datasets/prepare_ytvis_2022.py                    # short: the videos of YouTube-VIS 2021
    python datasets/prepare_ytvis_2022.py --min-frames 60    # without YouTube-VIS 2021: long from 60 frames

writes instances_short.json and instances_long.json beside ytvis_2022/valid/instances.json (and beside
ytvis_2022/test/instances.json, if that is there). Repeat it when the ground truth has been added.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvis.cli import clear_errors
from dvis.data.prepare import divide_by_length, divide_by_reference


def main(arguments: list[str] | None = None) -> None:
    root = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=root, help="folder of all data sets")
    parser.add_argument("--min-frames", type=int, help="frames of a long video")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with clear_errors():
        for split in ("valid", "test"):
            source = options.root / "ytvis_2022" / split / "instances.json"
            if split == "test" and not source.is_file():
                continue
            if options.min_frames:
                divide_by_length(source, options.min_frames)
            else:
                divide_by_reference(source, options.root / "ytvis_2021" / f"{split}.json")


if __name__ == "__main__":
    main()
