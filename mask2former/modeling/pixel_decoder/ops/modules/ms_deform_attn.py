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

    Raises:
        ValueError: if a count is not positive or ``n_heads`` does not divide ``d_model``.

    Source: Deformable DETR (arXiv:2010.04159), section 4.1 and appendix A.4 (initialisation).
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__()
        for name, count in {
            "d_model": d_model,
            "n_levels": n_levels,
            "n_heads": n_heads,
            "n_points": n_points,
        }.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if d_model % n_heads != 0:
            raise ValueError(f"d_model must be divisible by n_heads, got {d_model} and {n_heads}")
        self.d_model = d_model
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
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
        batch, queries, _ = query.shape
        pixels = input_flatten.shape[1]
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        value = value.view(batch, pixels, self.n_heads, self.d_model // self.n_heads)
        per_point = (batch, queries, self.n_heads, self.n_levels, self.n_points)
        offsets = self.sampling_offsets(query).view(*per_point, 2)
        attention = self.attention_weights(query).view(*per_point[:3], self.n_levels * self.n_points)
        attention = attention.softmax(-1).view(per_point)
        locations = self._sampling_locations(reference_points, offsets, input_spatial_shapes)
        output = ms_deform_attn(value, input_spatial_shapes, input_level_start_index, locations, attention)
        return self.output_proj(output)

    def _sampling_locations(
        self, reference_points: Tensor, offsets: Tensor, spatial_shapes: Tensor
    ) -> Tensor:
        """Where to sample, ``B Lq M L P 2`` in [0, 1]; offsets are in pixels of a level or parts of a box."""
        if reference_points.shape[-1] not in (2, 4):
            raise ValueError(
                "reference_points must end in 2 (x, y) or 4 (x, y, w, h), "
                f"got shape {tuple(reference_points.shape)}"
            )
        centres = reference_points[:, :, None, :, None, :2]
        if reference_points.shape[-1] == 2:
            width_height = spatial_shapes.flip(-1).to(offsets)
            return centres + offsets / width_height[None, None, None, :, None, :]
        sizes = reference_points[:, :, None, :, None, 2:]
        return centres + offsets / self.n_points * sizes * 0.5
