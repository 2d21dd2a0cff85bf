"""Learning-rate schedules: fvcore's functions of training progress, applied to an optimiser step by step."""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LRMultiplier", "LRScheduler", "WarmupCosineLR", "WarmupMultiStepLR", "WarmupParamScheduler"]

logger = logging.getLogger(__name__)


class WarmupParamScheduler(CompositeParamScheduler):
    """A schedule with a warm-up in front."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        """
        Args:
            scheduler: the schedule after (and, with linear warm-up, the target at the end of) the warm-up.
            warmup_factor: the warm-up starts at this fraction of the schedule's first value.
            warmup_length: share of training that is warm-up, in [0, 1].
            warmup_method: "linear" or "constant".
            rescale_interval: start ``scheduler`` from its beginning after the warm-up and squeeze it into the
                remaining time; otherwise its values during the warm-up are skipped.

        Raises:
            ValueError: for another warm-up method.
        """
        # The value with which the schedule proper takes over.
        end_value = scheduler(0.0) if rescale_interval else scheduler(warmup_length)
        start_value = warmup_factor * scheduler(0.0)
        warmup: ParamScheduler
        if warmup_method == "constant":
            warmup = ConstantParamScheduler(start_value)
        elif warmup_method == "linear":
            warmup = LinearParamScheduler(start_value, end_value)
        else:
            raise ValueError(f"Unknown warmup method: {warmup_method}")
        super().__init__(
            [warmup, scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """Multiplies the initial learning rate of every parameter group by an fvcore :class:`ParamScheduler`.

    Example::

        multiplier = WarmupParamScheduler(
            MultiStepParamScheduler([1, 0.1, 0.01], milestones=[60000, 80000], num_updates=90000),
            0.001, 100 / 90000)
        scheduler = LRMultiplier(optimizer, multiplier, max_iter=90000)
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ) -> None:
        """
        Args:
            optimizer: whose parameter groups are scheduled.
            multiplier: function of training progress in [0, 1].
            max_iter: number of iterations of the whole training.
            last_iter: the last finished iteration, -1 at the start.

        Raises:
            ValueError: if ``multiplier`` is not a :class:`ParamScheduler`.
        """
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(
                "LRMultiplier(multiplier=) must be an instance of fvcore ParamScheduler. "
                f"Got {multiplier} instead."
            )
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Only what varies: the schedule itself is code."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[Any]:
        """One learning rate per parameter group at the current iteration."""
        multiplier = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * multiplier for base_lr in self.base_lrs]


class _WarmupLR(LRScheduler):
    """A schedule of its own kind: a warm-up times a decay that subclasses give."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_factor: float,
        warmup_iters: int,
        warmup_method: str,
        last_epoch: int,
    ) -> None:
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def _decay(self, warmup: float) -> float:
        """Factor on the base rates at the current iteration, whose warm-up factor is ``warmup``."""
        raise NotImplementedError

    def get_lr(self) -> list[Any]:
        """One learning rate per parameter group at the current iteration."""
        warmup = _get_warmup_factor_at_iter(
            self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor
        )
        decay = self._decay(warmup)
        return [base_lr * warmup * decay for base_lr in self.base_lrs]


class WarmupMultiStepLR(_WarmupLR):
    """Step decay with warm-up (superseded by :class:`LRMultiplier`, kept for projects that use it)."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        """
        Raises:
            ValueError: if ``milestones`` do not increase.
        """
        _warn_deprecated("WarmupMultiStepLR")
        if list(milestones) != sorted(milestones):
            raise ValueError(f"Milestones should be a list of increasing integers. Got {milestones}")
        self.milestones = milestones
        self.gamma = gamma
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self, warmup: float) -> float:
        return self.gamma ** bisect.bisect_right(self.milestones, self.last_epoch)


class WarmupCosineLR(_WarmupLR):
    """Half a cosine with warm-up (superseded by :class:`LRMultiplier`, kept for projects that use it)."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        _warn_deprecated("WarmupCosineLR")
        self.max_iters = max_iters
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self, warmup: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * self.last_epoch / self.max_iters))


def _warn_deprecated(name: str) -> None:
    logger.warning(f"{name} is deprecated! Use LRMultiplier with fvcore ParamScheduler instead!")


def _get_warmup_factor_at_iter(method: str, iter: int, warmup_iters: int, warmup_factor: float) -> float:
    """Factor on the learning rate in iteration ``iter``; 1 from ``warmup_iters`` on.

    Raises:
        ValueError: for a method other than "linear" and "constant".

    Source: Goyal et al., "Accurate, Large Minibatch SGD" (arXiv:1706.02677), section 2.2.
    """
    if iter >= warmup_iters:
        return 1.0
    if method == "constant":
        return warmup_factor
    if method == "linear":
        alpha = iter / warmup_iters
        return warmup_factor * (1 - alpha) + alpha
    raise ValueError(f"Unknown warmup method: {method}")
