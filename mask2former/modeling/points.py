"""Sampling of mask values at random points of an image or clip.

Shapes: ``N`` masks, ``T`` frames, ``h w`` grid, ``P`` points. A clip's frames are stacked on top of each
other, so that one coordinate pair addresses a point of the whole clip; an image is a clip with ``T = 1``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness
from einops import rearrange
from torch import Tensor

__all__ = ["random_points", "sample_points", "uncertain_points"]


def _stack_frames(masks: Tensor) -> Tensor:
    return rearrange(masks, "n t h w -> n 1 (t h) w")


def random_points(num_points: int, device: torch.device) -> Tensor:
    """Draw points uniformly in the unit square: ``1 P 2``, (x, y)."""
    return torch.rand(1, num_points, 2, device=device)


def sample_points(masks: Tensor, coords: Tensor) -> Tensor:
    """Interpolate masks bilinearly at points.

    Args:
        masks: ``N T h w``, floating.
        coords: ``N P 2`` or, for the same points in all masks, ``1 P 2``; (x, y) in the unit square that
            covers all frames one below the other.

    Returns:
        ``N P``. Points nearer than half a cell to the border between two frames mix both, as in the published
        training.

    Source: PointRend (arXiv:1912.08193), section 3.1; stacking of frames as published by DVIS.
    """
    # Expanding comes last: coordinates of the same points for a hundred masks would fill half a gigabyte.
    grid = (2.0 * coords - 1.0)[:, :, None].expand(masks.shape[0], -1, -1, -1)
    return F.grid_sample(_stack_frames(masks), grid, align_corners=False)[:, 0, :, 0]


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor, num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Draw points, most of them where masks are least certain (logit nearest to zero).

    Args:
        mask_logits: ``N T h w``.
        num_points: ``P``.
        oversample_ratio: how many times the points are drawn to choose from, at least 1.
        importance_sample_ratio: share of the points chosen by uncertainty; the rest is drawn anew.

    Returns:
        ``N P 2``, (x, y) as in :func:`sample_points`.

    Source: PointRend (arXiv:1912.08193), section 4.1; Mask2Former (arXiv:2112.01527), section 3.3.
    """
    return get_uncertain_point_coords_with_randomness(
        _stack_frames(mask_logits),
        lambda logits: -logits.abs(),
        num_points,
        oversample_ratio,
        importance_sample_ratio,
    )
