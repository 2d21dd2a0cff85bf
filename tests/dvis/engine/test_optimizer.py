"""Parameter groups, schedules of the rate, full-model clipping."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

import dvis
from dvis.engine.optimizer import build_optimizer, parameter_groups


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
        self.head = nn.Linear(4, 4)
        self.query = nn.Embedding(5, 4)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def config(*overrides: object) -> CfgNode:
    return dvis.load_config(
        None,
        ["SOLVER.BASE_LR", 0.1, "SOLVER.WEIGHT_DECAY", 0.05, "SOLVER.BACKBONE_MULTIPLIER", 0.5, *overrides],
    )


def test_groups() -> None:
    model = Model()
    groups = parameter_groups(
        model, config("SOLVER.WEIGHT_DECAY_NORM", 0.01, "SOLVER.WEIGHT_DECAY_EMBED", 0.02)
    )
    setting = {p: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert setting[model.backbone[0].weight] == (0.05, 0.05)
    assert setting[model.backbone[1].weight] == (0.05, 0.01)
    assert setting[model.head.bias] == (0.1, 0.05)
    assert setting[model.query.weight] == (0.1, 0.02)
    assert setting[model.relative_position_bias_table] == (0.1, 0.0)
    assert not any(p in setting for p in model.frozen.parameters())
    assert sum(len(g["params"]) for g in groups) == len(setting), "each parameter once"


def test_shared_parameter_is_listed_once() -> None:
    model = nn.Module()
    model.a = nn.Linear(2, 2)
    model.b = model.a
    model.c = nn.Linear(2, 2)
    model.c.weight = model.a.weight
    listed = [p for g in parameter_groups(model, config()) for p in g["params"]]
    assert len(listed) == len(set(listed)) == 3


@pytest.mark.parametrize("name", ["ADAMW", "SGD"])
def test_full_model_clipping_bounds_the_norm_of_all_gradients(name: str) -> None:
    model = Model()
    cfg = config(
        "SOLVER.OPTIMIZER", name, "SOLVER.CLIP_GRADIENTS.ENABLED", True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01,
    )  # fmt: skip
    optimizer = build_optimizer(cfg, model)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    norm = torch.stack([p.grad.norm() for p in trained]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-4)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'ADAM'; allowed: ADAMW, SGD"):
        build_optimizer(config("SOLVER.OPTIMIZER", "ADAM"), Model())
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"]
    with pytest.raises(ValueError, match=r"CLIP_TYPE is 'all'"):
        build_optimizer(config(*clip), Model())
    with pytest.raises(ValueError, match="no trainable parameters"):
        build_optimizer(config(), Model().requires_grad_(False))
