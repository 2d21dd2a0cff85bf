"""Models and videos that take milliseconds: published configurations with few channels, layers and
queries.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

import dvis
from dvis.modeling.meta_arch import VideoModel
from tests.weights import fill_state_dict, make_input

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    "minvis": "configs/ovis/MinVIS_R50.yaml",
    "online": "configs/ovis/DVIS_Online_R50.yaml",
    "offline": "configs/ovis/DVIS_Offline_R50.yaml",
}
NUM_CLASSES = 4
NUM_QUERIES = 9
OVERRIDES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 48,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": NUM_QUERIES,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "MODEL.TRACKER.DECODER_LAYERS": 2,
    "MODEL.REFINER.DECODER_LAYERS": 2,
}


def tiny_config(mode: str, *overrides: Any) -> CfgNode:
    """Configuration of ``minvis``, ``online`` or ``offline`` in tiny."""
    pairs = [item for pair in OVERRIDES.items() for item in pair]
    return dvis.load_config(ROOT / CONFIGS[mode], [*pairs, *overrides])


def tiny_model(mode: str, *overrides: Any) -> VideoModel:
    """A model with generated weights in eval mode."""
    model: Any = build_model(tiny_config(mode, *overrides))
    fill_state_dict(model)
    return model.eval()


@cache
def shared_tiny_model(mode: str) -> VideoModel:
    """The same for tests that do not change it."""
    return tiny_model(mode)


def tiny_video(num_frames: int, size: tuple[int, int] = (37, 54), seed: int = 0) -> list[Tensor]:
    """Frames ``3 height width`` with values like pixels; one frame resembles the next."""
    start, end = torch.from_numpy(make_input("tiny video", (2, 3, *size), seed, std=50.0)) + 120
    return [start + (end - start) * t / max(num_frames, 8) for t in range(num_frames)]
