"""Meta-architectures; importing this package registers them with detectron2."""

from .base import InferenceSettings, VideoModel
from .minvis import MinVIS
from .offline import DVIS_offline
from .online import DVIS_online

__all__ = ["DVIS_offline", "DVIS_online", "InferenceSettings", "MinVIS", "VideoModel"]
