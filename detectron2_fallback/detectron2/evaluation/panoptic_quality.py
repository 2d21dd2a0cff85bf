"""Panoptic quality, in COCO's formats.

Source: Panoptic Segmentation (arXiv:1801.00868), section 4; the handling of crowd and void follows COCO's
published evaluation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

__all__ = [
    "PanopticCounts",
    "count_segments",
    "id2rgb",
    "panoptic_quality",
    "pq_compute",
    "read_segment_ids",
    "rgb2id",
    "summarize",
]

VOID = 0
_BASE = 256
_MAX_THREADS = 8


def rgb2id(color: np.ndarray) -> np.ndarray:
    """Segment ids of a PNG.

    Args:
        color: ``H W 3`` uint8.

    Returns:
        ``H W`` int64, R + 256 G + 65536 B.
    """
    channels = color.astype(np.int64)
    return channels[..., 0] + _BASE * (channels[..., 1] + _BASE * channels[..., 2])


def id2rgb(id_map: np.ndarray) -> np.ndarray:
    """Inverse of :func:`rgb2id`: ``H W`` integers below 256^3 to ``H W 3`` uint8."""
    ids = np.asarray(id_map).astype(np.int64)
    return np.stack([ids % _BASE, ids // _BASE % _BASE, ids // _BASE**2 % _BASE], axis=-1).astype(np.uint8)


def read_segment_ids(file: Any) -> np.ndarray:
    """Read a PNG of segment ids (a path or an open binary file) as ``H W`` int64."""
    with Image.open(file) as image:
        return rgb2id(np.asarray(image.convert("RGB")))


@dataclass(frozen=True)
class PanopticCounts:
    """Sums over images, one entry per category (``K``).

    Attributes:
        iou: sum of the IoUs of matched pairs, float64.
        tp, fp, fn: numbers of matched pairs, unmatched predictions, unmatched ground truth, int64.
    """

    iou: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    @classmethod
    def zeros(cls, num_categories: int) -> PanopticCounts:
        return cls(np.zeros(num_categories), *(np.zeros(num_categories, dtype=np.int64) for _ in range(3)))

    def __add__(self, other: PanopticCounts) -> PanopticCounts:
        return PanopticCounts(
            self.iou + other.iou, self.tp + other.tp, self.fp + other.fp, self.fn + other.fn
        )


def _index_ids(ids: np.ndarray, segments: Mapping[int, Any]) -> tuple[np.ndarray, list[int]]:
    """Number ids by their rank among void and the listed ids; all others get the number after these.

    Returns:
        One int64 number per element, flat, and the sorted ids that the numbers stand for.
    """
    values = np.array(sorted({VOID, *segments}), dtype=np.int64)
    flat = ids.reshape(-1)
    index = np.searchsorted(values, flat).clip(max=len(values) - 1)
    index[values[index] != flat] = len(values)
    return index, values.tolist()


def _check_prediction(
    areas: Mapping[int, int],
    segments: Mapping[int, Mapping],
    index_of: Mapping[int, int],
    name: str,
    unlisted: Sequence[int] | np.ndarray,
) -> None:
    """Ids of PNG and json must agree, categories must exist."""
    if len(unlisted):
        raise KeyError(f"{name}: segment {unlisted[0]} is in the predicted PNG but not in the json")
    missing = sorted(segment_id for segment_id in segments if areas[segment_id] == 0)
    if missing:
        raise KeyError(f"{name}: segments {missing} are in the predicted json but not in the PNG")
    for segment_id, segment in segments.items():
        if segment["category_id"] not in index_of:
            raise KeyError(f"{name}: segment {segment_id} has unknown category_id {segment['category_id']}")


def count_segments(
    gt_ids: np.ndarray,
    gt_segments: Sequence[Mapping[str, Any]],
    pred_ids: np.ndarray,
    pred_segments: Sequence[Mapping[str, Any]],
    index_of: Mapping[int, int],
    name: str = "image",
) -> PanopticCounts:
    """Match the segments of one image (or tube volume) and count.

    Args:
        gt_ids: integer segment ids of any shape, 0 = void. Ids missing in ``gt_segments`` are not void.
        gt_segments: dicts with "id", "category_id", "area" and optionally "iscrowd". The area counts as it is
            written here, whatever the ids say.
        pred_ids: as ``gt_ids``.
        pred_segments: dicts with "id" and "category_id"; areas are counted.
        index_of: position of every category id in the result.
        name: for error messages.

    Raises:
        ValueError: if the shapes differ.
        KeyError: if ids and list of the prediction do not agree, or a category is unknown.
    """
    if gt_ids.shape != pred_ids.shape:
        raise ValueError(f"{name}: ground truth has shape {gt_ids.shape}, the prediction {pred_ids.shape}")
    counts = PanopticCounts.zeros(len(index_of))
    gt = {segment["id"]: segment for segment in gt_segments}
    pred = {segment["id"]: segment for segment in pred_segments}

    gt_index, gt_values = _index_ids(gt_ids, gt)
    pred_index, pred_values = _index_ids(pred_ids, pred)
    table = np.bincount(
        gt_index * (len(pred_values) + 1) + pred_index,
        minlength=(len(gt_values) + 1) * (len(pred_values) + 1),
    ).reshape(len(gt_values) + 1, len(pred_values) + 1)
    unlisted = pred_ids.reshape(-1)[pred_index == len(pred_values)] if table[:, -1].any() else []
    _check_prediction(dict(zip(pred_values, table.sum(axis=0), strict=False)), pred, index_of, name, unlisted)
    gt_row = {value: row for row, value in enumerate(gt_values)}
    pred_column = {value: column for column, value in enumerate(pred_values)}
    pred_areas = {value: int(table[:, column].sum()) for value, column in pred_column.items()}

    def overlap(gt_id: int, pred_id: int) -> int:
        return int(table[gt_row[gt_id], pred_column[pred_id]])

    matched_gt, matched_pred = set(), set()
    for row, column in zip(*np.nonzero(table[:-1]), strict=True):
        gt_id, pred_id = gt_values[row], pred_values[column]
        if VOID in (gt_id, pred_id) or gt[gt_id].get("iscrowd", 0):
            continue
        category = gt[gt_id]["category_id"]
        if category != pred[pred_id]["category_id"]:
            continue
        intersection = int(table[row, column])
        union = pred_areas[pred_id] + gt[gt_id]["area"] - intersection - overlap(VOID, pred_id)
        iou = intersection / union
        if iou > 0.5:  # so both segments can have no other match
            counts.tp[index_of[category]] += 1
            counts.iou[index_of[category]] += iou
            matched_gt.add(gt_id)
            matched_pred.add(pred_id)

    crowd_of_category = {}
    for gt_id, segment in gt.items():
        if segment.get("iscrowd", 0):
            crowd_of_category[segment["category_id"]] = gt_id  # of several crowds the last one counts
        elif gt_id not in matched_gt:
            counts.fn[index_of[segment["category_id"]]] += 1

    for pred_id, segment in pred.items():
        if pred_id in matched_pred:
            continue
        ignored = overlap(VOID, pred_id)
        if segment["category_id"] in crowd_of_category:
            ignored += overlap(crowd_of_category[segment["category_id"]], pred_id)
        if ignored / pred_areas[pred_id] <= 0.5:
            counts.fp[index_of[segment["category_id"]]] += 1
    return counts


def summarize(counts: PanopticCounts, categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Panoptic, segmentation and recognition quality.

    Args:
        counts: ``K`` sums.
        categories: ``K`` dicts with "id" and "isthing", in the order of ``counts``.

    Returns:
        "All", "Things", "Stuff": {"pq", "sq", "rq" in [0, 1], "n"}, means over the n categories that occur
        (NaN without any); "per_class": category id -> {"pq", "sq", "rq"}, zeros where it does not occur.
    """
    weight = counts.tp + 0.5 * counts.fp + 0.5 * counts.fn
    occurs = weight > 0
    safe_weight = np.where(occurs, weight, 1.0)
    quality = {
        "pq": counts.iou / safe_weight,
        "sq": counts.iou / np.maximum(counts.tp, 1),
        "rq": counts.tp / safe_weight,
    }
    isthing = np.array([bool(category["isthing"]) for category in categories], dtype=bool)
    results: dict[str, Any] = {}
    for group, members in (("All", occurs), ("Things", occurs & isthing), ("Stuff", occurs & ~isthing)):
        n = int(members.sum())
        results[group] = {k: float(v[members].mean()) if n else float("nan") for k, v in quality.items()}
        results[group]["n"] = n
    results["per_class"] = {
        category["id"]: {k: float(v[i]) for k, v in quality.items()} for i, category in enumerate(categories)
    }
    return results


def panoptic_quality(
    gt_annotations: Iterable[Mapping[str, Any]],
    pred_annotations: Iterable[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
    read_gt: Callable[[Mapping[str, Any]], np.ndarray],
    read_pred: Callable[[Mapping[str, Any]], np.ndarray],
) -> dict[str, Any]:
    """Panoptic quality of a set of images.

    Args:
        gt_annotations: COCO's entries with "image_id" and "segments_info".
        pred_annotations: as ``gt_annotations``; entries of other images are ignored.
        categories: dicts with "id" and "isthing".
        read_gt: gives the ids (``H W``, 0 = void) of an entry.
        read_pred: the same for a prediction.

    Returns:
        See :func:`summarize`.

    Raises:
        KeyError: if an image has no prediction, or a prediction is inconsistent.
    """
    predictions = {annotation["image_id"]: annotation for annotation in pred_annotations}
    index_of = {category["id"]: i for i, category in enumerate(categories)}

    def count(annotation: Mapping[str, Any]) -> PanopticCounts:
        image_id = annotation["image_id"]
        if image_id not in predictions:
            raise KeyError(f"no prediction for the image with id: {image_id}")
        prediction = predictions[image_id]
        return count_segments(
            read_gt(annotation),
            annotation["segments_info"],
            read_pred(prediction),
            prediction["segments_info"],
            index_of,
            name=f"image {image_id}",
        )

    total = PanopticCounts.zeros(len(categories))
    # Decoding PNGs and sorting pixels both happen outside the interpreter lock.
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for counts in pool.map(count, gt_annotations):
            total = total + counts
    return summarize(total, categories)


def pq_compute(
    gt_json_file: str | os.PathLike,
    pred_json_file: str | os.PathLike,
    gt_folder: str | os.PathLike | None = None,
    pred_folder: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Panoptic quality of files in COCO's panoptic format.

    Args:
        gt_json_file: with "categories" and "annotations".
        pred_json_file: with "annotations".
        gt_folder: of the PNGs; by default the path of the json without extension.
        pred_folder: the same for the predictions.

    Returns:
        See :func:`summarize`.
    """
    with open(gt_json_file) as file:
        gt = json.load(file)
    with open(pred_json_file) as file:
        pred = json.load(file)
    gt_root = os.path.splitext(gt_json_file)[0] if gt_folder is None else gt_folder
    pred_root = os.path.splitext(pred_json_file)[0] if pred_folder is None else pred_folder
    return panoptic_quality(
        gt["annotations"],
        pred["annotations"],
        gt["categories"],
        lambda annotation: read_segment_ids(os.path.join(gt_root, annotation["file_name"])),
        lambda annotation: read_segment_ids(os.path.join(pred_root, annotation["file_name"])),
    )
