"""The protocol of evaluators, and the inference loop."""

from __future__ import annotations

import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds
from torch import nn

__all__ = ["DatasetEvaluator", "DatasetEvaluators", "inference_context", "inference_on_dataset"]

_WARMUP_BATCHES = 5  # allocator, auto-tuning and worker start-up would spoil the estimates
_SECONDS_BETWEEN_MESSAGES = 5


class DatasetEvaluator:
    """Accumulates over pairs of inputs and outputs, then computes results.

    ``reset``, then ``process`` for every batch, then ``evaluate`` once.
    """

    def reset(self) -> None:
        """Forget everything; called before a round of evaluation."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take one batch.

        Args:
            inputs: what the model was called with.
            outputs: what it returned, of the same length.
        """

    def evaluate(self) -> Any:
        """Compute the results of all batches.

        Returns:
            A dict from task ("bbox", "sem_seg", ...) to a dict from metric to number; None where there is
            nothing to report (for instance on all processes but the first).
        """


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators behind the interface of one.

    Args:
        evaluators: each is given every call; their results are merged.
    """

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> OrderedDict:
        """Merge the results.

        Raises:
            AssertionError: if two evaluators report the same task.
        """
        results: OrderedDict = OrderedDict()
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if is_main_process() and result is not None:
                for key, value in result.items():
                    assert key not in results, f"Different evaluators produce results with the same key {key}"
                    results[key] = value
        return results


class _Stopwatch:
    """Times of the parts of the inference loop, without those of the first batches."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.num_warmup = min(_WARMUP_BATCHES, num_batches - 1)
        self.restart()

    def restart(self) -> None:
        self.started = time.perf_counter()
        self.seconds = {"Dataloading": 0.0, "Inference": 0.0, "Eval": 0.0}

    def log_progress(self, done: int) -> None:
        counted = done - self.num_warmup * int(done > self.num_warmup)
        average = {part: seconds / counted for part, seconds in self.seconds.items()}
        total = (time.perf_counter() - self.started) / counted
        if done <= self.num_warmup and average["Inference"] <= _SECONDS_BETWEEN_MESSAGES:
            return
        eta = datetime.timedelta(seconds=int(total * (self.num_batches - done)))
        parts = " ".join(f"{part}: {seconds:.4f} s/iter." for part, seconds in average.items())
        log_every_n_seconds(
            logging.INFO,
            f"Inference done {done}/{self.num_batches}. {parts} Total: {total:.4f} s/iter. ETA={eta}",
            n=_SECONDS_BETWEEN_MESSAGES,
        )

    def log_summary(self, logger: logging.Logger) -> None:
        counted = max(self.num_batches - self.num_warmup, 1)
        for name, seconds in (
            ("Total inference", time.perf_counter() - self.started),
            ("Total inference pure compute", self.seconds["Inference"]),
        ):
            logger.info(
                "%s time: %s (%.6f s / iter per device, on %d devices)",
                name,
                datetime.timedelta(seconds=int(seconds)),
                seconds / counted,
                get_world_size(),
            )


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Iterable[Any],
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], None]] | None = None,
) -> Any:
    """Run a model over a data loader and evaluate its outputs; logs progress and speed.

    Args:
        model: called with every batch, without gradients; a module is in eval mode meanwhile.
        data_loader: an iterable with a length.
        evaluator: one evaluator or several; None only runs the model.
        callbacks: may have "on_start" and "on_end" (around everything), "before_inference" and
            "after_inference" (around every call of the model).

    Returns:
        What ``evaluator.evaluate()`` returns, with an empty dict for None.
    """
    logger = logging.getLogger(__name__)
    num_batches = len(data_loader)  # type: ignore[arg-type]
    logger.info("Start inference on %d batches", num_batches)
    if evaluator is None:
        evaluator = DatasetEvaluators([])
    if isinstance(evaluator, Sequence):
        evaluator = DatasetEvaluators(evaluator)
    evaluator.reset()

    def call(name: str) -> None:
        (callbacks or {}).get(name, lambda: None)()

    stopwatch = _Stopwatch(num_batches)
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())

        last = time.perf_counter()
        call("on_start")
        for index, inputs in enumerate(data_loader):
            if index == stopwatch.num_warmup:
                stopwatch.restart()
            seconds = stopwatch.seconds
            seconds["Dataloading"] += time.perf_counter() - last

            last = time.perf_counter()
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds["Inference"] += time.perf_counter() - last

            last = time.perf_counter()
            evaluator.process(inputs, outputs)
            seconds["Eval"] += time.perf_counter() - last
            stopwatch.log_progress(index + 1)
            last = time.perf_counter()
        call("on_end")

    stopwatch.log_summary(logger)
    results = evaluator.evaluate()
    return {} if results is None else results


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while, and back into what it was before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
