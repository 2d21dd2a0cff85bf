from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detectron2_fallback
from dvis.checkpoint import VideoCheckpointer, load_weights, save_weights
from tests.dvis.tiny import shared_tiny_model, tiny_model


def save(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state}, path)
    return path


def state_of(mode: str) -> dict[str, Tensor]:
    return {
        key: value + 1 if value.is_floating_point() else value
        for key, value in shared_tiny_model(mode).state_dict().items()
    }


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_all_tensors_are_loaded(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    model, state = tiny_model("minvis"), state_of("minvis")
    load_weights(model, save(tmp_path / "w.pth", state), complete=True)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert "freshly initialised: nothing" in log.text


def test_zoo_pickle(tmp_path: Path) -> None:
    model, state = tiny_model("minvis"), state_of("minvis")
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}, "__author__": "test"}))
    load_weights(model, path, complete=True)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_the_next_stage_says_what_is_fresh(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    model = tiny_model("online")
    before = model.state_dict()["tracker.class_embed.weight"].clone()
    load_weights(model, save(tmp_path / "w.pth", state_of("minvis")))
    assert torch.equal(model.state_dict()["tracker.class_embed.weight"], before)
    assert "freshly initialised: tracker (" in log.text


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS: no such file: no/such\.pth"):
        load_weights(shared_tiny_model("minvis"), "no/such.pth")


def test_no_weights_is_said(log: pytest.LogCaptureFixture) -> None:
    load_weights(shared_tiny_model("minvis"), "")
    assert "stays as it was initialised" in log.text


@pytest.mark.parametrize(
    ("mode", "weights", "parts"),
    [
        ("minvis", "online", ["weights of DVIS_online (they have tracker)", "set MODEL.META_ARCHITECTURE"]),
        ("minvis", "offline", ["weights of DVIS_offline (they have tracker, refiner)"]),
        ("online", "offline", ["weights of DVIS_offline (they have refiner)", "the model is DVIS_online"]),
        ("offline", "minvis", ["does not train its tracker", "start from weights of DVIS_online"]),
    ],
)
def test_weights_of_the_wrong_stage(tmp_path: Path, mode: str, weights: str, parts: list[str]) -> None:
    path = save(tmp_path / "wrong.pth", state_of(weights))
    with pytest.raises(ValueError, match=r"wrong\.pth") as caught:
        load_weights(tiny_model(mode), path)
    for part in parts:
        assert part in str(caught.value)


def test_backbone_weights_do_not_do_for_a_frozen_segmenter(tmp_path: Path) -> None:
    state = {key: value for key, value in state_of("minvis").items() if key.startswith("backbone.")}
    load_weights(tiny_model("minvis"), save(tmp_path / "w.pth", state))
    with pytest.raises(ValueError, match=r"does not train its sem_seg_head.* start from weights of MinVIS"):
        load_weights(tiny_model("online"), tmp_path / "w.pth")


def with_other_classes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: value.new_zeros(81, *value.shape[1:]) if "class_embed" in key or "empty_weight" in key else value
        for key, value in state.items()
    }


def test_another_number_of_classes_is_skipped_with_a_warning(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("minvis")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = save(tmp_path / "coco.pth", with_other_classes(state_of("minvis")))
    load_weights(model, path)
    skipped = "sem_seg_head.predictor.class_embed.weight"
    assert torch.equal(model.state_dict()[skipped], before[skipped])
    assert f"{skipped} is skipped: its shape is (81, 32), the model's is (5, 32)" in log.text
    assert not torch.equal(
        model.state_dict()["backbone.stem.conv1.weight"], before["backbone.stem.conv1.weight"]
    )
    with pytest.raises(ValueError, match=r"coco\.pth: 2 tensors of MinVIS are missing .*class_embed"):
        load_weights(model, path, complete=True)


def test_another_number_of_classes_in_a_frozen_part(tmp_path: Path) -> None:
    path = save(tmp_path / "coco.pth", with_other_classes(state_of("minvis")))
    with pytest.raises(ValueError, match=r"class_embed\.\w+ is \(81.* for the same data set"):
        load_weights(tiny_model("online"), path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"conv.weight": torch.zeros(3, 3)}, r"nothing fits MinVIS: its tensors .* given conv\.weight"),
        ({"backbone.stem.conv1.weight": torch.zeros(3)}, r"nothing fits MinVIS: backbone.* \(3,\) instead"),
        ({}, "nothing fits MinVIS"),
    ],
)
def test_nothing_fits(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_weights(tiny_model("minvis"), save(tmp_path / "w.pth", state))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in state_of("minvis").items()}
    state["backbone.stem.conv1.weight"][0, 0, 0, 0] = value
    path = save(tmp_path / "w.pth", state)
    with pytest.raises(ValueError, match=r"w\.pth: 1 tensors hold NaN or infinity, .*stem\.conv1\.weight"):
        load_weights(tiny_model("minvis"), path)


def test_weights_of_a_wrapped_model(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in state_of("minvis").items()}
    load_weights(tiny_model("minvis"), save(tmp_path / "w.pth", state), complete=True)


def test_checkpointer_takes_other_modules_as_they_are(tmp_path: Path) -> None:
    layer = nn.Linear(2, 3)
    VideoCheckpointer(layer, save_dir=str(tmp_path)).save("layer")
    other = nn.Linear(2, 3)
    VideoCheckpointer(other).load(str(tmp_path / "layer.pth"))
    assert torch.equal(layer.weight, other.weight)


class Steps:
    """Stands for a trainer: one number that is saved and restored."""

    def __init__(self, step: int = 0) -> None:
        self.step = step

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def checkpointer(folder: Path) -> VideoCheckpointer:
    return VideoCheckpointer(nn.Linear(64, 64), str(folder), trainer=Steps())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with checkpoints of steps 1, 3 and 5, whose weights are the steps' numbers."""
    saver = checkpointer(tmp_path)
    for step in (1, 3, 5):
        nn.init.constant_(saver.model.weight, step)
        saver.checkpointables["trainer"].step = step
        saver.save(f"model_{step:07d}", iteration=step)
    return tmp_path


def resumed_step(folder: Path) -> int:
    """The step that a resumed run goes on from, the same in the weights, the trainer and the rest."""
    loader = checkpointer(folder)
    rest = loader.resume()
    assert rest is not None
    step = loader.checkpointables["trainer"].step
    assert rest["iteration"] == step
    assert torch.equal(loader.model.weight, torch.full((64, 64), float(step)))
    return step


def test_the_tagged_checkpoint_is_resumed(saved: Path) -> None:
    assert resumed_step(saved) == 5
    (saved / "last_checkpoint").write_text("model_0000003.pth")  # of a run that was started anew
    assert resumed_step(saved) == 3
    assert checkpointer(saved / "empty").resume() is None


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_a_bit(data: bytes) -> bytes:
    middle = data.index(torch.full((64,), 5.0).numpy().tobytes()) + 100  # inside of the weights
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, lambda data: b"", lambda data: b"\0" * len(data), lambda data: b"no checkpoint"],
    ids=["truncated", "one bit", "empty", "zeros", "text"],
)
def test_a_damaged_checkpoint_is_passed_over(damage: Any, saved: Path, log: pytest.LogCaptureFixture) -> None:
    newest = saved / "model_0000005.pth"
    newest.write_bytes(damage(newest.read_bytes()))
    assert resumed_step(saved) == 3
    assert re.search(r"Checkpoint .*model_0000005\.pth is damaged or missing, trying the one", log.text)
    assert newest.exists(), "nothing is deleted on suspicion"


def test_missing_or_broken_tags(saved: Path, log: pytest.LogCaptureFixture) -> None:
    (saved / "model_0000005.pth").unlink()
    assert resumed_step(saved) == 3
    for tag in ("", "model_final.pth", "\0\0"):
        (saved / "last_checkpoint").write_text(tag)
        assert resumed_step(saved) == 3
        assert "trying the one before it" in log.text
        log.clear()


def test_nothing_is_started_anew_in_silence(saved: Path) -> None:
    for path in saved.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"model_0000005\.pth, model_0000003\.pth, model_0000001\.pth"):
        checkpointer(saved).resume()


def test_checkpoint_of_another_model(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"model_0000005\.pth: nothing fits Conv2d"):
        VideoCheckpointer(nn.Conv2d(1, 2, 3), str(saved)).resume()


def test_a_failed_save_leaves_everything_as_it_was(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(data: Any, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            checkpointer(saved).save("model_0000005")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_rests_of_a_killed_save_are_removed(saved: Path) -> None:
    (saved / ".model_0000007.pth.x1y2.tmp").write_bytes(b"half")
    assert resumed_step(saved) == 5
    assert not list(saved.glob(".*"))


def test_files_reach_the_disk_before_they_get_their_name(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("flush"), fsync(handle))[1])
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (events.append(Path(target).name), replace(self, target))[1]
    )
    checkpointer(saved).save("model_0000007")
    assert events == ["flush", "model_0000007.pth", "flush", "flush", "last_checkpoint", "flush"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_alone(suffix: str, tmp_path: Path) -> None:
    source, model = tiny_model("online"), tiny_model("online")
    nn.init.constant_(source.tracker.class_embed.weight, 7.0)
    save_weights(source, tmp_path / f"w{suffix}")
    load_weights(model, tmp_path / f"w{suffix}", complete=True)
    state = source.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_safetensors_of_tied_and_strided_tensors(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    weight = torch.arange(6.0).reshape(2, 3)
    save_weights({"weight": weight.t(), "tied": weight.t()}, tmp_path / "w.safetensors")
    layer = nn.Linear(2, 3, bias=False)
    VideoCheckpointer(layer).load(str(tmp_path / "w.safetensors"))
    assert torch.equal(layer.weight, weight.t())


def test_unreadable_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"w\.safetensors is not a readable safetensors file"):
        load_weights(shared_tiny_model("minvis"), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.onnx: weights are written as \.safetensors or \.pth"):
        save_weights({}, tmp_path / "w.onnx")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        save_weights({}, tmp_path / "w.safetensors")


class Program:
    """A pickle of it runs a command where it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("bundled", [True, False], ids=["bundled", "as upstream"])
@pytest.mark.parametrize("name", ["w.pkl", "w.pth", "old.pth"])
def test_no_file_runs_a_program(
    name: str, bundled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detectron2_fallback, "is_bundled", lambda: bundled)
    path, mark = tmp_path / name, tmp_path / "mark"
    content = {"model": {"weight": torch.zeros(2)}, "__author__": Program(mark)}
    if name == "w.pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=name == "w.pth")
    with pytest.raises(pickle.UnpicklingError):
        load_weights(shared_tiny_model("minvis"), path)
    assert not mark.exists()
