"""Universal video segmentation (instance, panoptic, semantic) centred on DVIS (arXiv:2306.03413)."""

import detectron2_fallback  # noqa: F401  isort: skip  (first: it provides detectron2 where upstream is absent)

from dvis.config import add_dvis_config, load_config

__all__ = ["add_dvis_config", "load_config"]
