"""A tiny toy world and a tiny model that trains in a second per step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.modeling import build_model

import dvis
from dvis.checkpoint import save_weights
from dvis.data.toy import ToySettings, generate

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "toy" / "MinVIS_toy.yaml"
TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "4",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "16",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1",
    "MODEL.MASK_FORMER.DEC_LAYERS", "2",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64",
    "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.STEPS", "(100,)",
    "DATALOADER.NUM_WORKERS", "0",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the data sets, with a toy world of 2 + 2 videos of 4 frames."""
    root = tmp_path_factory.mktemp("datasets")
    generate(root / "toy", ToySettings(num_train=2, num_val=2, height=64, width=80, length=4), workers=1)
    return root


@pytest.fixture(autouse=True)
def data_root(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_data))
    return tiny_data


@pytest.fixture
def random_weights(tmp_path: Path) -> Callable[[Path], str]:
    """Writes the weights of the tiny model of a configuration, which has not learned anything."""

    def write(config: Path) -> str:
        path = tmp_path / f"{config.stem}.pth"
        save_weights(build_model(dvis.load_config(config, TINY)), path)
        return str(path)

    return write
