"""Pixel decoder: a deformable transformer encoder over three scales and one FPN level above it.

Shapes: ``N`` frames, ``C`` channels, ``h w`` grid of a level, ``L`` levels, ``S`` tokens of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask2former.layers import PositionEmbeddingSine
from mask2former.modeling.pixel_decoder.ops.modules import MSDeformAttn

__all__ = ["MSDeformAttnPixelDecoder"]

NUM_DECODER_LEVELS = 3  # scales that the transformer decoder attends to
# Tokens whose hidden layer (1024 channels) stays in a processor's cache, and in memory that is used again.
TOKENS_AT_ONCE = 2048


class DeformableEncoderLayer(nn.Module):
    """Multi-scale deformable self attention and feed-forward, both with residual and post-norm."""

    def __init__(
        self,
        d_model: int,
        dim_feedforward: int,
        dropout: float,
        num_levels: int,
        num_heads: int,
        num_points: int,
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(d_model, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self, x: Tensor, pos: Tensor, reference: Tensor, spatial_shapes: Tensor, level_start_index: Tensor
    ) -> Tensor:
        """Map tokens ``N S C`` to ``N S C``; arguments as in :class:`MSDeformAttn`, ``pos`` is ``1 S C``."""
        if not torch.is_grad_enabled() and x.device.type == "cpu" and not self.training:
            return self._infer(x, pos, reference, spatial_shapes, level_start_index)
        attended = self.self_attn(x + pos, reference, x, spatial_shapes, level_start_index)
        x = self.norm1(x + self.dropout(attended))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return self.norm2(x + self.dropout(hidden))

    def _infer(
        self, x: Tensor, pos: Tensor, reference: Tensor, spatial_shapes: Tensor, level_start_index: Tensor
    ) -> Tensor:
        """What :meth:`forward` gives without gradients, some tokens at a time and in place."""
        query = x.to(pos.dtype) + pos  # a sum of two types would be several times slower
        sampled = self.self_attn.sample(query, reference, x, spatial_shapes, level_start_index)
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        parts = (tokens.flatten(0, 1).split(TOKENS_AT_ONCE) for tokens in (x, sampled, result))
        for tokens, attended, out in zip(*parts, strict=True):
            attended = self.self_attn.output_proj(attended).to(tokens.dtype)
            tokens = self.norm1(attended.add_(tokens))
            hidden = self.linear2(self.linear1(tokens).relu_()).to(tokens.dtype)
            out.copy_(self.norm2(hidden.add_(tokens)))
        return result


class DeformableEncoder(nn.Module):
    """A stack of encoder layers (state dict ``layers.N.*``)."""

    def __init__(self, num_layers: int, **layer: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DeformableEncoderLayer(**layer) for _ in range(num_layers))

    def forward(self, x: Tensor, pos: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Map tokens ``N S C`` of levels with the given ``(h, w)`` to ``N S C``."""
        precise = torch.promote_types(x.dtype, torch.float32)  # whatever autocast makes of the tokens
        reference = reference_points(shapes, x.device, precise)[None].expand(x.shape[0], -1, -1, -1)
        spatial_shapes = torch.tensor(shapes, dtype=torch.int64, device=x.device)
        sizes = spatial_shapes.prod(1)
        level_start_index = sizes.cumsum(0) - sizes
        for layer in self.layers:
            x = layer(x, pos, reference, spatial_shapes, level_start_index)
        return x


def reference_points(shapes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Where each token lies in every level: its cell's centre as ``(x, y)`` in ``[0, 1]``, ``S L 2``.

    Source: Deformable DETR (arXiv:2010.04159), section 4.1.
    """
    centres = []
    for h, w in shapes:
        y = (torch.arange(h, dtype=dtype, device=device) + 0.5) / h
        x = (torch.arange(w, dtype=dtype, device=device) + 0.5) / w
        centres.append(torch.stack((x.expand(h, w), y[:, None].expand(h, w)), dim=-1).flatten(0, 1))
    return torch.cat(centres)[:, None].expand(-1, len(shapes), -1)


class DeformableTransformer(nn.Module):
    """Encoder over several scales with a learned embedding per level.

    Source: Deformable DETR (arXiv:2010.04159), section 4.1.
    """

    def __init__(
        self,
        d_model: int = 256,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        num_feature_levels: int = 4,
        enc_n_points: int = 4,
    ) -> None:
        super().__init__()
        self.encoder = DeformableEncoder(
            num_encoder_layers,
            d_model=d_model,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            num_levels=num_feature_levels,
            num_heads=nhead,
            num_points=enc_n_points,
        )
        self.level_embed = nn.Parameter(torch.randn(num_feature_levels, d_model))

    def forward(self, features: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Encode the levels jointly.

        Args:
            features: one ``N C h w`` per level.
            positions: their position encodings, ``N C h w`` each.

        Returns:
            One ``N C h w`` per level.
        """
        shapes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        tokens = torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], dim=1)
        pos = torch.cat(
            [
                position[:1].flatten(2).transpose(1, 2) + embed  # without a mask equal for all N
                for position, embed in zip(positions, self.level_embed, strict=True)
            ],
            dim=1,
        )
        encoded = self.encoder(tokens, pos, shapes)
        levels = encoded.split([h * w for h, w in shapes], dim=1)
        # Splitting the axis before it moves gives the strides of channels last to a single frame as well: by
        # them PyTorch chooses what to run.
        return [
            level.unflatten(1, shape).permute(0, 3, 1, 2) for level, shape in zip(levels, shapes, strict=True)
        ]


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Backbone features to mask features (stride 4) and the three scales the transformer decoder attends to.

    Source: Mask2Former (arXiv:2112.01527), section 3.2.2 and appendix (pixel decoder MSDeformAttn).
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        conv_dim: int,
        mask_dim: int,
        norm: str = "",
        transformer_in_features: Sequence[str],
        common_stride: int,
        transformer_num_points: int = 4,
    ) -> None:
        """
        Args:
            input_shape: channels and stride of each backbone feature to use.
            transformer_dropout: dropout of the encoder.
            transformer_nheads: its attention heads.
            transformer_dim_feedforward: its hidden channels.
            transformer_enc_layers: its layers.
            conv_dim: channels inside the decoder.
            mask_dim: channels of the mask features.
            norm: normalisation of the FPN convolutions ("GN", ""...), see ``detectron2.layers.get_norm``.
            transformer_in_features: which features the encoder reads.
            common_stride: stride of the mask features in pixels; FPN levels lead from the encoder to it.
            transformer_num_points: sampling points per head and level.

        Raises:
            ValueError: if a transformer feature is not among the inputs or fewer than three are named.
        """
        super().__init__()
        missing = sorted(set(transformer_in_features) - set(input_shape))
        if missing or len(transformer_in_features) != NUM_DECODER_LEVELS:
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES must name three of the "
                f"features {sorted(input_shape)} (MODEL.SEM_SEG_HEAD.IN_FEATURES), not "
                f"{list(transformer_in_features)}"
            )
        strides = {name: shape.stride or 1 for name, shape in input_shape.items()}
        self.in_features = sorted(strides, key=strides.__getitem__)  # finest first
        self.transformer_in_features = [  # coarsest first
            name for name in reversed(self.in_features) if name in transformer_in_features
        ]

        self.input_proj = nn.ModuleList()
        for name in self.transformer_in_features:
            projection = nn.Conv2d(input_shape[name].channels or 0, conv_dim, kernel_size=1)
            nn.init.xavier_uniform_(projection.weight)
            assert projection.bias is not None
            nn.init.zeros_(projection.bias)
            self.input_proj.append(nn.Sequential(projection, nn.GroupNorm(32, conv_dim)))
        self.transformer = DeformableTransformer(
            d_model=conv_dim,
            dropout=transformer_dropout,
            nhead=transformer_nheads,
            dim_feedforward=transformer_dim_feedforward,
            num_encoder_layers=transformer_enc_layers,
            num_feature_levels=len(self.transformer_in_features),
            enc_n_points=transformer_num_points,
        )
        self.pe_layer = PositionEmbeddingSine(conv_dim // 2, normalize=True)

        self.mask_dim = mask_dim
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.mask_features)

        finest = strides[self.transformer_in_features[-1]]
        num_fpn_levels = int(log2(finest) - log2(common_stride))
        self.fpn_features = self.in_features[:num_fpn_levels]
        for i, name in enumerate(self.fpn_features, start=1):
            lateral = Conv2d(
                input_shape[name].channels,
                conv_dim,
                kernel_size=1,
                bias=norm == "",
                norm=get_norm(norm, conv_dim),
            )
            output = Conv2d(
                conv_dim,
                conv_dim,
                kernel_size=3,
                padding=1,
                bias=norm == "",
                norm=get_norm(norm, conv_dim),
                activation=F.relu_,
            )
            weight_init.c2_xavier_fill(lateral)
            weight_init.c2_xavier_fill(output)
            self.add_module(f"adapter_{i}", lateral)
            self.add_module(f"layer_{i}", output)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        unknown = sorted(set(head.IN_FEATURES) - set(input_shape))
        if unknown:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {unknown}, which the backbone does not give; "
                f"it gives {sorted(input_shape)}"
            )
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "transformer_dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "transformer_nheads": head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            "transformer_num_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "transformer_dim_feedforward": head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD,
            "transformer_enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "common_stride": head.COMMON_STRIDE,
        }

    def forward_features(
        self, features: dict[str, Tensor], *, allow_half: bool = False
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Decode.

        Args:
            features: backbone features, ``N C h w`` each.
            allow_half: follow autocast. By default the weights' precision is kept, as published models were
                trained; where to sample is never less precise than float32.

        Returns:
            mask features ``N mask_dim h w`` at the common stride, the encoder's coarsest level, and the three
            levels for the transformer decoder, coarsest first.
        """
        weight = self.mask_features.weight
        device = weight.device.type
        with torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=allow_half and torch.is_autocast_enabled(device),
        ):
            features = {name: features[name].to(weight.dtype) for name in self.in_features}
            inputs = [features[name] for name in self.transformer_in_features]
            projected = [proj(x) for proj, x in zip(self.input_proj, inputs, strict=True)]
            levels = self.transformer(projected, [self.pe_layer(x) for x in inputs])
            for i in range(len(self.fpn_features), 0, -1):
                lateral = self.get_submodule(f"adapter_{i}")(features[self.fpn_features[i - 1]])
                upsampled = F.interpolate(
                    levels[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False
                )
                # In place: at this resolution time goes into memory that is new each time.
                levels.append(self.get_submodule(f"layer_{i}")(upsampled.add_(lateral)))
            return self.mask_features(levels[-1]), levels[0], levels[:NUM_DECODER_LEVELS]
