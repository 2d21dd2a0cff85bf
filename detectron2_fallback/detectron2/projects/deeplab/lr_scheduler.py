"""Polynomial decay of the learning rate."""

from __future__ import annotations

import torch
from detectron2.solver.lr_scheduler import _WarmupLR

__all__ = ["WarmupPolyLR"]


class WarmupPolyLR(_WarmupLR):
    """``base rate * (1 - iteration / max_iters) ** power``, with a warm-up in front.

    Source: Chen et al., "DeepLab" (arXiv:1606.00915), section 4.1.2.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
        power: float = 0.9,
        constant_ending: float = 0.0,
    ) -> None:
        """
        Args:
            optimizer: whose parameter groups are scheduled.
            max_iters: iterations of the whole training.
            warmup_factor: factor on the rate at the start of the warm-up.
            warmup_iters: length of the warm-up in iterations.
            warmup_method: "linear" or "constant".
            last_epoch: the last finished iteration, -1 at the start.
            power: exponent of the decay.
            constant_ending: once the decay falls below this fraction the rate stays at it; 0 switches this
                off.
        """
        self.max_iters = max_iters
        self.power = power
        self.constant_ending = constant_ending
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self, warmup: float) -> float:
        decay = max(0.0, 1.0 - self.last_epoch / self.max_iters) ** self.power
        is_ending = self.constant_ending > 0 and warmup == 1.0
        return max(decay, self.constant_ending) if is_ending else decay
