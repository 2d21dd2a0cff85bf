"""Tensors that travel together between the parts of a video model.

Letters: B videos, T frames, Q queries (or slots, once linked), C channels, K classes (K+1 with "no object"),
h w the mask grid. Logits are never probabilities here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SegmenterOutput:
    """What the segmenter found in each frame by itself; query order of one frame says nothing about the next.

    Attributes:
        logits: class logits, ``B T Q K+1``.
        masks: mask logits, ``B Q T h w``; None at inference, where only masks of kept slots are made, last.
        queries: decoder queries after the final normalisation, ``B T Q C``.
        mask_features: per-pixel embeddings, ``B T C h w``.
        mask_embeds: what multiplied with ``mask_features`` gives mask logits, ``B T Q C``; None if not asked.
        aux: (logits ``B T Q K+1``, masks ``B Q T h w``) of the earlier decoder layers, first layer first;
            empty unless the segmenter is being trained.
    """

    logits: Tensor
    masks: Tensor | None
    queries: Tensor
    mask_features: Tensor
    mask_embeds: Tensor | None = None
    aux: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def num_frames(self) -> int:
        return self.queries.shape[1]


@dataclass(frozen=True)
class LinkedOutput:
    """The objects of consecutive frames after linking: slot ``i`` is the same object in every frame.

    Attributes:
        logits: class logits per frame, ``B T Q K+1``.
        queries: linked instance queries, ``B T Q C``, as the refiner takes them.
        mask_embeds: what multiplied with the frame's mask features gives mask logits, ``B T Q C``.
        frame_queries: what the refiner's cross-attention looks at, ``B T Q C``; None if nothing refines.
        order: ``B T Q`` int64, the segmenter query that slot ``i`` started from in a frame; None if unknown.
        aux: (logits ``B T Q K+1``, mask_embeds ``B T Q C``) of the earlier layers, first layer first; empty
            at inference.
    """

    logits: Tensor
    queries: Tensor
    mask_embeds: Tensor
    frame_queries: Tensor | None = None
    order: Tensor | None = None
    aux: tuple[tuple[Tensor, Tensor], ...] = ()


@dataclass(frozen=True)
class RefinedOutput:
    """Linked objects corrected with all frames at hand.

    Attributes:
        logits: class logits of the whole clip, ``B Q K+1``.
        queries: refined instance queries, ``B T Q C``.
        mask_embeds: what multiplied with the frame's mask features gives mask logits, ``B T Q C``.
        aux: (logits ``B Q K+1``, mask_embeds ``B T Q C``) of the earlier layers; empty at inference.
    """

    logits: Tensor
    queries: Tensor
    mask_embeds: Tensor
    aux: tuple[tuple[Tensor, Tensor], ...] = ()


def predict_masks(mask_embeds: Tensor, mask_features: Tensor) -> Tensor:
    """Mask logits of every slot in every frame.

    Args:
        mask_embeds: ``B T Q C``.
        mask_features: ``B T C h w``.

    Returns:
        ``B Q T h w`` mask logits.

    Source: Mask2Former (arXiv:2112.01527), section 3.1: masks are products of query and pixel embeddings.
    """
    return torch.einsum("btqc,btchw->bqthw", mask_embeds, mask_features)
