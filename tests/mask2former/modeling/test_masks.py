"""Mask logits on demand against those that are made all at once."""

from __future__ import annotations

import torch
from torch import Tensor

from mask2former.modeling.masks import MaskProducts, select


def operands(b: int = 2, t: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, features, and the logits ``B Q T h w`` of their products."""
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(b, t, 5, 4, generator=generator).requires_grad_()
    features = torch.randn(b, t, 4, 6, 7, generator=generator).requires_grad_()
    return embeds, features, torch.einsum("btqc,btchw->bqthw", embeds, features)


def test_all_masks_of_a_clip_have_no_gradient() -> None:
    embeds, features, masks = operands()
    found = MaskProducts(embeds, features)[1]
    torch.testing.assert_close(found, masks[1].detach())
    assert not found.requires_grad


def test_selected_masks_and_their_gradient() -> None:
    embeds, features, masks = operands()
    rows = [torch.tensor([4, 0]), torch.tensor([2])]
    found, expected = select(MaskProducts(embeds, features), rows), select(masks, rows)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape)
    gradients = torch.autograd.grad((found * weights).sum(), [embeds, features])
    for gradient, wanted in zip(
        gradients, torch.autograd.grad((expected * weights).sum(), [embeds, features]), strict=True
    ):
        torch.testing.assert_close(gradient, wanted)


def test_no_mask_selected_keeps_the_graph() -> None:
    embeds, features, _ = operands()
    none = select(MaskProducts(embeds, features), [torch.zeros(0, dtype=torch.int64)] * 2)
    assert none.shape == (0, 3, 6, 7)
    none.sum().backward()
    assert embeds.grad is not None
    assert not embeds.grad.any()


def test_operands_of_different_precision() -> None:
    embeds, features, masks = operands()
    found = select(MaskProducts(embeds.bfloat16(), features), [torch.arange(5)] * 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, masks.flatten(0, 1), rtol=0.05, atol=0.05)
