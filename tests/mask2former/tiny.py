"""A segmenter small enough for a test to train."""

from __future__ import annotations

from typing import Any

import mask2former  # first: it provides detectron2 where upstream is absent  # isort: skip
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config


def default_cfg() -> CfgNode:
    """Detectron2's defaults with the keys of DeepLab and Mask2Former."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    mask2former.add_maskformer2_config(cfg)
    return cfg


def tiny_cfg(**options: Any) -> CfgNode:
    """ResNet-18, 32 channels, 10 queries, 4 classes, two decoder layers; ``A__B=x`` sets ``A.B``."""
    cfg = default_cfg()
    values = {
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 64,
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
        "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 64,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
        "MODEL.MASK_FORMER.DEC_LAYERS": 3,
        "MODEL.MASK_FORMER.DROPOUT": 0.0,
        "MODEL.MASK_FORMER.CLASS_WEIGHT": 2.0,
        "MODEL.MASK_FORMER.MASK_WEIGHT": 5.0,
        "MODEL.MASK_FORMER.DICE_WEIGHT": 5.0,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 112,
        **{key.replace("__", "."): value for key, value in options.items()},
    }
    for key, value in values.items():
        cfg.merge_from_list([key, value])
    return cfg
