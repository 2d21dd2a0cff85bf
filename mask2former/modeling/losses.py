"""Losses of masks at sampled points, and the class loss.

Shapes: ``N`` matched masks, ``P`` points, ``B`` clips, ``Q`` queries, ``K+1`` classes with "no object". All
are computed in single precision or better, whatever the autocast state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["class_loss", "dice_loss", "sigmoid_ce_loss"]


def at_least_float(x: Tensor) -> Tensor:
    """``x`` in single precision, or double if it is double."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sigmoid_ce_loss(logits: Tensor, labels: Tensor, num_masks: float | Tensor) -> Tensor:
    """Binary cross entropy, averaged over points, summed over masks and divided by ``num_masks``.

    Args:
        logits: mask logits at points, ``N P``.
        labels: ground truth there, ``N P`` in [0, 1].
        num_masks: normaliser.

    Returns:
        Scalar.

    Source: Mask2Former (arXiv:2112.01527), section 4.1 (loss weights), L_bce.
    """
    logits = at_least_float(logits)
    loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return loss.mean(1).sum() / num_masks


def dice_loss(logits: Tensor, labels: Tensor, num_masks: float | Tensor) -> Tensor:
    """One minus the smoothed dice coefficient per mask, summed over masks and divided by ``num_masks``.

    Arguments and result as in :func:`sigmoid_ce_loss`.

    Source: V-Net (arXiv:1606.04797), section 3; Mask2Former (arXiv:2112.01527), section 4.1, L_dice.
    """
    probability = at_least_float(logits).sigmoid()
    labels = labels.to(probability.dtype)
    overlap = 2 * (probability * labels).sum(1)
    total = probability.sum(1) + labels.sum(1)
    return (1 - (overlap + 1) / (total + 1)).sum() / num_masks


def class_loss(logits: Tensor, classes: Tensor, class_weight: Tensor) -> Tensor:
    """Cross entropy over classes, averaged with the weight of each query's true class.

    Args:
        logits: ``B Q K+1``.
        classes: ``B Q`` int64 in ``[0, K]``; ``K`` is "no object".
        class_weight: ``K+1``.

    Returns:
        Scalar.

    Source: DETR (arXiv:2005.12872), section 3.1 (down-weighted "no object").
    """
    logits = at_least_float(logits)
    return F.cross_entropy(logits.transpose(1, 2), classes, class_weight.to(logits.dtype))
