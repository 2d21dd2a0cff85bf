"""Assignment of ground-truth objects to queries.

Shapes: ``B`` clips, ``Q`` queries, ``N`` objects, ``T`` frames, ``K+1`` classes with "no object", ``P``
    points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask2former.modeling.losses import at_least_float
from mask2former.modeling.points import random_points, sample_points

__all__ = [
    "HungarianMatcher",
    "Indices",
    "MatchingWeights",
    "assign",
    "class_cost",
    "dice_cost",
    "matching_cost",
    "sigmoid_ce_cost",
]

# Matched pairs of one clip: query indices and object indices, both int64 of equal length, on the CPU.
Indices = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MatchingWeights:
    """Weights of the three costs; at least one is positive."""

    cost_class: float = 1.0
    cost_mask: float = 1.0
    cost_dice: float = 1.0

    def __post_init__(self) -> None:
        if min(self.cost_class, self.cost_mask, self.cost_dice) < 0 or not (
            self.cost_class or self.cost_mask or self.cost_dice
        ):
            raise ValueError(f"matching weights must not be negative and not all zero, got {self}")


def class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability of each object's class.

    Args:
        logits: ``Q K+1``.
        labels: ``N`` int64 in ``[0, K]``.

    Returns:
        ``Q N``.

    Source: DETR (arXiv:2005.12872), section 3.1.
    """
    return -at_least_float(logits).softmax(-1)[:, labels]


def sigmoid_ce_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of every query's points with every object's, averaged over points.

    Args:
        logits: ``Q P``.
        labels: ``N P`` in [0, 1].

    Returns:
        ``Q N``.

    Source: Mask2Former (arXiv:2112.01527), section 3.3.
    """
    # bce(x, t) = softplus(x) - x t: one product instead of one for each of the two classes
    return (F.softplus(logits).sum(1, keepdim=True) - logits @ labels.T) / logits.shape[1]


def dice_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the smoothed dice coefficient of every pair; arguments as in :func:`sigmoid_ce_cost`."""
    probability = logits.sigmoid()
    overlap = 2 * probability @ labels.T
    total = probability.sum(1)[:, None] + labels.sum(1)[None]
    return 1 - (overlap + 1) / (total + 1)


@torch.no_grad()
def matching_cost(
    logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    masks: Tensor,
    *,
    num_points: int,
    weights: MatchingWeights,
) -> Tensor:
    """What it costs to give each object to each query.

    Masks are compared at ``num_points * T`` random points, the same for all; one ``1 P 2`` draw of
    ``torch.rand``.

    Args:
        logits: class logits, ``Q K+1``.
        mask_logits: ``Q T h w``.
        labels: ``N`` int64 in ``[0, K]``.
        masks: ground truth, ``N T H W`` bool.
        num_points: points per frame.
        weights: of the three costs.

    Returns:
        ``Q N`` float32.

    Raises:
        ValueError: if the numbers of frames, labels or masks disagree.

    Source: Mask2Former (arXiv:2112.01527), section 3.3.
    """
    if masks.dim() != 4 or mask_logits.dim() != 4 or masks.shape[1] != mask_logits.shape[1]:
        raise ValueError(
            "mask logits must be Q T h w and ground truth N T H W with the same T, got "
            f"{tuple(mask_logits.shape)} and {tuple(masks.shape)}"
        )
    if len(labels) != len(masks):
        raise ValueError(f"{len(labels)} labels, but {len(masks)} ground-truth masks")
    coords = random_points(num_points * masks.shape[1], mask_logits.device)
    with torch.autocast(mask_logits.device.type, enabled=False):
        mask_logits = at_least_float(mask_logits)
        predicted = sample_points(mask_logits, coords)
        truth = sample_points(masks.to(mask_logits), coords)
        return (
            weights.cost_mask * sigmoid_ce_cost(predicted, truth)
            + weights.cost_class * class_cost(logits, labels)
            + weights.cost_dice * dice_cost(predicted, truth)
        )


def assign(cost: np.ndarray) -> Indices:
    """Cheapest one-to-one assignment: (query indices, object indices), ordered by query.

    Args:
        cost: ``Q N``, finite.

    Source: Kuhn, the Hungarian method (1955).
    """
    queries, objects = linear_sum_assignment(cost)
    return torch.from_numpy(queries.astype(np.int64)), torch.from_numpy(objects.astype(np.int64))


@dataclass(frozen=True)
class HungarianMatcher:
    """Match every clip's objects to its queries by class and mask.

    Attributes:
        weights: of the three costs.
        num_points: points per frame at which masks are compared.
    """

    weights: MatchingWeights
    num_points: int

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise ValueError(f"MODEL.MASK_FORMER.TRAIN_NUM_POINTS must be positive, not {self.num_points}")

    def __call__(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[Indices]:
        """Match.

        Args:
            outputs: ``pred_logits`` ``B Q K+1`` and ``pred_masks`` ``B Q T h w``.
            targets: per clip ``labels`` ``N`` and ``masks`` ``N T H W``.

        Returns:
            Per clip the matched (query, object) indices.

        Raises:
            FloatingPointError: if a cost is not finite; it names the tensor at fault.
        """
        costs = [
            matching_cost(
                outputs["pred_logits"][b],
                outputs["pred_masks"][b],
                target["labels"],
                target["masks"],
                num_points=self.num_points,
                weights=self.weights,
            )
            for b, target in enumerate(targets)
        ]
        if not costs:
            return []
        # One transfer for all clips: each would wait for the device.
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        if not flat.isfinite().all():
            raise FloatingPointError(_blame(outputs, targets, costs))
        parts = flat.split([cost.numel() for cost in costs])
        return [assign(part.view(cost.shape).numpy()) for part, cost in zip(parts, costs, strict=True)]


def _blame(
    outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]], costs: Sequence[Tensor]
) -> str:
    """Say which tensor makes a matching cost infinite or not a number."""
    b = next(b for b, cost in enumerate(costs) if not cost.isfinite().all())
    suspects = {
        "pred_logits": outputs["pred_logits"][b],
        "pred_masks": outputs["pred_masks"][b],
        "ground-truth masks": targets[b]["masks"],
    }
    broken = [
        f"{name} ({int((~tensor.isfinite()).sum())} of {tensor.numel()} values)"
        for name, tensor in suspects.items()
        if not tensor.isfinite().all()
    ]
    cause = "not finite: " + ", ".join(broken) if broken else "all inputs are finite, the cost overflowed"
    return (
        f"The matching cost of clip {b} is not finite; {cause}. Training has diverged or an input is broken: "
        "try a lower SOLVER.BASE_LR, SOLVER.CLIP_GRADIENTS, or SOLVER.AMP.ENABLED False."
    )
