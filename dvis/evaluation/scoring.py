"""Scores of result files on disk against ground-truth files, as the official scripts compute them.

The evaluators, ``tools/evaluate.py`` and the tests all score through these functions. Each returns plain
dictionaries (fractions, not percent; None where nothing is defined) that go into JSON as they are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.files import read_json
from dvis.data.label_images import read_class_map, read_segment_ids
from dvis.data.rle import are_sound, checked_rle
from dvis.evaluation.metrics.panoptic import FrameOverlap, PanopticQuality, Segment, frame_overlap, stq, vpq
from dvis.evaluation.metrics.semantic import SemanticConfusion, VideoConsistency, label_boundary
from dvis.evaluation.metrics.video_ap import Protocol, VideoAPResult, evaluate_video_ap

__all__ = [
    "VideoSemanticScore",
    "check_ground_truth",
    "instance_numbers",
    "score_instances",
    "score_panoptic_images",
    "score_semantic_images",
    "score_video_panoptic",
    "score_video_semantic",
    "semantic_numbers",
    "semantic_scores",
]

VPQ_WINDOWS = (1, 2, 4, 6, 8)  # of the public script; the papers report the mean of the first four
VC_LENGTHS = (8, 16)
NUM_WORKERS = min(os.cpu_count() or 1, 8)  # threads: decoding of PNGs runs outside of Python's lock


def score_instances(
    gt_json: Path,
    ground_truth: Mapping[str, Any],
    pred_json: Path,
    results: Sequence[Mapping[str, Any]],
    protocol: Protocol,
) -> VideoAPResult:
    """Video AP of what the two files hold; see `evaluate_video_ap`, whose errors get the names of the files.

    Ground truth that nobody has looked at goes through `check_ground_truth` first.
    """
    try:
        return evaluate_video_ap(ground_truth, results, protocol)
    except BrokenDataError as error:
        raise BrokenDataError(f"{pred_json} against {gt_json}: {error}") from error


def check_ground_truth(gt_json: Path, ground_truth: Mapping[str, Any]) -> None:
    """Check the masks in YouTube-VIS form, whose faults would otherwise only change the score.

    Raises:
        BrokenDataError: for the first broken mask or one of another size than its video.
    """
    sizes = {video["id"]: (video["height"], video["width"]) for video in ground_truth["videos"]}
    for annotation in ground_truth.get("annotations") or []:
        size = sizes.get(annotation.get("video_id"))
        if size is None:
            continue  # the metric says so
        if _plainly_sound(annotation.get("segmentations"), size):
            continue
        for t, segmentation in enumerate(annotation.get("segmentations") or []):
            try:
                checked_rle(segmentation, *size)
            except ValueError as error:
                raise BrokenDataError(
                    f"{gt_json}, video {annotation['video_id']}, annotation {annotation.get('id', '?')}, "
                    f"frame {t}: {error}"
                ) from error


def _plainly_sound(segmentations: Any, size: tuple[int, int]) -> bool:
    """Whether these are compressed codes of this size and nothing is wrong with them."""
    present = [mask for mask in segmentations or [] if mask]
    return all(
        isinstance(mask, dict) and mask.keys() >= {"size", "counts"} and mask["size"] == list(size)
        for mask in present
    ) and are_sound(present)


def score_video_panoptic(
    gt_json: Path,
    gt_masks: Path,
    pred_json: Path,
    pred_masks: Path,
    windows: Sequence[int] = VPQ_WINDOWS,
    categories: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """VPQ and STQ of a VIPSeg-form result.

    Args:
        gt_json: ``panoptic_gt_*.json`` with ``videos``, ``annotations``, ``categories``.
        gt_masks: folder of ``<video>/<frame>.png``, RGB-coded segment ids.
        pred_json: ``pred.json``; its frames are paired with the ground truth's by position in the lists.
        pred_masks: folder ``pan_pred`` with one PNG per ground-truth frame, named as there.
        windows: window lengths of VPQ.
        categories: each with ``id`` and ``isthing``; empty: those of ``gt_json``.

    Returns:
        ``vpq`` per window, ``mean_vpq_windows_*`` (all windows, and 1 2 4 6), ``stq``, ``stq_video_order``.

    Raises:
        MissingDataError, BrokenDataError: if files are missing, broken or do not fit each other; names the
            frame.
    """
    truth = read_json(gt_json)
    is_thing = {c["id"]: bool(c["isthing"]) for c in categories or truth["categories"]}
    predicted = {video["video_id"]: video["annotations"] for video in read_json(pred_json)["annotations"]}
    missing = [v["video_id"] for v in truth["annotations"] if v["video_id"] not in predicted]
    if missing:
        raise BrokenDataError(f"{pred_json}: no result for video {missing[0]} (and {len(missing) - 1} more)")

    videos: list[list[FrameOverlap]] = []
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        for video in tqdm(truth["annotations"], desc="VPS scoring", unit="video"):
            name = video["video_id"]
            gt_frames, pred_frames = video["annotations"], predicted[name]
            if len(gt_frames) != len(pred_frames):
                counts = f"{len(pred_frames)} frames, the ground truth {len(gt_frames)}"
                raise BrokenDataError(f"{pred_json}: video {name} has {counts}")

            def overlap(pair: tuple[dict[str, Any], dict[str, Any]], name: str = name) -> FrameOverlap:
                file = f"{name}/{pair[0]['file_name']}"
                return _overlap(gt_masks / file, pred_masks / file, *pair, is_thing)

            videos.append(list(pool.map(overlap, zip(gt_frames, pred_frames, strict=True))))

    try:
        quality = vpq(videos, windows)
    except ValueError as error:
        where = _smaller_than_predicted(truth["annotations"], videos)
        raise BrokenDataError(f"{gt_json}, {where}: {error}") from error
    result: dict[str, Any] = {"vpq": {str(k): _quality_table(quality[k], is_thing) for k in windows}}
    for chosen in dict.fromkeys((tuple(windows), tuple(k for k in windows if k != 8))):
        result[f"mean_vpq_windows_{'_'.join(map(str, chosen))}"] = {
            group: _mean([result["vpq"][str(k)][group]["pq"] for k in chosen])
            for group in ("all", "thing", "stuff")
        }
    result["stq"] = {
        name: [none_if_nan(v) for v in value] if isinstance(value, list) else none_if_nan(value)
        for name, value in stq(videos, is_thing).items()
    }
    result["stq_video_order"] = [video["video_id"] for video in truth["annotations"]]
    return result


def score_panoptic_images(gt_json: Path, gt_masks: Path, pred_json: Path, pred_masks: Path) -> dict[str, Any]:
    """PQ of a COCO-form panoptic result: ``All``, ``Things``, ``Stuff`` and ``per_class``.

    Raises:
        MissingDataError, BrokenDataError: if files are missing, broken or do not fit each other; names the
            image.
    """
    truth = read_json(gt_json)
    categories = {c["id"]: bool(c["isthing"]) for c in truth["categories"]}
    predicted = {image["image_id"]: image for image in read_json(pred_json)["annotations"]}

    def overlap(image: dict[str, Any]) -> list[FrameOverlap]:
        if image["image_id"] not in predicted:
            raise BrokenDataError(f"{pred_json}: no result for image {image['image_id']}")
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


def instance_numbers(result: VideoAPResult) -> dict[str, Any]:
    """Everything that the official programs print of a video AP evaluation, -1 where nothing is defined."""
    per_category = result.per_category()
    messages = [
        f"Mask sizes in video {video_id} and category {category_id} may not match!"
        for (video_id, category_id), number in result.empty_pairs.items()
        for _ in range(number)
    ]
    occurring = {category_id for _, category_id in result.matches}
    return {
        "stats": result.stats,
        "stats_in_printed_order": list(result.stats.values()),
        "printed": messages + result.printed_rows(),
        "per_category": {
            str(category_id): rows
            for category_id, rows in per_category.items()
            if any(value > -1 for value in rows.values())
        },
        "categories_without_ground_truth_or_prediction_are_all_minus_one": all(
            value == -1
            for category_id, rows in per_category.items()
            if category_id not in occurring
            for value in rows.values()
        ),
        "iou_matrices_video,category_rows_by_descending_score": {
            f"{video_id},{category_id}": matrix.tolist()
            for (video_id, category_id), matrix in result.iou_matrices.items()
        },
        "mismatch_messages": result.num_empty_pairs,
    }


def score_video_semantic(
    gt_root: Path, videos: Sequence[str], pred_root: Path, raw_masks: bool = False, num_classes: int = 124
) -> dict[str, Any]:
    """mIoU, accuracies, VC8 and VC16 of a VSPW-form result; see `semantic_scores`."""
    return semantic_numbers(semantic_scores(gt_root, videos, pred_root, raw_masks, num_classes))


@dataclass(frozen=True)
class VideoSemanticScore:
    """What is counted of one video of a VSPW-form result."""

    name: str
    num_frames: int
    confusion: SemanticConfusion
    consistency: VideoConsistency


def semantic_scores(
    gt_root: Path, videos: Sequence[str], pred_root: Path, raw_masks: bool = False, num_classes: int = 124
) -> Iterator[VideoSemanticScore]:
    """Count video by video.

    Args:
        gt_root: folder ``data`` with ``<video>/mask/<frame>.png``; classes from 0, 255 = ignore.
        videos: names of the videos to score.
        pred_root: folder with ``<video>/<frame>.png``, one per mask.
        raw_masks: whether masks are coded as VSPW ships them: 0 = void, class + 1 otherwise.
        num_classes: number of classes.

    Raises:
        MissingDataError, BrokenDataError: if files are missing, broken or do not fit each other; names the
            frame.
    """

    def score(video: str) -> VideoSemanticScore:
        folder = gt_root / video / "mask"
        files = sorted(folder.glob("*.png"))
        if not files:
            raise MissingDataError(f"{folder}: no masks (*.png)")
        confusion, consistency = SemanticConfusion(num_classes), VideoConsistency(VC_LENGTHS)
        consistency.add_video(_semantic_frames(files, pred_root / video, raw_masks, confusion))
        return VideoSemanticScore(video, len(files), confusion, consistency)

    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        yield from tqdm(pool.map(score, videos), desc="VSS scoring", unit="video", total=len(videos))


def semantic_numbers(scores: Iterable[VideoSemanticScore]) -> dict[str, Any]:
    """mIoU, accuracies, VC8 and VC16 over all videos, as the public scripts compute them."""
    confusion: SemanticConfusion | None = None
    consistency = VideoConsistency(VC_LENGTHS)
    for score in scores:
        confusion = confusion or SemanticConfusion(score.confusion.num_classes)
        confusion.merge(score.confusion)
        for length in VC_LENGTHS:
            consistency.clips[length].extend(score.consistency.clips[length])
    if confusion is None:
        raise ValueError("there is no video to score")
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


def score_semantic_images(
    gt_root: Path, pred_root: Path, class_names: Sequence[str], ignore_label: int = 255
) -> dict[str, float | None]:
    """Semantic segmentation of images as detectron2's ``SemSegEvaluator`` reports it, in percent.

    Args:
        gt_root: folder of label maps ``<image>.png``.
        pred_root: folder of predicted label maps under the same names.
        class_names: of the classes 0, 1, ...
        ignore_label: of ground-truth pixels that do not count.

    Returns:
        ``mIoU``, ``fwIoU``, ``mACC``, ``pACC`` and, per class, ``IoU-*``, ``BoundaryIoU-*``,
        ``min(IoU, B-Iou)-*``, ``ACC-*``; None where a class does not occur.

    Raises:
        MissingDataError, BrokenDataError: if files are missing, broken or do not fit each other; names the
            file.

    Source: detectron2 0.6; Boundary IoU (arXiv:2103.16562) of label maps.
    """
    files = sorted(gt_root.glob("*.png"))
    if not files:
        raise MissingDataError(f"{gt_root}: no label maps (*.png)")
    num_classes = len(class_names)
    if num_classes > 254:
        raise ValueError(f"label maps of 8 bits hold at most 254 classes, not {num_classes}")
    regions, boundaries = SemanticConfusion(num_classes), SemanticConfusion(num_classes)

    def count(file: Path) -> tuple[SemanticConfusion, SemanticConfusion]:
        truth, predicted = read_class_map(file), read_class_map(pred_root / file.name)
        truth = np.where(truth == ignore_label, num_classes, truth).astype(np.uint8)
        predicted = np.minimum(predicted, 255).astype(np.uint8)
        found = SemanticConfusion(num_classes), SemanticConfusion(num_classes)
        try:
            found[0].add(truth, predicted)
        except ValueError as error:
            raise BrokenDataError(f"{pred_root / file.name} against {file}: {error}") from error
        found[1].add(label_boundary(truth), label_boundary(predicted))
        return found

    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        for found in tqdm(pool.map(count, files), desc="mIoU", unit="image", total=len(files)):
            regions.merge(found[0])
            boundaries.merge(found[1])

    summary, iou = regions.summary(), regions.iou()
    # Boundaries of a label map hold differences of labels; a class may occur in them on one side only.
    common, truth_sum, predicted_sum = boundaries.marginals()
    union = truth_sum + predicted_sum - common
    boundary_iou = np.where(union > 0, common / np.maximum(union, 1), np.nan)
    common, truth_sum, _ = regions.marginals()
    accuracy = np.where(truth_sum > 0, common / np.maximum(truth_sum, 1), np.nan)
    result = {"mIoU": summary["mIoU"], "fwIoU": summary["fwIoU"]}
    for i, name in enumerate(class_names):
        result[f"IoU-{name}"] = iou[i]
        result[f"BoundaryIoU-{name}"] = boundary_iou[i]
        result[f"min(IoU, B-Iou)-{name}"] = np.minimum(iou[i], boundary_iou[i])
    result["mACC"], result["pACC"] = summary["Acc_class"], summary["Acc"]
    result |= {f"ACC-{name}": accuracy[i] for i, name in enumerate(class_names)}
    return {name: none_if_nan(100 * float(value)) for name, value in result.items()}


def none_if_nan(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _semantic_frames(
    files: Sequence[Path], pred_folder: Path, raw_masks: bool, confusion: SemanticConfusion
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for file in files:
        truth, predicted = read_class_map(file), read_class_map(pred_folder / file.name)
        if raw_masks:
            truth = np.where(truth == 255, 255, truth - np.uint8(1)).astype(np.uint8)  # 0 wraps to 255
        try:
            confusion.add(truth, predicted)
        except ValueError as error:
            raise BrokenDataError(f"{pred_folder / file.name} against {file}: {error}") from error
        yield truth, predicted


def _overlap(
    gt_file: Path,
    pred_file: Path,
    truth: dict[str, Any],
    predicted: dict[str, Any],
    categories: Mapping[int, bool],
) -> FrameOverlap:
    maps = read_segment_ids(gt_file), read_segment_ids(pred_file)
    segments = _segments(truth, categories, gt_file), _segments(predicted, categories, pred_file)
    try:
        return frame_overlap(*maps, *segments)
    except ValueError as error:
        raise BrokenDataError(f"{pred_file} against {gt_file}: {error}") from error


def _smaller_than_predicted(
    annotations: Sequence[Mapping[str, Any]], videos: Sequence[Sequence[FrameOverlap]]
) -> str:
    """Name the first segment of the ground truth whose listed area cannot be true."""
    for video, overlaps in zip(annotations, videos, strict=True):
        for frame, overlap in zip(video["annotations"], overlaps, strict=True):
            for segment in overlap.truth:
                drawn = int(overlap.pixels[overlap.truth_ids == segment.id].sum())
                if segment.area < drawn:
                    place = f"video {video['video_id']}, {frame['file_name']}, segment {segment.id}"
                    return f"{place} (area {segment.area}, drawn {drawn})"
    return "some segment"


def _segments(frame: dict[str, Any], categories: Mapping[int, bool], png: Path) -> list[Segment]:
    """The listed segments of a frame; ``png`` draws them and names the frame in messages."""
    if "segments_info" not in frame:
        raise BrokenDataError(f"{png}: its entry in the JSON has no segments_info")
    segments = []
    for entry in frame["segments_info"]:
        if not {"id", "category_id"} <= entry.keys():
            raise BrokenDataError(f"{png}: a segment in the JSON has no id or no category_id: {entry}")
        if entry["category_id"] not in categories:
            raise BrokenDataError(f"{png}, segment {entry['id']}: unknown category {entry['category_id']}")
        crowd = bool(entry.get("iscrowd", 0))
        segments.append(Segment(entry["id"], entry["category_id"], crowd, entry.get("area", 0)))
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
