"""Choice of the transformer decoder by name."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

__all__ = ["PUBLISHED_DECODER_NAMES", "TRANSFORMER_DECODER_REGISTRY", "build_transformer_decoder"]

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """
Transformer decoders; called with ``(cfg, in_channels, mask_classification=True)``.
"""

# Names in published configs of what is one module with the same parameters: the originals differ only in how
# they fold frames into the batch on the way out, which is not the decoder's business here.
PUBLISHED_DECODER_NAMES = {
    "VideoMultiScaleMaskedTransformerDecoder_frame": "MultiScaleMaskedTransformerDecoder",
    "VideoMultiScaleMaskedTransformerDecoder_minvis": "MultiScaleMaskedTransformerDecoder",
    "VideoMultiScaleMaskedTransformerDecoder_dvis": "MultiScaleMaskedTransformerDecoder",
}


def build_transformer_decoder(cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> nn.Module:
    """Build ``cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME``.

    Args:
        cfg: configuration.
        in_channels: channels of the features the decoder attends to.
        mask_classification: predict a class per query.

    Returns:
        A module ``(multi_scale_features, mask_features) -> dict``, see
        ``MultiScaleMaskedTransformerDecoder``.

    Raises:
        ValueError: if no class is registered under that name.
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    if name not in TRANSFORMER_DECODER_REGISTRY:
        registered = PUBLISHED_DECODER_NAMES.get(name)
        if registered is None:
            known = sorted([*PUBLISHED_DECODER_NAMES, *(key for key, _ in TRANSFORMER_DECODER_REGISTRY)])
            raise ValueError(f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME is {name!r}; known are {known}")
        name = registered
    return TRANSFORMER_DECODER_REGISTRY.get(name)(cfg, in_channels, mask_classification)
