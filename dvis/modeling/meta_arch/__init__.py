"""Meta-architectures; importing this package registers them with detectron2."""

from .base import InferenceSettings, VideoModel
from .minvis import MinVIS

__all__ = ["InferenceSettings", "MinVIS", "VideoModel"]
