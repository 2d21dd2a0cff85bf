"""Video AP straight from its definition: loops over pairs, frames, thresholds, objects. Slow on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = [(0, 1e10), (0, 128**2), (128**2, 256**2), (256**2, 1e10)]
LIMITS = (1, 10, 100)


def _iou(tube: list[Any], target: list[Any]) -> float:
    inter = union = 0.0
    for d, g in zip(tube, target, strict=False):
        if d and g:
            inter += mask_utils.area(mask_utils.merge([d, g], True))
            union += mask_utils.area(mask_utils.merge([d, g], False))
        elif d or g:
            union += mask_utils.area(d or g)
    return inter / union if union > 0 else 0.0


def _mean(values: list[float]) -> float:
    kept = [v for v in values if v]
    return float(np.mean(kept)) if kept else 0.0


def _match(dets: list[dict], gts: list[dict], ious: np.ndarray, area: tuple[float, float]) -> dict[str, Any]:
    ignore = [bool(g["iscrowd"]) or not area[0] <= _mean(g["areas"]) <= area[1] for g in gts]
    order = np.argsort(ignore, kind="stable")
    matched = np.zeros((len(THRESHOLDS), len(dets)), dtype=bool)
    dropped = np.zeros_like(matched)
    for s, threshold in enumerate(THRESHOLDS):
        taken: set[int] = set()
        for d in range(len(dets)):
            best, best_iou = -1, min(threshold, 1 - 1e-10)
            for g in order:
                if g in taken and not gts[g]["iscrowd"]:
                    continue
                if best >= 0 and not ignore[best] and ignore[g]:
                    break
                if ious[d, g] >= best_iou:
                    best, best_iou = g, ious[d, g]
            if best >= 0:
                taken.add(best)
                matched[s, d] = True
                dropped[s, d] = ignore[best]
            else:
                dropped[s, d] = not area[0] <= dets[d]["mean_area"] <= area[1]
    return {"scores": [d["score"] for d in dets], "matched": matched, "dropped": dropped, "ignore": ignore}


def evaluate(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Precision ``S R K A M`` and recall ``S K A M`` of the YouTube-VIS protocol."""
    videos = sorted(v["id"] for v in ground_truth["videos"])
    categories = sorted(c["id"] for c in ground_truth["categories"])
    precision = np.full((10, 101, len(categories), len(AREAS), len(LIMITS)), -1.0)
    recall = np.full((10, len(categories), len(AREAS), len(LIMITS)), -1.0)
    results = [
        {**r, "mean_area": _mean([float(mask_utils.area(m)) if m else 0 for m in r["segmentations"]])}
        for r in results
    ]
    groups: dict[tuple[int, int], tuple[list[dict], list[dict], np.ndarray]] = {}
    for video in videos:
        for category in categories:
            gts = [
                g
                for g in ground_truth["annotations"]
                if (g["video_id"], g["category_id"]) == (video, category)
            ]
            dets = [r for r in results if (r["video_id"], r["category_id"]) == (video, category)]
            dets = [dets[i] for i in np.argsort([-d["score"] for d in dets], kind="stable")[:100]]
            if gts or dets:
                ious = np.array([[_iou(d["segmentations"], g["segmentations"]) for g in gts] for d in dets])
                groups[video, category] = (dets, gts, ious)
    for k, category in enumerate(categories):
        for a, area in enumerate(AREAS):
            matches = [_match(*groups[v, category], area) for v in videos if (v, category) in groups]
            total = sum(not i for m in matches for i in m["ignore"])
            if not total:
                continue
            for j, limit in enumerate(LIMITS):
                scores = np.array([s for m in matches for s in m["scores"][:limit]])
                order = np.argsort(-scores, kind="stable")
                for s in range(len(THRESHOLDS)):
                    hit = np.concatenate([m["matched"][s, :limit] for m in matches])[order]
                    off = np.concatenate([m["dropped"][s, :limit] for m in matches])[order]
                    tp, fp = np.cumsum(hit & ~off), np.cumsum(~hit & ~off)
                    curve = tp / (tp + fp + np.spacing(1))
                    recall[s, k, a, j] = tp[-1] / total if len(tp) else 0
                    for r, point in enumerate(np.linspace(0, 1, 101)):
                        reached = np.flatnonzero(tp / total >= point)
                        precision[s, r, k, a, j] = curve[reached[0] :].max() if len(reached) else 0
    return precision, recall
