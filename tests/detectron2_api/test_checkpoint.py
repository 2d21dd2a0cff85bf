"""Checkpointer: files of all kinds, name matching, and files that must be refused."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.c2_model_loading import (
    align_and_update_state_dicts,
    convert_basic_c2_names,
    convert_c2_detectron_names,
)
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import detectron2_fallback
from tests.reference import load_manifest

bundled_only = pytest.mark.skipif(
    not detectron2_fallback.is_bundled(), reason="upstream reads pickles without restriction"
)


class Net(nn.Module):
    """``block1.layer1``, ``layer2`` and ``res.layer2``: suffixes that compete."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Module()
        self.block1.layer1 = nn.Linear(2, 3)
        self.layer2 = nn.Linear(3, 2)
        self.res = nn.Module()
        self.res.layer2 = nn.Linear(3, 2)


def foreign_state() -> OrderedDict[str, torch.Tensor]:
    shapes = {"layer1": (3, 2), "layer2": (2, 3), "res.layer2": (2, 3)}
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.rand(*shape)
        state[f"{name}.bias"] = torch.rand(shape[0])
    return state


def small_resnet(norm: str = "FrozenBN") -> nn.Module:
    blocks = ResNet.make_stage(
        BottleneckBlock, 2, in_channels=4, out_channels=8, bottleneck_channels=4, norm=norm
    )
    model = nn.Module()
    model.backbone = ResNet(BasicStem(3, 4, norm=norm), [blocks])
    return model


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


# ------------------------------------------------------------------ saving and loading


def test_save_and_load_everything(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    assert not checkpointer.has_checkpoint()
    checkpointer.save("first", iteration=7, note="any text")
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "first.pth")
    assert checkpointer.get_all_checkpoint_files() == [str(tmp_path / "first.pth")]

    other = Net()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=9.0, momentum=0.1)
    loaded = DetectionCheckpointer(other, str(tmp_path), optimizer=other_optimizer)
    extra = loaded.resume_or_load("not used", resume=True)
    assert equal(other.state_dict(), model.state_dict())
    assert other_optimizer.param_groups[0]["lr"] == 0.1
    assert (extra["iteration"], extra["note"]) == (7, "any text")
    assert loaded.load("") == {}


def test_without_resume_only_the_model_is_loaded(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_final")
    other = Net()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=9.0)
    checkpointer = DetectionCheckpointer(other, str(tmp_path / "new"), optimizer=other_optimizer)
    checkpointer.resume_or_load(str(tmp_path / "model_final.pth"), resume=True)  # nothing to resume from
    assert equal(other.state_dict(), model.state_dict())
    assert other_optimizer.param_groups[0]["lr"] == 9.0


def test_tag_last_checkpoint(tmp_path: Path) -> None:
    checkpointer = DetectionCheckpointer(Net(), str(tmp_path))
    checkpointer.save("a")
    checkpointer.save("b")
    checkpointer.tag_last_checkpoint("a.pth")
    assert checkpointer.get_checkpoint_file().endswith("a.pth")
    with pytest.raises(KeyError):
        DetectionCheckpointer(Net(), x=nn.Linear(1, 1)).add_checkpointable("x", nn.Linear(1, 1))
    with pytest.raises(TypeError):
        DetectionCheckpointer(Net(), x=3)
    silent = DetectionCheckpointer(Net(), str(tmp_path / "none"), save_to_disk=False)
    silent.save("a")
    assert not (tmp_path / "none").exists()


def test_periodic_checkpointer(tmp_path: Path) -> None:
    checkpointer = DetectionCheckpointer(Net(), str(tmp_path))
    periodic = PeriodicCheckpointer(checkpointer, 3, max_iter=10, max_to_keep=2)
    for iteration in range(10):
        periodic.step(iteration)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["last_checkpoint", "model_0000005.pth", "model_0000008.pth", "model_final.pth"]


def test_wrapped_models_have_the_names_of_the_model(tmp_path: Path) -> None:
    model = Net()
    DetectionCheckpointer(nn.DataParallel(model), str(tmp_path)).save("wrapped")
    assert set(torch.load(tmp_path / "wrapped.pth", weights_only=True)["model"]) == set(model.state_dict())
    torch.save({"model": {"module." + k: v for k, v in model.state_dict().items()}}, tmp_path / "prefix.pth")
    other = Net()
    DetectionCheckpointer(other).load(str(tmp_path / "prefix.pth"))
    assert equal(other.state_dict(), model.state_dict())


def test_bare_state_dict_and_version_metadata(tmp_path: Path) -> None:
    class Versioned(nn.Linear):
        _version = 5
        seen: Any = None

        def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, *args: Any) -> None:
            type(self).seen = metadata.get("version")
            super()._load_from_state_dict(state_dict, prefix, metadata, *args)

    model = Versioned(2, 2)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    DetectionCheckpointer(Versioned(2, 2)).load(str(tmp_path / "bare.pth"))
    assert Versioned.seen == 5
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    other = Versioned(2, 2)
    DetectionCheckpointer(other).load(str(tmp_path / "zoo.pkl"))
    assert Versioned.seen is None
    assert equal(other.state_dict(), model.state_dict())


def test_differences_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Net()
    state = model.state_dict()
    kept = state["res.layer2.bias"].clone()
    state["layer2.weight"] = torch.zeros(5, 3)
    state["stranger.weight"] = torch.zeros(1)
    state["layer2.bias"] = torch.full((2,), 4.0)
    del state["res.layer2.bias"]
    torch.save({"model": state}, tmp_path / "odd.pth")
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(tmp_path / "odd.pth"))
    text = caplog.text
    assert "'layer2.weight'" in text
    assert "(5, 3)" in text
    assert "(2, 3)" in text
    assert "res.layer2" in text
    assert "stranger" in text
    assert model.layer2.bias.tolist() == [4.0, 4.0]
    assert torch.equal(model.res.layer2.bias, kept)


def test_pixel_mean_and_old_anchors_are_not_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(1, 1)
    state = {**model.state_dict(), "proposal.anchor_generator.cell_anchors.0": torch.zeros(1)}
    torch.save({"model": state}, tmp_path / "old.pth")
    model.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(tmp_path / "old.pth"))
    assert not caplog.text


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"nowhere\.pth"):
        DetectionCheckpointer(Net()).load(str(tmp_path / "nowhere.pth"))


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("parallel", [False, True])
def test_longest_suffix_wins(parallel: bool) -> None:
    model: nn.Module = nn.DataParallel(Net()) if parallel else Net()
    state = foreign_state()
    model.load_state_dict(align_and_update_state_dicts(model.state_dict(), state))
    values = dict(
        zip(["block1.layer1", "layer2", "res.layer2"], ["layer1", "layer2", "res.layer2"], strict=True)
    )
    loaded = {key.removeprefix("module."): value for key, value in model.state_dict().items()}
    for ours, theirs in values.items():
        assert torch.equal(loaded[f"{ours}.weight"], state[f"{theirs}.weight"])
        assert torch.equal(loaded[f"{ours}.bias"], state[f"{theirs}.bias"])


def test_matching_heuristics_by_query(tmp_path: Path) -> None:
    state = foreign_state()
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    path = str(tmp_path / "checkpoint.pth")
    model = Net()
    before = model.block1.layer1.weight.clone()
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(path)
    assert torch.equal(model.block1.layer1.weight, before)
    checkpointer.load(path + "?matching_heuristics=True")
    assert torch.equal(model.block1.layer1.weight, state["layer1.weight"])
    with pytest.raises(ValueError, match="colour"):
        checkpointer.load(path + "?colour=red")


def test_one_key_for_two_places_is_an_error() -> None:
    model = nn.Module()
    model.a, model.b = nn.Linear(1, 1), nn.Linear(1, 1)
    with pytest.raises(ValueError, match="multiple keys"):
        align_and_update_state_dicts(model.state_dict(), {"weight": torch.zeros(1, 1)}, c2_conversion=False)


def test_wrong_shapes_and_strangers(caplog: pytest.LogCaptureFixture) -> None:
    state = foreign_state()
    state["layer1.weight"] = torch.zeros(7, 7)
    state["stranger"] = torch.zeros(1)
    with caplog.at_level(logging.WARNING):
        result = align_and_update_state_dicts(Net().state_dict(), state, c2_conversion=False)
    assert "block1.layer1.weight" not in result
    assert "stranger" in result  # is reported when the model is loaded
    assert "will not be loaded" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        align_and_update_state_dicts(Net().state_dict(), {"stranger": torch.zeros(1)})
    assert "No weights in checkpoint matched with model." in caplog.text


def test_caffe2_names() -> None:
    names = {
        "conv1_w": "stem.conv1.weight",
        "res_conv1_bn_s": "stem.conv1.norm.weight",
        "res_conv1_bn_b": "stem.conv1.norm.bias",
        "res_conv1_bn_rm": "stem.conv1.norm.running_mean",
        "res_conv1_bn_riv": "stem.conv1.norm.running_var",
        "res2_0_branch1_w": "res2.0.shortcut.weight",
        "res2_0_branch1_bn_s": "res2.0.shortcut.norm.weight",
        "res3_1_branch2a_w": "res3.1.conv1.weight",
        "res3_1_branch2b_bn_b": "res3.1.conv2.norm.bias",
        "res5_2_branch2c_bn_riv": "res5.2.conv3.norm.running_var",
        "res2_0_branch2a_gn_s": "res2.0.conv1.norm.weight",
        "fc1000_w": "fc1000.weight",
        "pred_b": "linear.bias",
    }
    assert convert_basic_c2_names(list(names)) == list(names.values())
    fpn = {
        "fpn_inner_res5_2_sum_w": "fpn_lateral5.weight",
        "fpn_inner_res2_2_sum_lateral_w": "fpn_lateral2.weight",
        "fpn_res3_3_sum_b": "fpn_output3.bias",
    }
    weights, originals = convert_c2_detectron_names({name: torch.zeros(1) for name in fpn})
    assert list(weights) == list(fpn.values())
    assert originals == {new: old for old, new in fpn.items()}


# ------------------------------------------------------------------ zoo files


def python2_array(array: np.ndarray) -> bytes:
    """The opcodes by which Python 2 pickles an array in protocol 2."""
    shape = b"(" + b"".join(b"I%d\n" % n for n in array.shape) + b"t"
    raw = array.tobytes()
    kind = array.dtype.str[1:].encode()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n"
        + shape
        + b"cnumpy\ndtype\n(U"
        + bytes([len(kind)])
        + kind
        + b"I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\nT"
        + struct.pack("<i", len(raw))
        + raw
        + b"tb"
    )


def python2_pickle(arrays: dict[str, np.ndarray]) -> bytes:
    items = b"".join(
        b"U" + bytes([len(name)]) + name.encode() + python2_array(array) for name, array in arrays.items()
    )
    return b"\x80\x02}(" + items + b"u."


def caffe2_blobs(model: nn.Module) -> dict[str, np.ndarray]:
    """Weights of :func:`small_resnet` under Caffe2's names, from tables written by hand."""
    blocks = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    norm = {"weight": "bn_s", "bias": "bn_b"}
    blobs = {}
    for key, value in model.state_dict().items():
        parts = key.removeprefix("backbone.").split(".")
        if parts[-1].startswith("running"):
            continue  # Caffe2's models have the statistics merged into scale and bias
        if parts[0] == "stem":
            name = "conv1_w" if "norm" not in parts else f"res_conv1_{norm[parts[-1]]}"
        else:
            name = f"{parts[0]}_{parts[1]}_{blocks[parts[2]]}_" + (
                "w" if "norm" not in parts else norm[parts[-1]]
            )
        blobs[name] = value.numpy()
    return blobs


@pytest.mark.parametrize("with_blobs", [False, True])
def test_python2_pickle_of_caffe2_weights(tmp_path: Path, with_blobs: bool) -> None:
    source, target = small_resnet(), small_resnet()
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.copy_(torch.randn_like(tensor))
    blobs = {**caffe2_blobs(source), "conv1_w_momentum": np.zeros(3, np.float32), "fc1000_w": np.ones((2, 2))}
    data = python2_pickle(blobs)
    if with_blobs:
        data = b"\x80\x02}U\x05blobs" + data[2:-1] + b"s."
    (tmp_path / "R-50.pkl").write_bytes(data)
    incompatible = []
    checkpointer = DetectionCheckpointer(target)
    original = checkpointer._log_incompatible_keys
    checkpointer._log_incompatible_keys = lambda keys: (incompatible.append(keys), original(keys))
    checkpointer.load(str(tmp_path / "R-50.pkl"))
    expected = source.state_dict()
    for key, value in target.state_dict().items():
        if "running" in key:
            continue
        assert torch.equal(value, expected[key]), key
    assert incompatible[0].unexpected_keys == ["fc1000.weight"]
    assert isinstance(target.backbone.stem.conv1.norm, FrozenBatchNorm2d)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_python3_pickle_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    source, target = small_resnet(), small_resnet()
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.copy_(torch.randn_like(tensor))
    state = OrderedDict((k.removeprefix("backbone."), v.numpy()) for k, v in source.state_dict().items())
    data = {"model": state, "__author__": "torchvision", "matching_heuristics": True, "note": {1, "two"}}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    DetectionCheckpointer(target).load(str(tmp_path / "R-50.pkl"))
    assert equal(target.state_dict(), source.state_dict())


def test_pickle_of_torch_tensors(tmp_path: Path) -> None:
    """What Mask2Former's converter for Swin weights writes."""
    source, target = Net(), Net()
    state = OrderedDict((k, v.half() if "bias" in k else v) for k, v in source.state_dict().items())
    state["layer2.weight"] = nn.Parameter(state["layer2.weight"])
    data = {"model": state, "__author__": "third_party", "matching_heuristics": True}
    (tmp_path / "swin.pkl").write_bytes(pickle.dumps(data))
    DetectionCheckpointer(target).load(str(tmp_path / "swin.pkl"))
    for key, value in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[key], value, atol=1e-3, rtol=1e-3)


def test_pycls_file(tmp_path: Path) -> None:
    source, target = Net(), Net()
    state = {**source.state_dict(), "res.num_batches_tracked": torch.tensor(3)}
    torch.save({"model_state": state, "epoch": 4}, tmp_path / "pycls.pyth")
    DetectionCheckpointer(target).load(str(tmp_path / "pycls.pyth"))
    assert equal(target.state_dict(), source.state_dict())


@bundled_only
def test_torchvision_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from detectron2.checkpoint.c2_model_loading import convert_torchvision_names

    # The names of torchvision's ResNet-50.
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = ["conv1.weight", *(f"bn1.{n}" for n in norm), "fc.weight", "fc.bias"]
    for layer, count in enumerate([3, 4, 6, 3], start=1):
        for block in range(count):
            prefix = f"layer{layer}.{block}"
            for k in (1, 2, 3):
                names += [f"{prefix}.conv{k}.weight", *(f"{prefix}.bn{k}.{n}" for n in norm)]
            if block == 0:
                names += [f"{prefix}.downsample.0.weight", *(f"{prefix}.downsample.1.{n}" for n in norm)]
    converted = convert_torchvision_names(dict.fromkeys(names))
    converted = {k for k in converted if not k.endswith("num_batches_tracked")}
    backbone = {
        k.removeprefix("backbone.") for k in load_manifest("minvis_r50")["state_dict"] if k[:9] == "backbone."
    }
    assert converted - {"fc.weight", "fc.bias"} == backbone

    blocks = [ResNet.make_stage(BottleneckBlock, 1, in_channels=4, out_channels=8, bottleneck_channels=4)]
    for _ in range(3):
        blocks.append(
            ResNet.make_stage(BottleneckBlock, 1, in_channels=8, out_channels=8, bottleneck_channels=4)
        )
    model = nn.Module()
    model.backbone = ResNet(BasicStem(3, 4), blocks)
    state = {}
    for key, value in model.state_dict().items():
        key = key.removeprefix("backbone.").removeprefix("stem.").replace("shortcut.norm", "downsample.1")
        key = key.replace("shortcut", "downsample.0")
        for k in (1, 2, 3):
            key = key.replace(f"conv{k}.norm", f"bn{k}")
        for k in (1, 2, 3, 4):
            key = key.replace(f"res{k + 1}.", f"layer{k}.")
        state[key] = torch.randn(value.shape) if value.is_floating_point() else value
    torch.save(state, tmp_path / "resnet.pth")
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(tmp_path / "resnet.pth"))
    assert "RGB" in caplog.text
    assert torch.equal(
        model.backbone.res2[0].shortcut.norm.running_var, state["layer1.0.downsample.1.running_var"]
    )
    assert torch.equal(model.backbone.res5[0].conv3.weight, state["layer4.0.conv3.weight"])
    assert torch.equal(model.backbone.stem.conv1.weight, state["conv1.weight"])


# ------------------------------------------------------------------ hostile and broken files


class Call:
    """Pickles as a call of ``function(*args)``, with ``state`` set on the result."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def call(module: str, name: str, args: bytes, rest: bytes = b"") -> bytes:
    """Opcodes that call a global with a tuple of arguments, in protocol 2."""
    return f"\x80\x02c{module}\n{name}\n".encode("latin-1") + args + b"R" + rest + b"."


def text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()


ZEROS = python2_pickle({"a": np.zeros(4, np.float32)})
NO_STRINGS = python2_pickle({"a": np.zeros(0, "S4")})
OBJECT_ARRAY = np.array([print, 1], dtype=object)
RECORD_ARRAY = np.zeros(2, dtype=[("a", "f4"), ("b", "O")])
# What is in the file, and a part of the reason for which it is refused.
HOSTILE = {
    "system": (call("os", "system", b"(" + text("exit") + b"t"), "os.system"),
    "posix": (call("posix", "system", b"(" + text("exit") + b"t"), "posix.system"),
    "eval": (call("builtins", "eval", b"(" + text("1+1") + b"t"), "builtins.eval"),
    "eval of Python 2": (call("__builtin__", "eval", b"(" + text("1+1") + b"t"), "__builtin__.eval"),
    "getattr": (call("builtins", "getattr", b"((t" + text("__class__") + b"t"), "builtins.getattr"),
    "import": (call("builtins", "__import__", b"(" + text("os") + b"t"), "builtins.__import__"),
    "reconstructor": (
        call("copy_reg", "_reconstructor", b"(c__builtin__\nset\nc__builtin__\nobject\nNt"),
        "copy_reg._reconstructor",
    ),
    "numpy.load": (call("numpy", "load", b"(" + text("x") + b"t"), "numpy.load"),
    "torch.load": (call("torch.serialization", "load", b"(" + text("x") + b"t"), "torch.serialization.load"),
    "dotted name": (
        b"\x80\x04\x8c\x08builtins\x8c\x0ebytes.__call__\x93.",
        "builtins.bytes.__call__",
    ),
    "our own stand-in": (
        b"\x80\x02cdetectron2_fallback.safe_pickle\n_Leaf\n.",
        "detectron2_fallback.safe_pickle._Leaf",
    ),
    "array of objects": (pickle.dumps(OBJECT_ARRAY), "'O8'"),
    "array of records": (pickle.dumps(RECORD_ARRAY), "'V12'"),
    "objects disguised by flags": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I1\nt"
        b"cnumpy\ndtype\n(U\x02O8I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\nU\x08AAAAAAAAtb.",
        "'O8'",
    ),
    "records in the state of a dtype": (
        b"\x80\x02cnumpy\ndtype\n(U\x02f4I0\nI1\ntR(I3\nU\x01<N(U\x01at}I4\nI4\nI0\ntb.",
        "records",
    ),
    "ndarray called": (call("numpy", "ndarray", b"((I1000000000000\ntt"), "numpy.ndarray called"),
    "reconstruction of another type": (
        call("numpy.core.multiarray", "_reconstruct", b"(c__builtin__\nset\n(I0\ntU\x01bt"),
        "subclass of numpy.ndarray",
    ),
    "function altered": (
        b"\x80\x02c_codecs\nencode\n}" + text("__defaults__") + b")sb.",
        "a change of a function",
    ),
    "function altered through slots": (
        b"\x80\x02c_codecs\nencode\nN}" + text("_function") + b"Ns\x86b.",
        "a change of a function",
    ),
    "array altered twice": (
        ZEROS[:-2].replace(b"}(U\x01a", b"", 1) + b"}" + text("value") + b"Nsb.",
        "unknown state of a numpy array",
    ),
    "codec": (call("_codecs", "encode", b"(" + text("x") + text("rot13") + b"t"), "'rot13'"),
    "memory by bytes": (call("__builtin__", "bytearray", b"(I1000000000000\nt"), "encoding"),
    "memory by shape": (ZEROS.replace(b"(I4\nt", b"(I9999999\nt"), "in 16 bytes"),
    "memory by empty strings": (
        python2_pickle({"a": np.zeros(0, "S4")})
        .replace(text("S4"), text("S0"))
        .replace(b"(I0\ntc", b"(I99999\ntc"),
        "in 0 bytes",
    ),
    "memory by a memo index": (b"\x80\x02}r\xff\xff\xff\x7fj\xff\xff\xff\x7e.", "Memo value not found"),
    "memory by a byte count": (b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.", "was refused"),
    "negative size": (ZEROS.replace(b"(I4\nt", b"(I-4\nt"), "shape"),
    "nested without end": (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "nested"),
    "contains itself": (b"\x80\x02]q\x00h\x00a.", "nested"),
    "persistent id": (b"\x80\x02Px\n.", "persistent"),
    "extension code": (b"\x80\x02\x82\x01.", "extension"),
    "a bare function": (b"\x80\x02c__builtin__\nset\n.", "function"),
    "not a pickle": (b"certainly no pickle", "model"),
    "truncated": (pickle.dumps({"model": {"a": np.zeros(9)}, "__author__": "x"})[:-20], "ends too early"),
    "empty": (b"", "ends too early"),
}


@bundled_only
@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_pickle_is_refused(tmp_path: Path, name: str) -> None:
    content, reason = HOSTILE[name]
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(pickle.UnpicklingError, match=r"model\.pkl") as error:
        DetectionCheckpointer(Net()).load(str(path))
    assert reason in str(error.value)


@bundled_only
def test_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hidden = {"model": {"layer2.weight": Call(os.mkdir, str(trace))}, "__author__": "x"}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(hidden))
    with pytest.raises(pickle.UnpicklingError, match=r"model\.pkl.*mkdir"):
        DetectionCheckpointer(Net()).load(str(tmp_path / "model.pkl"))
    torch.save(hidden, tmp_path / "model.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"model\.pth"):
        DetectionCheckpointer(Net()).load(str(tmp_path / "model.pth"))
    # A tensor in a plain pickle carries a small torch file, which may hide the same.
    blob = io.BytesIO()
    torch.save(Call(os.mkdir, str(trace)), blob, _use_new_zipfile_serialization=False)
    nested = {"model": {"a": Call(torch.storage._load_from_bytes, blob.getvalue())}, "__author__": "x"}
    (tmp_path / "nested.pkl").write_bytes(pickle.dumps(nested))
    with pytest.raises(pickle.UnpicklingError, match=r"nested\.pkl"):
        DetectionCheckpointer(Net()).load(str(tmp_path / "nested.pkl"))
    assert not trace.exists()


@bundled_only
def test_tensor_cannot_reach_outside_of_its_storage(tmp_path: Path) -> None:
    blob = io.BytesIO()
    torch.save(torch.zeros(4).storage(), blob, _use_new_zipfile_serialization=False)
    storage = Call(torch.storage._load_from_bytes, blob.getvalue())
    outside = [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2,), (1000,)), (-1, (1,), (1,)), (0, (2,), (-1,))]
    for offset, size, stride in outside:
        tensor = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())
        (tmp_path / "t.pkl").write_bytes(pickle.dumps({"model": {"a": tensor}, "__author__": "x"}))
        with pytest.raises(pickle.UnpicklingError, match="a tensor of size"):
            DetectionCheckpointer(Net()).load(str(tmp_path / "t.pkl"))


@bundled_only
def test_damaged_files_are_named(tmp_path: Path) -> None:
    torch.save({"model": Net().state_dict()}, tmp_path / "good.pth")
    content = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("<html>404 not found</html>")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    (tmp_path / "number.pkl").write_bytes(pickle.dumps(3))
    for name in ("half.pth", "empty.pth", "text.pth", "list.pth", "number.pkl"):
        with pytest.raises((RuntimeError, pickle.UnpicklingError), match=name):
            DetectionCheckpointer(Net()).load(str(tmp_path / name))


@bundled_only
def test_numpy_numbers_in_a_torch_file(tmp_path: Path) -> None:
    """Trainers of old saved numpy scalars beside the weights."""
    model = Net()
    data = {
        "model": model.state_dict(),
        "best": np.float64(0.25),
        "history": np.arange(6, dtype=np.int32).reshape(2, 3),
        "nested": {"big": np.arange(3, dtype=">f4")},
    }
    torch.save(data, tmp_path / "old.pth")
    extra = DetectionCheckpointer(Net()).load(str(tmp_path / "old.pth"))
    assert extra["best"] == 0.25
    assert np.array_equal(extra["history"], data["history"])
    assert extra["nested"]["big"].dtype == np.dtype("<f4")
    assert np.array_equal(extra["nested"]["big"], [0, 1, 2])
    torch.save({"model": model.state_dict(), "evil": OBJECT_ARRAY}, tmp_path / "evil.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"evil\.pth"):
        DetectionCheckpointer(Net()).load(str(tmp_path / "evil.pth"))


@bundled_only
@pytest.mark.parametrize(
    "dtype", ["?", "i1", "u1", "<i2", ">i4", "<i8", "<f2", "<f4", ">f8", "<c8", "S3", "<U2"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_survive(dtype: str, order: str) -> None:
    from detectron2_fallback.safe_pickle import load_pickle

    array = np.array(np.arange(12).reshape(3, 4) % 2, dtype=dtype, order=order)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        scalar, empty = array[0, 1], array[:0]
        loaded = load_pickle(io.BytesIO(pickle.dumps([array, array[::2], scalar, empty], protocol=protocol)))
        for ours, theirs in zip(loaded, [array, array[::2], scalar, empty], strict=True):
            assert np.array_equal(ours, theirs)
            assert np.shape(ours) == np.shape(theirs)
            assert ours.dtype == theirs.dtype.newbyteorder("=")


SEEDS = [
    pickle.dumps({"model": OrderedDict(a=np.arange(6.0).reshape(2, 3)), "__author__": "x"}, protocol=p)
    for p in (0, 2, 4, 5)
]
SEEDS.append(python2_pickle({"conv1_w": np.arange(6, dtype=np.float32).reshape(2, 3)}))
SEEDS.append(pickle.dumps({"model": {"a": torch.arange(3.0)}, "__author__": "x"}))


@bundled_only
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 255), st.sampled_from("rid")), min_size=1, max_size=6
    ),
)
def test_mutated_pickles_load_or_are_refused(seed: bytes, edits: list[tuple[float, int, str]]) -> None:
    from detectron2_fallback.safe_pickle import load_pickle

    data = bytearray(seed)
    for where, value, kind in edits:
        position = min(int(where * len(data)), len(data) - 1)
        if kind == "r":
            data[position] = value
        elif kind == "i":
            data.insert(position, value)
        elif len(data) > 1:
            del data[position]
    with contextlib.suppress(pickle.UnpicklingError):
        load_pickle(io.BytesIO(bytes(data)))


def test_checkpointer_is_fvcores() -> None:
    assert issubclass(DetectionCheckpointer, Checkpointer)
