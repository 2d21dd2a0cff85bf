"""Choice of the pixel decoder by name."""

from __future__ import annotations

from typing import Protocol

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor

__all__ = ["PixelDecoder", "build_pixel_decoder"]


class PixelDecoder(Protocol):
    """What the segmentation head needs of a pixel decoder."""

    def forward_features(
        self, features: dict[str, Tensor], *, allow_half: bool = False
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Map backbone features to mask features, encoder features and multi-scale features."""


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> PixelDecoder:
    """Build ``cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME``.

    Args:
        cfg: configuration.
        input_shape: channels and stride of the backbone's features.

    Returns:
        A module with ``forward_features(features) -> (mask_features, encoder_features,
        multi_scale_features)``.

    Raises:
        ValueError: if no class is registered under that name or it has no ``forward_features``.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    if name not in SEM_SEG_HEADS_REGISTRY:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is {name!r}, which is not registered; "
            "the pixel decoder of this project is 'MSDeformAttnPixelDecoder'"
        )
    decoder = SEM_SEG_HEADS_REGISTRY.get(name)(cfg, input_shape)
    if not callable(getattr(decoder, "forward_features", None)):
        raise ValueError(f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is {name!r}: no forward_features method")
    return decoder
