"""Strips of frames with results drawn over them, ground truth and prediction one above the other.

A strip maker takes the name of a video and gives rows ``(title, H W 3 uint8 RGB)``; it reads only the frames
that it shows. Letters: T shown frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.label_images import read_class_map, read_segment_ids
from dvis.data.rle import decode_rle, to_rle
from dvis.visualization import draw_instances, draw_panoptic, draw_semantic

__all__ = ["StripMaker", "instance_strips", "panoptic_strips", "semantic_strips"]

Image = NDArray[np.uint8]
StripMaker = Callable[[str], list[tuple[str, Image]]]

NUM_FRAMES = 6
HEIGHT = 150  # pixels of one frame in a strip
MIN_SCORE = 0.3  # predictions below it would hide the others


def instance_strips(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], images: Path
) -> StripMaker:
    """Strips of instances, by the text of the video's id.

    Args:
        ground_truth, results: decoded JSON in YouTube-VIS form.
        images: folder to which ``file_names`` are relative.
    """
    videos = {str(video["id"]): video for video in ground_truth["videos"]}
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}

    def draw(video: Mapping[str, Any], tubes: Sequence[Mapping[str, Any]]) -> Image:
        frames = []
        for t in _spread(len(video["file_names"])):
            frame = _read_frame([images / video["file_names"][t]])
            masks, ids, texts = [], [], []
            for number, tube in enumerate(tubes):
                segmentation = tube["segmentations"][t] if t < len(tube["segmentations"]) else None
                code = to_rle(segmentation, *frame.shape[:2])
                mask = None if code is None else decode_rle(code)
                if mask is not None and mask.shape == frame.shape[:2]:
                    score = f" {tube['score']:.0%}" if "score" in tube else ""
                    masks.append(mask)
                    ids.append(number)
                    texts.append(names.get(tube["category_id"], str(tube["category_id"])) + score)
            frames.append(draw_instances(frame, masks, ids, texts))
        return _row(frames)

    def strips(name: str) -> list[tuple[str, Image]]:
        video = videos[name]
        objects = [a for a in ground_truth.get("annotations") or [] if a["video_id"] == video["id"]]
        tubes = [r for r in results if r["video_id"] == video["id"] and r["score"] >= MIN_SCORE]
        tubes.sort(key=lambda tube: -tube["score"])
        return [("ground truth", draw(video, objects)), ("prediction", draw(video, tubes))]

    return strips


def panoptic_strips(
    ground_truth: Mapping[str, Any],
    gt_masks: Path,
    predictions: Mapping[str, Any],
    pred_masks: Path,
    images: Path,
) -> StripMaker:
    """Strips of VIPSeg-form segments, by the name of the video; ``images`` has ``<video>/<frame>.jpg``."""
    categories = {category["id"]: category for category in ground_truth["categories"]}
    rank = {category_id: k for k, category_id in enumerate(categories)}
    names = [category["name"] for category in categories.values()]
    truth_of = {entry["video_id"]: entry["annotations"] for entry in ground_truth["annotations"]}
    result_of = {entry["video_id"]: entry["annotations"] for entry in predictions["annotations"]}

    def draw(name: str, frames: Sequence[Mapping[str, Any]], masks: Path) -> Image:
        drawn = []
        # Objects are numbered in order of appearance: segment ids are colours and too long to write.
        numbers: dict[int, int] = {}
        for t in _spread(len(frames)):
            file = truth_of[name][t]["file_name"]
            ids = read_segment_ids(masks / name / file)
            frame = _read_frame([images / name / file, (images / name / file).with_suffix(".jpg")])
            panoptic = np.zeros(ids.shape, np.int32)
            segments = []
            for segment in frames[t]["segments_info"]:
                number = numbers.setdefault(segment["id"], len(numbers) + 1)
                panoptic[ids == segment["id"]] = number
                category = categories[segment["category_id"]]
                label = rank[segment["category_id"]]
                segments.append({"id": number, "category_id": label, "isthing": bool(category["isthing"])})
            drawn.append(draw_panoptic(frame, panoptic, segments, names))
        return _row(drawn)

    def strips(name: str) -> list[tuple[str, Image]]:
        return [
            ("ground truth", draw(name, truth_of[name], gt_masks)),
            ("prediction", draw(name, result_of[name], pred_masks)),
        ]

    return strips


def semantic_strips(
    gt_root: Path, pred_root: Path, raw_masks: bool, names: Sequence[str], images: Path
) -> StripMaker:
    """Strips of VSPW-form label maps; ``images`` has ``<video>/[origin/]<frame>.jpg``."""

    def strips(name: str) -> list[tuple[str, Image]]:
        files = sorted((gt_root / name / "mask").glob("*.png"))
        truth, predicted = [], []
        for t in _spread(len(files)):
            image = f"{files[t].stem}.jpg"
            frame = _read_frame([images / name / "origin" / image, images / name / image])
            labels = read_class_map(files[t]).astype(np.int64)
            truth.append(draw_semantic(frame, labels - 1 if raw_masks else labels, names))
            predicted.append(draw_semantic(frame, read_class_map(pred_root / name / files[t].name), names))
        return [("ground truth", _row(truth)), ("prediction", _row(predicted))]

    return strips


def _spread(length: int) -> list[int]:
    """Up to `NUM_FRAMES` frame numbers, evenly spaced, first and last included."""
    count = min(length, NUM_FRAMES)
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def _read_frame(candidates: Sequence[Path]) -> Image:
    import cv2

    for path in candidates:
        if path.is_file():
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise BrokenDataError(f"{path}: cannot be read as an image")
            return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
    raise MissingDataError(f"no frame at {' or '.join(str(path) for path in candidates)}")


def _row(frames: Sequence[Image]) -> Image:
    """Frames side by side, all scaled to one height."""
    import cv2

    scaled = []
    for frame in frames:
        width = max(1, round(frame.shape[1] * HEIGHT / frame.shape[0]))
        scaled.append(np.asarray(cv2.resize(frame, (width, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8))
        scaled.append(np.full((HEIGHT, 3, 3), 255, np.uint8))
    return np.concatenate(scaled[:-1], axis=1)
