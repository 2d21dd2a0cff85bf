"""Plots of metrics files, whole, resumed, cut off and broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.plot_metrics import choose, main, read_curves, smoothed


def write(path: Path, rows: list[dict[str, float]], end: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


def training(path: Path, scale: float = 1.0) -> Path:
    rows = [
        {"iteration": i, "total_loss": scale / (i + 1), "loss_ce": 0.5, "loss_ce_0": 0.4, "lr": 1e-4}
        for i in range(19, 200, 20)
    ]
    return write(path, [*rows, {"iteration": 199, "segm/AP": 30.0}])


def test_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = training(tmp_path / "one/metrics.json"), training(tmp_path / "two/metrics.json", 5)
    output = tmp_path / "plots/both.png"
    assert main([str(one), str(two), "--output", str(output), "--smooth", "3"]) == 0
    assert "total_loss, loss_ce, segm/AP, lr" in capsys.readouterr().out
    with Image.open(output) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert min(pixels[:, 0].size, len(np.unique(pixels, axis=0))) > 20, "something is drawn"


def test_chosen_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = training(tmp_path / "metrics.json")
    assert main([str(path), "--output", str(tmp_path / "a.png"), "--metrics", "loss_ce*"]) == 0
    assert capsys.readouterr().out.strip().endswith("loss_ce, loss_ce_0")


def test_resumed_and_killed_trainings(tmp_path: Path) -> None:
    rows = [
        {"iteration": i, "total_loss": value} for i, value in ((19, 3.0), (39, 2.0), (39, 2.5), (59, 1.0))
    ]
    path = write(tmp_path / "metrics.json", rows, end='{"iteration": 79, "tot')
    assert read_curves(path) == {"total_loss": {19: 3.0, 39: 2.5, 59: 1.0}}


def test_values_that_are_not_numbers_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1, "a": NaN, "b": 2, "c": "x"}\n')
    assert read_curves(path) == {"b": {1: 2.0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [("hello\n{}\n", "line 1: not a line of metrics"), ("", "no metrics"), ('{"a": 1}\n\n', "line 1")],
)
def test_broken_files(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(SystemExit):
        main([str(path), "--output", str(tmp_path / "a.png")])
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert f"{path}" in error
    assert message in error


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = training(tmp_path / "metrics.json")
    for arguments, message in (
        ([str(tmp_path / "no.json")], "no.json: no such file"),
        ([str(path), "--metrics", "losss"], "no metric is called losss; there are loss_ce"),
        ([str(path), "--names", "a", "b"], "1 files, but 2 names"),
        ([str(path), "--smooth", "0"], "--smooth: 0 is not positive"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--output", str(tmp_path / "a.png")])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_helpers() -> None:
    assert smoothed([1, 2, 3, 6], 2) == [1, 1.5, 2.5, 4.5]
    assert choose(["loss_ce", "loss_ce_0", "x/AP", "x/APs"], ["*/AP", "loss_*[!0-9]"]) == ["x/AP", "loss_ce"]
