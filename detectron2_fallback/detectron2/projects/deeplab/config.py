"""Config keys of the DeepLab project."""

from __future__ import annotations

from detectron2.config import CfgNode

__all__ = ["add_deeplab_config"]


def add_deeplab_config(cfg: CfgNode) -> None:
    """Add the DeepLab project's keys to ``cfg`` in place.

    Source: Chen et al. (arXiv:1706.05587, arXiv:1802.02611) for the values.
    """
    # Largest share of a random crop's labelled pixels that one category may have; 1 accepts every crop.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Exponent of the "poly" schedule, and the fraction of the base rate at which it stops to fall (0: never).
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0

    head = cfg.MODEL.SEM_SEG_HEAD
    # "cross_entropy" or "hard_pixel_mining".
    head.LOSS_TYPE = "hard_pixel_mining"
    # Feature maps that the decoder joins, and the channels it reduces each to.
    head.PROJECT_FEATURES = ["res2"]
    head.PROJECT_CHANNELS = [48]
    # Atrous spatial pyramid pooling.
    head.ASPP_CHANNELS = 256
    head.ASPP_DILATIONS = [6, 12, 18]
    head.ASPP_DROPOUT = 0.1
    head.USE_DEPTHWISE_SEPARABLE_CONV = False

    resnets = cfg.MODEL.RESNETS
    resnets.RES4_DILATION = 1
    # Dilation of each block of res5, times RES5_DILATION.
    resnets.RES5_MULTI_GRID = [1, 2, 4]
    # "basic" or "deeplab".
    resnets.STEM_TYPE = "deeplab"
