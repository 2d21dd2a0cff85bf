from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dvis.checkpoint import VideoCheckpointer, load_weights
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
