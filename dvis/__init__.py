"""Universal video segmentation (instance, panoptic, semantic) centred on DVIS (arXiv:2306.03413).

Importing this package registers the models (``MinVIS``, ``DVIS_online``, ``DVIS_offline``) and data sets with
detectron2; it opens no file.
"""

import detectron2_fallback  # noqa: F401  isort: skip  (first: it provides detectron2 where upstream is absent)

import dvis.data
import mask2former  # noqa: F401
from dvis.config import add_dvis_config, load_config

import dvis.modeling.meta_arch  # isort: skip  # noqa: F401
from dvis.api import FrameResult, VideoResult, VideoSegmenter
from dvis.video_io import VideoError, open_video

__all__ = [
    "FrameResult",
    "VideoError",
    "VideoResult",
    "VideoSegmenter",
    "add_dvis_config",
    "load_config",
    "open_video",
]
