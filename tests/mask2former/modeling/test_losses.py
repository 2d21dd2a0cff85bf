"""Losses against the published numbers, by gradient, and in low precision."""

from __future__ import annotations

import pytest
import torch

from mask2former.modeling.losses import class_loss, dice_loss, sigmoid_ce_loss
from tests.reference import load_golden
from tests.weights import make_input


def test_direct_losses_match_golden() -> None:
    meta, _ = load_golden("criterion")
    shape = [meta["N"], meta["points"]]
    logits = torch.from_numpy(make_input("plogits", shape, meta["seed"], 3.0))
    labels = torch.from_numpy(make_input("plabels", shape, meta["seed"]) > 0).float()
    expected = meta["direct_losses"]
    assert sigmoid_ce_loss(logits, labels, 3).item() == pytest.approx(expected["sigmoid_ce"], rel=1e-6)
    assert dice_loss(logits, labels, 3).item() == pytest.approx(expected["dice"], rel=1e-6)


@pytest.mark.parametrize("loss", [sigmoid_ce_loss, dice_loss])
def test_gradient(loss) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, 2.5), (logits,))


@pytest.mark.parametrize("loss", [sigmoid_ce_loss, dice_loss])
def test_extreme_logits_are_finite(loss) -> None:
    logits = torch.tensor([[1e4, -1e4, 6e4]], requires_grad=True)
    value = loss(logits, torch.tensor([[0.0, 1.0, 1.0]]), 1)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_half_precision_is_computed_in_single() -> None:
    logits = torch.randn(2, 4000).half()
    labels = (torch.rand(2, 4000) > 0.5).half()
    for loss in (sigmoid_ce_loss, dice_loss):
        assert loss(logits, labels, 1).dtype == torch.float32
        torch.testing.assert_close(loss(logits, labels, 1), loss(logits.float(), labels.float(), 1))


def test_perfect_masks_cost_nothing() -> None:
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    logits = (labels - 0.5) * 200
    assert sigmoid_ce_loss(logits, labels, 1) < 1e-6
    assert dice_loss(logits, labels, 1).abs() < 1e-6


def test_class_loss_weights_no_object() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    classes = torch.tensor([[0, 1]])
    weight = torch.tensor([1.0, 0.1])
    negative = -logits.log_softmax(-1)[0]
    expected = (negative[0, 0] + 0.1 * negative[1, 1]) / 1.1
    torch.testing.assert_close(class_loss(logits, classes, weight), expected)
