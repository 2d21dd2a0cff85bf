"""Masked-attention transformer decoder: learned queries to classes, masks and embeddings.

Shapes: ``N`` frames, ``Q`` queries, ``C`` channels of queries, ``K+1`` classes with "no object", ``h w``
grid of the mask features, ``L`` decoder layers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn

from mask2former.layers import MLP, CrossAttentionLayer, FFNLayer, PositionEmbeddingSine, SelfAttentionLayer
from mask2former.modeling.transformer_decoder.build import TRANSFORMER_DECODER_REGISTRY

__all__ = ["MultiScaleMaskedTransformerDecoder"]

logger = logging.getLogger(__name__)

NUM_LEVELS = 3


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Queries attend, layer by layer and scale by scale, to the inside of the mask they predicted last.

    Source: Mask2Former (arXiv:2112.01527), section 3.2.1 (masked attention) and 3.2.2 (scales in turn).
    """

    _version = 2

    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        dec_layers: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
        dropout: float = 0.0,
    ) -> None:
        """
        Args:
            in_channels: channels of the features attended to.
            mask_classification: predict a class per query (the only mode there is).
            num_classes: ``K``, without "no object".
            hidden_dim: ``C``.
            num_queries: ``Q``.
            nheads: attention heads.
            dim_feedforward: hidden channels of feed-forward layers.
            dec_layers: decoder layers ``L``; there are ``L + 1`` predictions.
            pre_norm: layer norm before instead of after each block.
            mask_dim: channels of the mask features.
            enforce_input_project: 1 x 1 convolution on the features even where channels agree.
            dropout: of all blocks; published models have none.

        Raises:
            ValueError: if ``mask_classification`` is off or there is no layer.
        """
        super().__init__()
        if not mask_classification:
            raise ValueError("MultiScaleMaskedTransformerDecoder supports mask classification only")
        if dec_layers < 1:
            raise ValueError(
                f"MODEL.MASK_FORMER.DEC_LAYERS counts predictions, one before the first layer included; "
                f"{dec_layers + 1} leaves no layer, the smallest value is 2"
            )
        self.pe_layer = PositionEmbeddingSine(hidden_dim // 2, normalize=True)
        self.num_heads = nheads
        self.num_layers = dec_layers
        self.num_queries = num_queries
        block: dict[str, Any] = {"dropout": dropout, "normalize_before": pre_norm}
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, nheads, **block) for _ in range(dec_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, nheads, **block) for _ in range(dec_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, dim_feedforward, **block) for _ in range(dec_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        self.input_proj = nn.ModuleList()
        for _ in range(NUM_LEVELS):
            if in_channels != hidden_dim or enforce_input_project:
                self.input_proj.append(Conv2d(in_channels, hidden_dim, kernel_size=1))
                weight_init.c2_xavier_fill(self.input_proj[-1])
            else:
                self.input_proj.append(nn.Identity())
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        settings = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": settings.HIDDEN_DIM,
            "num_queries": settings.NUM_OBJECT_QUERIES,
            "nheads": settings.NHEADS,
            "dim_feedforward": settings.DIM_FEEDFORWARD,
            # DEC_LAYERS counts predictions, of which one comes before the first layer.
            "dec_layers": settings.DEC_LAYERS - 1,
            "pre_norm": settings.PRE_NORM,
            "enforce_input_project": settings.ENFORCE_INPUT_PROJ,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
        }

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Give tensors of the first version (or of files without versions) their present names."""
        if (local_metadata.get("version") or 1) < 2:
            for key in [key for key in state_dict if key.startswith(prefix) and "static_query" in key]:
                renamed = prefix + key[len(prefix) :].replace("static_query", "query_feat")
                logger.info("Loading %s as %s (weights of an older version)", key, renamed)
                state_dict[renamed] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    def forward(
        self,
        multi_scale_features: Sequence[Tensor],
        mask_features: Tensor,
        *,
        with_masks: bool = True,
        with_aux: bool | None = None,
    ) -> dict[str, Any]:
        """Decode.

        Args:
            multi_scale_features: three ``N in_channels h w``, coarsest first.
            mask_features: ``N mask_dim h w``.
            with_masks: compute the final mask logits.
            with_aux: predict also before the first and after each but the last layer; None: in training.

        Returns:
            ``pred_logits`` ``N Q K+1``; ``pred_masks`` logits ``N Q h w`` or None; ``pred_embeds`` ``N Q
            C``, the queries after the last norm; ``pred_mask_embeds`` ``N Q mask_dim``, whose product with
            the mask features is ``pred_masks``; ``aux_outputs``, a list of ``L`` (or no) dicts
            ``pred_logits`` and ``pred_masks``.

        Raises:
            ValueError: if there are not three features.
        """
        if len(multi_scale_features) != NUM_LEVELS:
            raise ValueError(f"expected {NUM_LEVELS} feature levels, got {len(multi_scale_features)}")
        with_aux = self.training if with_aux is None else with_aux
        memory, memory_pos, small_features = self._prepare(multi_scale_features, mask_features)
        n = mask_features.shape[0]
        query_pos = self.query_embed.weight[None]
        queries = self.query_feat.weight[None].expand(n, -1, -1)
        aux_outputs = []
        for i in range(self.num_layers):
            level = i % NUM_LEVELS
            embeds = self.decoder_norm(queries)
            mask_embeds = self.mask_embed(embeds)
            if with_aux:
                aux_outputs.append(
                    {
                        "pred_logits": self._classify(embeds),
                        "pred_masks": mask_logits(mask_embeds, mask_features),
                    }
                )
            queries = self.transformer_cross_attention_layers[i](
                queries,
                memory[level],
                memory_mask=background(mask_embeds, small_features[level]),
                key_pos=memory_pos[level],
                query_pos=query_pos,
            )
            queries = self.transformer_self_attention_layers[i](queries, query_pos=query_pos)
            queries = self.transformer_ffn_layers[i](queries)
        embeds = self.decoder_norm(queries)
        mask_embeds = self.mask_embed(embeds)
        return {
            "pred_logits": self._classify(embeds),
            "pred_masks": mask_logits(mask_embeds, mask_features) if with_masks else None,
            "pred_embeds": embeds,
            "pred_mask_embeds": mask_embeds,
            "aux_outputs": aux_outputs,
        }

    def _classify(self, embeds: Tensor) -> Tensor:
        """Class logits, always in the weights' precision: scores decide what is kept, and in which order."""
        with torch.autocast(embeds.device.type, enabled=False):
            return self.class_embed(embeds.to(self.class_embed.weight.dtype))

    def _prepare(
        self, multi_scale_features: Sequence[Tensor], mask_features: Tensor
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Tokens ``N h*w C`` and positions ``1 h*w C`` of each level; mask features at each level's size."""
        memory, memory_pos, small_features = [], [], []
        for level, feature in enumerate(multi_scale_features):
            tokens = self.input_proj[level](feature).flatten(2).transpose(1, 2)
            memory.append(tokens + self.level_embed.weight[level])
            memory_pos.append(self.pe_layer(feature[:1]).flatten(2).transpose(1, 2))
            # Bilinear resizing is linear: logits of resized features are the resized logits, but Q times
            # cheaper.
            small_features.append(
                F.interpolate(
                    mask_features.detach(), size=feature.shape[-2:], mode="bilinear", align_corners=False
                )
            )
        return memory, memory_pos, small_features


def mask_logits(mask_embeds: Tensor, mask_features: Tensor) -> Tensor:
    """Mask logits ``N Q h w`` of mask embeddings ``N Q C`` on mask features ``N C h w``."""
    return torch.einsum("nqc,nchw->nqhw", mask_embeds, mask_features)


@torch.no_grad()
def background(mask_embeds: Tensor, features: Tensor) -> Tensor:
    """Cells outside each query's mask, for masked attention.

    A query whose mask is empty may look everywhere.

    Args:
        mask_embeds: ``N Q C``.
        features: mask features at attention resolution, ``N C h w``.

    Returns:
        ``N Q h*w`` bool, True = must not attend.

    Source: Mask2Former (arXiv:2112.01527), equations 2 and 3.
    """
    outside = mask_logits(mask_embeds, features).flatten(2) < 0
    return outside & ~outside.all(dim=-1, keepdim=True)
