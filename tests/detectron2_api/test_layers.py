"""Convolutions, norms and helpers."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import (
    BatchNorm2d,
    CNNBlockBase,
    Conv2d,
    ConvTranspose2d,
    CycleBatchNormList,
    DepthwiseSeparableConv2d,
    FrozenBatchNorm2d,
    Linear,
    NaiveSyncBatchNorm,
    ShapeSpec,
    batched_nms,
    cat,
    cross_entropy,
    get_norm,
    interpolate,
    nonzero_tuple,
    shapes_to_tensor,
    wrappers,
)
from detectron2.layers.batch_norm import LayerNorm
from detectron2.layers.wrappers import empty_input_loss_func_wrapper
from torch import nn
from torch.nn import functional as F

import detectron2_fallback


def trained_norm(channels: int = 6) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels, eps=1e-3)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return norm


# ------------------------------------------------------------------ convolutions


def test_conv_norm_activation() -> None:
    conv = Conv2d(4, 8, kernel_size=3, padding=1, bias=False, norm=nn.GroupNorm(2, 8), activation=F.relu)
    x = torch.randn(2, 4, 7, 5)
    expected = F.relu(conv.norm(F.conv2d(x, conv.weight, padding=1)))
    torch.testing.assert_close(conv(x), expected)
    assert set(conv.state_dict()) == {"weight", "norm.weight", "norm.bias"}
    plain = Conv2d(4, 8, 1)
    assert plain.norm is None
    assert plain.activation is None
    assert set(plain.state_dict()) == {"weight", "bias"}


def test_conv_of_nothing() -> None:
    conv = Conv2d(4, 8, 3, stride=2, padding=1, norm=nn.BatchNorm2d(8).eval())
    x = torch.zeros(0, 4, 8, 8, requires_grad=True)
    out = conv(x)
    assert out.shape == (0, 8, 4, 4)
    out.sum().backward()
    sync = Conv2d(4, 8, 1, norm=nn.SyncBatchNorm(8))
    with pytest.raises(AssertionError, match="SyncBatchNorm does not support empty inputs!"):
        sync(x)


def test_plain_layers_are_pytorchs() -> None:
    assert issubclass(Conv2d, nn.Conv2d)
    assert issubclass(ConvTranspose2d, nn.ConvTranspose2d)
    assert issubclass(BatchNorm2d, nn.BatchNorm2d)
    assert issubclass(Linear, nn.Linear)
    assert Linear(3, 4)(torch.zeros(0, 3)).shape == (0, 4)
    assert interpolate(torch.zeros(1, 2, 3, 4), size=(6, 8), mode="bilinear").shape == (1, 2, 6, 8)


def test_depthwise_separable() -> None:
    conv = DepthwiseSeparableConv2d(4, 6, 5, padding=2, norm1="BN", activation1=F.relu, norm2="GN32"[:0])
    assert conv.depthwise.groups == 4
    assert conv.depthwise.bias is None
    assert conv.pointwise.bias is not None
    x = torch.randn(2, 4, 9, 7)
    torch.testing.assert_close(
        conv(x),
        conv.pointwise(F.relu(conv.depthwise.norm(F.conv2d(x, conv.depthwise.weight, padding=2, groups=4)))),
        rtol=1e-4,
        atol=1e-5,
    )
    assert conv(x).shape == (2, 6, 9, 7)


def test_block_freeze() -> None:
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(4, 8, 2)
            self.conv = Conv2d(4, 8, 1, norm=nn.BatchNorm2d(8))

    block = Block()
    assert (block.in_channels, block.out_channels, block.stride) == (4, 8, 2)
    assert block.freeze() is block
    assert all(not p.requires_grad for p in block.parameters())
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)


# ------------------------------------------------------------------ norms


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_batch_norm_is_batch_norm_in_eval_mode(requires_grad: bool) -> None:
    norm = trained_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(copy.deepcopy(norm))
    x = torch.randn(2, 6, 4, 3, requires_grad=requires_grad)
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    assert list(frozen.parameters()) == []
    assert set(frozen.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    assert repr(frozen) == "FrozenBatchNorm2d(num_features=6, eps=0.001)"
    if requires_grad:
        frozen(x).sum().backward()
        assert x.grad is not None


def test_frozen_batch_norm_keeps_half_precision() -> None:
    frozen = FrozenBatchNorm2d(6)
    x = torch.randn(2, 6, 4, 3, dtype=torch.bfloat16, requires_grad=True)
    assert frozen(x).dtype == torch.bfloat16


def test_fresh_frozen_batch_norm_is_the_identity() -> None:
    x = torch.randn(2, 6, 4, 3)
    torch.testing.assert_close(FrozenBatchNorm2d(6)(x), x)


def test_convert_frozen_batch_norm_in_a_tree() -> None:
    tree = nn.Sequential(nn.Conv2d(6, 6, 1), trained_norm(), nn.Sequential(nn.SyncBatchNorm(6, affine=False)))
    assert FrozenBatchNorm2d.convert_frozen_batchnorm(tree) is tree
    assert isinstance(tree[1], FrozenBatchNorm2d)
    assert isinstance(tree[2][0], FrozenBatchNorm2d)
    assert isinstance(tree[0], nn.Conv2d)


def test_frozen_batch_norm_loads_plain_weights() -> None:
    norm = trained_norm()
    frozen = FrozenBatchNorm2d(6, eps=1e-3)
    weights = {key: value.clone() for key, value in norm.state_dict().items() if "num_batches" not in key}
    assert frozen.load_state_dict(weights) == ([], [])  # no version: a converted file
    x = torch.randn(2, 6, 4, 3)
    torch.testing.assert_close(frozen(x), norm.eval()(x))


def test_frozen_batch_norm_versions() -> None:
    frozen = FrozenBatchNorm2d(2)
    only_affine = {"weight": torch.tensor([1.0, 2.0]), "bias": torch.zeros(2)}
    frozen.load_state_dict(only_affine)  # before version 2 there were no statistics
    assert frozen.running_mean.tolist() == [0, 0]
    assert frozen.running_var.tolist() == [1, 1]
    assert frozen.state_dict()._metadata[""]["version"] == 3


@pytest.mark.skipif(not detectron2_fallback.is_bundled(), reason="builds of upstream differ")
def test_frozen_batch_norm_version_2_had_no_epsilon() -> None:
    norm = trained_norm()
    frozen = FrozenBatchNorm2d(6, eps=1e-3)
    state = frozen.state_dict()
    state["running_var"] = norm.running_var.clone()
    state._metadata[""]["version"] = 2
    frozen.load_state_dict(state)
    torch.testing.assert_close(frozen.running_var, norm.running_var - 1e-3)
    assert torch.equal(state["running_var"], norm.running_var)  # the caller's tensor stays
    # Plain batch norm also writes "version 2", and means another thing by it.
    frozen.load_state_dict(norm.state_dict(), strict=False)
    assert torch.equal(frozen.running_var, norm.running_var)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("nnSyncBN", nn.SyncBatchNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
        ("naiveSyncBN_N", NaiveSyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        ("GN", nn.GroupNorm),
        ("LN", LayerNorm),
    ],
)
def test_get_norm(name: str, kind: type) -> None:
    assert isinstance(get_norm(name, 64), kind)


def test_get_norm_other_arguments() -> None:
    assert get_norm("", 64) is None
    assert get_norm(None, 64) is None
    assert get_norm(lambda channels: nn.GroupNorm(4, channels), 64).num_groups == 4
    assert get_norm("GN", 64).num_groups == 32
    with pytest.raises(KeyError):
        get_norm("NoSuchNorm", 64)


@pytest.mark.parametrize("mode", ["", "N"])
def test_naive_sync_batch_norm_in_one_process(mode: str) -> None:
    norm, plain = NaiveSyncBatchNorm(6, stats_mode=mode), nn.BatchNorm2d(6)
    x = torch.randn(3, 6, 4, 4)
    torch.testing.assert_close(norm(x), plain(x))
    torch.testing.assert_close(norm.running_var, plain.running_var)
    with pytest.raises(AssertionError):
        NaiveSyncBatchNorm(6, stats_mode="x")


def test_layer_norm_over_channels() -> None:
    norm = LayerNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 5)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias, 1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), expected)
    assert set(norm.state_dict()) == {"weight", "bias"}


def test_cycle_batch_norm_list() -> None:
    norms = CycleBatchNormList(2, num_features=4)
    first, second = torch.randn(8, 4, 2, 2), torch.randn(8, 4, 2, 2) + 5
    for x in (first, second):
        torch.testing.assert_close(norms(x), F.batch_norm(x, None, None, training=True))
    assert norms[0].running_mean.mean() < norms[1].running_mean.mean()
    assert {name for name, _ in norms.named_parameters()} == {"weight", "bias"}


# ------------------------------------------------------------------ helpers


def test_shape_spec() -> None:
    spec = ShapeSpec(channels=256, stride=4)
    assert (spec.channels, spec.height, spec.width, spec.stride) == (256, None, None, 4)
    assert spec == ShapeSpec(channels=256, stride=4) != ShapeSpec(channels=256)


def test_cat() -> None:
    x = torch.rand(2, 3)
    assert cat([x]) is x
    assert cat([x, x], dim=1).shape == (2, 6)
    with pytest.raises(AssertionError):
        cat(x)


def test_nonzero_tuple() -> None:
    mask = torch.tensor([[0, 1], [1, 1]])
    assert [x.tolist() for x in nonzero_tuple(mask)] == [[0, 1, 1], [1, 0, 1]]


def test_cross_entropy_of_nothing() -> None:
    logits, labels = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    weight = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(
        cross_entropy(logits, labels, reduction="sum", weight=weight),
        F.cross_entropy(logits, labels, reduction="sum", weight=weight),
    )
    loss = cross_entropy(logits[:0], labels[:0])
    assert loss.item() == 0
    loss.backward()
    assert logits.grad.abs().sum() == 0
    assert empty_input_loss_func_wrapper(F.mse_loss)(torch.zeros(0), torch.zeros(0)).item() == 0


def test_shapes_to_tensor() -> None:
    assert shapes_to_tensor([3, 4]).tolist() == [3, 4]
    assert shapes_to_tensor([3, 4], device=torch.device("cpu")).dtype == torch.int64


def test_move_device_like() -> None:
    move_device_like = getattr(wrappers, "move_device_like", None)  # younger than some builds of 0.6
    if move_device_like is None:
        pytest.skip("not in this build")
    x = torch.rand(2)
    assert move_device_like(x, torch.rand(3)).device == x.device


def test_batched_nms() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]])
    scores, groups = torch.tensor([0.5, 0.9, 0.4, 0.1]), torch.tensor([0, 0, 1, 0])
    try:
        import torchvision  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install torchvision"):
            batched_nms(boxes, scores, groups, 0.5)
    else:
        assert batched_nms(boxes, scores, groups, 0.5).tolist() == [1, 2, 3]
    with pytest.raises(AssertionError):
        batched_nms(boxes[:, :3], scores, groups, 0.5)


@pytest.mark.filterwarnings("ignore")
def test_layers_can_be_scripted() -> None:
    conv = Conv2d(4, 8, 3, padding=1, norm=FrozenBatchNorm2d(8), activation=nn.ReLU()).eval()
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(conv)(x), conv(x))
    assert [i.tolist() for i in torch.jit.script(nonzero_tuple)(torch.tensor([0, 1, 1]))] == [[1, 2]]
