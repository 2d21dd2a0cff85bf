"""Counting of classes and ages against plain loops: odd sizes, types, long videos."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dvis.evaluation.metrics.semantic import SemanticConfusion, VideoConsistency, label_boundary


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (1, 7), (13, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_confusion_is_that_of_loops(shape: tuple[int, int], dtype: type) -> None:
    rng = np.random.default_rng(0)
    confusion = SemanticConfusion(3)
    expected = np.zeros((3, 4), int)
    for _ in range(3):
        truth, predicted = (rng.choice([0, 1, 2, 3, 255], shape).astype(dtype) for _ in range(2))
        confusion.add(truth, predicted)
        for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            if t < 3:
                expected[t, min(p, 3)] += 1
    np.testing.assert_array_equal(confusion.matrix, expected)


def test_nothing_to_score_is_undefined() -> None:
    confusion = SemanticConfusion(2)
    confusion.add(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert all(math.isnan(value) for value in confusion.summary().values())
    assert np.isnan(confusion.iou()).all()


@pytest.mark.parametrize(("num_frames", "lengths"), [(9, (1, 2, 8)), (300, (16, 254)), (300, (2, 280))])
def test_consistency_is_that_of_loops(num_frames: int, lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    # Labels that mostly stay: pixels change in one frame out of fifty, some never.
    changes = rng.random((2, num_frames, 4, 6)) < 0.02
    changes[:, :, 0] = False
    maps = np.cumsum(changes, axis=1).astype(np.uint8)
    consistency = VideoConsistency(lengths)
    consistency.add_video(zip(maps[0], maps[1], strict=True))
    for length in lengths:
        expected = []
        for start in range(num_frames - length):
            common, kept = ((m[start : start + length] == m[start]).all(axis=0) for m in maps)
            expected.append((common & kept).sum() / common.sum())
        np.testing.assert_allclose(consistency.clips[length], expected)


def test_boundary_of_a_map() -> None:
    labels = np.full((50, 50), 3, np.uint8)
    labels[:, 25:] = 1
    boundary = label_boundary(labels)  # one pixel wide: 2 % of the diagonal of 71
    expected = np.zeros((50, 50), np.uint8)
    expected[[0, -1], :25] = expected[:, 0] = 3
    expected[[0, -1], 25:] = expected[:, -1] = 1
    expected[1:-1, 24] = 2
    np.testing.assert_array_equal(boundary, expected)
