#!/usr/bin/env python
"""Convert VSPW to 480p (see datasets/README.md).

    python datasets/prepare_vspw.py --source VSPW --target datasets/VSPW_480p

The source has data/<video>/{origin,mask} and train.txt, val.txt, test.txt.
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
from dvis.data.prepare import convert_vspw


def main(arguments: list[str] | None = None) -> None:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=root / "VSPW", help="folder as published")
    parser.add_argument("--target", type=Path, default=root / "VSPW_480p", help="folder to write")
    parser.add_argument("--height", type=int, default=480, help="of the converted frames, in pixels")
    parser.add_argument("--workers", type=int, default=None, help="processes; one per core if not given")
    parser.add_argument("--force", action="store_true", help="convert again what is complete")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with clear_errors():
        convert_vspw(options.source, options.target, options.height, options.workers, options.force)


if __name__ == "__main__":
    main()
