"""Optimiser, gradient clipping and schedule from a config."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, overload

import torch
from detectron2.config import CfgNode
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from torch import nn

from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

__all__ = ["build_lr_scheduler", "build_optimizer", "get_default_optimizer_params"]

_GradientClipperInput = torch.Tensor | Iterable[torch.Tensor]
_GradientClipper = Callable[[_GradientClipperInput], Any]

_NORM_MODULES = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


class GradientClipType(Enum):
    """How ``SOLVER.CLIP_GRADIENTS`` clips, each parameter by itself."""

    VALUE = "value"
    NORM = "norm"


def _create_gradient_clipper(cfg: CfgNode) -> _GradientClipper:
    """Clipper from a ``SOLVER.CLIP_GRADIENTS`` node; raises ValueError for an unknown CLIP_TYPE."""
    clip_value, norm_type = cfg.CLIP_VALUE, cfg.NORM_TYPE

    def clip_grad_norm(parameters: _GradientClipperInput) -> None:
        nn.utils.clip_grad_norm_(parameters, clip_value, norm_type)

    def clip_grad_value(parameters: _GradientClipperInput) -> None:
        nn.utils.clip_grad_value_(parameters, clip_value)

    clippers = {GradientClipType.VALUE: clip_grad_value, GradientClipType.NORM: clip_grad_norm}
    return clippers[GradientClipType(cfg.CLIP_TYPE)]


def _generate_optimizer_class_with_gradient_clipping(
    optimizer: type[torch.optim.Optimizer],
    *,
    per_param_clipper: _GradientClipper | None = None,
    global_clipper: _GradientClipper | None = None,
) -> type[torch.optim.Optimizer]:
    """Subclass of ``optimizer`` whose ``step`` clips first, each parameter or all of them together."""
    assert per_param_clipper is None or global_clipper is None, (
        "Not allowed to use both per-parameter clipping and global clipping"
    )

    def step(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> Any:
        parameters = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        if per_param_clipper is not None:
            for parameter in parameters:
                per_param_clipper(parameter)
        elif global_clipper is not None:
            global_clipper(list(parameters))
        return optimizer.step(self, closure)

    return type(f"{optimizer.__name__}WithGradientClip", (optimizer,), {"step": step})


@overload
def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer: ...


@overload
def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer]
) -> type[torch.optim.Optimizer]: ...


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer] | torch.optim.Optimizer
) -> type[torch.optim.Optimizer] | torch.optim.Optimizer:
    """Add the clipping that ``cfg.SOLVER.CLIP_GRADIENTS`` asks for.

    Args:
        cfg: the whole config.
        optimizer: an optimiser or an optimiser class.

    Returns:
        The same kind as given: the instance itself with another class, or a subclass.

    Raises:
        ValueError: for an unknown ``CLIP_TYPE``.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    optimizer_type = type(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    assert issubclass(optimizer_type, torch.optim.Optimizer), optimizer_type
    clipping_type = _generate_optimizer_class_with_gradient_clipping(
        optimizer_type, per_param_clipper=_create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS)
    )
    if isinstance(optimizer, torch.optim.Optimizer):
        optimizer.__class__ = clipping_type
        return optimizer
    return clipping_type


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with the settings of ``cfg.SOLVER``, with gradient clipping if asked for."""
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.SGD(
        parameters,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups with settings that depend on what a parameter is.

    Args:
        model: whose trainable parameters are listed, shared ones once.
        base_lr: learning rate; None leaves it to the optimiser.
        weight_decay: weight decay; None leaves it to the optimiser.
        weight_decay_norm: weight decay of normalisation layers.
        bias_lr_factor: multiplies ``base_lr`` for parameters named ``bias``.
        weight_decay_bias: weight decay for parameters named ``bias``.
        lr_factor_func: from a parameter's full name to a factor on its learning rate.
        overrides: from the last part of a parameter's name (``weight``) to settings that win over all others.

    Raises:
        ValueError: if a factor is given without ``base_lr``, or ``overrides`` and the bias arguments
        conflict.

    Example::

        torch.optim.SGD(get_default_optimizer_params(model, weight_decay_norm=0), lr=0.01, weight_decay=1e-4)
    """
    defaults = {
        key: value for key, value in (("lr", base_lr), ("weight_decay", weight_decay)) if value is not None
    }
    bias_overrides: dict[str, float] = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        # Detectron1 doubled the learning rate of biases.
        if base_lr is None:
            raise ValueError("bias_lr_factor requires base_lr")
        bias_overrides["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias_overrides["weight_decay"] = weight_decay_bias
    overrides = dict(overrides or {})
    if bias_overrides:
        if "bias" in overrides:
            raise ValueError("Conflicting overrides for 'bias'")
        overrides["bias"] = bias_overrides
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func requires base_lr")

    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            settings = copy.copy(defaults)
            if isinstance(module, _NORM_MODULES) and weight_decay_norm is not None:
                settings["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                settings["lr"] *= lr_factor_func(f"{module_name}.{name}")
            settings.update(overrides.get(name, {}))
            groups.append({"params": [parameter], **settings})
    return reduce_param_groups(groups)


def _expand_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group per parameter; where a parameter occurs twice, later settings win over earlier ones."""
    expanded: dict[Any, dict[str, Any]] = defaultdict(dict)
    for group in params:
        settings = {key: value for key, value in group.items() if key != "params"}
        for parameter in group["params"]:
            expanded[parameter].update({"params": [parameter], **settings})
    return list(expanded.values())


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join groups with the same settings; optimisers are faster with few groups."""
    joined: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for group in _expand_param_groups(params):
        settings = tuple((key, value) for key, value in group.items() if key != "params")
        joined[settings].extend(group["params"])
    return [{**dict(settings), "params": parameters} for settings, parameters in joined.items()]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule that ``cfg.SOLVER.LR_SCHEDULER_NAME`` names, with warm-up.

    Raises:
        ValueError: for an unknown name or warm-up method.
    """
    solver = cfg.SOLVER
    scheduler: ParamScheduler
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if len(steps) != len(solver.STEPS):
            logging.getLogger(__name__).warning(
                "SOLVER.STEPS contains values larger than SOLVER.MAX_ITER. These values will be ignored."
            )
        scheduler = MultiStepParamScheduler(
            values=[solver.GAMMA**k for k in range(len(steps) + 1)],
            milestones=steps,
            num_updates=solver.MAX_ITER,
        )
    elif solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        end_value = solver.BASE_LR_END / solver.BASE_LR
        assert 0.0 <= end_value <= 1.0, end_value
        scheduler = CosineParamScheduler(1, end_value)
    elif solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
        # fvcore's StepWithFixedGammaParamScheduler cannot be asked for the end of training (progress 1).
        count = solver.NUM_DECAYS + 1
        scheduler = MultiStepParamScheduler(
            values=[solver.GAMMA**k for k in range(count)],
            milestones=[math.ceil(k * solver.MAX_ITER / count) for k in range(1, count)],
            num_updates=solver.MAX_ITER,
        )
    else:
        raise ValueError(f"Unknown LR scheduler: {solver.LR_SCHEDULER_NAME}")
    multiplier = WarmupParamScheduler(
        scheduler,
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=solver.MAX_ITER)
