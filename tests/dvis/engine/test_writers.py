"""Metrics in the log, as JSON, for TensorBoard, and in Weights & Biases if asked for."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from detectron2.utils.events import EventStorage, EventWriter

import dvis
from dvis.engine.writers import ProgressPrinter, WandbWriter, build_writers


def storage_with(steps: int, **scalars: float) -> EventStorage:
    storage = EventStorage(0)
    for step in range(steps):
        storage.iter = step
        for name, value in scalars.items():
            storage.put_scalar(name, value)
    return storage


def line_of(storage: EventStorage, caplog: pytest.LogCaptureFixture, max_iter: int = 100) -> str:
    with caplog.at_level(logging.INFO, "dvis"), storage:
        ProgressPrinter(max_iter).write()
    return caplog.messages[-1] if caplog.messages else ""


def test_progress_says_what_matters(caplog: pytest.LogCaptureFixture) -> None:
    storage = storage_with(
        20, total_loss=1.5, loss_ce=0.5, time=2.0, data_time=0.5, images_per_second=3.0,
        lr=1e-4, peak_memory_mb=812.0, data_faults=2.0,
    )  # fmt: skip
    line = line_of(storage, caplog)
    for part in (
        "iter: 19/100", "total_loss: 1.5", "loss_ce: 0.5", "eta: 0:02:40", "time: 2.0000 s",
        "data_time: 0.5000 s (25%)", "images/s: 3.00", "lr: 0.0001", "memory: 812 MB", "data faults: 2",
    ):  # fmt: skip
        assert part in line
    assert "skipped" not in line
    assert storage.latest()["eta_seconds"] == (160, 19)


def test_first_steps_have_no_times(caplog: pytest.LogCaptureFixture) -> None:
    line = line_of(storage_with(1, total_loss=1.0, data_time=0.1), caplog)
    assert line == "iter: 0/100  total_loss: 1"


def test_nothing_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    assert line_of(storage_with(1, total_loss=1.0), caplog, max_iter=0) == ""


def write(writers: list[EventWriter], storage: EventStorage) -> None:
    with storage:
        for writer in writers:
            writer.write()
            writer.close()


def test_json_and_tensorboard_by_default(tmp_path: Path) -> None:
    writers = build_writers(dvis.load_config(overrides=["OUTPUT_DIR", str(tmp_path / "out")]), 10)
    write(writers, storage_with(3, total_loss=1.5))
    (row,) = map(json.loads, (tmp_path / "out/metrics.json").read_text().splitlines())
    assert row == {"iteration": 2, "total_loss": 1.5}
    assert list((tmp_path / "out").glob("events.out.tfevents.*"))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module that notes what is done with it."""
    calls: list[tuple[str, Any]] = []

    def init(**settings: Any) -> SimpleNamespace:
        calls.append(("init", settings))
        return SimpleNamespace(
            log=lambda row, step: calls.append(("log", (step, row))),
            finish=lambda: calls.append(("finish", None)),
        )

    module = SimpleNamespace(init=init, calls=calls)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


WANDB = ["WANDB.ENABLED", True, "WANDB.NAME", "first"]


def test_weights_and_biases_if_asked_for(tmp_path: Path, wandb: SimpleNamespace) -> None:
    cfg = dvis.load_config(overrides=["OUTPUT_DIR", str(tmp_path), *WANDB])
    writers = build_writers(cfg, 10)
    storage = storage_with(3, total_loss=1.5)
    with storage:
        writers[-1].write()
        writers[-1].write()  # nothing new
        storage.iter = 3
        storage.put_scalar("AP", 30.0)
        writers[-1].write()
        writers[-1].close()
    (_, settings), *rest = wandb.calls
    assert (settings["project"], settings["name"], settings["dir"]) == ("dvis", "first", str(tmp_path))
    assert settings["config"]["SEED"] == cfg.SEED
    assert rest == [("log", (2, {"total_loss": 1.5})), ("log", (3, {"AP": 30.0})), ("finish", None)]


def test_a_continued_training_continues_its_run(tmp_path: Path, wandb: SimpleNamespace) -> None:
    cfg = dvis.load_config(overrides=["OUTPUT_DIR", str(tmp_path), *WANDB])
    WandbWriter(cfg)
    WandbWriter(cfg)
    first, second = (settings["id"] for name, settings in wandb.calls if name == "init")
    assert first == second
    WandbWriter(dvis.load_config(overrides=["OUTPUT_DIR", str(tmp_path / "other"), *WANDB]))
    assert wandb.calls[-1][1]["id"] != first


def test_weights_and_biases_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"WANDB\.ENABLED.*pip install wandb"):
        build_writers(dvis.load_config(overrides=["OUTPUT_DIR", str(tmp_path), *WANDB]), 10)


def test_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert len(build_writers(dvis.load_config(overrides=["OUTPUT_DIR", str(tmp_path)]), 10)) == 3
