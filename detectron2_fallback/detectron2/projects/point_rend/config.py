"""Config keys of the PointRend project."""

from __future__ import annotations

from detectron2.config import CfgNode

__all__ = ["add_pointrend_config"]


def add_pointrend_config(cfg: CfgNode) -> None:
    """Add the PointRend project's keys to ``cfg`` in place.

    Source: Kirillov et al., "PointRend" (arXiv:1912.08193), for the values.
    """
    # Largest share of a random crop's labelled pixels that one category may have; 1 accepts every crop.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    cfg.INPUT.COLOR_AUG_SSD = False

    mask_head = cfg.MODEL.ROI_MASK_HEAD
    mask_head.IN_FEATURES = ("p2",)
    mask_head.FC_DIM = 1024
    mask_head.NUM_FC = 2
    # Side of the coarse mask, in cells.
    mask_head.OUTPUT_SIDE_RESOLUTION = 7
    mask_head.POINT_HEAD_ON = False

    cfg.MODEL.POINT_HEAD = CfgNode()
    point_head = cfg.MODEL.POINT_HEAD
    point_head.NAME = "StandardPointHead"
    point_head.NUM_CLASSES = 80
    point_head.IN_FEATURES = ("p2",)
    # Points per object in training; candidates are OVERSAMPLE_RATIO times as many, and the share
    # IMPORTANCE_SAMPLE_RATIO of the points are the most uncertain candidates.
    point_head.TRAIN_NUM_POINTS = 14 * 14
    point_head.OVERSAMPLE_RATIO = 3
    point_head.IMPORTANCE_SAMPLE_RATIO = 0.75
    # At inference the mask is doubled in size so many times, with so many points re-computed each time.
    point_head.SUBDIVISION_STEPS = 5
    point_head.SUBDIVISION_NUM_POINTS = 28 * 28
    point_head.FC_DIM = 256
    point_head.NUM_FC = 3
    point_head.CLS_AGNOSTIC_MASK = False
    point_head.COARSE_PRED_EACH_LAYER = True
    point_head.COARSE_SEM_SEG_HEAD_NAME = "SemSegFPNHead"

    cfg.MODEL.IMPLICIT_POINTREND = CfgNode()
    cfg.MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED = True
    cfg.MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED = True
    cfg.MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER = 0.00001
