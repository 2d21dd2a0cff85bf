"""The usual hooks of a training run."""

from __future__ import annotations

import datetime
import itertools
import logging
import math
import operator
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import detectron2.utils.comm as comm
import torch
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.utils.events import EventStorage, EventWriter
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn
from torch.optim.lr_scheduler import LRScheduler as _TorchLRScheduler

from .train_loop import HookBase, TrainerBase

__all__ = [
    "AutogradProfiler",
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "TorchMemoryStats",
    "TorchProfiler",
]

logger = logging.getLogger(__name__)


class CallbackHook(HookBase):
    """A hook made of functions, each of which is called with the trainer."""

    def __init__(
        self,
        *,
        before_train: Callable[[TrainerBase], Any] | None = None,
        after_train: Callable[[TrainerBase], Any] | None = None,
        before_step: Callable[[TrainerBase], Any] | None = None,
        after_step: Callable[[TrainerBase], Any] | None = None,
    ) -> None:
        self._before_train = before_train
        self._before_step = before_step
        self._after_step = after_step
        self._after_train = after_train

    def before_train(self) -> None:
        """Call the function given for it, if any."""
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self) -> None:
        """Call the function given for it, if any, and let all go."""
        if self._after_train:
            self._after_train(self.trainer)
        # The functions may hold references back to the trainer.
        del self._before_train, self._after_train
        del self._before_step, self._after_step

    def before_step(self) -> None:
        """Call the function given for it, if any."""
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self) -> None:
        """Call the function given for it, if any."""
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Logs the seconds of each iteration as ``time`` (hooks excluded), and a summary at the end."""

    def __init__(self, warmup_iter: int = 3) -> None:
        """
        Args:
            warmup_iter: so many iterations at the start are not counted.
        """
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._start_time = time.perf_counter()
        self._total_timer = Timer()

    def before_train(self) -> None:
        """Start the clocks."""
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        """Log the average speed and the share of the hooks."""
        total_time = time.perf_counter() - self._start_time
        total_time_minus_hooks = self._total_timer.seconds()
        hook_time = total_time - total_time_minus_hooks
        num_iter = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if num_iter > 0 and total_time_minus_hooks > 0:
            # The speed is only meaningful after the warm-up.
            logger.info(
                f"Overall training speed: {num_iter} iterations in "
                f"{datetime.timedelta(seconds=int(total_time_minus_hooks))} "
                f"({total_time_minus_hooks / num_iter:.4f} s / it)"
            )
        logger.info(
            f"Total training time: {datetime.timedelta(seconds=int(total_time))} "
            f"({datetime.timedelta(seconds=int(hook_time))} on hooks)"
        )

    def before_step(self) -> None:
        """Start the iteration's clock."""
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        """Log the iteration's time. To come first among hooks, so that theirs does not count."""
        # The step's number among those of this run, from 1.
        iter_done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if iter_done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()


class PeriodicWriter(HookBase):
    """Lets event writers write periodically, and at the end."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        """
        Args:
            writers: called in this order.
            period: in iterations.
        """
        self._writers = writers
        for writer in writers:
            assert isinstance(writer, EventWriter), writer
        self._period = period

    def after_step(self) -> None:
        """Write in every ``period``-th iteration and in the last."""
        if (self.trainer.iter + 1) % self._period == 0 or self.trainer.iter == self.trainer.max_iter - 1:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        """Write what hooks have logged since, then close the writers."""
        for writer in self._writers:
            # Such as results of an evaluation after training.
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's :class:`PeriodicCheckpointer` as a hook."""

    def before_train(self) -> None:
        """Learn when training ends."""
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        """Save if it is time."""
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves the model when a metric is better than ever before. To come after :class:`EvalHook`."""

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        """
        Args:
            eval_period: that of :class:`EvalHook`, in iterations.
            checkpointer: what saves.
            val_metric: name of the metric in the event storage, such as "bbox/AP50".
            mode: "max" if more is better, "min" if less is.
            file_prefix: name of the file, without extension.
        """
        self._period = eval_period
        self._val_metric = val_metric
        assert mode in ["max", "min"], f"Mode {mode!r} of BestCheckpointer is unknown; allowed: 'max', 'min'."
        self._compare = operator.gt if mode == "max" else operator.lt
        self._checkpointer = checkpointer
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _best_checking(self) -> None:
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            logger.warning(
                f"Given val metric {self._val_metric} does not seem to be computed/stored. "
                "Will not be checkpointing based on it."
            )
            return
        metric, metric_iter = latest
        if not math.isfinite(metric) or (
            self.best_metric is not None and not self._compare(metric, self.best_metric)
        ):
            logger.info(
                f"Not saving as latest eval score for {self._val_metric} is {metric:0.5f}, "
                f"not better than best score {self.best_metric} @ iteration {self.best_iter}."
            )
            return
        self._checkpointer.save(self._file_prefix, iteration=metric_iter)
        previous = (
            "first"
            if self.best_metric is None
            else f"previous best {self.best_metric:0.5f} @ {self.best_iter}"
        )
        logger.info(f"Saved best model: {self._val_metric} {metric:0.5f} @ {metric_iter} steps ({previous})")
        self.best_metric, self.best_iter = metric, metric_iter

    def after_step(self) -> None:
        """Check after a periodic evaluation."""
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._best_checking()

    def after_train(self) -> None:
        """Check after the evaluation that follows a complete training."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._best_checking()


class LRScheduler(HookBase):
    """Steps a schedule after each iteration and logs the learning rate as ``lr``."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: _TorchLRScheduler | ParamScheduler | None = None,
    ) -> None:
        """
        Args:
            optimizer: by default the trainer's.
            scheduler: a schedule of torch, or a function of progress that multiplies the base rates; by
                default the trainer's.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._best_param_group_id = 0

    def before_train(self) -> None:
        """Find the trainer's optimiser and schedule."""
        self._optimizer = self._optimizer or self.trainer.optimizer  # type: ignore[attr-defined]
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Index of the group whose rate is worth logging: the largest, or one with the most common rate."""
        groups = optimizer.param_groups
        largest = max(len(group["params"]) for group in groups)
        if largest == 1:
            # One group per parameter.
            rate = Counter(group["lr"] for group in groups).most_common()[0][0]
            return next(i for i, group in enumerate(groups) if group["lr"] == rate)
        return next(i for i, group in enumerate(groups) if len(group["params"]) == largest)

    def after_step(self) -> None:
        """Log the rate that this iteration had, then step."""
        assert self._optimizer is not None
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self) -> Any:
        """The schedule given, or else the trainer's."""
        return self._scheduler or self.trainer.scheduler  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state."""
        return self.scheduler.state_dict() if isinstance(self.scheduler, _TorchLRScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the schedule's state."""
        if isinstance(self.scheduler, _TorchLRScheduler):
            logger.info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class TorchProfiler(HookBase):
    """Profiles chosen iterations with :mod:`torch.profiler` and writes traces."""

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        activities: Iterable[torch.profiler.ProfilerActivity] | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        """
        Args:
            enable_predicate: from the trainer to whether its current iteration is profiled.
            output_dir: folder of the traces.
            activities: see :class:`torch.profiler.profile`.
            save_tensorboard: whether to write for TensorBoard, into ``output_dir/log``, in place of Chrome
                traces.

        Example::

            TorchProfiler(lambda trainer: 10 < trainer.iter < 20, cfg.OUTPUT_DIR)
        """
        self._enable_predicate = enable_predicate
        self._activities = activities
        self._output_dir = output_dir
        self._save_tensorboard = save_tensorboard
        self._profiler: Any = None

    def before_step(self) -> None:
        """Start the profiler if this iteration is to be profiled."""
        if not self._enable_predicate(self.trainer):
            self._profiler = None
            return
        handler = None
        if self._save_tensorboard:
            handler = torch.profiler.tensorboard_trace_handler(
                os.path.join(self._output_dir, "log", f"profiler-tensorboard-iter{self.trainer.iter}"),
                f"worker{comm.get_rank()}",
            )
        self._profiler = torch.profiler.profile(
            activities=self._activities,
            on_trace_ready=handler,
            record_shapes=True,
            profile_memory=True,
            with_stack=True,
            with_flops=True,
        )
        self._profiler.__enter__()

    def after_step(self) -> None:
        """Stop the profiler and write."""
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        if not self._save_tensorboard:
            PathManager.mkdirs(self._output_dir)
            self._profiler.export_chrome_trace(
                os.path.join(self._output_dir, f"profiler-trace-iter{self.trainer.iter}.json")
            )


class AutogradProfiler(TorchProfiler):
    """Profiles chosen iterations with :mod:`torch.autograd.profiler` and writes Chrome traces."""

    def __init__(
        self, enable_predicate: Callable[[TrainerBase], bool], output_dir: str, *, use_cuda: bool = True
    ) -> None:
        """
        Args:
            enable_predicate: from the trainer to whether its current iteration is profiled.
            output_dir: folder of the traces.
            use_cuda: whether to time CUDA kernels, where there is CUDA.
        """
        warnings.warn("AutogradProfiler has been deprecated in favor of TorchProfiler.")
        super().__init__(enable_predicate, output_dir, save_tensorboard=False)
        self._use_cuda = use_cuda and torch.cuda.is_available()

    def before_step(self) -> None:
        """Start the profiler if this iteration is to be profiled."""
        if not self._enable_predicate(self.trainer):
            self._profiler = None
            return
        self._profiler = torch.autograd.profiler.profile(use_device="cuda" if self._use_cuda else None)
        self._profiler.__enter__()


class EvalHook(HookBase):
    """Calls an evaluation function periodically, and after training, and logs its results."""

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], dict[str, Any]],
        eval_after_train: bool = True,
    ) -> None:
        """
        Args:
            eval_period: in iterations; 0 for never before the end.
            eval_function: without arguments, returns a nested dictionary of numbers. All processes must call
                the same hooks, or none.
            eval_after_train: whether to evaluate after a complete training, too.
        """
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        results = self._func()
        if results:
            assert isinstance(results, dict), f"Eval function must return a dict. Got {results} instead."
            flattened_results = flatten_results_dict(results)
            for key, value in flattened_results.items():
                try:
                    flattened_results[key] = float(value)
                except (TypeError, ValueError, RuntimeError) as error:
                    raise ValueError(
                        "[EvalHook] eval_function should return a nested dict of float. "
                        f"Got '{key}: {value}' instead."
                    ) from error
            self.trainer.storage.put_scalars(**flattened_results, smoothing_hint=False)
        # Evaluation takes some processes longer than others.
        comm.synchronize()

    def after_step(self) -> None:
        """Evaluate if it is time; the last iteration is left to :meth:`after_train`."""
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._do_eval()

    def after_train(self) -> None:
        """Evaluate unless training failed."""
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        # The function is likely to hold a reference back to the trainer.
        del self._func


class PreciseBN(HookBase):
    """Computes the statistics of batch normalisation anew, on many batches with the present weights.

    Source: Wu and Johnson, "Rethinking Batch in BatchNorm" (arXiv:2105.07576), section 3.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable[Any], num_iter: int) -> None:
        """
        Args:
            period: in iterations; 0 for only at the end.
            model: whose batch normalisation layers in training mode are updated.
            data_loader: an iterable of training data.
            num_iter: number of batches.
        """
        if len(get_bn_modules(model)) == 0:
            logger.info("PreciseBN is disabled because model does not contain BN layers in training mode.")
            self._disabled = True
            return
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._period = period
        self._disabled = False
        self._data_iter: Any = None

    def after_step(self) -> None:
        """Update in every ``period``-th iteration and in the last."""
        next_iter = self.trainer.iter + 1
        is_final = next_iter == self.trainer.max_iter
        if is_final or (not self._disabled and self._period > 0 and next_iter % self._period == 0):
            self.update_stats()

    def update_stats(self) -> None:
        """Update now; what the model logs meanwhile is dropped."""
        if self._disabled:
            return
        if self._data_iter is None:
            self._data_iter = iter(self._data_loader)

        def data_loader() -> Iterable[Any]:
            for num_iter in itertools.count(1):
                if num_iter % 100 == 0:
                    logger.info(f"Running precise-BN ... {num_iter}/{self._num_iter} iterations.")
                yield next(self._data_iter)

        with EventStorage():
            logger.info(
                f"Running precise-BN for {self._num_iter} iterations...  "
                "Note that this could produce different statistics every time."
            )
            update_bn_stats(self._model, data_loader(), self._num_iter)


class TorchMemoryStats(HookBase):
    """Logs the use of CUDA memory in the first iterations; does nothing without CUDA."""

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        """
        Args:
            period: in iterations.
            max_runs: how many times to log.
        """
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self) -> None:
        """Log in every ``period``-th iteration, then start to measure anew."""
        if self._runs > self._max_runs:
            return
        last = self.trainer.iter == self.trainer.max_iter - 1
        if ((self.trainer.iter + 1) % self._period == 0 or last) and torch.cuda.is_available():
            mib = 1024.0 * 1024.0
            logger.info(
                f"iter: {self.trainer.iter}  "
                f"max_reserved_mem: {torch.cuda.max_memory_reserved() / mib:.0f}MB  "
                f"reserved_mem: {torch.cuda.memory_reserved() / mib:.0f}MB  "
                f"max_allocated_mem: {torch.cuda.max_memory_allocated() / mib:.0f}MB  "
                f"allocated_mem: {torch.cuda.memory_allocated() / mib:.0f}MB"
            )
            self._runs += 1
            if self._runs == self._max_runs:
                logger.info("\n" + torch.cuda.memory_summary())
            torch.cuda.reset_peak_memory_stats()
