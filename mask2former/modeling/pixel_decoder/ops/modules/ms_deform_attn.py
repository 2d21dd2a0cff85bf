"""The multi-scale deformable attention module."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.pixel_decoder.ops.functions import ms_deform_attn_from_offsets


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
        sampled = self.sample(
            query,
            reference_points,
            input_flatten,
            input_spatial_shapes,
            input_level_start_index,
            input_padding_mask,
        )
        return self.output_proj(sampled)

    def sample(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """What :meth:`forward` gives before the output projection, ``B Lq C``; same arguments."""
        self._check(query, reference_points, input_flatten, input_padding_mask)
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        offsets, logits = self._project(query)
        return ms_deform_attn_from_offsets(
            value.unflatten(-1, (self.n_heads, self.d_model // self.n_heads)),
            input_spatial_shapes,
            input_level_start_index,
            reference_points,
            offsets,
            logits,
            backend=self.backend,
        )

    def _project(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets ``B Lq M*L*P*2`` and attention logits ``B Lq M*L*P`` of the queries.

        Both are float32 also when autocast makes the other projections less precise, offsets by being
        computed so.
        """
        device = query.device.type
        places, weights = self.sampling_offsets, self.attention_weights
        precise = torch.promote_types(query.dtype, torch.float32)
        if device == "cpu" and not torch.is_grad_enabled():
            # One product instead of two on the same queries; a second one in half precision takes as long.
            with torch.autocast(device, enabled=False):
                weight, bias = (
                    torch.cat([first, second]).to(precise)
                    for first, second in zip(places.parameters(), weights.parameters(), strict=True)
                )
                projected = F.linear(query.to(precise), weight, bias)
            offsets, logits = projected.split([places.out_features, weights.out_features], dim=-1)
            return offsets, logits
        logits = weights(query).to(precise)
        with torch.autocast(device, enabled=False):
            return places(query.to(places.weight.dtype)).to(precise), logits

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
