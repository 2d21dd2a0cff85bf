"""A toy world for trainings of a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvis.data.toy import ToySettings, generate


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the data sets, with a toy world of 3 + 2 videos of 4 frames."""
    root = tmp_path_factory.mktemp("datasets")
    generate(root / "toy", ToySettings(num_train=3, num_val=2, height=32, width=48, length=4), workers=1)
    return root


@pytest.fixture(autouse=True)
def toy_data(toy_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_root))
    return toy_root
