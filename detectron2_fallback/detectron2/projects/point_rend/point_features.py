"""Sampling of feature maps at points, and the choice of points where a prediction is uncertain.

Source: Kirillov et al., "PointRend" (arXiv:1912.08193), section 3.

Letters: R regions (objects, or images), P points. A point is ``(x, y)`` in [0, 1] x [0, 1], from the upper
left to the lower right corner of its region.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import cat
from detectron2.structures import Boxes, Instances

__all__ = [
    "generate_regular_grid_point_coords",
    "get_point_coords_wrt_image",
    "get_uncertain_point_coords_on_grid",
    "get_uncertain_point_coords_with_randomness",
    "point_sample",
    "point_sample_fine_grained_features",
    "sample_point_labels",
]


def point_sample(input: torch.Tensor, point_coords: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Interpolate a feature map at points.

    Args:
        input: feature maps, ``R C H W``.
        point_coords: ``R P 2`` or, as a grid, ``R Hg Wg 2``; in [0, 1], outside counts as zero.
        kwargs: passed to :func:`torch.nn.functional.grid_sample`.

    Returns:
        ``R C P``, or ``R C Hg Wg`` for a grid.
    """
    is_list = point_coords.dim() == 3
    grid = point_coords.unsqueeze(2) if is_list else point_coords
    output = F.grid_sample(input, 2.0 * grid - 1.0, **kwargs)
    return output.squeeze(3) if is_list else output


def generate_regular_grid_point_coords(R: int, side_size: int, device: torch.device | str) -> torch.Tensor:
    """Centres of a regular grid of ``side_size ** 2`` cells, the same for all regions.

    Returns:
        ``R side_size^2 2``, row by row.
    """
    centres = (torch.arange(side_size, device=device, dtype=torch.float32) + 0.5) / side_size
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=-1).view(1, -1, 2).expand(R, -1, -1)


def get_uncertain_point_coords_with_randomness(
    coarse_logits: torch.Tensor,
    uncertainty_func: Callable[[torch.Tensor], torch.Tensor],
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> torch.Tensor:
    """Draw points for training: most where the prediction is uncertain, the rest anywhere.

    Args:
        coarse_logits: predictions, ``R C H W`` or ``R 1 H W``.
        uncertainty_func: from logits at points, ``R C P``, to uncertainties, ``R 1 P``.
        num_points: P, the number of points to return.
        oversample_ratio: so many times P candidates are drawn uniformly; at least 1.
        importance_sample_ratio: share of P that are the most uncertain candidates, in [0, 1].

    Returns:
        ``R P 2``, the uncertain points first.

    Source: PointRend, section 3.1, "Point selection for training".
    """
    assert oversample_ratio >= 1
    assert 0 <= importance_sample_ratio <= 1
    regions = coarse_logits.shape[0]
    num_candidates = int(num_points * oversample_ratio)
    candidates = torch.rand(regions, num_candidates, 2, device=coarse_logits.device)
    # The uncertainty must be that of the interpolated logits: interpolating uncertainties would call the
    # point halfway between logits 1 and -1 certain, where in truth it is the least certain of all.
    uncertainties = uncertainty_func(point_sample(coarse_logits, candidates, align_corners=False))
    num_uncertain = int(importance_sample_ratio * num_points)
    num_random = num_points - num_uncertain
    chosen = torch.topk(uncertainties[:, 0, :], k=num_uncertain, dim=1)[1]
    points = torch.gather(candidates, 1, chosen.unsqueeze(-1).expand(-1, -1, 2))
    if num_random > 0:
        points = cat([points, torch.rand(regions, num_random, 2, device=coarse_logits.device)], dim=1)
    return points


def get_uncertain_point_coords_on_grid(
    uncertainty_map: torch.Tensor, num_points: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the most uncertain cells of a regular grid.

    Args:
        uncertainty_map: ``R 1 H W``.
        num_points: P; at most ``H * W`` are returned.

    Returns:
        Indices into the flattened grid, ``R P`` int64, and the cells' centres, ``R P 2``.
    """
    regions, _, height, width = uncertainty_map.shape
    num_points = min(height * width, num_points)
    indices = torch.topk(uncertainty_map.reshape(regions, height * width), k=num_points, dim=1)[1]
    x = ((indices % width).to(torch.float) + 0.5) / width
    y = (torch.div(indices, width, rounding_mode="floor").to(torch.float) + 0.5) / height
    return indices, torch.stack([x, y], dim=-1)


def point_sample_fine_grained_features(
    features_list: list[torch.Tensor],
    feature_scales: list[float],
    boxes: list[Boxes],
    point_coords: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Interpolate the feature maps of whole images at points that are given relative to boxes.

    Args:
        features_list: feature maps of the batch, each ``N C H W``.
        feature_scales: pixels of each map per pixel of the image (1 / stride).
        boxes: boxes of each of the N images, R in all, in pixels.
        point_coords: points relative to these boxes, ``R P 2``.

    Returns:
        Features of all maps, ``R C P`` with C the sum of channels, and the points in pixels, ``R P 2``.
    """
    image_coords = get_point_coords_wrt_image(cat([b.tensor for b in boxes]), point_coords)
    per_image = torch.split(image_coords, [len(b) for b in boxes])
    point_features = []
    for i, coords in enumerate(per_image):
        flat = coords.reshape(1, -1, 2)
        features = []
        for feature_map, scale in zip(features_list, feature_scales, strict=True):
            height, width = feature_map.shape[-2:]
            size = torch.tensor([width, height], device=coords.device) / scale
            features.append(point_sample(feature_map[i : i + 1], flat / size, align_corners=False)[0])
        channels_first = torch.cat(features, dim=0)
        point_features.append(
            channels_first.view(channels_first.shape[0], coords.shape[0], coords.shape[1]).transpose(0, 1)
        )
    return cat(point_features, dim=0), image_coords


def get_point_coords_wrt_image(boxes_coords: torch.Tensor, point_coords: torch.Tensor) -> torch.Tensor:
    """Turn points relative to boxes into pixels of the image.

    Args:
        boxes_coords: ``R 4``, x0 y0 x1 y1 in pixels.
        point_coords: ``R P 2`` in [0, 1].

    Returns:
        ``R P 2`` in pixels.
    """
    with torch.no_grad():
        corner = boxes_coords[:, None, :2]
        size = boxes_coords[:, None, 2:] - corner
        return point_coords * size + corner


def sample_point_labels(instances: list[Instances], point_coords: torch.Tensor) -> torch.Tensor:
    """Sample ground-truth masks at points.

    Args:
        instances: per image, with ``gt_masks`` (BitMasks) and ``proposal_boxes``; R objects in all.
        point_coords: points relative to the proposals, ``R P 2``.

    Returns:
        Mask values in [0, 1], ``R P`` float32.
    """
    with torch.no_grad():
        labels = []
        start = 0
        for per_image in instances:
            coords = point_coords[start : start + len(per_image)]
            start += len(per_image)
            if len(per_image) == 0:
                continue
            masks = per_image.gt_masks.tensor
            height, width = masks.shape[-2:]
            in_pixels = get_point_coords_wrt_image(per_image.proposal_boxes.tensor, coords)
            relative = in_pixels / torch.tensor([width, height], dtype=torch.float, device=in_pixels.device)
            sampled = point_sample(masks.to(torch.float32).unsqueeze(1), relative, align_corners=False)
            labels.append(sampled.squeeze(1))
        return cat(labels) if labels else point_coords.new_zeros(point_coords.shape[:2])
