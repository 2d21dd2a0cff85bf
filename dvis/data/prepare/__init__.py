"""Conversions from the data sets as they are published to what is trained on; see ``datasets/``."""

from dvis.data.prepare.coco import filter_coco
from dvis.data.prepare.split import split_videos
from dvis.data.prepare.vipseg import convert_vipseg
from dvis.data.prepare.vspw import convert_vspw

__all__ = ["convert_vipseg", "convert_vspw", "filter_coco", "split_videos"]
