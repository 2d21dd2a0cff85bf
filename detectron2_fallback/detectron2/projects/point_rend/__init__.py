"""Config, point sampling and colour augmentation of the PointRend project."""

from .color_augmentation import ColorAugSSDTransform
from .config import add_pointrend_config

__all__ = ["ColorAugSSDTransform", "add_pointrend_config"]
