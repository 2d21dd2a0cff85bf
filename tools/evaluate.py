#!/usr/bin/env python
"""Score result files against ground-truth files, as the official programs of the benchmarks do.

    python tools/evaluate.py --task ytvis --gt valid.json --pred results.json --json scores.json
    python tools/evaluate.py --task ovis --gt annotations_valid.json --pred results.json --json scores.json \\
        --csv categories.csv --html report.html --images ovis/valid
    python tools/evaluate.py --task vps --gt panoptic_gt_VIPSeg_val.json --pred results --json scores.json
    python tools/evaluate.py --task vss --gt VSPW_480p --raw-masks --pred predictions --json scores.json
    python tools/evaluate.py --task panoptic --gt panoptic_val2017.json --pred pred.json --json scores.json
    python tools/evaluate.py --task semseg --gt gt --pred pred --json scores.json

--gt and --pred take a file or a folder of the benchmark's layout: for vps the JSON with panomasksRGB beside
it and the folder with pred.json and pan_pred; for vss the folder with val.txt and data, and the folder of
<video>/<frame>.png; for panoptic a JSON with its folder of PNGs; for semseg folders of label maps, with
meta.json (stuff_classes, ignore_label) beside that of the ground truth.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dvis.cli import clear_errors
from dvis.data.files import write_json
from dvis.evaluation.report import as_text, write_csv, write_html
from dvis.evaluation.tasks import TASKS, Options, evaluate_files


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument("--gt", required=True, type=Path, help="ground truth")
    parser.add_argument("--pred", required=True, type=Path, help="results")
    parser.add_argument("--json", required=True, type=Path, metavar="OUT", help="all numbers")
    parser.add_argument("--csv", type=Path, metavar="OUT", help="numbers by category")
    parser.add_argument("--html", type=Path, metavar="OUT", help="report with plots, one file")
    parser.add_argument(
        "--images", type=Path, metavar="ROOT", help="frames, for strips of videos in the report"
    )
    parser.add_argument("--windows", type=int, nargs="+", default=[], help="vps: window lengths (1 2 4 6 8)")
    parser.add_argument(
        "--raw-masks", action="store_true", help="vss: masks as VSPW ships them: 0 is void, 1 the first class"
    )
    parser.add_argument(
        "--categories",
        default="vipseg_vspw",
        help="vss: vipseg_vspw, toy_vps, or a JSON file with a list of {id, name}",
    )
    parser.add_argument("--min-frames", type=int, help="ytvis, ovis: only videos of at least this length")
    parser.add_argument("--max-frames", type=int, help="ytvis, ovis: only videos of at most this length")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options = Options(
        images=args.images,
        windows=args.windows,
        raw_masks=args.raw_masks,
        categories=args.categories,
        frames=(args.min_frames, args.max_frames),
        details=args.html is not None,
    )
    with clear_errors():
        evaluation = evaluate_files(args.task, args.gt, args.pred, options)
        write_json(args.json, evaluation.numbers, indent=1)
        if args.csv:
            write_csv(evaluation, args.csv)
        if args.html:
            write_html(evaluation, args.html)
    print(as_text(evaluation))


if __name__ == "__main__":
    main()
