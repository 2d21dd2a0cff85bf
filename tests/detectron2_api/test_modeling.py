"""Registries, builders, ResNet, feature pyramid and post-processing."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    build_backbone,
    build_model,
    build_resnet_backbone,
    build_sem_seg_head,
    detector_postprocess,
)
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn

import detectron2_fallback
from tests.reference import load_golden, load_manifest, relative_error
from tests.weights import fill_state_dict, make_input

ALL = ["res2", "res3", "res4", "res5"]


def resnet_cfg(depth: int = 50, **resnets: object) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.OUT_FEATURES = ALL
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def tiny_resnet(norm: str = "BN", freeze_at: int = 0, **kwargs: object) -> ResNet:
    stages = [
        ResNet.make_stage(BasicBlock, 1, in_channels=8, out_channels=8, norm=norm),
        ResNet.make_stage(BasicBlock, 2, in_channels=8, out_channels=16, stride_per_block=[2, 1], norm=norm),
    ]
    return ResNet(BasicStem(3, 8, norm=norm), stages, freeze_at=freeze_at, **kwargs)


# ------------------------------------------------------------------ ResNet


def test_resnet50_matches_reference() -> None:
    meta, expected = load_golden("backbone_r50")
    backbone = build_backbone(resnet_cfg()).eval()
    assert len(backbone.state_dict()) == meta["num_keys"]
    fill_state_dict(backbone, prefix=meta["weights_prefix"])
    image = torch.from_numpy(make_input("image", [meta["B"], 3, meta["H"], meta["W"]], meta["seed"]))
    with torch.no_grad():
        features = backbone(image)
    assert {name: list(x.shape) for name, x in features.items()} == meta["shapes"]
    for name, x in features.items():
        step = 1 if name == "res5" else 2
        assert relative_error(x[:, ::4, ::step, ::step], expected[name]) < 1e-4
        stats = torch.stack([x.mean(), x.std(), x.abs().max(), x.abs().sum()])
        torch.testing.assert_close(
            stats, torch.from_numpy(expected[f"{name}_stats"]).float(), rtol=1e-4, atol=1e-6
        )


def test_resnet50_state_dict_is_that_of_published_checkpoints() -> None:
    manifest = load_manifest("minvis_r50")
    prefix = "backbone."
    expected = {
        key.removeprefix(prefix): (shape, dtype)
        for key, (shape, dtype) in manifest["state_dict"].items()
        if key.startswith(prefix)
    }
    backbone = build_resnet_backbone(resnet_cfg(), ShapeSpec(channels=3))
    state = backbone.state_dict()
    assert {k: (list(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in state.items()} == expected
    assert list(state) == list(expected)
    buffers = {key.removeprefix(prefix) for key in manifest["buffers"] if key.startswith(prefix)}
    assert {name for name, _ in backbone.named_buffers()} == buffers


@pytest.mark.parametrize(
    ("depth", "parameters"),
    # Trainable numbers of torchvision's models without their classifiers.
    [(18, 11176512), (34, 21284672), (50, 23508032), (101, 42500160), (152, 58143808)],
)
def test_resnet_depths(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        backbone = build_resnet_backbone(resnet_cfg(depth, NORM="BN"), ShapeSpec(channels=3))
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    width = 4 if depth >= 50 else 1
    assert {name: (s.channels, s.stride) for name, s in backbone.output_shape().items()} == {
        "res2": (64 * width, 4),
        "res3": (128 * width, 8),
        "res4": (256 * width, 16),
        "res5": (512 * width, 32),
    }
    assert backbone.size_divisibility == 0
    assert backbone.padding_constraints == {}


@pytest.mark.parametrize("depth", [18, 50])
def test_default_stages_equal_those_of_the_config(depth: int) -> None:
    built = build_resnet_backbone(resnet_cfg(depth, NORM="BN"), ShapeSpec(channels=3))
    model = ResNet(BasicStem(), ResNet.make_default_stages(depth), out_features=ALL)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in built.state_dict().items()
    }
    model.load_state_dict(built.state_dict())
    image = torch.rand(1, 3, 33, 47)
    with torch.no_grad():
        expected, actual = built.eval()(image), model.eval()(image)
    assert [x.shape[-2:] for x in actual.values()] == [(9, 12), (5, 6), (3, 3), (2, 2)]
    for name in ALL:
        torch.testing.assert_close(actual[name], expected[name])


def test_stages_behind_the_last_feature_are_not_built() -> None:
    backbone = build_resnet_backbone(resnet_cfg(18, OUT_FEATURES=["stem", "res3"]), ShapeSpec(channels=3))
    assert [name for name, _ in backbone.named_children()] == ["stem", "res2", "res3"]
    features = backbone(torch.rand(2, 3, 32, 64))
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        "stem": (2, 64, 8, 16),
        "res3": (2, 128, 4, 8),
    }


def test_resnet_classifier() -> None:
    model = tiny_resnet(num_classes=5)
    assert model(torch.rand(2, 3, 32, 32))["linear"].shape == (2, 5)
    assert list(tiny_resnet()(torch.rand(2, 3, 32, 32))) == ["res3"]


def test_dilation_keeps_the_stride() -> None:
    backbone = build_resnet_backbone(resnet_cfg(50, RES5_DILATION=2), ShapeSpec(channels=3))
    assert backbone.output_shape()["res5"].stride == 16
    assert backbone.res5[0].conv2.dilation == (2, 2)
    assert backbone.res5[0].conv2.padding == (2, 2)


@pytest.mark.parametrize("in_1x1", [True, False])
def test_stride_in_1x1(in_1x1: bool) -> None:
    block = BottleneckBlock(16, 32, bottleneck_channels=8, stride=2, num_groups=2, stride_in_1x1=in_1x1)
    assert (block.conv1.stride, block.conv2.stride) == (((2, 2), (1, 1)) if in_1x1 else ((1, 1), (2, 2)))
    assert block.conv2.groups == 2
    assert block(torch.rand(1, 16, 7, 9)).shape == (1, 32, 4, 5)


def test_block_equals_plain_pytorch() -> None:
    block = BasicBlock(4, 8, stride=2)
    for name, p in block.named_parameters():
        nn.init.normal_(p, std=0.3 if "norm" not in name else 1.0)
    block.eval()
    x = torch.randn(2, 4, 9, 8)

    def conv_norm(x: torch.Tensor, conv: nn.Module, stride: int, padding: int) -> torch.Tensor:
        x = nn.functional.conv2d(x, conv.weight, stride=stride, padding=padding)
        norm = conv.norm
        return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    expected = conv_norm(conv_norm(x, block.conv1, 2, 1).relu(), block.conv2, 1, 1)
    expected = (expected + conv_norm(x, block.shortcut, 2, 0)).relu()
    torch.testing.assert_close(block(x), expected)
    assert BasicBlock(4, 4).shortcut is None


def test_freeze() -> None:
    frozen = tiny_resnet(freeze_at=2)
    names = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert names
    assert all(name.startswith("res3.") for name in names)
    assert isinstance(frozen.stem.conv1.norm, FrozenBatchNorm2d)
    assert isinstance(frozen.res2[0].conv1.norm, FrozenBatchNorm2d)
    assert isinstance(frozen.res3[0].conv1.norm, nn.BatchNorm2d)
    frozen(torch.rand(2, 3, 32, 32))["res3"].sum().backward()
    assert frozen.stem.conv1.weight.grad is None
    assert frozen.res3[0].conv1.weight.grad is not None
    model = tiny_resnet()
    assert model.freeze(1) is model
    assert not any(p.requires_grad for p in model.stem.parameters())
    assert all(p.requires_grad for p in model.res2.parameters())


def test_make_stage_per_block_arguments() -> None:
    blocks = ResNet.make_stage(
        BottleneckBlock,
        3,
        bottleneck_channels=16,
        in_channels=16,
        out_channels=64,
        stride_per_block=[2, 1, 1],
        dilation_per_block=[1, 1, 2],
    )
    assert [block.stride for block in blocks] == [2, 1, 1]
    assert [block.conv2.dilation[0] for block in blocks] == [1, 1, 2]
    assert [block.in_channels for block in blocks] == [16, 64, 64]
    with pytest.raises(AssertionError, match="num_blocks"):
        ResNet.make_stage(BasicBlock, 3, in_channels=8, out_channels=8, stride_per_block=[2, 1])


def test_unknown_feature_and_wrong_input() -> None:
    with pytest.raises(AssertionError, match="Available children"):
        tiny_resnet(out_features=["res3", "res7"])
    with pytest.raises(AssertionError, match="N, C, H, W"):
        tiny_resnet()(torch.rand(3, 32, 32))
    with pytest.raises(AssertionError, match="R18/R34"):
        build_resnet_backbone(resnet_cfg(18, RES2_OUT_CHANNELS=256), ShapeSpec(channels=3))


@pytest.mark.skipif(not detectron2_fallback.is_bundled(), reason="upstream has deformable convolutions")
def test_deformable_blocks_are_refused_clearly() -> None:
    cfg = resnet_cfg(50, DEFORM_ON_PER_STAGE=[False, False, False, True])
    with pytest.raises(NotImplementedError, match="DEFORM_ON_PER_STAGE"):
        build_resnet_backbone(cfg, ShapeSpec(channels=3))


def test_resnet_can_be_scripted() -> None:
    model = tiny_resnet(norm="BN", freeze_at=1, out_features=["res2", "res3"]).eval()
    image = torch.rand(2, 3, 30, 50)
    scripted = torch.jit.script(model)
    with torch.no_grad():
        expected, actual = model(image), scripted(image)
    assert list(actual) == ["res2", "res3"]
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name])


# ------------------------------------------------------------------ feature pyramid


def test_fpn() -> None:
    torch.manual_seed(0)
    fpn = FPN(tiny_resnet(out_features=["res2", "res3"]), ["res2", "res3"], 6, top_block=None).eval()
    assert list(fpn.output_shape()) == ["p2", "p3"]
    assert (fpn.size_divisibility, fpn.padding_constraints) == (8, {"square_size": 0})
    image = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        features = fpn(image)
        below = fpn.bottom_up(image)
        coarse = fpn.fpn_lateral3(below["res3"])
        fine = fpn.fpn_lateral2(below["res2"]) + coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(features["p3"], fpn.fpn_output3(coarse))
    torch.testing.assert_close(features["p2"], fpn.fpn_output2(fine))


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
def test_fpn_top_blocks(fuse_type: str) -> None:
    bottom_up = tiny_resnet(out_features=["res2", "res3"])

    class ThirdLevel(LastLevelMaxPool):
        def __init__(self) -> None:
            super().__init__()
            self.in_feature = "p3"

    pooled = FPN(bottom_up, ["res2", "res3"], 6, top_block=ThirdLevel(), fuse_type=fuse_type)
    shapes = {name: tuple(x.shape) for name, x in pooled(torch.rand(1, 3, 32, 32)).items()}
    assert shapes == {"p2": (1, 6, 8, 8), "p3": (1, 6, 4, 4), "p4": (1, 6, 2, 2)}
    assert {name: s.stride for name, s in pooled.output_shape().items()} == {"p2": 4, "p3": 8, "p4": 16}
    convolved = FPN(bottom_up, ["res2", "res3"], 6, norm="BN", top_block=LastLevelP6P7(16, 6, "res3"))
    assert list(convolved(torch.rand(2, 3, 32, 32))) == ["p2", "p3", "p4", "p5"]
    with pytest.raises(AssertionError):
        FPN(bottom_up, ["res2", "res3"], 6, fuse_type="max")


# ------------------------------------------------------------------ builders


def test_registries_and_builders() -> None:
    class ContractNet(nn.Module):
        def __init__(self, cfg: CfgNode) -> None:
            super().__init__()
            self.layer = nn.Linear(2, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)

    class ContractHead(nn.Module):
        def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
            super().__init__()
            self.channels = input_shape["res2"].channels

    class ContractBackbone(Backbone):
        def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
            super().__init__()
            self._out_features = ["only"]
            self._out_feature_channels = {"only": input_shape.channels}
            self._out_feature_strides = {"only": 1}

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"only": x}

    META_ARCH_REGISTRY.register(ContractNet)
    SEM_SEG_HEADS_REGISTRY.register(ContractHead)
    BACKBONE_REGISTRY.register(ContractBackbone)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ContractNet"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "ContractHead"
    cfg.MODEL.BACKBONE.NAME = "ContractBackbone"
    assert build_model(cfg).layer.weight.device.type == "cpu"
    assert build_sem_seg_head(cfg, {"res2": ShapeSpec(channels=7)}).channels == 7
    backbone = build_backbone(cfg)
    assert backbone.output_shape() == {"only": ShapeSpec(channels=3, stride=1)}
    assert build_backbone(cfg, ShapeSpec(channels=5)).output_shape()["only"].channels == 5
    cfg.MODEL.META_ARCHITECTURE = "NoSuchNet"
    with pytest.raises(KeyError, match="NoSuchNet"):
        build_model(cfg)
    assert "NoSuchGenerator" not in PROPOSAL_GENERATOR_REGISTRY
    with pytest.raises(TypeError):
        Backbone()


# ------------------------------------------------------------------ post-processing


def test_sem_seg_postprocess_cuts_and_resizes() -> None:
    logits = torch.randn(4, 32, 48)
    same = sem_seg_postprocess(logits, (30, 41), 30, 41)
    torch.testing.assert_close(same, logits[:, :30, :41])
    result = sem_seg_postprocess(logits, (30, 41), 61, 77)
    expected = nn.functional.interpolate(
        logits[None, :, :30, :41], size=(61, 77), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(result, expected[0])


def test_detector_postprocess() -> None:
    detections = Instances((10, 20))
    detections.pred_boxes = Boxes(
        torch.tensor([[2.0, 2.0, 6.0, 8.0], [4.0, 4.0, 4.0, 9.0], [-4.0, 0.0, 30.0, 5.0]])
    )
    detections.scores = torch.tensor([0.9, 0.8, 0.7])
    detections.pred_masks = torch.ones(3, 1, 4, 4)
    detections.pred_keypoints = torch.tensor([[[1.0, 2.0, 0.5]]] * 3)
    result = detector_postprocess(copy.deepcopy(detections), 20, 60)
    assert result.image_size == (20, 60)
    assert result.scores.tolist() == pytest.approx([0.9, 0.7])  # the empty box is gone
    assert result.pred_boxes.tensor.tolist() == [[6.0, 4.0, 18.0, 16.0], [0.0, 0.0, 60.0, 10.0]]
    assert result.pred_masks.shape == (2, 20, 60)
    assert result.pred_masks.dtype == torch.bool
    inside = torch.zeros(20, 60, dtype=torch.bool)
    inside[4:16, 6:18] = True
    # Interpolated towards zero outside of the box, the probability at its very corners is below a half.
    wrong = (result.pred_masks[0] ^ inside).nonzero().tolist()
    assert wrong == [[4, 6], [4, 17], [15, 6], [15, 17]]
    assert result.pred_keypoints[0, 0].tolist() == [3.0, 4.0, 0.5]
    assert len(detector_postprocess(copy.deepcopy(detections)[:0], 20, 60)) == 0
