"""Training goes on when single clips cannot be made, within a budget and never silently.

A clip that cannot be made - a missing or broken file, a broken mask, a class that does not exist - is
replaced by another clip of the same data set. Which one is drawn from the clip's own seed, so a run that is
continued sees the same clips as one that was never stopped. What went wrong travels with the replacement to
the process that trains, which logs and counts it when the clip's turn has come. A loading process that dies
is started again with the batch that is due.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.packing import unpack

__all__ = [
    "FAULTS_KEY",
    "FaultTolerantLoader",
    "TooManyFaultsError",
    "WorkerBoard",
    "first_intact",
    "raise_noted",
]

logger = logging.getLogger(__name__)

FAULTS_KEY = "data_faults"  # of a clip: what was wrong with those it replaces
BUDGET_KEY = "DATALOADER.MAX_FAULTS"
_SHOWN = 20  # faults that a summary lists
_DEATH_SHOWS_WITHIN = 5.0  # seconds, after the connections of a process are closed

Batch = list[dict[str, Any]]


class TooManyFaultsError(BrokenDataError):
    """More of the training data is broken than the configuration allows; the message lists it."""


def first_intact(
    make: Callable[[int, np.random.Generator], dict[str, Any]],
    video: int,
    num_videos: int,
    seed: Sequence[int],
    budget: int,
) -> dict[str, Any]:
    """Make a clip of a video or, if that is impossible, of another one.

    Args:
        make: makes a clip of the video with a number, with a generator for everything random in it.
        video: number of the video that is due.
        num_videos: how many there are to replace it.
        seed: of the clip; decides which videos replace it.
        budget: how many other videos are tried.

    Returns:
        The clip; where it replaces others, ``FAULTS_KEY`` lists what was wrong with them. If none could be
        made there is nothing but that list.
    """
    try:
        return make(video, np.random.default_rng(seed))
    except (MissingDataError, BrokenDataError) as error:
        faults = [str(error)]
    rng = np.random.default_rng([*seed, 1])
    others = [number for number in rng.permutation(num_videos).tolist() if number != video]
    for number in others[:budget]:
        try:
            return {**make(number, rng), FAULTS_KEY: faults}
        except (MissingDataError, BrokenDataError) as error:
            faults.append(str(error))
    return {FAULTS_KEY: faults}


class WorkerBoard:
    """Where loading processes note what they work on, readable after their death.

    Args:
        num_workers: number of loading processes; 0 where the training process loads itself.
    """

    def __init__(self, num_workers: int) -> None:
        # process id, number of the data set, number of the video
        self._rows: Tensor = torch.full((num_workers, 3), -1, dtype=torch.int64).share_memory_()

    def note(self, dataset: int, video: int) -> None:
        """Say what the calling process works on."""
        worker = get_worker_info()
        if worker is not None and worker.id < len(self._rows):
            self._rows[worker.id] = torch.tensor([os.getpid(), dataset, video])

    def dead(self) -> list[int]:
        """Ids of the loading processes that have ended; waits a little if there is none yet."""
        end = time.monotonic() + _DEATH_SHOWS_WITHIN
        while noted := {pid for pid in self._rows[:, 0].tolist() if pid > 0}:
            alive = {process.pid for process in multiprocessing.active_children()}
            if noted - alive or time.monotonic() > end:
                return sorted(noted - alive)
            time.sleep(0.01)
        return []

    def clear(self) -> None:
        """Forget what was noted: the processes are replaced by new ones."""
        self._rows.fill_(-1)

    def of_processes(self, ids: Iterable[int]) -> list[tuple[int, int]]:
        """What these processes worked on last: (data set, video)."""
        wanted = set(ids)
        return [
            (dataset, video) for pid, dataset, video in self._rows.tolist() if pid in wanted and video >= 0
        ]


class FaultTolerantLoader:
    """Batches of clips, with their faults logged, counted and removed.

    Equal faults count once: a broken file that is drawn again in every epoch is one fault.

    Args:
        load: makes a loader that starts with the batch of this number; batches may be packed.
        start: number of the first batch.
        budget: number of different faults to go on with; beyond it the run stops.
        board: see `WorkerBoard`.
        describe: names the video of a number of a data set of a number, for messages.
        give_up: called with the data set and the video that a process died on twice.
    """

    def __init__(
        self,
        load: Callable[[int], Iterable[Batch]],
        start: int,
        budget: int,
        board: WorkerBoard,
        describe: Callable[[int, int], str],
        give_up: Callable[[int, int], None],
    ) -> None:
        if budget < 0:
            raise ValueError(f"{BUDGET_KEY} must not be negative, got {budget}")
        self._load = load
        self._first = load(start)  # now, so that wrong settings show early
        self._start = start
        self._budget = budget
        self._board = board
        self._describe = describe
        self._give_up = give_up
        self.faults: Counter[str] = Counter()
        self._deaths: Counter[tuple[int, int]] = Counter()

    def __iter__(self) -> Iterator[Batch]:
        position = self._start
        batches = _begin(self._first)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                pids = _dead_processes(error)
                if pids is None:
                    raise
                self._note_death(pids or self._board.dead(), error)
                # The old processes end before new ones start.
                del batches
                self._board.clear()
                batches = _begin(self._load(position))
                continue
            position += 1
            yield self._checked(unpack(batch))

    def summary(self) -> str:
        """What was wrong so far, in a few lines; empty if nothing was."""
        if not self.faults:
            return ""
        lines = [
            f"  {fault}" + (f" ({count} times)" if count > 1 else "")
            for fault, count in self.faults.most_common(_SHOWN)
        ]
        if len(self.faults) > _SHOWN:
            lines.append(f"  ... and {len(self.faults) - _SHOWN} more")
        return "\n".join([f"{len(self.faults)} faults in the training data:", *lines])

    def _checked(self, batch: Batch) -> Batch:
        for clip in batch:
            for fault in clip.pop(FAULTS_KEY, ()):
                self._count(fault, "another clip takes its place")
            if not clip:
                raise self._error("no clip could be made in place of a broken one")
        return batch

    def _note_death(self, pids: Sequence[int], error: Exception) -> None:
        """Count the death of loading processes; a video that two of them died on is given up."""
        videos = self._board.of_processes(pids)
        self._deaths.update(videos)
        where = "; ".join(self._describe(*video) for video in videos) or "an unknown video"
        processes = ", ".join(map(str, pids)) or "(unknown)"
        for video in videos:
            if self._deaths[video] > 1:
                self._give_up(*video)
        fault = (
            f"data-loading process {processes} died while it read {where}. Out of memory, or a crash in a "
            f"decoder: {str(error).strip()}"
        )
        self._count(fault, "new processes read it again")

    def _count(self, fault: str, what_next: str) -> None:
        self.faults[fault] += 1
        if len(self.faults) > self._budget:
            raise self._error(fault)
        logger.warning(
            "Fault %d of at most %d (%s) in the training data: %s; %s.",
            len(self.faults), self._budget, BUDGET_KEY, fault, what_next,
        )  # fmt: skip

    def _error(self, reason: str) -> TooManyFaultsError:
        if not self._budget:
            return TooManyFaultsError(
                f"{reason}. Training stops at the first fault; to replace up to N such clips by others, set "
                f"{BUDGET_KEY} N"
            )
        return TooManyFaultsError(f"{BUDGET_KEY} is {self._budget}, and {reason}.\n{self.summary()}")


def _begin(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Start to iterate, without a trace in the generators and the signal handlers of this process."""
    # Making an iterator draws the seed of its processes. Where it is made again, that must not change what
    # the model draws.
    with torch.random.fork_rng(devices=[]), _own_handler():
        return iter(loader)


@contextmanager
def _own_handler() -> Iterator[None]:
    """Keep what this process does when one of its processes ends.

    PyTorch's handler raises an error about a dead loading process wherever the training process happens to
    be, such as in the middle of a step. Without it, the death shows when the next batch is asked for.
    """
    # Only Unix has the signal, and only the main thread may set a handler.
    signum = getattr(signal, "SIGCHLD", None)
    if signum is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signum)
    try:
        yield
    finally:
        signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def _dead_processes(error: Exception) -> list[int] | None:
    """Ids of the loading processes whose death an error is about, where it says; None for other errors."""
    if isinstance(error, ConnectionError | EOFError):
        # Its batch had come, but not yet the tensors, which are fetched from the process. An error that the
        # process had itself comes with PyTorch's note about where it was caught.
        return None if str(error).startswith("Caught ") else []
    found = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    return [int(pid) for pid in re.findall(r"\d+", found[1])] if found else None


def raise_noted(record: Mapping[str, Any]) -> None:
    """Raise what was found wrong with a record when its annotations were loaded.

    Raises:
        BrokenDataError: see ``DatasetSpec.load``.
    """
    if "fault" in record:
        raise BrokenDataError(record["fault"])
