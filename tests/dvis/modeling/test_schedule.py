"""The guidance schedule follows the trainer, is saved without a state-dict key, and belongs to one stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from dvis.modeling.schedule import GuidanceSchedule


def model(stage: str = "tracker") -> nn.Module:
    parts = {
        "head": nn.Linear(2, 2),
        "schedule": GuidanceSchedule(stage=stage, guided_fraction=0.5, max_iter=7),
    }
    return nn.ModuleDict(parts)


def test_first_half_is_guided() -> None:
    schedule = model()["schedule"]
    assert [schedule.advance() for _ in range(5)] == [True, True, True, False, False]


@pytest.mark.parametrize(("fraction", "guided"), [(0.0, [False, False]), (1.0, [True, True])])
def test_never_and_always(fraction: float, guided: list[bool]) -> None:
    schedule = GuidanceSchedule(stage="refiner", guided_fraction=fraction, max_iter=2)
    assert [schedule.advance() for _ in range(2)] == guided


def test_follows_the_trainer() -> None:
    schedule = model()["schedule"]
    with EventStorage(start_iter=2) as storage:
        assert schedule.advance()
        storage.step()
        assert not schedule.advance()
    with EventStorage(start_iter=0):  # a new run counts from its own start
        assert schedule.advance()


def test_state_dict_has_no_additional_key() -> None:
    assert set(model().state_dict()) == {"head.weight", "head.bias"}


def test_position_survives_saving(tmp_path: Path) -> None:
    trained = model()
    for _ in range(3):
        trained["schedule"].advance()
    torch.save({"model": trained.state_dict()}, tmp_path / "model.pth")
    resumed = model()
    weights = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert resumed.load_state_dict(weights) == ([], [])
    assert resumed["schedule"].step == 3
    assert not resumed["schedule"].advance()


def test_next_stage_starts_anew() -> None:
    tracker, refiner = model("tracker"), model("refiner")
    for _ in range(5):
        tracker["schedule"].advance()
    refiner.load_state_dict(tracker.state_dict())
    assert refiner["schedule"].advance()
    assert refiner["schedule"].step == 1


def test_weights_without_metadata_load() -> None:
    resumed = model()
    resumed.load_state_dict(dict(model().state_dict()))
    assert resumed["schedule"].step == 0


def test_bad_fraction() -> None:
    with pytest.raises(ValueError, match=r"MODEL.REFINER.GUIDED_FRACTION is 1.5"):
        GuidanceSchedule(stage="refiner", guided_fraction=1.5, max_iter=10)
