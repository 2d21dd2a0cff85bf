"""Formats of data sets, and the builtin data sets."""

from .coco import (
    convert_to_coco_dict,
    convert_to_coco_json,
    load_coco_json,
    load_sem_seg,
    register_coco_instances,
)
from .coco_panoptic import load_coco_panoptic_json, register_coco_panoptic, register_coco_panoptic_separated

# Importing this registers the builtin data sets.
from . import builtin  # isort: skip  # noqa: F401

__all__ = [
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "load_coco_json",
    "load_coco_panoptic_json",
    "load_sem_seg",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
]
