"""AdamW or SGD with the published parameter groups and full-model gradient clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,  # includes SyncBatchNorm
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "ADAMW": torch.optim.AdamW,
    "SGD": torch.optim.SGD,
}


def parameter_groups(model: nn.Module, cfg: CfgNode) -> list[dict[str, Any]]:
    """One group per distinct (learning rate, weight decay) of the trainable parameters, each parameter once.

    The backbone learns ``SOLVER.BACKBONE_MULTIPLIER`` times slower; normalisation layers, embeddings and
    position tables have decays of their own.

    Source: Mask2Former (arXiv:2112.01527), section 4.1.
    """
    solver = cfg.SOLVER
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            rate = solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if "backbone" in module_name else 1.0)
            if "relative_position_bias_table" in name or "absolute_pos_embed" in name:
                decay = 0.0
            elif isinstance(module, NORM_LAYERS):
                decay = solver.WEIGHT_DECAY_NORM
            elif isinstance(module, nn.Embedding):
                decay = solver.WEIGHT_DECAY_EMBED
            else:
                decay = solver.WEIGHT_DECAY
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a configuration.

    Raises:
        ValueError: if ``SOLVER.OPTIMIZER`` or ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` is unknown, or if the model
            has nothing to train.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name not in OPTIMIZERS:
        raise ValueError(f"SOLVER.OPTIMIZER is {name!r}; allowed: {', '.join(OPTIMIZERS)}")
    groups = parameter_groups(model, cfg)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameters")
    options = {"momentum": cfg.SOLVER.MOMENTUM} if name == "SGD" else {}
    optimizer = OPTIMIZERS[name](groups, lr=cfg.SOLVER.BASE_LR, **options)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return optimizer
    if clip.CLIP_TYPE == "full_model":
        return _clip_full_model(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
    if clip.CLIP_TYPE not in ("value", "norm"):
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; allowed: full_model, value, norm"
        )
    from detectron2.solver.build import maybe_add_gradient_clipping

    return maybe_add_gradient_clipping(cfg, optimizer)


def _clip_full_model(
    optimizer: torch.optim.Optimizer, norm: float, norm_type: float
) -> torch.optim.Optimizer:
    """Clip the gradient of all parameters together just before each step.

    A step hook sees gradients that a gradient scaler has already unscaled, so it is right in mixed precision.
    """

    def clip(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, norm, norm_type)

    if norm > 0:
        optimizer.register_step_pre_hook(clip)
    return optimizer
