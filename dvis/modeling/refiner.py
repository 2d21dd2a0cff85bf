"""Temporal refiner: corrects linked objects with all frames of a clip.

Letters: B videos, T frames, Q queries (slots), C channels, K classes, L layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dvis.modeling.structures import RefinedOutput
from mask2former.layers import MLP, CrossAttentionLayer, FFNLayer, SelfAttentionLayer

__all__ = ["TemporalRefiner"]

TOKENS_AT_ONCE = 4096  # without gradients: bounds what the layers need besides their input and output


class TemporalRefiner(nn.Module):
    """Attends along time within each object, then among the objects of each frame.

    Each layer is long-term temporal self attention, short-term temporal convolutions, self attention among
    objects, cross attention to the frame's queries and feed-forward. One class per object is read off a
    weighted mean of its queries over time; masks stay per frame.

    A component that is switched off has no parameters.

    Source: DVIS (arXiv:2306.03413), section 3.3, equation 5; the switches are the rows of table 8.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        hidden_dim: int = 256,
        mask_dim: int = 256,
        num_heads: int = 8,
        dim_feedforward: int = 2048,
        num_layers: int = 6,
        time_attention: bool = True,
        time_conv: bool = True,
        object_attention: bool = True,
        cross_attention: bool = True,
        class_weighting: bool = True,
    ) -> None:
        """
        Args:
            num_classes: K, without "no object".
            hidden_dim: channels C of the queries.
            mask_dim: channels of the mask features.
            num_heads: attention heads.
            dim_feedforward: hidden channels of the feed-forward networks.
            num_layers: L.
            time_attention: long-term self attention over all frames of an object.
            time_conv: short-term convolutions over neighbouring frames of an object.
            object_attention: self attention among the objects of a frame.
            cross_attention: attention of a frame's objects to that frame's queries.
            class_weighting: learned weights over time for the class query; otherwise the plain mean.

        Raises:
            ValueError: if there is no layer.
        """
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"MODEL.REFINER.DECODER_LAYERS must be at least 1, not {num_layers}")

        def attention_layers(used: bool) -> nn.ModuleList:
            return nn.ModuleList(SelfAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers * used))

        self.num_layers = num_layers
        self.transformer_obj_self_attention_layers = attention_layers(object_attention)
        self.transformer_time_self_attention_layers = attention_layers(time_attention)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers * cross_attention)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, dim_feedforward) for _ in range(num_layers)
        )
        self.conv_short_aggregate_layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(hidden_dim, hidden_dim, 5, padding="same", padding_mode="replicate"),
                nn.ReLU(),
                nn.Conv1d(hidden_dim, hidden_dim, 3, padding="same", padding_mode="replicate"),
            )
            for _ in range(num_layers * time_conv)
        )
        self.conv_norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(num_layers * time_conv))
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)
        self.activation_proj = nn.Linear(hidden_dim, 1) if class_weighting else None

    def forward(self, queries: Tensor, frame_queries: Tensor) -> RefinedOutput:
        """Refine the objects of a clip.

        Args:
            queries: linked instance queries, ``B T Q C``, T >= 1.
            frame_queries: what the cross attention looks at, ``B T Q' C``.

        Returns:
            Refined objects; ``aux`` only in training mode. Masks are ``predict_masks(mask_embeds,
            mask_features)`` for the slots and frames that someone needs.

        Raises:
            ValueError: if the shapes do not fit, or the clip has no frame.
        """
        if queries.dim() != 4 or queries.shape[1] == 0:
            raise ValueError(f"queries must be `B T Q C` with T >= 1, got shape {tuple(queries.shape)}")
        B, T = queries.shape[:2]
        if frame_queries.dim() != 4 or frame_queries.shape[:2] != (B, T):
            raise ValueError(
                f"frame_queries must be `B T Q C` with B, T = {B}, {T}, got {tuple(frame_queries.shape)}"
            )
        frames = rearrange(frame_queries, "b t q c -> (b t) q c")
        x = queries
        outputs = []
        for i in range(self.num_layers):
            x = self._refine_over_time(x, i)
            x = self._refine_in_frame(x, frames, i)
            if self.training or i == self.num_layers - 1:
                outputs.append(self.decoder_norm(x))
        *earlier, last = outputs
        return RefinedOutput(
            logits=self._classify(last),
            queries=last,
            mask_embeds=self.mask_embed(last),
            aux=tuple((self._classify(layer), self.mask_embed(layer)) for layer in earlier),
        )

    def _refine_over_time(self, x: Tensor, i: int) -> Tensor:
        """Long-term attention and short-term convolutions of layer ``i`` on ``B T Q C``."""

        def refine(x: Tensor) -> Tensor:
            if self.transformer_time_self_attention_layers:
                x = self.transformer_time_self_attention_layers[i](x)
            if self.conv_short_aggregate_layers:
                short = self.conv_short_aggregate_layers[i](x.transpose(1, 2)).transpose(1, 2)
                x = self.conv_norms[i](x + short)
            return x

        refined = _by_parts(refine, rearrange(x, "b t q c -> (b q) t c"))
        return rearrange(refined, "(b q) t c -> b t q c", b=x.shape[0])

    def _refine_in_frame(self, x: Tensor, frames: Tensor, i: int) -> Tensor:
        """Object attention, cross attention and feed-forward of layer ``i`` on ``B T Q C``, ``(B T) Q C``."""

        def refine(x: Tensor, frames: Tensor) -> Tensor:
            if self.transformer_obj_self_attention_layers:
                x = self.transformer_obj_self_attention_layers[i](x)
            if self.transformer_cross_attention_layers:
                x = self.transformer_cross_attention_layers[i](x, frames)
            return self.transformer_ffn_layers[i](x)

        refined = _by_parts(refine, rearrange(x, "b t q c -> (b t) q c"), frames)
        return rearrange(refined, "(b t) q c -> b t q c", b=x.shape[0])

    def _classify(self, queries: Tensor) -> Tensor:
        """One class per object from its queries over time: ``B T Q C`` to logits ``B Q K+1``."""
        if self.activation_proj is None:
            return self.class_embed(queries.mean(dim=1))
        weights = F.softmax(self.activation_proj(queries), dim=1)
        return self.class_embed((queries * weights).sum(dim=1))


def _by_parts(function: Callable[..., Tensor], *sequences: Tensor) -> Tensor:
    """Apply a function of sequences ``N n C`` to some of them at a time where no gradient is asked for."""
    if torch.is_grad_enabled():
        return function(*sequences)
    count = max(1, TOKENS_AT_ONCE // max(1, sequences[0].shape[1]))
    parts = zip(*(x.split(count) for x in sequences), strict=True)
    return torch.cat([function(*part) for part in parts])
