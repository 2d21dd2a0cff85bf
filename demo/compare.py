#!/usr/bin/env python
"""Segment a video with several models and draw the results side by side.

    python demo/compare.py --input clip.mp4 --output side_by_side.mp4 --gif side_by_side.gif \\
        --model MinVIS configs/ovis/MinVIS_R50.yaml minvis.pth \\
        --model online configs/ovis/DVIS_Online_R50.yaml online.pth \\
        --model offline configs/ovis/DVIS_Offline_R50.yaml offline.pth

Without --model these are the toy models whose weights lie in checkpoints/toy. With --truth, an annotation
file in YouTube-VIS form that has the input folder's video, it also prints scores and marks where an object
goes on under another identity. INPUT is as for demo.py; nothing is shown.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

import dvis
from dvis.api import VideoResult, VideoSegmenter
from dvis.cli import clear_errors, finite, positive, positive_int
from dvis.comparison import Identities, Truth, compare_frames, follow, load_truth, score, write_gif
from dvis.data.files import write_json
from dvis.video_io import VideoError, VideoSource, open_video, open_writer

logger = logging.getLogger("dvis.compare")

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = [
    [title, str(ROOT / "configs/toy" / f"{name}.yaml"), str(ROOT / "checkpoints/toy" / f"{name}.pth")]
    for title, name in (
        ("MinVIS", "MinVIS_toy_occluded"),
        ("DVIS online", "DVIS_Online_toy_occluded"),
        ("DVIS offline", "DVIS_Offline_toy_occluded"),
    )
]

_ROWS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "AP_heavy": "AP heavily occluded"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        nargs=3,
        action="append",
        metavar=("TITLE", "YAML", "WEIGHTS"),
        dest="models",
        help="may be given several times; if not given, the shipped toy models",
    )
    parser.add_argument("--input", required=True, help="video file, folder, glob pattern or image")
    parser.add_argument("--output", required=True, help="video file or folder")
    parser.add_argument("--gif", type=Path, metavar="GIF", help="also write a small GIF (at most 2 MB)")
    parser.add_argument("--truth", type=Path, metavar="JSON", help="ground truth of the input folder's video")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the scores")
    parser.add_argument("--confidence-threshold", type=finite, default=0.3, help="of instances to draw")
    parser.add_argument("--scale", type=positive_int, default=1, help="enlarge the output, for small videos")
    parser.add_argument("--fps", type=positive, help="frame rate of a folder of frames (default 10)")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY value pairs for all models, last on the line",
    )
    return parser.parse_args(arguments)


def segment(title: str, config: str, weights: str, opts: list[str], video: VideoSource) -> VideoResult:
    """The result of one model; its memory is free again afterwards."""
    with clear_errors():
        segmenter = VideoSegmenter.from_config(dvis.load_config(config, opts), weights)
    frames = tqdm(video, desc=title, unit="frame", total=video.num_frames)
    with clear_errors(VideoError):
        return segmenter.segment_video(frames)


def judge(
    truth: Truth | None, results: list[VideoResult], threshold: float
) -> tuple[list[Identities | None], list[dict[str, float]]]:
    """Identities and scores of each result, as far as there is ground truth for it."""
    if truth is None:
        return [None] * len(results), []
    identities = [follow(truth, result, threshold) for result in results]
    scores = [
        {**score(truth, result), "id_switches": float(known.num_switches)}
        for result, known in zip(results, identities, strict=True)
    ]
    return list(identities), scores


def as_table(titles: list[str], scores: list[dict[str, float]]) -> str:
    rows = [
        [
            title,
            *(100 * numbers[key] if numbers.get(key, -1.0) >= 0 else None for key in _ROWS),
            int(numbers["id_switches"]),
        ]
        for title, numbers in zip(titles, scores, strict=True)
    ]
    return tabulate(rows, ["model", *_ROWS.values(), "id switches"], tablefmt="github", floatfmt=".1f")


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    with clear_errors():
        video = open_video(args.input, args.fps)
        open_writer(args.output, video.fps)  # a wrong name shows now, not after the work
        truth = None if args.truth is None else load_truth(args.truth, Path(args.input).name)
    models = args.models or SHIPPED
    titles = [title for title, _, _ in models]
    results = [segment(title, path, weights, args.opts, video) for title, path, weights in models]
    if truth is not None and any(result.task != "vis" for result in results):
        sys.stderr.write("error: --truth is for instances (task vis)\n")
        return 2
    with clear_errors():
        identities, scores = judge(truth, results, args.confidence_threshold)
    drawn: list[np.ndarray] = []
    with open_writer(args.output, video.fps) as writer:
        for picture in compare_frames(
            video, titles, results, identities, args.confidence_threshold, args.scale
        ):
            writer.write(picture)
            if args.gif is not None:
                drawn.append(picture)
    logger.info("Wrote %d frames to %s", writer.num_frames, writer.path)
    if args.gif is not None:
        with clear_errors():
            write_gif(drawn, args.gif, video.fps)
        logger.info("Wrote %s (%.1f MB)", args.gif, args.gif.stat().st_size / 1e6)
    if scores:
        print(as_table(titles, scores))
    if args.json is not None:
        write_json(args.json, dict(zip(titles, scores, strict=False)), indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
