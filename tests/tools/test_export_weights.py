"""Exported weights: small, complete, nearly the same results; broken input is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

import dvis
from dvis.checkpoint import load_weights, read_weights, save_weights
from tests.integration.conftest import CONFIG, TINY
from tools import export_weights

ONLINE = CONFIG.with_name("DVIS_Online_toy.yaml")


def model_of(config: Path) -> Any:
    return build_model(dvis.load_config(config, TINY)).eval()


@pytest.fixture
def stages(tmp_path: Path) -> tuple[Any, Any, Path]:
    """A model of stage one, one of stage two on the same segmenter, and the folder of their checkpoints."""
    torch.manual_seed(0)
    first, second = model_of(CONFIG), model_of(ONLINE)
    second.load_state_dict(first.state_dict(), strict=False)
    for name, model in (("first", first), ("second", second)):
        optimizer = {"state": torch.zeros(1000)}
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer, "iteration": 9}, tmp_path / f"{name}.pth"
        )
    return first, second, tmp_path


def class_logits(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    frames = [torch.randint(0, 255, (3, 48, 64), generator=generator, dtype=torch.uint8) for _ in range(3)]
    with torch.no_grad():
        segmented = model.segment(model.prepare(frames).frames)
        return model.link(segmented, None)[0].logits


def test_small_and_nearly_the_same(stages: tuple[Any, Any, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, second, folder = stages
    target = folder / "small" / "second.pth"
    assert export_weights.main([str(folder / "second.pth"), str(target)]) == 0
    assert "tensors" in capsys.readouterr().out
    num_values = sum(value.numel() for value in second.state_dict().values())
    num_tensors = len(second.state_dict())
    assert target.stat().st_size < 2 * num_values + 400 * num_tensors  # names take room in a tiny model
    stored = torch.load(target, weights_only=True)
    assert list(stored) == ["model"]
    assert all(
        value.dtype == torch.float16 for value in stored["model"].values() if value.is_floating_point()
    )

    again = model_of(ONLINE)
    load_weights(again, target, complete=True)
    assert all(parameter.dtype == torch.float32 for parameter in again.parameters())
    moved = (class_logits(again) - class_logits(second)).abs().max()
    assert 0 < moved < 1e-2


def test_a_later_stage_needs_only_its_own_part(stages: tuple[Any, Any, Path]) -> None:
    _, second, folder = stages
    small = folder / "small"
    export_weights.export(folder / "first.pth", small / "first.pth")
    export_weights.export(folder / "second.pth", small / "whole.pth")
    total, written = export_weights.export(folder / "second.pth", small / "second.pth", small / "first.pth")
    stored = torch.load(small / "second.pth", weights_only=True)
    assert stored["base"] == "first.pth"
    assert len(stored["model"]) == written < total == len(second.state_dict())
    assert {key.split(".")[0] for key in stored["model"]} == {"tracker"}
    whole, merged = read_weights(small / "whole.pth"), read_weights(small / "second.pth")
    assert whole.keys() == merged.keys()
    assert all(torch.equal(whole[key], merged[key]) for key in whole)
    model = model_of(ONLINE)
    load_weights(model, small / "second.pth", complete=True)
    assert torch.equal(model.tracker.class_embed.bias, whole["tracker.class_embed.bias"].float())

    (small / "first.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"second.pth needs first.pth beside it"):
        load_weights(model_of(ONLINE), small / "second.pth")


def test_values_beyond_half_precision_stay_as_they_are() -> None:
    large = torch.tensor([1.0, 1e6])
    assert export_weights.to_half(large) is large
    assert export_weights.to_half(torch.tensor([1.0, 1e-9])).dtype == torch.float16
    count = torch.tensor(70000)
    assert export_weights.to_half(count) is count


def test_wrong_input(stages: tuple[Any, Any, Path], capsys: pytest.CaptureFixture[str]) -> None:
    first, _, folder = stages
    export_weights.export(folder / "second.pth", folder / "small" / "second.pth")
    torch.save([1, 2], folder / "list.pth")
    cases = [
        (["none.pth", "out.pth"], "no such file"),
        (["list.pth", "out.pth"], "list.pth is no checkpoint of this project"),
        (["first.pth", "out.onnx"], "written as .safetensors or .pth"),
        (["second.pth", "out.pth", "--base", "small/second.pth"], "must lie in the folder of"),
        (["first.pth", "small/out.pth", "--base", "small/second.pth"], "is no earlier stage of"),
    ]
    for arguments, message in cases:
        paths = [name if name.startswith("--") else str(folder / name) for name in arguments]
        with pytest.raises(SystemExit):
            export_weights.main(paths)
        assert message in capsys.readouterr().err
    for base in ("../first.pth", "/etc/passwd", "first.pkl"):
        with pytest.raises(ValueError, match="the base of a"):
            save_weights(first, folder / "out.pth", base=base)
        torch.save({"model": {}, "base": base}, folder / "odd.pth")
        with pytest.raises(ValueError, match="which is no file name"):
            read_weights(folder / "odd.pth")
