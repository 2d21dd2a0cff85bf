"""Mask logits that are made when they are asked for, of the queries that are asked for.

Shapes: ``B`` clips, ``Q`` queries, ``C`` channels, ``T`` frames, ``h w`` the mask grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["MaskProducts", "select"]


class MaskProducts:
    """Stands for mask logits ``B Q T h w`` in the criterion, without holding them.

    Matching needs the masks of all queries, but no gradient; a loss needs a gradient, but only the masks of
    the few matched queries. The logits themselves would be kept for the backward pass at every layer.
    """

    def __init__(self, embeds: Tensor, features: Tensor) -> None:
        """
        Args:
            embeds: mask embeddings, ``B T Q C``.
            features: mask features, ``B T C h w``.
        """
        self.embeds = embeds
        self.features = features

    @torch.no_grad()
    def __getitem__(self, b: int) -> Tensor:
        """Masks of all queries of clip ``b`` without a gradient, ``Q T h w``."""
        return _products(self.embeds[b], self.features[b])

    def select(self, rows: Sequence[Tensor]) -> Tensor:
        """Masks of queries ``rows[b]`` of each clip ``b``, joined: ``sum(len(rows)) T h w``."""
        return torch.cat(
            [
                _products(embeds[:, queries.to(embeds.device)], features)
                for embeds, features, queries in zip(self.embeds, self.features, rows, strict=True)
            ]
        )


def select(per_clip: MaskProducts | Iterable[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Take ``rows[b]`` of each clip's tensor and join them: ``sum(len(rows)) ...``."""
    if isinstance(per_clip, MaskProducts):
        return per_clip.select(rows)
    return torch.cat([tensor[row.to(tensor.device)] for tensor, row in zip(per_clip, rows, strict=True)])


def _products(embeds: Tensor, features: Tensor) -> Tensor:
    """Mask logits ``Q T h w`` of ``T Q C`` and ``T C h w``."""
    # Losses are computed outside of autocast, which may have made only one of the two half as precise.
    dtype = torch.promote_types(embeds.dtype, features.dtype)
    return torch.einsum("tqc,tchw->qthw", embeds.to(dtype), features.to(dtype))
