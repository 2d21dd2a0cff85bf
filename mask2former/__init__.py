"""Mask2Former: segmentation of one frame (image) by masked-attention mask classification."""

import detectron2_fallback  # noqa: F401  (first: it provides detectron2 where upstream is absent)
