"""What happens during training: a storage of scalars, images and histograms, and writers that read it."""

from __future__ import annotations

import datetime
import functools
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from fvcore.common.history_buffer import HistoryBuffer

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

_CURRENT_STORAGE_STACK: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """Return the storage of the innermost ``with EventStorage(...)``.

    Raises:
        AssertionError: outside of any.
    """
    assert len(_CURRENT_STORAGE_STACK), (
        "get_event_storage() has to be called inside a 'with EventStorage(...)' context!"
    )
    return _CURRENT_STORAGE_STACK[-1]


def has_event_storage() -> bool:
    """Return whether there is an enclosing ``with EventStorage(...)``."""
    return len(_CURRENT_STORAGE_STACK) > 0


class EventStorage:
    """Remembers what is put into it, together with the iteration.

    Used as a context manager it is what :func:`get_event_storage` returns inside.
    """

    def __init__(self, start_iter: int = 0) -> None:
        """
        Args:
            start_iter: the first iteration.
        """
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple[str, torch.Tensor | np.ndarray, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_image(self, img_name: str, img_tensor: torch.Tensor | np.ndarray) -> None:
        """Add an image for TensorBoard.

        Args:
            img_name: its name.
            img_tensor: ``3 H W`` RGB, uint8 or float in [0, 1].
        """
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_scalar(
        self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add a scalar.

        Args:
            name: its name.
            value: a number, or a tensor with one element.
            smoothing_hint: whether the scalar is noisy, so that writers had better show a median. It has to
                be the same each time.
            cur_iter: the iteration it belongs to, by default the current one.

        Raises:
            AssertionError: if ``smoothing_hint`` changes.
        """
        name = self._current_prefix + name
        cur_iter = self._iter if cur_iter is None else cur_iter
        value = float(value)
        self._history[name].update(value, cur_iter)
        self._latest_scalars[name] = (value, cur_iter)
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"Scalar {name} was put with a different smoothing_hint!"

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any) -> None:
        """Add several scalars given by keyword, see :meth:`put_scalar`."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Add a histogram for TensorBoard.

        Args:
            hist_name: its name.
            hist_tensor: any shape.
            bins: number of bins of equal width.
        """
        smallest, largest = hist_tensor.min().item(), hist_tensor.max().item()
        edges = torch.linspace(start=smallest, end=largest, steps=bins + 1, dtype=torch.float32)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": smallest,
                "max": largest,
                "num": len(hist_tensor),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float(torch.sum(hist_tensor**2)),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": torch.histc(hist_tensor, bins=bins).tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """Return all values of a scalar.

        Raises:
            KeyError: if it was never put.
        """
        ret = self._history.get(name)
        if ret is None:
            raise KeyError(f"No history metric available for {name}!")
        return ret

    def histories(self) -> dict[str, HistoryBuffer]:
        """Return the values of all scalars."""
        return self._history

    def latest(self) -> Mapping[str, tuple[float, int]]:
        """Return the last value of each scalar and its iteration."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like :meth:`latest`, with a median over a window for scalars that were put with ``smoothing_hint``.

        Args:
            window_size: iterations up to the last value of a scalar that count for it.
        """
        return {
            name: (
                self._history[name].median(self.count_samples(name, window_size))
                if self._smoothing_hints[name]
                else value,
                iteration,
            )
            for name, (value, iteration) in self._latest_scalars.items()
        }

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Return how many values a scalar has in the ``window_size`` iterations up to its last one."""
        data = self._history[name].values()
        first_outside = data[-1][1] - window_size
        samples = 0
        for _, iteration in reversed(data):
            if iteration <= first_outside:
                break
            samples += 1
        return samples

    def smoothing_hints(self) -> dict[str, bool]:
        """Return for each scalar whether it is noisy."""
        return self._smoothing_hints

    def step(self) -> None:
        """Go on to the next iteration. Whoever runs the training loop calls this, at its end."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration."""
        return self._iter

    @iter.setter
    def iter(self, val: int) -> None:
        self._iter = int(val)

    @property
    def iteration(self) -> int:
        """The older name of :attr:`iter`."""
        return self._iter

    def __enter__(self) -> EventStorage:
        _CURRENT_STORAGE_STACK.append(self)
        return self

    def __exit__(self, exc_type: object, exc_val: object, exc_tb: object) -> None:
        assert _CURRENT_STORAGE_STACK[-1] is self
        _CURRENT_STORAGE_STACK.pop()

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put ``name/`` before the names of what is added inside."""
        old_prefix = self._current_prefix
        self._current_prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = old_prefix

    def clear_images(self) -> None:
        """Forget the images; a writer calls this after it has written them."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms; a writer calls this after it has written them."""
        self._histograms = []


class EventWriter:
    """Base of everything that reads events from the current storage and shows them."""

    def write(self) -> None:
        """Process what is new."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is pending; called once at the end."""


class JSONWriter(EventWriter):
    """Appends one JSON object per iteration with new scalars to a file, e.g.
    ``{"data_time": 0.008, "iteration": 19, "loss": 1.92}``.
    """

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        """
        Args:
            json_file: appended to if it exists.
            window_size: of the median for scalars with a smoothing hint.
        """
        self._file_handle = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        to_save: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                to_save[iteration][name] = value
        for iteration in sorted(to_save):
            self._file_handle.write(
                json.dumps({**to_save[iteration], "iteration": iteration}, sort_keys=True) + "\n"
            )
            self._last_write = iteration
        self._file_handle.flush()
        if hasattr(self._file_handle, "fileno"):  # some remote files have none
            os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms for TensorBoard."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """
        Args:
            log_dir: folder for the event files.
            window_size: of the median for scalars with a smoothing hint.
            kwargs: for ``torch.utils.tensorboard.SummaryWriter``, which is made at the first write.
        """
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @functools.cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        storage = get_event_storage()
        new_last_write = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                new_last_write = max(new_last_write, iteration)
        self._last_write = new_last_write

        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for params in storage._histograms:
            self._writer.add_histogram_raw(**params)
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs the usual things: iteration, losses, times, learning rate, memory, and the time that is left."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """
        Args:
            max_iter: number of iterations of the training; without it the time left is not shown.
            window_size: iterations over which losses and times are smoothed.
        """
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None

    def _get_eta(self, storage: EventStorage) -> str:
        if self._max_iter is None:
            return ""
        iteration = storage.iter
        try:
            eta_seconds = storage.history("time").median(1000) * (self._max_iter - iteration - 1)
        except KeyError:  # the trainer measures no time: use our own clock, which sees all the rest as well
            eta_string = ""
            if self._last_write is not None and iteration > self._last_write[0]:
                passed = time.perf_counter() - self._last_write[1]
                eta_seconds = passed / (iteration - self._last_write[0]) * (self._max_iter - iteration - 1)
                eta_string = str(datetime.timedelta(seconds=int(eta_seconds)))
            self._last_write = (iteration, time.perf_counter())
            return eta_string
        storage.put_scalar("eta_seconds", eta_seconds, smoothing_hint=False)
        return str(datetime.timedelta(seconds=int(eta_seconds)))

    def write(self) -> None:
        storage = get_event_storage()
        iteration = storage.iter
        if iteration == self._max_iter:
            return  # training is over; there is no progress to report
        parts = [
            f"eta: {eta}" if (eta := self._get_eta(storage)) else "",
            f"iter: {iteration}",
            self._smoothed(storage, lambda name: "loss" in name),
            self._smoothed(storage, lambda name: "[metric]" in name),
            _times(storage, "time", self._window_size),
            _times(storage, "data_time", self._window_size),
            "lr: " + _latest(storage, "lr", ".5g"),
            f"max_mem: {torch.cuda.max_memory_allocated() / 1024.0 / 1024.0:.0f}M"
            if torch.cuda.is_available()
            else "",
        ]
        self.logger.info(" " + "  ".join(part for part in parts if part))

    def _smoothed(self, storage: EventStorage, wanted: Callable[[str], bool]) -> str:
        return "  ".join(
            f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, history in storage.histories().items()
            if wanted(name)
        )


def _latest(storage: EventStorage, name: str, spec: str) -> str:
    try:
        return format(storage.history(name).latest(), spec)
    except KeyError:
        return "N/A"


def _times(storage: EventStorage, name: str, window_size: int) -> str:
    """Average and last value of a time; it may be missing in the first iterations, which are warm-up."""
    try:
        average = storage.history(name).avg(storage.count_samples(name, window_size))
        return f"{name}: {average:.4f}  last_{name}: {storage.history(name).latest():.4f}"
    except KeyError:
        return ""
