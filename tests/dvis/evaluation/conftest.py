"""A toy world for the evaluators."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvis.data.toy import ToySettings, generate


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the data sets, with a toy world of 3 videos of 10 frames."""
    root = tmp_path_factory.mktemp("datasets")
    generate(root / "toy", ToySettings(num_train=0, num_val=3, height=40, width=56, length=10), workers=1)
    return root


@pytest.fixture
def toy(toy_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy world as the root of all data sets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_world))
    return toy_world
