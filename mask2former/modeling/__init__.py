"""The segmenter's parts; importing this registers them with detectron2."""

from mask2former.modeling.backbone.swin import D2SwinTransformer
from mask2former.modeling.criterion import SetCriterion, build_criterion
from mask2former.modeling.matcher import HungarianMatcher, MatchingWeights
from mask2former.modeling.meta_arch.mask_former_head import MaskFormerHead
from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder
from mask2former.modeling.transformer_decoder.build import TRANSFORMER_DECODER_REGISTRY
from mask2former.modeling.transformer_decoder.mask2former_transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
)

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "D2SwinTransformer",
    "HungarianMatcher",
    "MSDeformAttnPixelDecoder",
    "MaskFormerHead",
    "MatchingWeights",
    "MultiScaleMaskedTransformerDecoder",
    "SetCriterion",
    "build_criterion",
]
