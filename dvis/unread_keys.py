"""Keys of detectron2's defaults that no program of this project reads, so that setting one is a mistake.

They are there because the host defines them: detection heads, proposals, its own loaders and augmentations.
`tests/dvis/test_unread_keys.py` finds out what is read, by reading, and keeps the lists right.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

__all__ = ["INERT", "UNREAD", "has_no_effect", "is_unread"]

UNREAD = (
    "DATALOADER.ASPECT_RATIO_GROUPING",
    "DATALOADER.REPEAT_SQRT",
    "DATALOADER.REPEAT_THRESHOLD",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN",
    "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PROPOSAL_FILES_TRAIN",
    "GLOBAL",
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
    "INPUT.MASK_FORMAT",
    "MODEL.ANCHOR_GENERATOR",
    "MODEL.KEYPOINT_ON",
    "MODEL.LOAD_PROPOSALS",
    "MODEL.PANOPTIC_FPN",
    "MODEL.PROPOSAL_GENERATOR",
    "MODEL.RESNETS.DEFORM_MODULATED",
    "MODEL.RESNETS.DEFORM_NUM_GROUPS",
    "MODEL.RESNETS.RES4_DILATION",
    "MODEL.RETINANET",
    "MODEL.ROI_BOX_CASCADE_HEAD",
    "MODEL.ROI_BOX_HEAD",
    "MODEL.ROI_HEADS",
    "MODEL.ROI_KEYPOINT_HEAD",
    "MODEL.ROI_MASK_HEAD",
    "MODEL.RPN",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.NESTEROV",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "TEST.AUG",
    "TEST.KEYPOINT_OKS_SIGMAS",
    "VIS_PERIOD",
)
"""Keys, and groups of keys, that may not be set to anything but their defaults."""

INERT = (
    "INPUT.DATASET_MAPPER_NAME",
    "INPUT.IMAGE_SIZE",
    "INPUT.MAX_SCALE",
    "INPUT.MIN_SCALE",
    "INPUT.SIZE_DIVISIBILITY",
    "MODEL.MASK_FORMER.ENC_LAYERS",
    "MODEL.MASK_FORMER.TEST.WINDOW_INFERENCE",
    "MODEL.MASK_ON",
    "MODEL.RESNETS.RES5_MULTI_GRID",
    "MODEL.RESNETS.STEM_TYPE",
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS",
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS",
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT",
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE",
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS",
    "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES",
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV",
    "VERSION",
)
"""Keys that are not read either, but are set in published files, which have to load as they are."""


def is_unread(key: str) -> bool:
    """Whether a key is one of ``UNREAD``."""
    return any(key == name or key.startswith(f"{name}.") for name in UNREAD)


def has_no_effect(key: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    """Whether setting a key of the defaults to a value is a mistake, as nothing reads it.

    Args:
        key: full name of the key.
        value: as in a file or on the command line. The default is no mistake: whole configurations that a
            program has written down may be read again.
        defaults: all keys with their defaults.
    """
    if not is_unread(key):
        return False
    default = defaults[key]
    if isinstance(value, str) and not isinstance(default, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return True
    return _as_lists(value) != _as_lists(default)


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
