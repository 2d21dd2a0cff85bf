"""The multi-scale deformable attention module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mask2former.modeling.pixel_decoder.ops.functions import ms_deform_attn


class MSDeformAttn(nn.Module):
    """Attention of each query to a few points per head and level, placed by the query itself.

    Letters: B batch, Lq queries, S pixels of all levels, C = ``d_model``, M heads, L levels, P points.

    Args:
        d_model: channels of queries, input and output.
        n_levels: number of feature levels.
        n_heads: number of heads; must divide ``d_model``.
        n_points: sampling points per head and level.
        backend: which implementation of the sampling to use; None takes the fastest there is.

    Raises:
        ValueError: if a count is not positive or ``n_heads`` does not divide ``d_model``.

    Source: Deformable DETR (arXiv:2010.04159), section 4.1 and appendix A.4 (initialisation).
    """

    def __init__(
        self,
        d_model: int = 256,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        counts = {"d_model": d_model, "n_levels": n_levels, "n_heads": n_heads, "n_points": n_points}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if d_model % n_heads != 0:
            raise ValueError(f"d_model must be divisible by n_heads, got {d_model} and {n_heads}")
        self.d_model = d_model
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
        self.backend = backend
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Start with fixed, evenly weighted points: head m looks one way, point p is p + 1 pixels away."""
        angles = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None, :] * distances[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.n_levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``query`` to the levels in ``input_flatten``.

        Args:
            query: ``B Lq C``.
            reference_points: ``B Lq L 2`` (x, y) in [0, 1] from a level's top left to bottom right edge; or
                ``B Lq L 4``, boxes (centre x, centre y, width, height) that also scale the offsets.
            input_flatten: ``B S C``, all levels one after the other, each row by row.
            input_spatial_shapes: ``L 2`` int64, (height, width) of each level.
            input_level_start_index: ``L`` int64, where each level starts in S.
            input_padding_mask: ``B S`` bool, True for padding, whose values count as zero.

        Returns:
            ``B Lq C``.

        Raises:
            ValueError: if the shapes do not fit together.
        """
        self._check(query, reference_points, input_flatten, input_padding_mask)
        batch, queries, _ = query.shape
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.n_heads, self.d_model // self.n_heads))
        # Positions and weights stay in float32 when autocast makes the projections less precise.
        precise = torch.promote_types(query.dtype, torch.float32)
        per_point = (batch, queries, self.n_heads, self.n_levels, self.n_points)
        attention = self.attention_weights(query).view(*per_point[:3], self.n_levels * self.n_points)
        attention = _softmax(attention.to(precise)).view(per_point)
        with torch.autocast(query.device.type, enabled=False):
            offsets = self.sampling_offsets(query.to(self.sampling_offsets.weight.dtype)).to(precise)
        locations = self._sampling_locations(reference_points, offsets, input_spatial_shapes)
        locations = locations.view(*per_point, 2)
        output = ms_deform_attn(
            value, input_spatial_shapes, input_level_start_index, locations, attention, backend=self.backend
        )
        return self.output_proj(output)

    def _check(
        self, query: Tensor, reference_points: Tensor, input_flatten: Tensor, padding_mask: Tensor | None
    ) -> None:
        """Raise ValueError where the shapes do not fit together; ``ms_deform_attn`` checks the rest."""
        if query.dim() != 3 or query.shape[-1] != self.d_model:
            raise ValueError(f"query must have shape B Lq {self.d_model}, got {tuple(query.shape)}")
        batch, queries, _ = query.shape
        if input_flatten.dim() != 3 or input_flatten.shape[::2] != query.shape[::2]:
            raise ValueError(
                f"input_flatten must have shape {batch} S {self.d_model} to fit query, "
                f"got {tuple(input_flatten.shape)}"
            )
        points_shape = tuple(reference_points.shape)
        if points_shape not in [(batch, queries, self.n_levels, size) for size in (2, 4)]:
            raise ValueError(
                f"reference_points must have shape {(batch, queries, self.n_levels)} and 2 (x, y) or "
                f"4 (x, y, w, h), got {points_shape}"
            )
        if padding_mask is not None and padding_mask.shape != input_flatten.shape[:2]:
            raise ValueError(
                f"input_padding_mask must have shape {tuple(input_flatten.shape[:2])}, "
                f"got {tuple(padding_mask.shape)}"
            )

    def _sampling_locations(
        self, reference_points: Tensor, offsets: Tensor, spatial_shapes: Tensor
    ) -> Tensor:
        """Where to sample, in [0, 1], from offsets in pixels of a level or in parts of a box.

        Both ``B Lq M*L*P*2``: flat, because a CPU is slow at broadcasting along short axes.
        """
        samples = (self.n_heads, self.n_levels, self.n_points, 2)
        centres = reference_points[..., None, :2]
        if reference_points.shape[-1] == 2:
            width_height = spatial_shapes.flip(-1).to(offsets)
            moved = offsets / width_height[:, None, :].expand(samples).flatten()
        else:
            half_sizes = reference_points[:, :, None, :, None, 2:] / 2
            moved = (offsets.unflatten(-1, samples) / self.n_points * half_sizes).flatten(2)
        per_head = centres.expand(-1, -1, -1, self.n_points, -1).flatten(2)  # B Lq L*P*2
        return (moved.unflatten(-1, (self.n_heads, -1)) + per_head[:, :, None]).flatten(2)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last axis, which is short: a CPU does this several times faster than ``softmax``."""
    if logits.is_cuda:
        return logits.softmax(-1)
    exponentials = (logits - logits.detach().amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)
