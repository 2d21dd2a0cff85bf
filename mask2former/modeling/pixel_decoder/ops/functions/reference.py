"""Multi-scale deformable attention in plain PyTorch: what every back end is compared with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sample each level bilinearly at its locations and add the samples up, weighted by attention.

    Differentiable in ``value``, ``sampling_locations`` and ``attention_weights``; shapes and meaning as in
    :func:`~mask2former.modeling.pixel_decoder.ops.functions.ms_deform_attn`, but all three have one dtype and
    nothing is checked.

    Source: Deformable DETR (arXiv:2010.04159), equation 3.
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    output = value.new_zeros(batch * heads, channels, queries)
    if value.numel() == 0 or attention_weights.numel() == 0:
        return output.view(batch, heads * channels, queries).transpose(1, 2)
    starts = level_start_index.tolist()
    for level, (height, width) in enumerate(spatial_shapes.tolist()):
        maps = level_maps(value, starts[level], height, width)
        grid = level_grid(sampling_locations, level)
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        attention = attention_weights[:, :, :, level].transpose(1, 2).flatten(0, 1)
        output = output + (sampled * attention.unsqueeze(1)).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2)


def level_maps(value: Tensor, start: int, height: int, width: int) -> Tensor:
    """One level of ``value`` as images, ``B*M D height width``."""
    batch, _, heads, channels = value.shape
    pixels = value[:, start : start + height * width]
    return pixels.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)


def level_grid(sampling_locations: Tensor, level: int) -> Tensor:
    """One level's locations as ``grid_sample`` wants them: ``B*M Lq P 2``, from -1 to 1 instead of 0 to 1."""
    return (2 * sampling_locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
