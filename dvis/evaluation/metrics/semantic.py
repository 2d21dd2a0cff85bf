"""Semantic segmentation of images and videos: mIoU and its relatives, video consistency (VC)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SemanticConfusion", "VideoConsistency", "label_boundary"]


class SemanticConfusion:
    """Confusion matrix of classes, rows ground truth, filled frame by frame.

    Ground truth outside ``0 .. num_classes - 1`` is ignored. A prediction outside is wrong: it counts for its
    ground-truth class and for no predicted one.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.matrix = np.zeros((num_classes, num_classes + 1), np.int64)  # last column: no class

    def add(self, truth: NDArray[Any], predicted: NDArray[Any]) -> None:
        """Count one frame: two ``H W`` maps of class indices.

        Raises:
            ValueError: if the sizes differ.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"sizes differ: ground truth {truth.shape}, prediction {predicted.shape} (H, W)")
        k = self.num_classes
        if truth.dtype == np.uint8 and predicted.dtype == np.uint8:
            # All 2^16 pairs at once. Neighbours mostly have the same pair: runs are counted, not pixels.
            pairs = ((truth.astype(np.uint16) << 8) | predicted).ravel()
            starts = np.flatnonzero(np.concatenate(([pairs.size > 0], pairs[1:] != pairs[:-1])))
            lengths = np.diff(np.append(starts, pairs.size))
            counts = np.bincount(pairs[starts], weights=lengths, minlength=1 << 16)
            counts = counts.astype(np.int64).reshape(256, 256)
            self.matrix[:, :k] += counts[:k, :k]
            self.matrix[:, k] += counts[:k, k:].sum(axis=1)
            return
        valid = (truth >= 0) & (truth < k)
        wrong = (predicted < 0) | (predicted >= k)
        columns = np.where(wrong, k, predicted)[valid].astype(np.int64)
        pairs = truth[valid].astype(np.int64) * (k + 1) + columns
        self.matrix += np.bincount(pairs, minlength=self.matrix.size).reshape(self.matrix.shape)

    def merge(self, other: SemanticConfusion) -> None:
        """Add what another process counted."""
        self.matrix += other.matrix

    def marginals(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Correct, ground-truth and predicted pixels per class, ``K`` each; without ignored ones."""
        return self.matrix[:, :-1].diagonal(), self.matrix.sum(axis=1), self.matrix[:, :-1].sum(axis=0)

    def iou(self) -> NDArray[np.float64]:
        """IoU per class, ``K``; NaN for classes without ground truth."""
        intersection, truth, predicted = self.marginals()
        union = truth + predicted - intersection
        return np.where(truth > 0, intersection / np.maximum(union, 1), np.nan)

    def summary(self) -> dict[str, float]:
        """Fractions ``Acc`` (pixels), ``Acc_class``, ``mIoU``, ``fwIoU`` over classes with ground truth."""
        correct, truth, _ = self.marginals()
        if not truth.any():
            return dict.fromkeys(("Acc", "Acc_class", "mIoU", "fwIoU"), math.nan)
        present = truth > 0
        iou = self.iou()
        return {
            "Acc": float(correct.sum() / truth.sum()),
            "Acc_class": float((correct[present] / truth[present]).mean()),
            "mIoU": float(iou[present].mean()),
            "fwIoU": float((truth[present] / truth.sum() * iou[present]).sum()),
        }


def label_boundary(labels: NDArray[np.uint8], width: float = 0.02) -> NDArray[np.uint8]:
    """A label map minus its erosion, ``H W``: not zero only near boundaries and the image's edge.

    Args:
        labels: ``H W``.
        width: of the boundary, as a fraction of the image's diagonal; at least one pixel.

    Source: Boundary IoU (arXiv:2103.16562), as detectron2 0.6 applies it to whole label maps.
    """
    import cv2

    steps = max(round(width * math.hypot(*labels.shape)), 1)
    padded = np.pad(labels, 1)  # zeros outside, so that the image's edge is a boundary
    eroded = np.asarray(cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps), np.uint8)
    return labels - eroded[1:-1, 1:-1]


@dataclass
class VideoConsistency:
    """Video consistency VC_n: how much of what stays the same class over n frames is also predicted so.

    For each clip of n frames, C are the pixels with one ground-truth label throughout, P those with one
    predicted label; the value is ``|C and P| / |C|``. Every label counts, void too. As in the public script
    the last clip of a video is left out, so a video of n frames has none.

    Source: VSPW (CVPR 2021), section 5.

    Args:
        lengths: the n of interest.
    """

    lengths: Sequence[int] = (8, 16)
    clips: dict[int, list[float]] = field(init=False)  # NaN where C is empty

    def __post_init__(self) -> None:
        self.clips = {length: [] for length in self.lengths}

    def add_video(self, frames: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> None:
        """Count one video from its frames ``(ground truth, prediction)``, ``H W`` each, read one by one."""
        pending: dict[int, float] = {}
        previous: tuple[NDArray[Any], NDArray[Any]] | None = None
        ages: tuple[NDArray[Any], NDArray[Any]] | None = None
        dtype = np.uint8 if max(self.lengths) < 255 else np.uint16
        for number, frame in enumerate(frames, start=1):
            # A clip counts only once a later frame shows that it is not the video's last.
            for length, value in pending.items():
                self.clips[length].append(value)
            if previous is None or ages is None:
                ages = (np.ones(frame[0].shape, dtype), np.ones(frame[1].shape, dtype))
            else:
                # For how many frames, this one included, has each pixel had its label?
                for age, current, before in zip(ages, frame, previous, strict=True):
                    _grow(age, current == before)
            pending = {n: _consistency(ages[0] >= n, ages[1] >= n) for n in self.lengths if number >= n}
            previous = frame

    def mean(self, length: int) -> float:
        """VC of one length over all clips that have a common pixel; NaN without any."""
        values = [value for value in self.clips[length] if not math.isnan(value)]
        return float(np.mean(values)) if values else math.nan


def _grow(age: NDArray[Any], same: NDArray[np.bool_]) -> None:
    """One more frame, in place: ages go on where the label is the same and start at 1 elsewhere."""
    np.minimum(age, np.iinfo(age.dtype).max - 1, out=age)
    np.multiply(age, same, out=age)
    np.add(age, 1, out=age)


def _consistency(common: NDArray[np.bool_], kept: NDArray[np.bool_]) -> float:
    total = np.count_nonzero(common)
    return np.count_nonzero(common & kept) / total if total else math.nan
