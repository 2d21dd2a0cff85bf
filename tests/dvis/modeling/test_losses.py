"""Averages over clips, and the normalisers that processes share."""

from __future__ import annotations

import torch

from dvis.modeling.losses import masks_per_clip, mean_losses


def test_mean_losses() -> None:
    value = torch.tensor(3.0, requires_grad=True)
    mean = mean_losses([{"a": value, "b": torch.tensor(1.0)}, {"a": 2 * value, "b": torch.tensor(2.0)}])
    assert {name: loss.item() for name, loss in mean.items()} == {"a": 4.5, "b": 1.5}
    mean["a"].backward()
    assert value.grad == 1.5


def test_a_single_process_normalises_by_its_own_masks() -> None:
    assert masks_per_clip([12, 0, 1], torch.device("cpu")) == [12.0, 1.0, 1.0]
