"""Referring tracker: links objects from frame to frame, each referring to itself in the previous frame.

Letters: B videos, T frames, Q queries, C channels, K classes, L layers; S heads and D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dvis.modeling.matching import gather_queries, match_frames
from dvis.modeling.structures import LinkedOutput
from mask2former.layers import MLP, CrossAttentionLayer, FFNLayer, SelfAttentionLayer

__all__ = ["ReferringTracker", "TrackerState"]

INITIAL_VALUES = ("zero", "previous", "segmenter", "matched")
CROSS_ATTENTIONS = ("referring", "standard")
MATCHINGS = ("inverse", "forward")


class _JointAttention:
    """The cross attention of all layers as one, on weights gathered once per window.

    It equals calling the layers one after the other, with far fewer and larger products.
    """

    def __init__(self, layers: Iterable[CrossAttentionLayer]) -> None:
        self.layers = list(layers)
        attentions = [layer.multihead_attn for layer in self.layers]
        self.num_layers = len(attentions)
        self.num_heads = attentions[0].num_heads
        C = attentions[0].embed_dim
        self.query_weight = torch.cat([attention.in_proj_weight[:C] for attention in attentions])
        self.query_bias = torch.cat([attention.in_proj_bias[:C] for attention in attentions])
        self.memory_weight = torch.cat([attention.in_proj_weight[C:] for attention in attentions])
        self.memory_bias = torch.cat([attention.in_proj_bias[C:] for attention in attentions])
        self.out_weight = torch.stack([attention.out_proj.weight.T for attention in attentions])
        self.out_bias = torch.stack([attention.out_proj.bias for attention in attentions])

    def memory(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all frames for all layers: ``B T Q C`` to ``T L B S Q D`` each."""
        projected = F.linear(queries, self.memory_weight, self.memory_bias)
        keys, values = rearrange(
            projected, "b t q (l two s d) -> two t l b s q d", two=2, l=self.num_layers, s=self.num_heads
        )
        return keys, values

    def attend(self, reference: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with one query in all layers: ``B Q C`` and ``L B S Q D`` to ``L B Q C``."""
        L, S, B = self.num_layers, self.num_heads, reference.shape[0]
        query = F.linear(reference, self.query_weight, self.query_bias)
        attended = F.scaled_dot_product_attention(
            rearrange(query, "b q (l s d) -> (l b) s q d", l=L, s=S), keys.flatten(0, 1), values.flatten(0, 1)
        )
        attended = rearrange(attended, "(l b) s q d -> l (b q) (s d)", l=L)
        projected = torch.baddbmm(self.out_bias[:, None], attended, self.out_weight)
        return rearrange(projected, "l (b q) c -> l b q c", b=B)


@dataclass(frozen=True)
class TrackerState:
    """What the tracker remembers of the last frame; slots keep their order for the whole video.

    Attributes:
        aligned: the segmenter's queries in slot order, ``B Q C``: what the next frame is matched to.
        output: the last layer's output before the final normalisation, ``B Q C``: what the next frame
            refers to.
    """

    aligned: Tensor
    output: Tensor


class ReferringTracker(nn.Module):
    """Denoises the frame's queries with reference to the same objects in the frame before.

    Each layer is referring cross attention ``RCA(ID, Q, K, V) = ID + MHA(Q, K, V)`` with ID the running
    output, Q the previous frame's final output and K, V this frame's segmenter queries, then self
    attention and feed-forward. What Q, K and V are made of is the same for all layers, so the cross
    attention of all layers is one product.

    Source: DVIS (arXiv:2306.03413), section 3.2, equations 1 and 2.
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
        initial_value: str = "matched",
        cross_attention: str = "referring",
        matching: str = "inverse",
        shuffle_queries: bool = False,
    ) -> None:
        """
        Args:
            num_classes: K, without "no object".
            hidden_dim: channels C of the queries.
            mask_dim: channels of the mask features.
            num_heads: attention heads.
            dim_feedforward: hidden channels of the feed-forward networks.
            num_layers: L.
            initial_value: where the running output starts (paper, table 6): ``zero``, the ``previous``
                frame's output, this frame's ``segmenter`` queries, or those ``matched`` to the previous
                frame. The first frame of a video always starts from its segmenter queries, which define
                the slots.
            cross_attention: ``referring``, or ``standard`` where the running output is the query (paper,
                table 7).
            matching: ``inverse`` permutation as in the published DVIS weights, or ``forward`` (MinVIS,
                DVIS++).
            shuffle_queries: put every frame's queries in a random order first, so that their order carries
                no identity: tells what the links are due to.

        Raises:
            ValueError: for a setting that is not one of the above.
        """
        super().__init__()
        for key, value, allowed in (
            ("INITIAL_VALUE", initial_value, INITIAL_VALUES),
            ("CROSS_ATTENTION", cross_attention, CROSS_ATTENTIONS),
            ("MATCHING", matching, MATCHINGS),
        ):
            if value not in allowed:
                raise ValueError(f"MODEL.TRACKER.{key} is {value!r}; allowed are {', '.join(allowed)}")
        if num_layers < 1:
            raise ValueError(f"MODEL.TRACKER.DECODER_LAYERS must be at least 1, not {num_layers}")
        self.num_layers = num_layers
        self.initial_value = initial_value
        self.refers = cross_attention == "referring"
        self.match_inverse = matching == "inverse"
        self.shuffle_queries = shuffle_queries
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, dim_feedforward) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)
        self._compiled_decode: Callable[..., list[Tensor]] | None = None

    def compile_layers(self, backend: str) -> None:
        """Let frames go through ``torch.compile``'d layers in eval mode.

        Args:
            backend: of ``torch.compile``.
        """
        # The function, not the bound method: a copy of the tracker then runs its own layers.
        self._compiled_decode = torch.compile(ReferringTracker._decode, backend=backend)

    def forward(
        self, queries: Tensor, state: TrackerState | None = None
    ) -> tuple[LinkedOutput, TrackerState]:
        """Link the frames of a window to each other and to what was seen before.

        Args:
            queries: the segmenter's queries, ``B T Q C``, T >= 1.
            state: what the previous call on the same videos returned; None at their start.

        Returns:
            The linked objects (``aux`` only in training mode) and the state after the window's last frame.

        Raises:
            ValueError: if the shapes do not fit, or the window has no frame.
            NonFiniteError: if a query is not finite.
        """
        if queries.dim() != 4 or queries.shape[1] == 0:
            raise ValueError(f"queries must be `B T Q C` with T >= 1, got shape {tuple(queries.shape)}")
        if self.shuffle_queries:
            shuffled = torch.rand(queries.shape[:3], device=queries.device).argsort(-1)
            queries = gather_queries(queries, shuffled)
        order = match_frames(queries, None if state is None else state.aligned, inverse=self.match_inverse)
        aligned = gather_queries(queries, order)
        joint = self._joint_attention()
        keys, values = joint.memory(queries)

        outputs: list[list[Tensor]] = []  # per frame the last layer, in training every layer: B Q C
        reference = None if state is None else state.output
        for t in range(queries.shape[1]):
            start = self._start(queries[:, t], aligned[:, t], reference)
            layers = self._decode_frame(start, joint, keys[t], values[t], reference)
            reference = layers[-1]
            outputs.append(layers if self.training else layers[-1:])

        assert reference is not None
        *earlier, last = (
            self.decoder_norm(torch.stack(frames, dim=1)) for frames in zip(*outputs, strict=True)
        )
        linked = LinkedOutput(
            logits=self.class_embed(last),
            queries=last,
            mask_embeds=self.mask_embed(last),
            order=gather_queries(shuffled, order) if self.shuffle_queries else order,
            aux=tuple((self.class_embed(layer), self.mask_embed(layer)) for layer in earlier),
        )
        return linked, TrackerState(aligned=aligned[:, -1], output=reference)

    def frame_forward(self, queries: Tensor) -> Tensor:
        """Pass every frame through the layers by itself, as if it were the first one of a video.

        The refiner's cross attention looks at these, which closes the gap between queries that went
        through the tracker and queries that did not.

        Args:
            queries: the segmenter's queries, ``B T Q C``.

        Returns:
            ``B T Q C`` after the final normalisation, in the segmenter's order.

        Source: DVIS (arXiv:2306.03413), section 3.3.
        """
        B, T = queries.shape[:2]
        frames = rearrange(queries, "b t q c -> (b t) 1 q c")
        joint = self._joint_attention()
        keys, values = joint.memory(frames)
        output = self._decode(frames[:, 0], joint, keys[0], values[0], None)[-1]
        return self.decoder_norm(rearrange(output, "(b t) q c -> b t q c", b=B, t=T))

    def _joint_attention(self) -> _JointAttention:
        return _JointAttention(cast("Iterable[CrossAttentionLayer]", self.transformer_cross_attention_layers))

    def _start(self, frame: Tensor, aligned: Tensor, reference: Tensor | None) -> Tensor:
        """Choose where a frame's running output starts; all ``B Q C``."""
        if reference is None or self.initial_value == "segmenter":
            return frame
        if self.initial_value == "zero":
            return torch.zeros_like(frame)
        return reference if self.initial_value == "previous" else aligned

    def _decode_frame(
        self, x: Tensor, joint: _JointAttention, keys: Tensor, values: Tensor, reference: Tensor | None
    ) -> list[Tensor]:
        """Call :meth:`_decode`, compiled if that is wanted."""
        if self.training or self._compiled_decode is None:
            return self._decode(x, joint, keys, values, reference)
        # Strides of slices differ with the window's length, which would then be compiled for itself.
        x, keys, values = (y.clone(memory_format=torch.contiguous_format) for y in (x, keys, values))
        return self._compiled_decode(self, x, joint, keys, values, reference)

    def _decode(
        self, x: Tensor, joint: _JointAttention, keys: Tensor, values: Tensor, reference: Tensor | None
    ) -> list[Tensor]:
        """Run one frame through all layers.

        With no reference yet (or with standard cross attention) the running output refers to itself.

        Args:
            x: where the running output starts, ``B Q C``.
            joint: the layers' cross attention.
            keys: of this frame for every layer, ``L B S Q D``.
            values: likewise.
            reference: the previous frame's output, ``B Q C``, or None.

        Returns:
            The output of every layer, ``B Q C`` each.
        """
        referred = None
        if self.refers and reference is not None:
            referred = joint.attend(reference, keys, values)
        outputs = []
        for i, cross_layer in enumerate(joint.layers):
            if referred is None:
                attention = cross_layer.multihead_attn
                attended = attention.attend(attention.project_query(x), keys[i], values[i])
            else:
                attended = referred[i]
            x = cross_layer.norm(x + attended)
            x = self.transformer_self_attention_layers[i](x)
            x = self.transformer_ffn_layers[i](x)
            outputs.append(x)
        return outputs
