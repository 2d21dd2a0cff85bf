"""Inputs for the tests of multi-scale deformable attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """The arguments of ``ms_deform_attn``."""

    value: Tensor
    spatial_shapes: Tensor
    level_start_index: Tensor
    sampling_locations: Tensor
    attention_weights: Tensor

    def to(self, dtype: torch.dtype) -> Problem:
        """Change the dtype of everything but the level tables."""
        return Problem(self[0].to(dtype), self[1], self[2], self[3].to(dtype), self[4].to(dtype))

    def on(self, device: str) -> Problem:
        return Problem(*(t.to(device) for t in self))

    def requires_grad(self) -> Problem:
        """Detached copies of the differentiable arguments that record gradients."""
        value, locations, attention = (self[i].detach().clone().requires_grad_() for i in (0, 3, 4))
        return Problem(value, self[1], self[2], locations, attention)

    def gradients(self, output: Tensor, grad_output: Tensor) -> tuple[Tensor, ...]:
        """Gradients of value, locations and attention."""
        inputs = (self.value, self.sampling_locations, self.attention_weights)
        return torch.autograd.grad(output, inputs, grad_output)


def level_tables(levels: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """``spatial_shapes`` and ``level_start_index`` of levels given as (height, width)."""
    shapes = torch.tensor(levels, dtype=torch.int64).view(-1, 2)
    sizes = shapes.prod(1)
    return shapes, sizes.cumsum(0) - sizes


def random_problem(
    seed: int = 0,
    batch: int = 2,
    queries: int = 5,
    heads: int = 2,
    channels: int = 3,
    levels: Sequence[tuple[int, int]] = ((4, 5), (2, 3)),
    points: int = 3,
    spread: float = 1.4,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Normal values, locations uniform over ``spread`` times the level's size around its middle.

    No location is within a hundredth of a pixel from a pixel's centre, where gradients jump: there rounding
    alone decides on which side it lies.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes, starts = level_tables(levels)
    samples = (batch, queries, heads, len(levels), points)
    pixels = int(shapes.prod(1).sum())
    value = torch.randn(batch, pixels, heads, channels, generator=generator, dtype=torch.float64)
    locations = (torch.rand(*samples, 2, generator=generator, dtype=torch.float64) - 0.5) * spread + 0.5
    size = shapes.flip(-1)[:, None].double()
    fraction = (locations * size - 0.5).remainder(1)
    locations = locations + (fraction.clamp(0.01, 0.99) - fraction) / size
    attention = torch.rand(*samples, generator=generator, dtype=torch.float64)
    return Problem(value, shapes, starts, locations, attention).to(dtype)
