"""The PyTorch back end: needs no compiler; a forward faster than the reference, and its gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mask2former.modeling.pixel_decoder.ops.functions.reference import level_grid, level_maps

# ``grid_sampler_2d_backward`` names its modes by number.
_BILINEAR, _ZEROS = 0, 0


def forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention as weighted sums of table rows.

    With the pixels of all images and heads in one table, an output row is the weighted sum of the rows of
    its samples' corners: what ``embedding_bag`` computes, without storing the sampled values. Not
    differentiable. Shapes and dtypes as in :func:`ms_deform_attn_reference`.
    """
    batch, pixels, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    if value.numel() == 0 or attention_weights.numel() == 0:
        return value.new_zeros(batch, queries, heads * channels)
    table = value.reshape(batch * pixels * heads, channels)
    integer = torch.int32 if len(table) < 2**31 else torch.int64
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1, 1) * pixels
    head = torch.arange(heads, device=value.device).view(-1, 1, 1)
    start = ((image + level_start_index.view(-1, 1)) * heads + head).to(integer)
    # Expanded once, so that what follows is elementwise on contiguous tensors: several times faster on a CPU.
    samples = attention_weights.shape
    height, width = (
        size.view(-1, 1).expand(samples).contiguous() for size in spatial_shapes.to(value).unbind(1)
    )
    x, y = sampling_locations.unbind(-1)
    columns = [(index.to(integer) * heads, weight) for index, weight in _neighbours(x, width)]
    lines = [(index.to(integer), weight) for index, weight in _neighbours(y, height)]
    row_width = width.to(integer) * heads
    rows = torch.empty(*samples, 4, dtype=integer, device=value.device)
    weights = torch.empty(*samples, 4, dtype=value.dtype, device=value.device)
    for down, (line, line_weight) in enumerate(lines):
        first = line * row_width + start
        line_weight = line_weight * attention_weights
        for right, (column, column_weight) in enumerate(columns):
            torch.add(first, column, out=rows[..., 2 * down + right])
            torch.mul(line_weight, column_weight, out=weights[..., 2 * down + right])
    bags = batch * queries * heads
    output = F.embedding_bag(
        rows.view(bags, -1), table, per_sample_weights=weights.view(bags, -1), mode="sum"
    )
    return output.view(batch, queries, heads * channels)


def _neighbours(location: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The pixels before and after a location in [0, 1] along one axis: indices and linear weights.

    Outside pixels have weight 0 and some index inside; so has a location that is not a number (``fmax``).
    """
    position = location * size - 0.5
    before = position.floor()
    fraction = position - before
    neighbours = []
    for index, weight in ((before, 1 - fraction), (before + 1, fraction)):
        inside = torch.fmin(torch.fmax(index, index.new_zeros(())), size - 1)
        neighbours.append((inside, weight * (inside == index)))
    return neighbours


def backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the reference for ``value``, ``sampling_locations`` and ``attention_weights``.

    Written out, because nothing is recorded for autograd inside an operator.
    """
    grads = [torch.zeros_like(t) for t in (value, sampling_locations, attention_weights)]
    grad_value, grad_locations, grad_attention = grads
    if value.numel() == 0 or attention_weights.numel() == 0:
        return grad_value, grad_locations, grad_attention
    batch, _, heads = attention_weights.shape[:3]
    grad = rearrange(grad_output, "b q (m d) -> (b m) d q 1", m=heads).contiguous()
    starts = level_start_index.tolist()
    for level, (height, width) in enumerate(spatial_shapes.tolist()):
        maps = level_maps(value, starts[level], height, width)
        grid = level_grid(sampling_locations, level)
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        attention = attention_weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)
        grad_maps, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * attention, maps, grid, _BILINEAR, _ZEROS, False, [True, True]
        )
        pixels = slice(starts[level], starts[level] + height * width)
        grad_value[:, pixels] = rearrange(grad_maps, "(b m) d h w -> b (h w) m d", b=batch)
        grad_locations[:, :, :, level] = rearrange(2 * grad_grid, "(b m) q p xy -> b q m p xy", b=batch)
        grad_attention[:, :, :, level] = rearrange((grad * sampled).sum(1), "(b m) q p -> b q m p", b=batch)
    return grad_value, grad_locations, grad_attention
