"""A tiny toy data set as the root of all data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvis.data.toy import ToySettings, generate


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds ``toy/``: 3 + 2 videos of 8 frames of 40 x 56 pixels."""
    root = tmp_path_factory.mktemp("datasets")
    generate(root / "toy", ToySettings(num_train=3, num_val=2, height=40, width=56, length=8), workers=1)
    return root


@pytest.fixture
def toy_data(toy_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_root))
    return toy_root
