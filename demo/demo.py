#!/usr/bin/env python
"""Segment a video and draw the result over it.

    python demo/demo.py --config-file configs/toy/MinVIS_toy.yaml --input clip.mp4 --output overlay.mp4 \\
        --opts MODEL.WEIGHTS output/demo/model_final.pth

INPUT is a video file, a folder or glob pattern of frames, an image, or a camera index (0, 1, ...; stop with
Ctrl-C). OUTPUT is a video file (H.264, plays in browsers) or a folder for frames.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dvis
from dvis.api import FrameResult, VideoResult, VideoSegmenter
from dvis.cli import clear_errors, finite, positive, positive_int
from dvis.data.files import write_json
from dvis.rendering import best_label_per_object, class_name, draw_result, frame_masks
from dvis.video_io import VideoError, VideoSource, open_video, open_writer

logger = logging.getLogger("dvis.demo")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="YAML")
    parser.add_argument(
        "--input", required=True, help="video file, folder, glob pattern, image or camera index"
    )
    parser.add_argument("--output", required=True, help="video file or folder")
    parser.add_argument(
        "--results", metavar="JSON", help="also write scores, labels, ids and run-length masks"
    )
    parser.add_argument("--confidence-threshold", type=finite, default=0.3, help="of instances to draw")
    parser.add_argument("--scale", type=positive_int, default=1, help="enlarge the output, for small videos")
    parser.add_argument("--fps", type=positive, help="frame rate of a folder of frames (default 10)")
    parser.add_argument(
        "--stream", action="store_true", help="draw frame by frame as they come, in constant memory"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY value pairs, last on the line"
    )
    return parser.parse_args(arguments)


class ReadableFrames:
    """The frames of a video up to the first that cannot be decoded, with a progress bar; keeps the error."""

    def __init__(self, video: VideoSource, title: str) -> None:
        self.video = video
        self.title = title
        self.name = video.name
        self.error: VideoError | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        count = 0
        try:
            for frame in tqdm(self.video, desc=self.title, unit="frame", total=self.video.num_frames):
                yield frame
                count += 1
        except VideoError as error:
            if not count:
                raise
            self.error = error


def as_json(result: VideoResult, source: str) -> dict[str, Any]:
    """A whole video's instances in the form of a YouTube-VIS result file, with names and ids."""
    return {
        "video": source,
        "height": result.size[0],
        "width": result.size[1],
        "num_frames": result.num_frames,
        "objects": [
            {
                "id": result.ids[i],
                "label": result.labels[i],
                "name": class_name(result, i),
                "score": result.scores[i],
                "segmentations": result.masks[i],
            }
            for i in range(len(result.scores))
        ],
    }


def run_whole(segmenter: VideoSegmenter, video: VideoSource, args: argparse.Namespace) -> VideoError | None:
    """Segment the whole video, then draw it in a second pass over the file."""
    frames = ReadableFrames(video, "segmenting")
    result = segmenter.segment_video(frames)
    if args.results:
        write_json(args.results, as_json(result, video.name))
    if result.task == "vis" and not best_label_per_object(result, args.confidence_threshold):
        logger.warning(
            "No object scores above %.2f (the best: %.2f); the output shows the plain video. "
            "--confidence-threshold lowers the bar.",
            args.confidence_threshold,
            max(result.scores, default=0.0),
        )
    # The range comes first: nothing is read beyond the last frame that was segmented.
    indices = tqdm(range(result.num_frames), desc="drawing", unit="frame")
    pairs = zip(indices, video, strict=False)
    drawn = (
        draw_result(frame, result, frame_masks(result, t), args.confidence_threshold, args.scale)
        for t, frame in pairs
    )
    write_frames(drawn, args.output, video.fps)
    return frames.error


def run_stream(segmenter: VideoSegmenter, video: VideoSource, args: argparse.Namespace) -> VideoError | None:
    """Draw every frame as soon as it is segmented; scores are those known up to that frame."""
    frames = ReadableFrames(video, "segmenting")
    pending: list[np.ndarray] = []  # frames that wait for their window's results

    def remembered() -> Iterator[np.ndarray]:
        for frame in frames:
            pending.append(frame)
            yield frame

    results: Iterable[FrameResult] = segmenter.stream(remembered(), mask_format="rle")
    drawn = (draw_result(pending.pop(0), r, r.masks, args.confidence_threshold, args.scale) for r in results)
    write_frames(drawn, args.output, video.fps)
    return frames.error


def write_frames(frames: Iterable[np.ndarray], output: str, fps: float) -> None:
    with open_writer(output, fps) as writer:
        try:
            for frame in frames:
                writer.write(frame)
        except KeyboardInterrupt:
            logger.warning("Interrupted.")
    logger.info("Wrote %d frames to %s", writer.num_frames, writer.path)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    with clear_errors():
        video = open_video(args.input, args.fps)
        # Wrong names show now, not after the work.
        open_writer(args.output, video.fps)
        if args.results and Path(args.results).is_dir():
            raise ValueError(f"--results {args.results}: is a folder; give a file")
        segmenter = VideoSegmenter.from_config(dvis.load_config(args.config_file, args.opts))
    live = args.input.isdecimal() and not Path(args.input).exists()
    if args.results and (args.stream or live or segmenter.model.inference.task != "vis"):
        sys.stderr.write(
            "error: --results is for instances of a whole video (task vis, no --stream, no camera)\n"
        )
        return 2
    error: Exception | None
    try:
        error = (run_stream if args.stream or live else run_whole)(segmenter, video, args)
    except (VideoError, OSError) as first:  # cannot be read; cannot be written
        error = first
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted before there was anything to write.\n")
        return 130
    if error is not None:
        sys.stderr.write(f"error: {error}; the output holds what was read before\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
