"""Feature pyramid network.

Source: Lin et al., "Feature Pyramid Networks for Object Detection" (arXiv:1612.03144).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn

from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .resnet import build_resnet_backbone

__all__ = ["FPN", "LastLevelMaxPool", "LastLevelP6P7", "build_resnet_fpn_backbone"]


class FPN(Backbone):
    """Feature maps ``p2``, ``p3``, ... of equal width from a backbone's maps of rising stride."""

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        norm: str = "",
        top_block: Any = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        """
        Args:
            bottom_up: the backbone.
            in_features: its feature maps to use, stride doubling from one to the next.
            out_channels: channels of every map of the pyramid.
            norm: normalisation of each convolution, see :func:`detectron2.layers.get_norm`.
            top_block: makes further maps from one of the backbone's or the pyramid's; has ``num_levels`` and
                ``in_feature``.
            fuse_type: "sum" or "avg" of the lateral map and the one from above.
            square_pad: if positive, images must be padded to squares of this side (pixels).

        Raises:
            AssertionError: if ``in_features`` is empty, strides do not double, or ``fuse_type`` is unknown.
        """
        super().__init__()
        assert isinstance(bottom_up, Backbone)
        assert in_features, in_features
        assert fuse_type in {"avg", "sum"}
        shapes = bottom_up.output_shape()
        strides = [int(shapes[name].stride or 1) for name in in_features]
        for small, large in pairwise(strides):
            assert large == 2 * small, f"Strides {small} {large} are not log2 contiguous"

        lateral, output = [], []
        for name, stride in zip(in_features, strides, strict=True):
            level = int(math.log2(stride))
            use_bias = norm == ""
            lateral_conv = Conv2d(
                shapes[name].channels,
                out_channels,
                kernel_size=1,
                bias=use_bias,
                norm=get_norm(norm, out_channels),
            )
            output_conv = Conv2d(
                out_channels,
                out_channels,
                kernel_size=3,
                padding=1,
                bias=use_bias,
                norm=get_norm(norm, out_channels),
            )
            c2_xavier_fill(lateral_conv)
            c2_xavier_fill(output_conv)
            self.add_module(f"fpn_lateral{level}", lateral_conv)
            self.add_module(f"fpn_output{level}", output_conv)
            lateral.append(lateral_conv)
            output.append(output_conv)
        # From the coarsest to the finest, as they are computed.
        self.lateral_convs = lateral[::-1]
        self.output_convs = output[::-1]
        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up
        self._out_feature_strides = {f"p{int(math.log2(s))}": s for s in strides}
        if top_block is not None:
            top = int(math.log2(strides[-1]))
            for level in range(top, top + top_block.num_levels):
                self._out_feature_strides[f"p{level + 1}"] = 2 ** (level + 1)
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]
        self._square_pad = square_pad
        self._fuse_type = fuse_type

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride that is merged."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """See :attr:`Backbone.padding_constraints`."""
        return {"square_size": self._square_pad}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the pyramid.

        Args:
            x: images, ``N C H W``, sides multiples of :attr:`size_divisibility`.

        Returns:
            ``p<level>`` -> ``N C H/2^level W/2^level``, finest first.
        """
        features = self.bottom_up(x)
        merged = features[self.in_features[-1]]
        results: list[torch.Tensor] = []
        for i, (lateral_conv, output_conv) in enumerate(
            zip(self.lateral_convs, self.output_convs, strict=True)
        ):
            lateral = lateral_conv(features[self.in_features[-i - 1]])
            if i == 0:
                merged = lateral
            else:
                merged = lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    merged = merged / 2
            results.insert(0, output_conv(merged))
        if self.top_block is not None:
            if self.top_block.in_feature in features:
                top_input = features[self.top_block.in_feature]
            else:
                top_input = results[self._out_features.index(self.top_block.in_feature)]
            results.extend(self.top_block(top_input))
        return dict(zip(self._out_features, results, strict=True))


class LastLevelMaxPool(nn.Module):
    """``p6`` by taking every other pixel of ``p5``."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """``N C H W`` to one map of half the size."""
        return [F.max_pool2d(x, kernel_size=1, stride=2, padding=0)]


class LastLevelP6P7(nn.Module):
    """``p6`` and ``p7`` by two convolutions of stride 2.

    Source: Lin et al., "Focal Loss for Dense Object Detection" (arXiv:1708.02002), section 4.
    """

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for module in [self.p6, self.p7]:
            c2_xavier_fill(module)

    def forward(self, c5: torch.Tensor) -> list[torch.Tensor]:
        """``N C H W`` to two maps of a half and a quarter of the size."""
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a ResNet with a feature pyramid, levels 2 to 6."""
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
