"""Parameter groups, gradient clipping and learning-rate schedules."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import (
    LRMultiplier,
    WarmupParamScheduler,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
)
from detectron2.solver.build import (
    _expand_param_groups,
    _generate_optimizer_class_with_gradient_clipping,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)
from detectron2.solver.lr_scheduler import WarmupCosineLR, WarmupMultiStepLR
from fvcore.common.param_scheduler import (
    ConstantParamScheduler,
    CosineParamScheduler,
    MultiStepParamScheduler,
)
from torch import nn


def solver_cfg(**solver: Any) -> CfgNode:
    cfg = get_cfg()
    for key, value in solver.items():
        node = cfg.SOLVER
        *path, last = key.split("__")
        for part in path:
            node = node[part]
        node[last] = value
    return cfg


def make_optimizer(lr: float = 5.0) -> torch.optim.Optimizer:
    parameter = nn.Parameter(torch.zeros(0))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    parameter.sum().backward()
    optimizer.step()
    return optimizer


def rates(scheduler: Any, steps: int) -> list[float]:
    """The rate before the first step and after each of the others."""
    values = [scheduler.optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        scheduler.step()
        values.append(scheduler.optimizer.param_groups[0]["lr"])
    return values


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.tied = self.head
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


def settings_of(net: nn.Module, groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    by_parameter = {
        id(p): {k: v for k, v in group.items() if k != "params"} for group in groups for p in group["params"]
    }
    assert len(by_parameter) == sum(len(group["params"]) for group in groups)
    return {name: by_parameter[id(p)] for name, p in net.named_parameters() if id(p) in by_parameter}


# ------------------------------------------------------------------ parameter groups


def test_groups_list_each_trainable_parameter_once() -> None:
    net = Net()
    groups = get_default_optimizer_params(net)
    assert list(settings_of(net, groups)) == [n for n, p in net.named_parameters() if p.requires_grad]
    assert len(groups) == 1
    assert set(groups[0]) == {"params"}


def test_groups_of_norms_biases_and_overrides() -> None:
    net = Net()
    groups = get_default_optimizer_params(
        net,
        base_lr=0.1,
        weight_decay=1e-4,
        weight_decay_norm=0.0,
        bias_lr_factor=2.0,
        weight_decay_bias=1e-5,
        lr_factor_func=lambda name: 0.5 if name.startswith("head") else 1.0,
        overrides={"running": {"lr": 7.0}},
    )
    assert settings_of(net, groups) == {
        "conv.weight": {"lr": 0.1, "weight_decay": 1e-4},
        "conv.bias": {"lr": 0.2, "weight_decay": 1e-5},
        "norm.weight": {"lr": 0.1, "weight_decay": 0.0},
        "norm.bias": {"lr": 0.2, "weight_decay": 1e-5},
        "head.weight": {"lr": 0.05, "weight_decay": 1e-4},
        "head.bias": {"lr": 0.2, "weight_decay": 1e-5},
    }
    by_name = get_default_optimizer_params(
        net, base_lr=0.1, overrides={"weight": {"lr": 3.0, "momentum": 0.5}}
    )
    assert settings_of(net, by_name)["conv.weight"] == {"lr": 3.0, "momentum": 0.5}
    assert settings_of(net, by_name)["conv.bias"] == {"lr": 0.1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bias_lr_factor": 2.0}, "base_lr"),
        ({"lr_factor_func": lambda name: 1.0}, "base_lr"),
        ({"base_lr": 1.0, "bias_lr_factor": 2.0, "overrides": {"bias": {"lr": 1.0}}}, "bias"),
    ],
)
def test_group_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_default_optimizer_params(Net(), **arguments)


def test_expand_and_reduce_groups() -> None:
    expanded = _expand_param_groups(
        [
            {"params": ["a", "b", "c", "d"], "lr": 1.0, "weight_decay": 3.0},
            {"params": ["b", "c", "e"], "lr": 2.0, "momentum": 2.0},
            {"params": ["a"], "weight_decay": 4.0},
        ]
    )
    assert expanded == [
        {"params": ["a"], "lr": 1.0, "weight_decay": 4.0},
        {"params": ["b"], "lr": 2.0, "weight_decay": 3.0, "momentum": 2.0},
        {"params": ["c"], "lr": 2.0, "weight_decay": 3.0, "momentum": 2.0},
        {"params": ["d"], "lr": 1.0, "weight_decay": 3.0},
        {"params": ["e"], "lr": 2.0, "momentum": 2.0},
    ]
    assert reduce_param_groups(expanded) == [
        {"params": ["a"], "lr": 1.0, "weight_decay": 4.0},
        {"params": ["b", "c"], "lr": 2.0, "weight_decay": 3.0, "momentum": 2.0},
        {"params": ["d"], "lr": 1.0, "weight_decay": 3.0},
        {"params": ["e"], "lr": 2.0, "momentum": 2.0},
    ]


def test_build_optimizer() -> None:
    cfg = solver_cfg(BASE_LR=0.1, MOMENTUM=0.8, NESTEROV=True, WEIGHT_DECAY=0.01, BIAS_LR_FACTOR=2.0)
    net = Net()
    optimizer = build_optimizer(cfg, net)
    assert isinstance(optimizer, torch.optim.SGD)
    settings = settings_of(net, optimizer.param_groups)
    assert settings["norm.weight"]["weight_decay"] == cfg.SOLVER.WEIGHT_DECAY_NORM
    assert settings["conv.weight"]["weight_decay"] == 0.01
    assert settings["conv.bias"]["lr"] == 0.2
    assert (settings["conv.weight"]["momentum"], settings["conv.weight"]["nesterov"]) == (0.8, True)


# ------------------------------------------------------------------ gradient clipping


def parameters_with_gradients() -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.tensor([3.0, 4.0])
    parameters[1].grad = torch.tensor([12.0])
    return parameters


@pytest.mark.parametrize("as_class", [True, False])
@pytest.mark.parametrize(
    ("clip_type", "expected"), [("value", [-2.0, -2.0, -2.0]), ("norm", [-1.2, -1.6, -2.0])]
)
def test_clipping_of_each_parameter(clip_type: str, expected: list[float], as_class: bool) -> None:
    cfg = solver_cfg(
        CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE=clip_type, CLIP_GRADIENTS__CLIP_VALUE=2.0
    )
    parameters = parameters_with_gradients()
    if as_class:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(parameters, lr=1.0)
    else:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD(parameters, lr=1.0))
    assert isinstance(optimizer, torch.optim.SGD)
    optimizer.step()
    assert torch.cat([p.detach() for p in parameters]).tolist() == pytest.approx(expected, rel=1e-5)


def test_clipping_of_the_full_model() -> None:
    def clip(parameters: list[nn.Parameter]) -> None:
        nn.utils.clip_grad_norm_(parameters, 1.3)

    parameters = parameters_with_gradients()  # their common norm is 13
    clipped = _generate_optimizer_class_with_gradient_clipping(torch.optim.AdamW, global_clipper=clip)
    optimizer = clipped(parameters, lr=1.0)
    assert isinstance(optimizer, torch.optim.AdamW)
    optimizer.step()
    gradients = torch.cat([p.grad for p in parameters]).tolist()
    assert gradients == pytest.approx([0.3, 0.4, 1.2], rel=1e-4)
    with pytest.raises(AssertionError):
        _generate_optimizer_class_with_gradient_clipping(
            torch.optim.SGD, per_param_clipper=clip, global_clipper=clip
        )


def test_full_model_clipping_by_a_subclass_of_the_optimizer() -> None:
    """The way in which MaskFormer-type projects clip."""

    class FullModelClipping(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            everything = [p for group in self.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(everything, 1.3)
            super().step(closure=closure)

    parameters = parameters_with_gradients()
    scheduler = LRMultiplier(FullModelClipping(parameters, lr=1.0), ConstantParamScheduler(1.0), 10)
    scheduler.optimizer.step()
    scheduler.step()
    assert torch.cat([p.detach() for p in parameters]).tolist() == pytest.approx([-0.3, -0.4, -1.2], rel=1e-4)


def test_clipping_switched_off_or_unknown() -> None:
    optimizer = torch.optim.SGD(parameters_with_gradients(), lr=1.0)
    assert maybe_add_gradient_clipping(get_cfg(), optimizer) is optimizer
    assert maybe_add_gradient_clipping(get_cfg(), torch.optim.SGD) is torch.optim.SGD
    cfg = solver_cfg(CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE="sometimes")
    with pytest.raises(ValueError, match="sometimes"):
        maybe_add_gradient_clipping(cfg, optimizer)


# ------------------------------------------------------------------ schedules


def test_multistep_with_warmup() -> None:
    multiplier = WarmupParamScheduler(
        MultiStepParamScheduler([1, 0.1, 0.01, 0.001], milestones=[10, 15, 20], num_updates=30), 0.001, 5 / 30
    )
    values = rates(LRMultiplier(make_optimizer(), multiplier, 30), 30)
    assert values[:5] == pytest.approx([0.005, 1.004, 2.003, 3.002, 4.001])
    expected = [5.0] * 5 + [0.5] * 5 + [0.05] * 5 + [0.005] * 11
    assert values[5:] == pytest.approx(expected)


def test_cosine_with_warmup() -> None:
    multiplier = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.001, 5 / 30)
    values = rates(LRMultiplier(make_optimizer(), multiplier, 30), 30)
    cosine = [2.5 * (1.0 + math.cos(math.pi * i / 30)) for i in range(31)]
    assert values[5:] == pytest.approx(cosine[5:], abs=1e-9)
    assert all(abs(a - b) > 1e-3 for a, b in zip(values[:5], cosine[:5], strict=True))


@pytest.mark.parametrize("end", [0.0, 0.5])
def test_cosine_end_value(end: float) -> None:
    cfg = solver_cfg(
        LR_SCHEDULER_NAME="WarmupCosineLR",
        MAX_ITER=100,
        WARMUP_ITERS=10,
        WARMUP_FACTOR=0.1,
        BASE_LR=5.0,
        BASE_LR_END=end,
    )
    values = rates(build_lr_scheduler(cfg, make_optimizer(5.0)), 100)
    assert values[0] == pytest.approx(0.5)
    assert values[-1] == pytest.approx(end, abs=1e-9)


def test_constant_warmup() -> None:
    cfg = solver_cfg(
        MAX_ITER=10, STEPS=(6,), WARMUP_ITERS=3, WARMUP_FACTOR=0.1, WARMUP_METHOD="constant", BASE_LR=5.0
    )
    values = rates(build_lr_scheduler(cfg, make_optimizer()), 10)
    assert values == pytest.approx([0.5] * 3 + [5.0] * 3 + [0.5] * 5)


def test_step_with_fixed_gamma() -> None:
    cfg = solver_cfg(
        LR_SCHEDULER_NAME="WarmupStepWithFixedGammaLR",
        MAX_ITER=12,
        NUM_DECAYS=3,
        GAMMA=0.5,
        WARMUP_ITERS=0,
        WARMUP_FACTOR=1.0,
        BASE_LR=8.0,
    )
    values = rates(build_lr_scheduler(cfg, make_optimizer(8.0)), 11)
    assert values == pytest.approx([8.0] * 3 + [4.0] * 3 + [2.0] * 3 + [1.0] * 3)


def test_rescaled_interval_starts_the_schedule_after_the_warmup() -> None:
    multiplier = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.5, "linear", rescale_interval=True)
    values = rates(LRMultiplier(make_optimizer(1.0), multiplier, 20), 20)
    assert values[:10] == pytest.approx([0.1 + 0.09 * i for i in range(10)])
    assert values[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(11)], abs=1e-9)


def test_steps_behind_the_end_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    cfg = solver_cfg(MAX_ITER=10, STEPS=(4, 20), WARMUP_ITERS=0, BASE_LR=1.0)
    with caplog.at_level(logging.WARNING):
        values = rates(build_lr_scheduler(cfg, make_optimizer(1.0)), 9)
    assert values == pytest.approx([1.0] * 4 + [0.1] * 6)
    assert "SOLVER.STEPS" in caplog.text


def test_schedule_errors() -> None:
    with pytest.raises(ValueError, match="NoSuchLR"):
        build_lr_scheduler(solver_cfg(LR_SCHEDULER_NAME="NoSuchLR"), make_optimizer())
    with pytest.raises(ValueError, match="sideways"):
        build_lr_scheduler(solver_cfg(WARMUP_METHOD="sideways"), make_optimizer())
    with pytest.raises(ValueError, match="ParamScheduler"):
        LRMultiplier(make_optimizer(), torch.optim.lr_scheduler.StepLR(make_optimizer(), 3), 10)


def test_state_continues_on_a_new_optimizer() -> None:
    def schedule() -> LRMultiplier:
        return LRMultiplier(make_optimizer(), CosineParamScheduler(1, 0), 30)

    whole = rates(schedule(), 30)
    first = schedule()
    values = rates(first, 12)
    state = first.state_dict()
    assert set(state) == {"base_lrs", "last_epoch"}  # nothing but numbers goes into a checkpoint
    second = schedule()
    second.load_state_dict(state)
    values += rates(second, 18)[1:]
    assert values == whole


def test_old_schedules_agree_with_the_new() -> None:
    old = WarmupMultiStepLR(make_optimizer(), [10, 15], 0.1, warmup_factor=0.001, warmup_iters=5)
    new = LRMultiplier(
        make_optimizer(),
        WarmupParamScheduler(
            MultiStepParamScheduler([1, 0.1, 0.01], milestones=[10, 15], num_updates=30), 0.001, 5 / 30
        ),
        30,
    )
    assert rates(old, 30) == pytest.approx(rates(new, 30))
    cosine = rates(WarmupCosineLR(make_optimizer(), 30, warmup_factor=0.5, warmup_iters=4), 30)
    for i, value in enumerate(cosine):
        warmup = min(1.0, 0.5 + 0.5 * i / 4)
        assert value == pytest.approx(warmup * 2.5 * (1 + math.cos(math.pi * i / 30)), abs=1e-9)
    with pytest.raises(ValueError, match="increasing"):
        WarmupMultiStepLR(make_optimizer(), [15, 10])
