"""Mask2Former: segmentation of one frame (image) by masked-attention mask classification.

Importing the package registers its modules with detectron2: backbone ``D2SwinTransformer``, pixel decoder
``MSDeformAttnPixelDecoder``, head ``MaskFormerHead``, transformer decoders, and meta-architecture
``MaskFormer``.
"""

import detectron2_fallback  # noqa: F401, I001  (first: it provides detectron2 where upstream is absent)

from mask2former import modeling  # noqa: F401
from mask2former.config import add_maskformer2_config
from mask2former.maskformer_model import MaskFormer

__all__ = ["MaskFormer", "add_maskformer2_config"]
