#!/usr/bin/env python
"""Divide a training split of YouTube-VIS or OVIS into an own training and validation split.

    python datasets/split_videos.py ytvis_2021/train.json --num-val 200

writes ytvis_2021/train_own_train.json and ytvis_2021/train_own_val.json; the frames stay where they are. Both
parts have every category, as far as the numbers allow. The same options give the same split.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvis.cli import clear_errors
from dvis.data.prepare import split_videos


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("source", type=Path, help="annotation file with ground truth")
    parser.add_argument("--num-val", type=int, required=True, help="videos of the validation split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, help="file to write; beside the source if not given")
    parser.add_argument("--val", type=Path, help="file to write; beside the source if not given")
    options = parser.parse_args(arguments)
    stem = options.source.with_suffix("")
    train = options.train or stem.with_name(f"{stem.name}_own_train.json")
    val = options.val or stem.with_name(f"{stem.name}_own_val.json")
    with clear_errors():
        num_train, num_val = split_videos(options.source, train, val, options.num_val, options.seed)
    print(f"{train}: {num_train} videos\n{val}: {num_val} videos")


if __name__ == "__main__":
    main()
