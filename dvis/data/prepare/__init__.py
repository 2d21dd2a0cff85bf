"""Conversions from the data sets as they are published to what is trained on; see ``datasets/``."""

from dvis.data.prepare.coco import filter_coco
from dvis.data.prepare.ground_truth import install_ground_truth
from dvis.data.prepare.split import divide_by_length, divide_by_reference, split_videos
from dvis.data.prepare.vipseg import convert_vipseg
from dvis.data.prepare.vspw import convert_vspw

__all__ = [
    "convert_vipseg",
    "convert_vspw",
    "divide_by_length",
    "divide_by_reference",
    "filter_coco",
    "install_ground_truth",
    "split_videos",
]
