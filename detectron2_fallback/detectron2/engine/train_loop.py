"""The training loop, and hooks that act between its steps."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import detectron2.utils.comm as comm
import numpy as np
import torch
from detectron2.utils.events import EventStorage, get_event_storage
from detectron2.utils.logger import _log_api_usage
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]


class HookBase:
    """Base class of what can be registered with a :class:`TrainerBase`.

    The trainer calls the methods in this order::

        hook.before_train()
        for iter in range(start_iter, max_iter):
            hook.before_step()
            trainer.run_step()      # SimpleTrainer and its subclasses call hook.after_backward() on the way
            hook.after_step()
        iter += 1
        hook.after_train()

    A hook may use ``self.trainer`` (a weak reference set on registration), also to read its ``iter``,
    ``storage``, ``start_iter`` and ``max_iter``.
    """

    trainer: TrainerBase = None  # type: ignore[assignment]

    def before_train(self) -> None:
        """Called before the first iteration."""

    def after_train(self) -> None:
        """Called after the last iteration, also when training ends with an exception."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called after each backward pass, before the optimiser's step."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What the hook wants to be saved with the trainer; must be picklable."""
        return {}


class TrainerBase:
    """A loop that calls :meth:`run_step`, and hooks around it; knows nothing of models and data.

    Attributes:
        iter: the current iteration, counted from 0; ``max_iter`` after a complete training.
        start_iter: the iteration to start with.
        max_iter: the iteration to stop before.
        storage: the :class:`EventStorage` of the running training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage
        _log_api_usage("trainer." + self.__class__.__name__)

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Append hooks, to be called in this order; None is left out."""
        for hook in hooks:
            if hook is None:
                continue
            assert isinstance(hook, HookBase), hook
            # A weak reference: the trainer owns its hooks, and a cycle would keep models in memory.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from ``start_iter`` up to, not including, ``max_iter``."""
        logger = logging.getLogger(__name__)
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # By `iter == max_iter` hooks can tell in after_train that training did not fail.
                self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        """Call the hooks' ``before_train``."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Call the hooks' ``after_train``."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        """Call the hooks' ``before_step``; from here on the storage counts for this iteration."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Call the hooks' ``after_backward``."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Call the hooks' ``after_step``."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """One iteration of training; to be overridden."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The iteration, and the state of hooks that have one, by class name."""
        state: dict[str, Any] = {"iteration": self.iter}
        hooks_state: dict[str, Any] = {}
        for hook in self._hooks:
            name = type(hook).__qualname__
            # Of two hooks of one class there is no telling which is which: the first counts.
            if name not in hooks_state and (hook_state := hook.state_dict()):
                hooks_state[name] = hook_state
        if hooks_state:
            state["hooks"] = hooks_state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; state of hooks that are not registered is left out."""
        self.iter = state_dict["iteration"]
        for name, hook_state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logging.getLogger(__name__).warning(
                    f"Cannot find the hook '{name}', its state_dict is ignored."
                )
            else:
                hook.load_state_dict(hook_state)  # type: ignore[attr-defined]


def _log_failure(future: concurrent.futures.Future[None]) -> None:
    """Report an exception in a thread that nobody waits for."""
    if (error := future.exception()) is not None:
        logging.getLogger(__name__).error("Exception in writing metrics:", exc_info=error)


class SimpleTrainer(TrainerBase):
    """Training with one model, one optimiser and one data source: one backward pass and step per iteration.

    For anything else override :meth:`run_step`.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """
        Args:
            model: takes what the loader gives and returns a dictionary of losses, or one loss. Is put into
                training mode.
            data_loader: an endless iterable.
            optimizer: of the model's parameters.
            gather_metric_period: the losses of all processes are gathered, checked and logged every so many
                iterations.
            zero_grad_before_forward: whether to clear gradients before the forward pass rather than after it.
            async_write_metrics: whether to do the gathering in a thread. Only without other communication
                between processes in that time.
        """
        super().__init__()
        # Training leaves it to the user which modules are in evaluation mode, but not the whole model.
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj: Iterator[Any] | None = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self.concurrent_executor = (
            concurrent.futures.ThreadPoolExecutor(max_workers=1) if async_write_metrics else None
        )

    def run_step(self) -> None:
        """Fetch data, compute the losses, back-propagate, log and update."""
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, losses = self._compute_losses(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._record_metrics(loss_dict, data_time)
        self.optimizer.step()

    def _next_batch(self) -> tuple[Any, float]:
        """The next data and the seconds it took to get them."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        return data, time.perf_counter() - start

    def _compute_losses(self, data: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Run the model; returns losses by name and their sum."""
        result = self.model(data)
        if isinstance(result, torch.Tensor):
            return {"total_loss": result}, result
        return result, sum(result.values())

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        # Only made when needed: worker processes may not be wanted before training starts.
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable[Any]]) -> None:
        """Drop the data loader, then take the one that ``data_loader_builder()`` makes."""
        del self.data_loader
        self.data_loader = data_loader_builder()
        self._data_loader_iter_obj = None

    def _record_metrics(self, loss_dict: Mapping[str, torch.Tensor], data_time: float) -> None:
        """Log now, or in the thread that is there for it."""
        if self.concurrent_executor is None:
            self._write_metrics(loss_dict, data_time)
        else:
            future = self.concurrent_executor.submit(
                self._write_metrics, loss_dict, data_time, iter=self.iter
            )
            future.add_done_callback(_log_failure)

    def _write_metrics(
        self,
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        """:meth:`write_metrics` in every ``gather_metric_period``-th iteration."""
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period == 0:
            self.write_metrics(loss_dict, iteration, data_time, prefix)

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor], cur_iter: int, data_time: float, prefix: str = ""
    ) -> None:
        """Put the losses, averaged over processes, their sum and the data time into the event storage.

        Args:
            loss_dict: scalar losses.
            cur_iter: the iteration they belong to.
            data_time: seconds spent on fetching data; the longest of all processes is logged.
            prefix: of the names in the storage.

        Raises:
            FloatingPointError: on the main process, if the sum of the losses is not finite.
        """
        metrics = {key: value.detach().cpu().item() for key, value in loss_dict.items()}
        metrics["data_time"] = data_time
        # Gathered rather than reduced: processes may have different losses in an iteration.
        all_metrics = comm.gather(metrics)
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        # The slowest process holds up all others.
        storage.put_scalar("data_time", max(m.pop("data_time") for m in all_metrics), cur_iter=cur_iter)
        averages = {key: float(np.mean([m[key] for m in all_metrics])) for key in all_metrics[0]}
        total_loss = sum(averages.values())
        if not np.isfinite(total_loss):
            raise FloatingPointError(
                f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {averages}"
            )
        storage.put_scalar(f"{prefix}total_loss", total_loss, cur_iter=cur_iter)
        if len(averages) > 1:
            for name, value in averages.items():
                storage.put_scalar(name, value, cur_iter=cur_iter)

    def after_train(self) -> None:
        """Call the hooks' ``after_train`` once all metrics are written."""
        if self.concurrent_executor is not None:
            # There is one thread: what is handed to it last is done last.
            self.concurrent_executor.submit(lambda: None).result()
        super().after_train()

    def state_dict(self) -> dict[str, Any]:
        """Adds the optimiser to :meth:`TrainerBase.state_dict`."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` in mixed precision.

    On CUDA the forward pass runs under autocast, with scaled gradients. On the CPU, autocast is used if
    ``precision`` is bfloat16; float16 has no advantage there, so that training runs in full precision.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """
        Args:
            model: see :class:`SimpleTrainer`.
            data_loader: see :class:`SimpleTrainer`.
            optimizer: see :class:`SimpleTrainer`.
            gather_metric_period: see :class:`SimpleTrainer`.
            zero_grad_before_forward: see :class:`SimpleTrainer`.
            grad_scaler: by default a new one for the model's device.
            precision: the lower precision.
            log_grad_scaler: whether to log the scale.
            async_write_metrics: see :class:`SimpleTrainer`.
        """
        unsupported = "AMPTrainer does not support single-process multi-device training!"
        if isinstance(model, DistributedDataParallel):
            assert not (model.device_ids and len(model.device_ids) > 1), unsupported
        assert not isinstance(model, DataParallel), unsupported
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self._on_cuda = next(model.parameters()).is_cuda
        if not self._on_cuda and precision != torch.bfloat16:
            logging.getLogger(__name__).warning(
                f"Mixed precision with {precision} is for CUDA; training on the CPU in full precision."
            )
        self.grad_scaler = (
            torch.amp.GradScaler("cuda", enabled=self._on_cuda) if grad_scaler is None else grad_scaler
        )
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._on_cuda:
            return torch.autocast("cuda", dtype=self.precision)
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def run_step(self) -> None:
        """Fetch data, compute the losses in mixed precision, back-propagate, log and update."""
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with self._autocast():
            loss_dict, losses = self._compute_losses(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.after_backward()
        self._record_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Adds the scale to :meth:`SimpleTrainer.state_dict`."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; a run without mixed precision has no scale to restore."""
        super().load_state_dict(state_dict)
        if scaler_state := state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(scaler_state)
