#!/usr/bin/env python
"""Look through a data set: what is in it, and what is wrong with it.

    python tools/check_dataset.py ovis_train
    python tools/check_dataset.py my/instances.json --images my/frames
    python tools/check_dataset.py panoptic_gt.json --images images --masks panomasksRGB

Takes a registered name, or an annotation file in the form of YouTube-VIS, OVIS, COCO or VIPSeg. Ends with
code 1 if there are errors, each of which names file, video and annotation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dvis.cli import clear_errors
from dvis.data.check import Report, check_dataset


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", metavar="NAME_OR_JSON")
    parser.add_argument(
        "--images", type=Path, help="folder of the frames; without it those of a file are not read"
    )
    parser.add_argument("--masks", type=Path, help="folder of panoptic PNGs, likewise")
    parser.add_argument("--limit", type=int, default=50, help="errors and notes to print, each (default 50)")
    options = parser.parse_args(arguments)
    with clear_errors():
        report = check_dataset(options.dataset, options.images, options.masks)
    print_report(report, options.limit)
    return 1 if report.errors else 0


def print_report(report: Report, limit: int) -> None:
    print(report.source)
    for name, number in report.counts.items():
        print(f"  {name:<24}{number:>10}")
    print("objects by class:")
    for name, number in report.classes.items():
        print(f"  {name:<24}{number:>10}")
    for title, messages in (("note", report.notes), ("error", report.errors)):
        for message in messages[:limit]:
            print(f"{title}: {message}")
        if len(messages) > limit:
            print(f"... and {len(messages) - limit} more {title}s")
    print(f"{len(report.errors)} errors, {len(report.notes)} notes")


if __name__ == "__main__":
    sys.exit(main())
