"""Drawing: colours belong to ids, nothing outside the masks changes, odd input is drawn without fuss."""

from __future__ import annotations

import numpy as np
import pytest

from dvis.visualization import _blend, draw_instances, draw_panoptic, draw_semantic, track_color


@pytest.fixture
def frame() -> np.ndarray:
    return np.full((60, 81, 3), 100, np.uint8)


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((60, 81), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_neighbouring_ids_have_clearly_different_colours() -> None:
    colors = np.array([track_color(i) for i in range(200)], float)
    assert np.linalg.norm(np.diff(colors, axis=0), axis=1).min() > 60
    assert track_color(7) == track_color(7)


def test_only_masked_pixels_change(frame: np.ndarray) -> None:
    before = frame.copy()
    drawn = draw_instances(frame, [box(10, 30, 10, 40)], [3], [""], alpha=0.5)
    assert (frame == before).all(), "the input is left alone"
    assert (drawn[40:] == 100).all()
    inside = drawn[15:25, 15:35].reshape(-1, 3)
    assert np.abs(inside - (50 + np.array(track_color(3)) / 2)).max() <= 1


def test_every_value_is_tinted_as_by_arithmetic() -> None:
    frame = np.arange(256, dtype=np.uint8).repeat(3 * 10).reshape(60, 128, 1).repeat(3, axis=2)
    mask = np.random.default_rng(0).random(frame.shape[:2]) < 0.3
    drawn = frame.copy()
    _blend(drawn, mask.view(np.uint8), (3, 200, 77), 0.4)
    expected = np.where(mask[..., None], 0.6 * frame + 0.4 * np.array([3, 200, 77]), frame)
    assert np.abs(drawn - expected).max() <= 0.5 + 1e-4
    assert (drawn[~mask] == frame[~mask]).all()


def test_first_instance_is_on_top(frame: np.ndarray) -> None:
    mask = box(10, 30, 10, 40)
    drawn = draw_instances(frame, [mask, mask], [1, 2], ["", ""], alpha=1.0)
    assert tuple(drawn[20, 20]) == track_color(1)


@pytest.mark.parametrize("mask", [box(0, 60, 0, 81), box(59, 60, 80, 81), box(0, 0, 0, 0), box(0, 1, 0, 81)])
def test_any_mask_can_be_labelled(frame: np.ndarray, mask: np.ndarray) -> None:
    drawn = draw_instances(frame, [mask], [1], ["a label that is longer than the picture is wide"])
    assert drawn.shape == frame.shape
    assert drawn.dtype == np.uint8
    assert (drawn != frame).any() == mask.any()


def test_nothing_to_draw(frame: np.ndarray) -> None:
    assert (draw_instances(frame, [], [], []) == frame).all()


def test_panoptic_and_semantic(frame: np.ndarray) -> None:
    panoptic = np.zeros((60, 81), np.int64)
    panoptic[:30], panoptic[40:, :40] = 1, 2
    segments = [
        {"id": 1, "category_id": 1, "isthing": False},
        {"id": 2, "category_id": 0, "isthing": True},
        {"id": 3, "category_id": 0, "isthing": True},  # absent in this frame
    ]
    drawn = draw_panoptic(frame, panoptic, segments, ["cat", "sky"])
    assert (drawn[32:38] == 100).all(), "between the outlines nothing changes"
    assert (drawn[:30] != 100).any(axis=-1).mean() > 0.9
    classes = np.where(panoptic == 1, 1, 255)
    drawn = draw_semantic(frame, classes, ["cat", "sky"])
    assert (drawn[32:] == 100).all()
