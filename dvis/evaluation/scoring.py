"""Scores of result files on disk against ground-truth files, as the official scripts compute them.

The evaluators, ``tools/evaluate.py`` and the tests all score through these functions. Each returns plain
dictionaries (fractions, not percent; None where nothing is defined) that go into JSON as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dvis.data.files import read_json
from dvis.evaluation.label_images import read_class_map, read_segment_ids
from dvis.evaluation.metrics.panoptic import FrameOverlap, PanopticQuality, Segment, frame_overlap, stq, vpq
from dvis.evaluation.metrics.semantic import SemanticConfusion, VideoConsistency

__all__ = ["score_panoptic_images", "score_video_panoptic", "score_video_semantic"]

VPQ_WINDOWS = (1, 2, 4, 6, 8)  # of the public script; the papers report the mean of the first four
VC_LENGTHS = (8, 16)
NUM_WORKERS = 2  # decoding of PNGs runs outside of Python's lock


def score_video_panoptic(
    gt_json: Path, gt_masks: Path, pred_json: Path, pred_masks: Path, windows: Sequence[int] = VPQ_WINDOWS
) -> dict[str, Any]:
    """VPQ and STQ of a VIPSeg-form result.

    Args:
        gt_json: ``panoptic_gt_*.json`` with ``videos``, ``annotations``, ``categories``.
        gt_masks: folder of ``<video>/<frame>.png``, RGB-coded segment ids.
        pred_json: ``pred.json``; its frames are paired with the ground truth's by position in the lists.
        pred_masks: folder ``pan_pred`` with one PNG per ground-truth frame, named as there.
        windows: window lengths of VPQ.

    Returns:
        ``vpq`` per window, ``mean_vpq_windows_*`` (all windows, and 1 2 4 6), ``stq``, ``stq_video_order``.

    Raises:
        FileNotFoundError, ValueError: if files are missing, broken or do not fit each other; names the frame.
    """
    truth = read_json(gt_json)
    categories = {c["id"]: bool(c["isthing"]) for c in truth["categories"]}
    predicted = {video["video_id"]: video["annotations"] for video in read_json(pred_json)["annotations"]}
    missing = [v["video_id"] for v in truth["annotations"] if v["video_id"] not in predicted]
    if missing:
        raise ValueError(f"{pred_json}: no result for video {missing[0]} (and {len(missing) - 1} more)")

    videos: list[list[FrameOverlap]] = []
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        for video in tqdm(truth["annotations"], desc="VPS scoring", unit="video"):
            name = video["video_id"]
            gt_frames, pred_frames = video["annotations"], predicted[name]
            if len(gt_frames) != len(pred_frames):
                counts = f"{len(pred_frames)} frames, the ground truth {len(gt_frames)}"
                raise ValueError(f"{pred_json}: video {name} has {counts}")

            def overlap(pair: tuple[dict[str, Any], dict[str, Any]], name: str = name) -> FrameOverlap:
                file = f"{name}/{pair[0]['file_name']}"
                return _overlap(gt_masks / file, pred_masks / file, *pair, categories)

            videos.append(list(pool.map(overlap, zip(gt_frames, pred_frames, strict=True))))

    quality = vpq(videos, windows)
    result: dict[str, Any] = {"vpq": {str(k): _quality_table(quality[k], categories) for k in windows}}
    for chosen in dict.fromkeys((tuple(windows), tuple(k for k in windows if k != 8))):
        result[f"mean_vpq_windows_{'_'.join(map(str, chosen))}"] = {
            group: _mean([result["vpq"][str(k)][group]["pq"] for k in chosen])
            for group in ("all", "thing", "stuff")
        }
    result["stq"] = stq(videos, categories)
    result["stq_video_order"] = [video["video_id"] for video in truth["annotations"]]
    return result


def score_panoptic_images(gt_json: Path, gt_masks: Path, pred_json: Path, pred_masks: Path) -> dict[str, Any]:
    """PQ of a COCO-form panoptic result: ``All``, ``Things``, ``Stuff`` and ``per_class``.

    Raises:
        FileNotFoundError, ValueError: if files are missing, broken or do not fit each other; names the image.
    """
    truth = read_json(gt_json)
    categories = {c["id"]: bool(c["isthing"]) for c in truth["categories"]}
    predicted = {image["image_id"]: image for image in read_json(pred_json)["annotations"]}

    def overlap(image: dict[str, Any]) -> list[FrameOverlap]:
        if image["image_id"] not in predicted:
            raise ValueError(f"{pred_json}: no result for image {image['image_id']}")
        other = predicted[image["image_id"]]
        paths = (gt_masks / image["file_name"], pred_masks / other["file_name"])
        return [_overlap(*paths, image, other, categories)]

    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        images = list(
            tqdm(
                pool.map(overlap, truth["annotations"]),
                desc="PQ",
                unit="image",
                total=len(truth["annotations"]),
            )
        )
    quality = vpq(images, (1,))[1]
    table = _quality_table(quality, categories)
    names = ("pq", "sq", "rq")
    return {
        "All": table["all"],
        "Things": table["thing"],
        "Stuff": table["stuff"],
        "per_class": {
            str(c): {n: table["per_class"].get(str(c), {}).get(n, 0.0) for n in names} for c in categories
        },
    }


def score_video_semantic(
    gt_root: Path, videos: Sequence[str], pred_root: Path, raw_masks: bool = False, num_classes: int = 124
) -> dict[str, Any]:
    """mIoU, accuracies, VC8 and VC16 of a VSPW-form result.

    Args:
        gt_root: folder ``data`` with ``<video>/mask/<frame>.png``; classes from 0, 255 = ignore.
        videos: names of the videos to score.
        pred_root: folder with ``<video>/<frame>.png``, one per mask.
        raw_masks: whether masks are coded as VSPW ships them: 0 = void, class + 1 otherwise.
        num_classes: number of classes.

    Raises:
        FileNotFoundError, ValueError: if files are missing, broken or do not fit each other; names the frame.
    """
    confusion = SemanticConfusion(num_classes)
    consistency = VideoConsistency(VC_LENGTHS)

    def score(video: str) -> tuple[SemanticConfusion, VideoConsistency]:
        partial, clips = SemanticConfusion(num_classes), VideoConsistency(VC_LENGTHS)
        clips.add_video(_semantic_frames(gt_root / video / "mask", pred_root / video, raw_masks, partial))
        return partial, clips

    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        for partial, clips in tqdm(
            pool.map(score, videos), desc="VSS scoring", unit="video", total=len(videos)
        ):
            confusion.merge(partial)
            for length in VC_LENGTHS:
                consistency.clips[length].extend(clips.clips[length])
    iou = confusion.iou()
    result: dict[str, Any] = {
        **{name: none_if_nan(value) for name, value in confusion.summary().items()},
        "iou_per_class_with_ground_truth": {str(i): float(v) for i, v in enumerate(iou) if not math.isnan(v)},
    }
    for length in VC_LENGTHS:
        values = consistency.clips[length]
        result[f"VC{length}"] = none_if_nan(consistency.mean(length))
        result[f"VC{length}_clips"] = len(values)
        result[f"VC{length}_clips_without_common_pixels"] = sum(math.isnan(value) for value in values)
        result[f"VC{length}_per_clip"] = [none_if_nan(value) for value in values]
    return result


def none_if_nan(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _semantic_frames(
    gt_folder: Path, pred_folder: Path, raw_masks: bool, confusion: SemanticConfusion
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    files = sorted(gt_folder.glob("*.png"))
    if not files:
        raise FileNotFoundError(f"{gt_folder}: no masks (*.png)")
    for file in files:
        truth, predicted = read_class_map(file), read_class_map(pred_folder / file.name)
        if raw_masks:
            truth = np.where(truth == 255, 255, truth - np.uint8(1)).astype(np.uint8)  # 0 wraps to 255
        try:
            confusion.add(truth, predicted)
        except ValueError as error:
            raise ValueError(f"{pred_folder / file.name}: {error}") from error
        yield truth, predicted


def _overlap(
    gt_file: Path,
    pred_file: Path,
    truth: dict[str, Any],
    predicted: dict[str, Any],
    categories: Mapping[int, bool],
) -> FrameOverlap:
    try:
        return frame_overlap(
            read_segment_ids(gt_file),
            read_segment_ids(pred_file),
            _segments(truth, categories),
            _segments(predicted, categories),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"{pred_file}: {error}") from error


def _segments(frame: dict[str, Any], categories: Mapping[int, bool]) -> list[Segment]:
    segments = [
        Segment(s["id"], s["category_id"], bool(s.get("iscrowd", 0)), s.get("area", 0))
        for s in frame["segments_info"]
    ]
    unknown = sorted({s.category_id for s in segments} - set(categories))
    if unknown:
        raise ValueError(f"unknown category ids {unknown}")
    return segments


def _quality_table(quality: PanopticQuality, categories: Mapping[int, bool]) -> dict[str, Any]:
    groups = {
        "all": list(categories),
        "thing": [c for c, thing in categories.items() if thing],
        "stuff": [c for c, thing in categories.items() if not thing],
    }
    table: dict[str, Any] = {
        name: {k: none_if_nan(v) for k, v in quality.mean(ids).items()} for name, ids in groups.items()
    }
    table["per_class"] = {
        str(c): {n: getattr(quality.counts[c], n) for n in ("pq", "sq", "rq", "iou", "tp", "fp", "fn")}
        for c in categories
        if c in quality.counts and quality.counts[c].occurs
    }
    return table


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean; None as soon as one value is undefined, as a mean over windows is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
