"""Residual networks with 18 to 152 layers.

Source: He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), table 1 and figure 5.
"""

# No postponed annotations here: TorchScript reads those of `forward`.

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

from .backbone import Backbone
from .build import BACKBONE_REGISTRY

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "DeformBottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_resnet_backbone",
    "make_stage",
]

Norm = str | Callable[[int], nn.Module]

ResNetBlockBase = CNNBlockBase
"""Former name of :class:`detectron2.layers.CNNBlockBase`."""


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: Norm, **kwargs: Any) -> Conv2d:
    """Convolution without bias, then ``norm``; initialised for a rectifier; at stride 1 keeps the size."""
    padding = kwargs.get("dilation", 1) * (kernel_size // 2)
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=padding,
        bias=False,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )
    c2_msra_fill(conv)
    return conv


class BasicBlock(CNNBlockBase):
    """Two 3x3 convolutions with a shortcut (ResNet-18 and 34)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Norm = "BN") -> None:
        """
        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            stride: of the first convolution (and of the shortcut).
            norm: normalisation after each convolution, see :func:`detectron2.layers.get_norm`.
        """
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = (
            _conv(in_channels, out_channels, 1, norm, stride=stride) if in_channels != out_channels else None
        )
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``N C H W`` to ``N C' H/stride W/stride``."""
        out = self.conv2(F.relu_(self.conv1(x)))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BottleneckBlock(CNNBlockBase):
    """1x1, 3x3 and 1x1 convolution with a shortcut (ResNet-50 and deeper)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        """
        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            bottleneck_channels: channels of the 3x3 convolution.
            stride: of the block.
            num_groups: of the 3x3 convolution.
            norm: normalisation after each convolution, see :func:`detectron2.layers.get_norm`.
            stride_in_1x1: whether the first 1x1 convolution has the stride (MSRA's and Caffe's models) or the
                3x3 one (torchvision's).
            dilation: of the 3x3 convolution.
        """
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = (
            _conv(in_channels, out_channels, 1, norm, stride=stride) if in_channels != out_channels else None
        )
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1)
        self.conv2 = _conv(
            bottleneck_channels,
            bottleneck_channels,
            3,
            norm,
            stride=stride_3x3,
            groups=num_groups,
            dilation=dilation,
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``N C H W`` to ``N C' H/stride W/stride``."""
        out = F.relu_(self.conv1(x))
        out = F.relu_(self.conv2(out))
        out = self.conv3(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class DeformBottleneckBlock(CNNBlockBase):
    """Bottleneck with a deformable 3x3 convolution: its operator is not part of this subset."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """
        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "DeformBottleneckBlock needs detectron2's compiled deformable convolution. Install upstream "
            "detectron2, or set MODEL.RESNETS.DEFORM_ON_PER_STAGE to [False, False, False, False]."
        )


class BasicStem(CNNBlockBase):
    """7x7 convolution and max pooling in front of the residual stages; stride 4."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm = "BN") -> None:
        """
        Args:
            in_channels: channels of the image.
            out_channels: channels of the output.
            norm: normalisation after the convolution, see :func:`detectron2.layers.get_norm`.
        """
        super().__init__(in_channels, out_channels, 4)
        self.in_channels = in_channels
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``N C H W`` to ``N C' H/4 W/4``."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


# Depth -> number of blocks in res2 ... res5.
_NUM_BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}


class ResNet(Backbone):
    """A stem and stages of residual blocks, with feature maps ``stem``, ``res2``, ..., ``linear``."""

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: list[list[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: list[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            stem: the first layers.
            stages: blocks of each stage, see :meth:`make_stage`.
            num_classes: if given, ends with a classifier of so many classes, feature ``linear``.
            out_features: names of the feature maps to return, by default the last one.
            freeze_at: number of stages to freeze, the stem counts as one; see :meth:`freeze`.
        """
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        self._out_feature_strides = {"stem": stem.stride}
        self._out_feature_channels = {"stem": stem.out_channels}

        self.stage_names = tuple(f"res{i + 2}" for i in range(len(stages)))
        if out_features is not None:
            # Stages behind the last one that is asked for are not even built.
            wanted = max((int(name[3:]) - 1 for name in out_features if name in self.stage_names), default=0)
            if "linear" not in out_features:
                stages, self.stage_names = stages[:wanted], self.stage_names[:wanted]
        modules: list[nn.Sequential] = []
        stride, channels = stem.stride, stem.out_channels
        for name, blocks in zip(self.stage_names, stages, strict=True):
            assert len(blocks) > 0, len(blocks)
            for block in blocks:
                assert isinstance(block, CNNBlockBase), block
                stride *= block.stride
            stage = nn.Sequential(*blocks)
            self.add_module(name, stage)
            modules.append(stage)
            channels = blocks[-1].out_channels
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = channels

        self.stages = modules
        self._stage_names = list(self.stage_names)

        name = self.stage_names[-1] if self.stage_names else "stem"
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            # Source: Goyal et al. (arXiv:1706.02677), section 5.1.
            nn.init.normal_(self.linear.weight, std=0.01)
            name = "linear"
        self._out_features = [name] if out_features is None else out_features
        assert len(self._out_features)
        children = [child for child, _ in self.named_children()]
        for feature in self._out_features:
            assert feature in children, f"Available children: {', '.join(children)}"
        self.freeze(freeze_at)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the feature maps.

        Args:
            x: images, ``N C H W``, any size.

        Returns:
            Feature name -> ``N C H W``, in the order of the network.
        """
        assert x.dim() == 4, f"ResNet takes an input of shape (N, C, H, W). Got {x.shape} instead!"
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        # TorchScript can walk over children, not over a list of modules such as `self.stages`.
        for name, stage in self.named_children():
            if name in self._stage_names:
                x = stage(x)
                if name in self._out_features:
                    outputs[name] = x
        if self.num_classes is not None:
            x = self.linear(torch.flatten(self.avgpool(x), 1))
            if "linear" in self._out_features:
                outputs["linear"] = x
        return outputs

    def freeze(self, freeze_at: int = 0) -> nn.Module:
        """Stop the training of the first stages: no gradients, and frozen batch normalisation.

        Args:
            freeze_at: 0 freezes nothing, 1 the stem, 2 also ``res2``, and so on.

        Returns:
            The network itself.
        """
        if freeze_at >= 1:
            self.stem.freeze()
        for number, stage in enumerate(self.stages, start=2):
            if freeze_at >= number:
                for block in stage.children():
                    assert isinstance(block, CNNBlockBase)
                    block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase],
        num_blocks: int,
        *,
        in_channels: int,
        out_channels: int,
        **kwargs: Any,
    ) -> list[CNNBlockBase]:
        """Make the blocks of one stage, all with the same output size.

        Args:
            block_class: class of the blocks.
            num_blocks: how many.
            in_channels: channels that enter the stage.
            out_channels: channels that each block gives.
            kwargs: passed to each block; ``<name>_per_block``, a list as long as there are blocks, gives each
                block its own value of ``<name>``.

        Example::

            ResNet.make_stage(BottleneckBlock, 3, in_channels=16, out_channels=64, bottleneck_channels=16,
                              stride_per_block=[2, 1, 1], dilation_per_block=[1, 1, 2])
        """
        suffix = "_per_block"
        for key, value in kwargs.items():
            if key.endswith(suffix):
                assert len(value) == num_blocks, (
                    f"Argument '{key}' of make_stage should have the same length as num_blocks={num_blocks}."
                )
                assert key.removesuffix(suffix) not in kwargs, (
                    f"Cannot call make_stage with both {key} and its base."
                )
        blocks = []
        for i in range(num_blocks):
            own = {
                key.removesuffix(suffix): value[i] if key.endswith(suffix) else value
                for key, value in kwargs.items()
            }
            blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **own))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(
        depth: int,
        block_class: type[CNNBlockBase] | None = None,
        **kwargs: Any,
    ) -> list[list[CNNBlockBase]]:
        """Make the four stages of a standard ResNet.

        Args:
            depth: 18, 34, 50, 101 or 152.
            block_class: by default :class:`BasicBlock` below 50 layers, else :class:`BottleneckBlock`.
            kwargs: further arguments of :meth:`make_stage`, the same for all stages.
        """
        if block_class is None:
            block_class = BasicBlock if depth < 50 else BottleneckBlock
        if depth < 50:
            in_channels, out_channels = [64, 64, 128, 256], [64, 128, 256, 512]
        else:
            in_channels, out_channels = [64, 256, 512, 1024], [256, 512, 1024, 2048]
        stages = []
        for i, num_blocks in enumerate(_NUM_BLOCKS[depth]):
            if depth >= 50:
                kwargs["bottleneck_channels"] = out_channels[i] // 4
            strides = [1 if i == 0 else 2] + [1] * (num_blocks - 1)
            stages.append(
                ResNet.make_stage(
                    block_class,
                    num_blocks,
                    in_channels=in_channels[i],
                    out_channels=out_channels[i],
                    stride_per_block=strides,
                    **kwargs,
                )
            )
        return stages


def make_stage(*args: Any, **kwargs: Any) -> list[CNNBlockBase]:
    """Former name of :meth:`ResNet.make_stage`."""
    return ResNet.make_stage(*args, **kwargs)


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet that ``cfg.MODEL.RESNETS`` describes, frozen up to ``cfg.MODEL.BACKBONE.FREEZE_AT``.

    Raises:
        KeyError: for a depth other than 18, 34, 50, 101 and 152.
        NotImplementedError: if deformable convolutions are asked for.
    """
    resnets = cfg.MODEL.RESNETS
    norm = resnets.NORM
    assert input_shape.channels is not None
    stem = BasicStem(in_channels=input_shape.channels, out_channels=resnets.STEM_OUT_CHANNELS, norm=norm)
    depth = resnets.DEPTH
    assert resnets.RES5_DILATION in {1, 2}, f"res5_dilation cannot be {resnets.RES5_DILATION}."
    if depth in (18, 34):
        assert resnets.RES2_OUT_CHANNELS == 64, "Must set MODEL.RESNETS.RES2_OUT_CHANNELS = 64 for R18/R34"
        assert not any(resnets.DEFORM_ON_PER_STAGE), (
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE unsupported for R18/R34"
        )
        assert resnets.RES5_DILATION == 1, "Must set MODEL.RESNETS.RES5_DILATION = 1 for R18/R34"
        assert resnets.NUM_GROUPS == 1, "Must set MODEL.RESNETS.NUM_GROUPS = 1 for R18/R34"

    in_channels, out_channels = resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS
    bottleneck_channels = resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP
    stages = []
    for i, num_blocks in enumerate(_NUM_BLOCKS[depth]):
        dilation = resnets.RES5_DILATION if i == 3 else 1
        first_stride = 1 if i == 0 or (i == 3 and dilation == 2) else 2
        kwargs: dict[str, Any] = {
            "num_blocks": num_blocks,
            "stride_per_block": [first_stride] + [1] * (num_blocks - 1),
            "in_channels": in_channels,
            "out_channels": out_channels,
            "norm": norm,
        }
        block_class: type[CNNBlockBase] = BasicBlock
        if depth > 34:
            block_class = DeformBottleneckBlock if resnets.DEFORM_ON_PER_STAGE[i] else BottleneckBlock
            kwargs.update(
                bottleneck_channels=bottleneck_channels,
                stride_in_1x1=resnets.STRIDE_IN_1X1,
                dilation=dilation,
                num_groups=resnets.NUM_GROUPS,
            )
        stages.append(ResNet.make_stage(block_class, **kwargs))
        in_channels = out_channels
        out_channels *= 2
        bottleneck_channels *= 2
    return ResNet(stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
