"""Segmentation head: pixel decoder and transformer decoder (state-dict prefix ``sem_seg_head.``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask2former.modeling.pixel_decoder.build import PixelDecoder, build_pixel_decoder
from mask2former.modeling.transformer_decoder.build import build_transformer_decoder

__all__ = ["MaskFormerHead"]

logger = logging.getLogger(__name__)


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features of ``N`` frames to classes, masks and embeddings of ``Q`` queries per frame.

    Source: Mask2Former (arXiv:2112.01527), section 3.
    """

    _version = 2

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        pixel_decoder: PixelDecoder,
        loss_weight: float = 1.0,
        ignore_value: int = -1,
        transformer_predictor: nn.Module,
    ) -> None:
        """
        Args:
            input_shape: channels and stride of each backbone feature.
            num_classes: ``K``, without "no object".
            pixel_decoder: module with ``forward_features``.
            loss_weight: kept for users of detectron2's head interface; the criterion holds the weights.
            ignore_value: category id of pixels without annotation.
            transformer_predictor: module ``(multi_scale_features, mask_features) -> dict``.
        """
        super().__init__()
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride or 0)
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.pixel_decoder = pixel_decoder
        self.predictor = transformer_predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        source = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
        if source != "multi_scale_pixel_decoder":
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {source!r}; "
                "the masked-attention decoder attends to 'multi_scale_pixel_decoder'"
            )
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "ignore_value": head.IGNORE_VALUE,
            "num_classes": head.NUM_CLASSES,
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "loss_weight": head.LOSS_WEIGHT,
            "transformer_predictor": build_transformer_decoder(cfg, head.CONVS_DIM, mask_classification=True),
        }

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Move tensors that the first version kept in the head itself into the pixel decoder.

        Files without version data may also hold the present names, so this happens only if nothing is there
        yet.
        """
        ours = [key for key in state_dict if key.startswith(prefix)]
        first_version = (local_metadata.get("version") or 1) < 2
        if first_version and not any(key.startswith(f"{prefix}pixel_decoder.") for key in ours):
            for key in ours:
                if not key.startswith(f"{prefix}predictor."):
                    renamed = f"{prefix}pixel_decoder.{key[len(prefix) :]}"
                    logger.info("Loading %s as %s (weights of an older version)", key, renamed)
                    state_dict[renamed] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    def forward(
        self,
        features: dict[str, Tensor],
        *,
        with_masks: bool = True,
        with_aux: bool | None = None,
        allow_half: bool = False,
    ) -> dict[str, Any]:
        """Segment.

        Args:
            features: backbone features, ``N C h w`` each.
            with_masks: compute the final mask logits.
            with_aux: predictions of earlier decoder layers; None: in training.
            allow_half: under autocast, let the pixel decoder follow it too.

        Returns:
            The predictor's dict (see ``MultiScaleMaskedTransformerDecoder.forward``) and ``mask_features``
            ``N C h w``.
        """
        mask_features, _, multi_scale_features = self.pixel_decoder.forward_features(
            features, allow_half=allow_half
        )
        outputs = self.predictor(
            multi_scale_features, mask_features, with_masks=with_masks, with_aux=with_aux
        )
        return {**outputs, "mask_features": mask_features}
