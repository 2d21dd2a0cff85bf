"""Registry of region-of-interest heads and the function that builds one."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

__all__ = ["ROI_HEADS_REGISTRY", "build_roi_heads"]

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
ROI_HEADS_REGISTRY.__doc__ = """Modules that make per-region predictions from feature maps and proposals."""


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build ``cfg.MODEL.ROI_HEADS.NAME`` for feature maps of the given shapes.

    Raises:
        KeyError: if no heads of that name are registered.
    """
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)
