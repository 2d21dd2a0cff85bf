"""What is noted of broken numbers and data, speed and memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn

import dvis
from dvis.engine.monitoring import (
    DataFaultReport,
    NonFiniteMonitor,
    Throughput,
    monitoring_hooks,
    peak_memory_mb,
)
from dvis.modeling.matching import NonFiniteError
from tests.dvis.modeling.meta_arch.test_dvis import clip
from tests.dvis.tiny import tiny_model


def broken_clip(seed: int) -> dict[str, Any]:
    result = clip(seed=seed)
    result["image"][1][:] = torch.nan
    return {**result, "video_id": seed, "frame_indices": [3, 4], "file_names": ["3.jpg", "4.jpg"]}


def train(
    tmp_path: Path, setting: str, batches: list[list[dict[str, Any]]], budget: int = 10
) -> EventStorage:
    model = tiny_model("minvis", "SOLVER.NON_FINITE", setting)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    trainer = SimpleTrainer(model, batches, optimizer)
    trainer.register_hooks([NonFiniteMonitor(tmp_path, budget)])
    trainer.train(0, len(batches))
    assert model.on_non_finite is None, "the model does not keep the hook"
    return trainer.storage


def notes(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "non_finite.jsonl").read_text().splitlines()]


def test_skipped_batches_are_written_down_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batches = [[clip(seed=1)], [clip(seed=2), broken_clip(7)], [clip(seed=3)], [broken_clip(8)]]
    with caplog.at_level(logging.WARNING):
        storage = train(tmp_path, "skip", batches)
    first, second = notes(tmp_path)
    assert (first["iteration"], second["iteration"], first["rank"]) == (1, 3, 0)
    assert first["clips"][1] == {"video_id": 7, "frame_indices": [3, 4], "file_names": ["3.jpg", "4.jpg"]}
    assert len(first["clips"]) == 2
    assert "pred_" in first["error"], "the terms at fault"
    assert storage.latest()["skipped_batches"] == (2, 3)
    assert "2 batches with numbers that are not finite" in caplog.text


def test_beyond_the_budget_training_stops_with_a_list(tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteError, match=r"(?s)more than 2 batches \(SOLVER\.MAX_NON_FINITE\).*jsonl"
    ) as e:
        train(tmp_path, "skip", [[broken_clip(seed)] for seed in range(5)], budget=2)
    lines = str(e.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [f"iteration {i}" for i in range(3)]
    assert len(notes(tmp_path)) == 3


def test_a_batch_that_stops_training_is_written_down_as_well(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        train(tmp_path, "stop", [[broken_clip(7)]])
    assert [note["clips"][0]["video_id"] for note in notes(tmp_path)] == [7]


def test_nothing_is_written_without_a_fault(tmp_path: Path) -> None:
    train(tmp_path, "skip", [[clip(seed=1)]])
    assert not list(tmp_path.iterdir())


def test_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_NON_FINITE must not be negative, got -1"):
        monitoring_hooks(dvis.load_config(overrides=["SOLVER.MAX_NON_FINITE", -1]))


class Toy(SimpleTrainer):
    """Three steps of a linear model."""

    def __init__(self, loader: Any) -> None:
        class Model(nn.Linear):
            def forward(self, x: Any) -> dict[str, torch.Tensor]:
                return {"loss_a": super().forward(torch.ones(1, 2)).sum()}

        model = Model(2, 1)
        super().__init__(model, loader, torch.optim.SGD(model.parameters(), 0.1))


def test_faults_of_the_loader_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Loader(list):
        faults: ClassVar = {"a.jpg is missing": 2}

        def summary(self) -> str:
            return "1 faults in the training data: a.jpg is missing"

    trainer = Toy(Loader([0, 0, 0]))
    trainer.register_hooks([DataFaultReport()])
    with caplog.at_level(logging.WARNING):
        trainer.train(0, 3)
    assert trainer.storage.latest()["data_faults"] == (1, 2)
    assert "a.jpg is missing" in caplog.text


def test_a_plain_loader_has_nothing_to_report(caplog: pytest.LogCaptureFixture) -> None:
    trainer = Toy([0])
    trainer.register_hooks([DataFaultReport()])
    trainer.train(0, 1)
    assert "data_faults" not in trainer.storage.latest()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_throughput() -> None:
    hook = Throughput(images_per_step=12)
    with EventStorage(5) as storage:
        hook.trainer = SimpleNamespace(storage=storage)
        hook.after_step()
        assert "images_per_second" not in storage.latest(), "warm-up steps are not timed"
        storage.put_scalar("time", 0.5)
        hook.after_step()
        assert storage.latest()["images_per_second"] == (24, 5)
        storage.iter = 6
        hook.after_step()
        assert storage.latest()["images_per_second"] == (24, 5), "of this step or of none"
    assert storage.latest()["peak_memory_mb"][0] == pytest.approx(peak_memory_mb(), rel=0.2)
    assert 10 < peak_memory_mb() < 1e6
