#!/usr/bin/env python
"""Look through a data set: what is in it, and what is wrong with it.

    python tools/check_dataset.py ovis_train
    python tools/check_dataset.py my/instances.json --images my/frames
    python tools/check_dataset.py panoptic_gt.json --images images --masks panomasksRGB
    python tools/check_dataset.py --config-file my_data.yaml
    python tools/check_dataset.py cells_val --config-file my_data.yaml --opts KEY VALUE

Takes registered names, or an annotation file in the form of YouTube-VIS, OVIS, COCO or VIPSeg. With a
configuration, the user's own data sets in its DATASETS.CUSTOM are known too; without names, all data sets
that it trains on or tests on are looked through. Ends with code 1 if there are errors, each of which names
file, video and annotation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dvis
from dvis.cli import clear_errors
from dvis.data import use_custom_datasets
from dvis.data.check import Report, check_dataset


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", metavar="NAME_OR_JSON", nargs="*")
    parser.add_argument("--config-file", help="configuration with the user's own data sets")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="changes to it")
    parser.add_argument(
        "--images", type=Path, help="folder of the frames; without it those of a file are not read"
    )
    parser.add_argument("--masks", type=Path, help="folder of panoptic PNGs, likewise")
    parser.add_argument("--limit", type=int, default=50, help="errors and notes to print, each (default 50)")
    options = parser.parse_args(arguments)
    if not options.datasets and not options.config_file:
        parser.error("name a data set, an annotation file, or a configuration")
    if len(options.datasets) != 1 and (options.images or options.masks):
        parser.error("--images and --masks are the folders of one annotation file")
    num_errors = 0
    with clear_errors():
        names = options.datasets
        if options.config_file or options.opts:
            cfg = dvis.load_config(options.config_file, options.opts)
            use_custom_datasets(cfg)
            names = names or list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
        for name in names:
            report = check_dataset(name, options.images, options.masks)
            print_report(report, options.limit)
            num_errors += len(report.errors)
    return 1 if num_errors else 0


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
