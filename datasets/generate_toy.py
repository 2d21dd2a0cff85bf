#!/usr/bin/env python
"""Generate the synthetic video data set (see datasets/README.md).

    python datasets/generate_toy.py                      # ./datasets/toy, 480 + 40 videos, a minute
    python datasets/generate_toy.py --level occluded     # ./datasets/toy_occluded
    python datasets/generate_toy.py --output /data/toy --num-train 500 --size 128x160
    python datasets/generate_toy.py --sheet levels.png   # only a picture of each level

A stopped generation continues when the command is repeated. The same options give the same files.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvis.data.toy import LEVELS, ToySettings, generate, toy_name
from dvis.data.toy.sheet import write_sheet


def parse_size(text: str) -> tuple[int, int]:
    """``96x128`` -> (96, 128), height first."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"a size is HEIGHTxWIDTH, for instance 96x128, not {text!r}")
    return int(parts[0]), int(parts[1])


def main(arguments: list[str] | None = None) -> None:
    default = ToySettings()
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, help=f"folder of the data set; if not given, toy or toy_<level> in {root}"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--num-train", type=int, default=default.num_train, help="training videos")
    parser.add_argument("--num-val", type=int, default=default.num_val, help="validation videos")
    parser.add_argument(
        "--size", type=parse_size, default=(default.height, default.width), help="HEIGHTxWIDTH"
    )
    parser.add_argument(
        "--length", type=int, default=0, help="frames per video; 0: the level's own, 16 to 96"
    )
    parser.add_argument("--level", choices=sorted(LEVELS), default=default.level, help="difficulty")
    parser.add_argument("--workers", type=int, default=None, help="processes; one per core if not given")
    parser.add_argument("--force", action="store_true", help="replace a toy data set with other settings")
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="PNG",
        help="write only a picture sheet: a video of each level, objects outlined in colours of their own",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.sheet:
        write_sheet(options.sheet, options.seed, outlines=True)
        print(f"Picture sheet: {options.sheet}")
        return
    try:
        settings = ToySettings(
            seed=options.seed,
            num_train=options.num_train,
            num_val=options.num_val,
            height=options.size[0],
            width=options.size[1],
            length=options.length,
            level=options.level,
        )
        output = generate(
            options.output or root / toy_name(settings.level), settings, options.workers, options.force
        )
    except (ValueError, FileExistsError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"Toy data set: {output} ({settings.num_train} training, {settings.num_val} validation videos)")


if __name__ == "__main__":
    main()
