"""Panoptic quality of images (PQ) and videos (VPQ), and segmentation and tracking quality (STQ).

Every metric is computed from one small table per frame, the pixels that each ground-truth segment shares with
each predicted one (`FrameOverlap`), so pixels are looked at once whatever the number of windows and metrics.

Letters used here, besides those of the project: G ground-truth segments, D predicted segments of a video.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FrameOverlap", "PanopticQuality", "Segment", "SegmentCounts", "frame_overlap", "stq", "vpq"]

VOID = 0  # segment id of unlabelled pixels
TUBE_OFFSET = 2**16  # class * offset + instance number is one key


@dataclass(frozen=True)
class Segment:
    """One entry of ``segments_info``: dataset category id; ``area`` in pixels as the file says."""

    id: int
    category_id: int
    iscrowd: bool = False
    area: int = 0


@dataclass(frozen=True)
class FrameOverlap:
    """Pixels that ground truth and prediction share in one frame.

    Attributes:
        truth: listed ground-truth segments, in file order.
        predicted: listed predicted segments, in file order.
        truth_ids: ground-truth id of each entry of ``pixels``; 0 is void. May hold ids that are not listed.
        predicted_ids: predicted id of each entry; 0 is void.
        pixels: number of pixels with that pair of ids.
    """

    truth: tuple[Segment, ...]
    predicted: tuple[Segment, ...]
    truth_ids: NDArray[np.int64]
    predicted_ids: NDArray[np.int64]
    pixels: NDArray[np.int64]


def frame_overlap(
    truth_map: NDArray[Any],
    predicted_map: NDArray[Any],
    truth: Sequence[Segment],
    predicted: Sequence[Segment],
) -> FrameOverlap:
    """Count the pixels of every pair of segments.

    Args:
        truth_map, predicted_map: ``H W`` segment ids, 0 = void.
        truth, predicted: the listed segments of the two maps.

    Raises:
        ValueError: if the sizes differ, or if the predicted map and its list do not hold the same ids.
    """
    if truth_map.shape != predicted_map.shape:
        raise ValueError(
            f"sizes differ: ground truth {truth_map.shape}, prediction {predicted_map.shape} (H, W)"
        )
    truth_flat, predicted_flat = truth_map.ravel(), predicted_map.ravel()
    # Neighbours mostly have the same pair of ids: counting runs is an order faster than counting pixels.
    changes = np.flatnonzero((np.diff(truth_flat) != 0) | (np.diff(predicted_flat) != 0)) + 1
    starts = np.concatenate(([0], changes)) if truth_flat.size else changes
    lengths = np.diff(np.append(starts, truth_flat.size))
    keys = (truth_flat[starts].astype(np.int64) << 32) | predicted_flat[starts].astype(np.int64)
    pairs, inverse = np.unique(keys, return_inverse=True)
    pixels = np.bincount(inverse.ravel(), weights=lengths, minlength=len(pairs)).astype(np.int64)
    overlap = FrameOverlap(tuple(truth), tuple(predicted), pairs >> 32, pairs & 0xFFFFFFFF, pixels)
    _check_predicted(overlap)
    return overlap


def _check_predicted(overlap: FrameOverlap) -> None:
    listed = [segment.id for segment in overlap.predicted]
    drawn = set(overlap.predicted_ids.tolist()) - {VOID}
    if len(set(listed)) != len(listed):
        raise ValueError(
            f"predicted segment ids are listed twice: {sorted({i for i in listed if listed.count(i) > 1})}"
        )
    if drawn - set(listed):
        raise ValueError(
            f"predicted segment ids {sorted(drawn - set(listed))} are in the image but not in the list"
        )
    if set(listed) - drawn:
        raise ValueError(
            f"predicted segment ids {sorted(set(listed) - drawn)} are in the list but not in the image"
        )


@dataclass
class SegmentCounts:
    """Matches of one category: sum of IoU, true positives, false positives, false negatives."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    @property
    def pq(self) -> float:
        return self.iou / (self.tp + self.fp / 2 + self.fn / 2)

    @property
    def sq(self) -> float:
        return self.iou / self.tp if self.tp else 0.0

    @property
    def rq(self) -> float:
        return self.tp / (self.tp + self.fp / 2 + self.fn / 2)

    @property
    def occurs(self) -> bool:
        return self.tp + self.fp + self.fn > 0


@dataclass
class PanopticQuality:
    """Counts per dataset category id; quality is the mean over the categories that occur.

    Source: panoptic segmentation (arXiv:1801.00868), section 4.
    """

    counts: dict[int, SegmentCounts] = field(default_factory=dict)

    def of(self, category_id: int) -> SegmentCounts:
        return self.counts.setdefault(category_id, SegmentCounts())

    def mean(self, category_ids: Iterable[int]) -> dict[str, float]:
        """``pq, sq, rq`` (fractions) and ``n``, the number of categories; NaN where none of them occurs."""
        present = [self.counts[i] for i in category_ids if i in self.counts and self.counts[i].occurs]
        mean = {
            name: sum(getattr(c, name) for c in present) / len(present) if present else math.nan
            for name in ("pq", "sq", "rq")
        }
        return {**mean, "n": len(present)}


def vpq(videos: Iterable[Sequence[FrameOverlap]], windows: Sequence[int]) -> dict[int, PanopticQuality]:
    """Video panoptic quality for several window lengths in one pass; window 1 is PQ of the frames.

    Args:
        videos: the frames of each video, in order; consumed one video at a time.
        windows: numbers of consecutive frames.

    Returns:
        counts per window length. A video shorter than a window does not contribute to it.

    Raises:
        ValueError: if a ground-truth area is smaller than what a prediction covers of it.

    Source: VPSNet (arXiv:2006.11339), section 3.3, as implemented for VIPSeg (quirks: ``_VideoTable``).
    """
    results = {window: PanopticQuality() for window in windows}
    for frames in videos:
        if not frames:
            continue
        table = _VideoTable(frames)
        for window in windows:
            if len(frames) >= window:
                table.count(window, results[window])
    return results


class _VideoTable:
    """Overlaps of one video as dense arrays over frames and listed segments.

    As in the official scripts, areas of ground truth are those of its file, not those of its pixels; pixels
    of unlisted ground truth are not void; category and crowd flag of a tube are those of its first frame in a
    window.
    """

    def __init__(self, frames: Sequence[FrameOverlap]) -> None:
        truth_index = {s.id: i for i, s in enumerate({s.id: s for f in frames for s in f.truth}.values())}
        predicted_index = {
            s.id: i for i, s in enumerate({s.id: s for f in frames for s in f.predicted}.values())
        }
        t, g, d = len(frames), len(truth_index), len(predicted_index)
        self.shared = np.zeros((t, g, d), np.int64)  # pixels of each pair
        self.in_void = np.zeros((t, d), np.int64)  # predicted pixels on void ground truth
        self.predicted_area = np.zeros((t, d), np.int64)
        self.truth_area = np.zeros((t, g), np.int64)
        self.truth_category = np.full((t, g), -1, np.int64)  # -1: not listed in the frame
        self.predicted_category = np.full((t, d), -1, np.int64)
        self.crowd = np.zeros((t, g), bool)
        self.position = np.zeros((t, g), np.int64)  # in the frame's list
        for index, frame in enumerate(frames):
            for position, segment in enumerate(frame.truth):
                slot = truth_index[segment.id]
                self.truth_area[index, slot] = segment.area
                self.truth_category[index, slot] = segment.category_id
                self.crowd[index, slot] = segment.iscrowd
                self.position[index, slot] = position
            for segment in frame.predicted:
                self.predicted_category[index, predicted_index[segment.id]] = segment.category_id
            listed = {segment.id for segment in frame.truth}
            for truth_id, predicted_id, pixels in zip(
                frame.truth_ids.tolist(), frame.predicted_ids.tolist(), frame.pixels.tolist(), strict=True
            ):
                if predicted_id == VOID:
                    continue
                slot = predicted_index[predicted_id]
                self.predicted_area[index, slot] += pixels
                if truth_id == VOID:
                    self.in_void[index, slot] += pixels
                elif truth_id in listed:
                    self.shared[index, truth_index[truth_id], slot] += pixels
        self.truth_first = _next_listed(self.truth_category)
        self.predicted_first = _next_listed(self.predicted_category)

    def count(self, window: int, result: PanopticQuality) -> None:
        """Add the matches of every run of ``window`` frames."""
        starts = len(self.shared) - window + 1
        shared = _window_sums(self.shared, window)
        in_void = _window_sums(self.in_void, window)
        predicted_area = _window_sums(self.predicted_area, window)
        truth_area = _window_sums(self.truth_area, window)
        last = np.arange(starts)[:, None] + window - 1
        truth_listed = self.truth_first[:starts] <= last
        predicted_listed = self.predicted_first[:starts] <= last
        truth_category, crowd = _at_first(
            self.truth_first[:starts], truth_listed, self.truth_category, self.crowd
        )
        (predicted_category,) = _at_first(
            self.predicted_first[:starts], predicted_listed, self.predicted_category
        )

        union = truth_area[:, :, None] + predicted_area[:, None, :] - shared - in_void[:, None, :]
        candidate = (
            (shared > 0)
            & (truth_category[:, :, None] == predicted_category[:, None, :])
            & (truth_listed & ~crowd)[:, :, None]
            & predicted_listed[:, None, :]
        )
        if (candidate & (union < shared)).any():
            raise ValueError(
                "the area of a ground-truth segment in the file is smaller than what is predicted of it"
            )
        iou = np.where(candidate, shared / np.maximum(union, 1), 0.0)
        match = iou > 0.5
        windows_, truth_slots, _ = np.nonzero(match)
        for category, value in zip(
            truth_category[windows_, truth_slots].tolist(), iou[match].tolist(), strict=True
        ):
            counts = result.of(category)
            counts.tp += 1
            counts.iou += value
        missed = truth_listed & ~crowd & ~match.any(axis=2)
        for category, number in zip(*_tally(truth_category[missed]), strict=True):
            result.of(category).fn += number
        excused = in_void + self._on_crowd(shared, truth_category, predicted_category, truth_listed & crowd)
        extra = predicted_listed & ~match.any(axis=1) & (excused <= 0.5 * predicted_area)
        for category, number in zip(*_tally(predicted_category[extra]), strict=True):
            result.of(category).fp += number

    def _on_crowd(
        self,
        shared: NDArray[np.int64],
        truth_category: NDArray[np.int64],
        predicted_category: NDArray[np.int64],
        crowd: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """Pixels of each predicted tube on the crowd tube of its category, per window.

        Where a category has several crowd tubes, the one that appears last in the window counts, alone.
        """
        pixels = np.zeros_like(predicted_category)
        for start in np.flatnonzero(crowd.any(axis=1)).tolist():
            slots = np.flatnonzero(crowd[start])
            first = self.truth_first[start, slots]
            order = np.lexsort((self.position[first, slots], first))
            tube_of = {int(truth_category[start, slot]): int(slot) for slot in slots[order]}
            for predicted, category in enumerate(predicted_category[start].tolist()):
                if category in tube_of:
                    pixels[start, predicted] = shared[start, tube_of[category], predicted]
        return pixels


def _next_listed(category: NDArray[np.int64]) -> NDArray[np.int64]:
    """For frame ``t`` and each segment, the first frame ``>= t`` that lists it; number of frames if none."""
    num_frames = len(category)
    frame = np.where(category >= 0, np.arange(num_frames)[:, None], num_frames)
    return np.minimum.accumulate(frame[::-1], axis=0)[::-1]


def _at_first(
    first: NDArray[np.int64], listed: NDArray[np.bool_], *values: NDArray[Any]
) -> tuple[NDArray[Any], ...]:
    """The values that each segment has in its first frame of each window; -1 (or False) where it has none."""
    frame = np.where(listed, first, 0)
    return tuple(
        np.where(listed, np.take_along_axis(value, frame, axis=0), False if value.dtype == bool else -1)
        for value in values
    )


def _window_sums(values: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """Sums over ``window`` consecutive entries of the first axis."""
    total = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    return total[window:] - total[:-window]


def _tally(categories: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    present, numbers = np.unique(categories, return_counts=True)
    return present.tolist(), numbers.tolist()


def stq(videos: Iterable[Sequence[FrameOverlap]], categories: Mapping[int, bool]) -> dict[str, Any]:
    """Segmentation and tracking quality.

    Args:
        videos: the frames of each video, in order; consumed one video at a time.
        categories: dataset category id -> whether it is a thing.

    Returns:
        ``STQ``, ``AQ``, ``IoU`` (segmentation quality) over all videos; ``*_per_seq`` per video, with
        ``ID_per_seq`` and ``Length_per_seq``.

    Source: STEP (arXiv:2102.11859), section 4, as implemented for VIPSeg (quirks: ``_VideoTubes``).
    """
    tubes = [_VideoTubes(frames, categories) for frames in videos]
    confusion = sum((t.confusion for t in tubes), start=np.zeros((len(categories) + 1,) * 2, np.int64))
    quality = _segmentation_quality(confusion)
    association = sum(t.association for t in tubes) / max(sum(t.num_tubes for t in tubes), 1)
    per_video = [(t.association / max(t.num_tubes, 1), _segmentation_quality(t.confusion)) for t in tubes]
    return {
        "STQ": math.sqrt(association * quality),
        "AQ": association,
        "IoU": quality,
        "STQ_per_seq": [math.sqrt(aq * sq) for aq, sq in per_video],
        "AQ_per_seq": [aq for aq, _ in per_video],
        "IoU_per_seq": [sq for _, sq in per_video],
        "ID_per_seq": list(range(len(tubes))),
        "Length_per_seq": [t.num_frames for t in tubes],
    }


def _segmentation_quality(confusion: NDArray[np.int64]) -> float:
    """Mean IoU over the classes with a union; predicted void is one of them if it covers labelled pixels."""
    intersection = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    present = union > 0
    return (
        float((intersection[present] / union[present]).sum() / present.sum()) if present.any() else math.nan
    )


class _VideoTubes:
    """Class confusion and association of one video.

    Instances are numbered per video in order of first appearance in the lists, from 0, stuff included. As in
    the official script ground-truth things with number 0 are treated as crowd: such a tube does not count,
    and predictions are not charged for its pixels. Ground truth that is not listed is void here.
    """

    def __init__(self, frames: Sequence[FrameOverlap], categories: Mapping[int, bool]) -> None:
        index_of = {category: index for index, category in enumerate(sorted(categories))}
        void = len(index_of)
        is_thing = np.array([categories[c] for c in sorted(categories)] + [False])
        truth_number: dict[int, int] = {}
        predicted_number: dict[int, int] = {}
        self.num_frames = len(frames)
        self.confusion = np.zeros((void + 1, void + 1), np.int64)
        truth_size: dict[int, int] = {}
        predicted_size: dict[int, int] = {}
        shared: dict[tuple[int, int], int] = {}
        for frame in frames:
            truth = {
                s.id: (index_of[s.category_id], truth_number.setdefault(s.id, len(truth_number)))
                for s in frame.truth
            }
            predicted = {
                s.id: (index_of[s.category_id], predicted_number.setdefault(s.id, len(predicted_number)))
                for s in frame.predicted
            }
            for truth_id, predicted_id, pixels in zip(
                frame.truth_ids.tolist(), frame.predicted_ids.tolist(), frame.pixels.tolist(), strict=True
            ):
                truth_class, truth_instance = truth.get(truth_id, (void, 0))
                predicted_class, predicted_instance = predicted.get(predicted_id, (void, 0))
                if truth_class != void:
                    self.confusion[truth_class, predicted_class] += pixels
                if is_thing[truth_class] and truth_instance == 0:
                    continue
                truth_tube = truth_class * TUBE_OFFSET + truth_instance
                predicted_tube = predicted_class * TUBE_OFFSET + predicted_instance
                if is_thing[truth_class]:
                    truth_size[truth_tube] = truth_size.get(truth_tube, 0) + pixels
                if is_thing[predicted_class]:
                    predicted_size[predicted_tube] = predicted_size.get(predicted_tube, 0) + pixels
                if is_thing[truth_class] and is_thing[predicted_class]:
                    pair = (truth_tube, predicted_tube)
                    shared[pair] = shared.get(pair, 0) + pixels
        self.num_tubes = len(truth_size)
        self.association = 0.0
        for (truth_tube, predicted_tube), pixels in shared.items():
            union = truth_size[truth_tube] + predicted_size[predicted_tube] - pixels
            self.association += pixels * (pixels / union) / truth_size[truth_tube]
