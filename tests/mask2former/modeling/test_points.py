"""Point sampling on images and clips."""

from __future__ import annotations

import torch

from mask2former.modeling.points import random_points, sample_points, uncertain_points
from tests.weights import RandTape


def test_cell_centres_give_the_cells() -> None:
    masks = torch.arange(2 * 3 * 2 * 4, dtype=torch.float64).view(2, 3, 2, 4)
    x = (torch.arange(4, dtype=torch.float64) + 0.5) / 4
    y = (torch.arange(6, dtype=torch.float64) + 0.5) / 6
    coords = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(1, -1, 2)
    torch.testing.assert_close(sample_points(masks, coords), masks.flatten(1))


def test_points_per_mask() -> None:
    masks = torch.tensor([[[[0.0, 1.0]]], [[[2.0, 3.0]]]])
    coords = torch.tensor([[[0.25, 0.5]], [[0.5, 0.5]]])
    assert sample_points(masks, coords).tolist() == [[0.0], [2.5]]


def test_random_points_are_one_draw(monkeypatch) -> None:
    tape = RandTape(0)
    monkeypatch.setattr(torch, "rand", tape)
    assert random_points(7, torch.device("cpu")).shape == (1, 7, 2)
    assert tape.shapes == [(1, 7, 2)]


def test_uncertain_points_prefer_small_logits() -> None:
    logits = torch.full((2, 1, 16, 16), 9.0)
    logits[:, :, :, :8] = 0.1
    torch.manual_seed(0)
    coords = uncertain_points(logits, 100, 3.0, 0.75)
    assert coords.shape == (2, 100, 2)
    assert (coords[:, :75, 0] < 0.53).all()
    assert (coords[:, 75:, 0] > 0.53).any()
    assert uncertain_points(logits, 100, 1.0, 0.0).shape == (2, 100, 2)
