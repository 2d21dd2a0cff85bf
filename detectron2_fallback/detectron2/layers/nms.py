"""Non-maximum suppression, which torchvision provides."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

__all__ = ["batched_nms", "nms"]


def import_torchvision_ops(user: str) -> ModuleType:
    """Import ``torchvision.ops``, an optional dependency.

    Args:
        user: name of what needs it, for the message.

    Raises:
        ImportError: if torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision.ops")
    except ImportError as error:
        raise ImportError(
            f"{user} needs torchvision: `pip install torchvision` in the version that fits torch "
            f"{torch.__version__} ({error})."
        ) from error


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Remove boxes that overlap a better one by more than a threshold.

    Args:
        boxes: ``N 4``, XYXY.
        scores: ``N``.
        iou_threshold: largest overlap that both boxes survive.

    Returns:
        int64 indices of the boxes kept, by descending score.

    Raises:
        ImportError: if torchvision is not installed.
    """
    return import_torchvision_ops("detectron2.layers.nms").nms(boxes, scores, iou_threshold)


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Like :func:`nms`, for each group by itself.

    Args:
        boxes: ``N 4``, XYXY.
        scores: ``N``.
        idxs: ``N``, the group (a class, a feature level) of each box.
        iou_threshold: largest overlap that both boxes survive.

    Returns:
        int64 indices of the boxes kept, by descending score.

    Raises:
        ImportError: if torchvision is not installed.
    """
    assert boxes.shape[-1] == 4
    ops = import_torchvision_ops("detectron2.layers.batched_nms")
    # float16 is too coarse for the offsets that keep groups apart.
    return ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
