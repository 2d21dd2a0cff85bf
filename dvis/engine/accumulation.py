"""A training step in several parts, for batches that do not fit into memory at once."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["AccumulatingTrainer"]


class AccumulatingTrainer(SimpleTrainer):
    """Steps of one batch that passes through the model in parts, whose gradients are added up.

    Losses and gradients are the averages over the parts, weighted by their numbers of clips; the optimiser
    steps, and processes exchange gradients, once per batch.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        num_parts: int,
        mixed_precision: bool = False,
    ) -> None:
        """
        Args:
            model: takes a list of clips, returns a dict of losses.
            data_loader: gives the batches of this process, lists of clips.
            optimizer: of the model's parameters.
            num_parts: into how many parts a batch is divided.
            mixed_precision: run the model under CUDA's float16 autocast, with scaled gradients.
        """
        super().__init__(model, data_loader, optimizer)
        self._num_parts = num_parts
        self._mixed_precision = mixed_precision
        self.grad_scaler = torch.amp.GradScaler("cuda", enabled=mixed_precision)

    def run_step(self) -> None:
        """Fetch a batch, add up the gradients of its parts, log and update."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        parts = split(batch, self._num_parts)
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            losses = self._backward(part, len(part) / len(batch), exchange=number == len(parts))
            for name, loss in losses.items():
                totals[name] = totals[name] + loss if name in totals else loss
        if hasattr(self, "after_backward"):  # not in detectron2 0.6
            self.after_backward()
        self._write_metrics(totals, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward(self, clips: list[Any], share: float, *, exchange: bool) -> dict[str, Tensor]:
        """Add the gradients of some clips, times their share; returns their losses, times it as well."""
        with contextlib.ExitStack() as stack:
            if isinstance(self.model, DistributedDataParallel) and not exchange:
                stack.enter_context(self.model.no_sync())
            with torch.autocast("cuda", dtype=torch.float16, enabled=self._mixed_precision):
                losses = {name: loss * share for name, loss in self.model(clips).items()}
            self.grad_scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        """As that of detectron2's trainers, so that a run can go on with or without accumulation."""
        state = super().state_dict()
        return {**state, "grad_scaler": self.grad_scaler.state_dict()} if self._mixed_precision else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        if self._mixed_precision and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def split(batch: list[Any], num_parts: int) -> list[list[Any]]:
    """Divide a batch into parts of equal size, in order; the first ones are larger by one if need be."""
    size, larger = divmod(len(batch), num_parts)
    ends = [number * size + min(number, larger) for number in range(num_parts + 1)]
    return [batch[start:end] for start, end in itertools.pairwise(ends) if end > start]
