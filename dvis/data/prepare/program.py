"""The command line that conversions of video data sets share."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dvis.cli import clear_errors

__all__ = ["run_conversion"]

Convert = Callable[[Path, Path, int, int | None, bool], None]


def run_conversion(
    convert: Convert,
    description: str,
    *,
    source: str,
    target: str,
    height: int,
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse the options of a conversion and run it; what is wrong with the data ends in one line.

    Args:
        convert: called with source, target, height, workers and force.
        description: for ``--help``.
        source, target: default folders below the root of the data sets.
        height: default height of the converted frames, in pixels.
        arguments: None: those of the command line.
    """
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=root / source, help="folder as published")
    parser.add_argument("--target", type=Path, default=root / target, help="folder to write")
    parser.add_argument("--height", type=int, default=height, help="of the converted frames, in pixels")
    parser.add_argument("--workers", type=int, default=None, help="processes; one per core if not given")
    parser.add_argument("--force", action="store_true", help="convert again what is complete")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with clear_errors():
        convert(options.source, options.target, options.height, options.workers, options.force)
