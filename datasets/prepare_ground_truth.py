#!/usr/bin/env python
"""Put the published ground truth of a validation split where evaluation finds it (see datasets/README.md).

    python datasets/prepare_ground_truth.py ovis_val --source annotations_valid.json
    python datasets/prepare_ground_truth.py ytvis_2021_val --source valid.zip --member valid/instances.json

The source is the file as it was published. It is checked against the list of videos that it replaces, and
against the frames; the list stays, as <name>_without_annotations.json. A stopped check continues when the
command is repeated.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvis.cli import clear_errors
from dvis.data.datasets import DATASETS
from dvis.data.prepare import install_ground_truth


def main(arguments: list[str] | None = None) -> None:
    names = [
        name
        for name in sorted(DATASETS)
        if name.startswith(("ytvis_", "ovis_")) and name.endswith(("_val", "_test"))
    ]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=names)
    parser.add_argument("--source", type=Path, required=True, help="JSON file, or zip archive with one")
    parser.add_argument("--member", default="", help="file of the archive, if it has several JSON files")
    parser.add_argument("--workers", type=int, default=None, help="processes; one per core if not given")
    parser.add_argument("--force", action="store_true", help="replace a file that has annotations already")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with clear_errors():
        spec = DATASETS[options.dataset]
        install_ground_truth(spec, options.source, options.member, options.workers, options.force)


if __name__ == "__main__":
    main()
