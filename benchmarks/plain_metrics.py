"""VPQ, STQ, mIoU and VC straight from their definitions: what the metrics are measured against.

Every window of every length looks at its pixels again, every clip compares its frames again, and images are
read once per metric, as programs that follow the definitions line by line do.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

OFFSET = 2**32


def segment_ids(path: Path) -> np.ndarray:
    colors = np.array(Image.open(path), dtype=np.int64)
    return colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]


def read_videos(gt: Path, pred: Path) -> tuple[dict[int, bool], list[list[tuple]]]:
    """Categories, and per video and frame both id maps and both lists of segments."""
    truth = json.loads((gt / "panoptic_gt.json").read_text())
    predicted = {v["video_id"]: v for v in json.loads((pred / "pred.json").read_text())["annotations"]}
    videos = []
    for video in truth["annotations"]:
        frames = []
        for a, b in zip(video["annotations"], predicted[video["video_id"]]["annotations"], strict=True):
            file = f"{video['video_id']}/{a['file_name']}"
            maps = segment_ids(gt / "panomasksRGB" / file), segment_ids(pred / "pan_pred" / file)
            frames.append((*maps, a["segments_info"], b["segments_info"]))
        videos.append(frames)
    return {c["id"]: bool(c["isthing"]) for c in truth["categories"]}, videos


def vpq(gt: Path, pred: Path, windows: tuple[int, ...]) -> dict[int, float]:
    """Mean PQ of all categories per window."""
    result = {}
    for window in windows:
        _, videos = read_videos(gt, pred)
        counts: dict[int, list[float]] = defaultdict(lambda: [0.0, 0, 0, 0])  # IoU, TP, FP, FN
        for frames in videos:
            for start in range(len(frames) - window + 1):
                _count_tubes(frames[start : start + window], counts)
        result[window] = float(np.mean([c[0] / (c[1] + c[2] / 2 + c[3] / 2) for c in counts.values()]))
    return result


def _count_tubes(frames: list[tuple], counts: dict[int, list[float]]) -> None:
    truth_map, predicted_map = (np.stack([frame[i] for frame in frames]) for i in (0, 1))
    truth: dict[int, dict[str, int]] = {}
    predicted: dict[int, dict[str, int]] = {}
    for frame in frames:
        for tubes, segments in ((truth, frame[2]), (predicted, frame[3])):
            for segment in segments:
                tubes.setdefault(segment["id"], {"category": segment["category_id"], "area": 0})
        for segment in frame[2]:
            truth[segment["id"]]["area"] += segment["area"]
    for segment_id, area in zip(*np.unique(predicted_map, return_counts=True), strict=True):
        if segment_id:
            predicted[int(segment_id)]["area"] = int(area)
    pairs = {}
    for key, area in zip(*np.unique(truth_map * OFFSET + predicted_map, return_counts=True), strict=True):
        pairs[int(key) // OFFSET, int(key) % OFFSET] = int(area)
    matched_truth, matched_predicted = set(), set()
    for (g, d), area in pairs.items():
        if g in truth and d in predicted and truth[g]["category"] == predicted[d]["category"]:
            union = truth[g]["area"] + predicted[d]["area"] - area - pairs.get((0, d), 0)
            if area / union > 0.5:
                counts[truth[g]["category"]][0] += area / union
                counts[truth[g]["category"]][1] += 1
                matched_truth.add(g)
                matched_predicted.add(d)
    for g, tube in truth.items():
        counts[tube["category"]][3] += g not in matched_truth
    for d, tube in predicted.items():
        if d not in matched_predicted and pairs.get((0, d), 0) <= 0.5 * tube["area"]:
            counts[tube["category"]][2] += 1


def stq(gt: Path, pred: Path) -> float:
    categories, videos = read_videos(gt, pred)
    index = {category: k for k, category in enumerate(sorted(categories))}
    void = len(index)
    things = np.array([categories[c] for c in sorted(categories)] + [False])
    confusion = np.zeros((void + 1, void + 1), np.int64)
    total, number = 0.0, 0
    for frames in videos:
        numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})
        sizes: tuple[dict[int, int], dict[int, int]] = (defaultdict(int), defaultdict(int))
        shared: dict[tuple[int, int], int] = defaultdict(int)
        for frame in frames:
            classes, tubes = [], []
            for side in (0, 1):
                class_map = np.full(frame[side].shape, void, np.int64)
                instance_map = np.zeros(frame[side].shape, np.int64)
                for segment in frame[2 + side]:
                    mask = frame[side] == segment["id"]
                    class_map[mask] = index[segment["category_id"]]
                    instance_map[mask] = numbers[side].setdefault(segment["id"], len(numbers[side]))
                classes.append(class_map)
                tubes.append(class_map * 2**16 + instance_map)
            labelled = classes[0] != void
            confusion += np.bincount(
                classes[0][labelled] * (void + 1) + classes[1][labelled], minlength=(void + 1) ** 2
            ).reshape(void + 1, void + 1)
            counted = ~(things[classes[0]] & (tubes[0] % 2**16 == 0))
            for side in (0, 1):
                chosen = tubes[side][counted & things[classes[side]]]
                for tube, area in zip(*np.unique(chosen, return_counts=True), strict=True):
                    sizes[side][int(tube)] += int(area)
            both = counted & things[classes[0]] & things[classes[1]]
            keys = tubes[0][both] * OFFSET + tubes[1][both]
            for key, area in zip(*np.unique(keys, return_counts=True), strict=True):
                shared[int(key) // OFFSET, int(key) % OFFSET] += int(area)
        number += len(sizes[0])
        for (g, d), area in shared.items():
            total += area * area / (sizes[0][g] + sizes[1][d] - area) / sizes[0][g]
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal()
    quality = (confusion.diagonal()[union > 0] / union[union > 0]).mean()
    return math.sqrt(total / max(number, 1) * quality)


def semantic(gt: Path, pred: Path, videos: list[str], num_classes: int = 124) -> dict[str, Any]:
    """mIoU and VC8, VC16; three passes over the files."""
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for video in videos:
        for truth, predicted in _read_labels(gt, pred, video):
            valid = truth < num_classes
            pairs = truth[valid] * num_classes + predicted[valid]
            confusion += np.bincount(pairs, minlength=num_classes**2).reshape(confusion.shape)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal()
    present = confusion.sum(axis=1) > 0
    result: dict[str, Any] = {"mIoU": (confusion.diagonal()[present] / union[present]).mean()}
    for length in (8, 16):
        values = []
        for video in videos:
            frames = _read_labels(gt, pred, video)
            for start in range(len(frames) - length):
                common, kept = np.ones((2, *frames[0][0].shape), bool)
                for truth, predicted in frames[start : start + length]:
                    common &= truth == frames[start][0]
                    kept &= predicted == frames[start][1]
                values.append((common & kept).sum() / common.sum())
        result[f"VC{length}"] = float(np.mean(values))
    return result


def _read_labels(gt: Path, pred: Path, video: str) -> list[tuple[np.ndarray, np.ndarray]]:
    files = sorted((gt / video / "mask").glob("*.png"))
    return [
        (np.array(Image.open(f), np.int64), np.array(Image.open(pred / video / f.name), np.int64))
        for f in files
    ]
