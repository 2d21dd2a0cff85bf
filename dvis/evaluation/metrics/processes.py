"""A loop over independent items, on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

__all__ = ["map_in_processes", "num_cores"]

T = TypeVar("T")
R = TypeVar("R")

_CHUNKS_PER_WORKER = 8

_inherited: Callable[[Any], Any]


def num_cores() -> int:
    """Cores that this process can share work out to; 1 where processes cannot be forked."""
    if "fork" not in multiprocessing.get_all_start_methods() or multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(function: Callable[[T], R], items: Sequence[T], workers: int) -> list[R]:
    """``[function(item) for item in items]``, by several processes.

    The processes are forked: they inherit the function with all that it refers to, and only items and results
    are copied. So it may hold gigabytes; but it must not touch the GPU, nor start PyTorch's threads.

    Raises:
        Whatever the function raises.
    """
    if workers <= 1 or len(items) <= 1:
        return [function(item) for item in items]
    size = -(-len(items) // (workers * _CHUNKS_PER_WORKER))
    chunks = [items[i : i + size] for i in range(0, len(items), size)]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_inherit, initargs=(function,)) as pool:
        return [result for part in pool.map(_call, chunks) for result in part]


def _inherit(function: Callable[[Any], Any]) -> None:
    global _inherited
    _inherited = function


def _call(items: Sequence[Any]) -> list[Any]:
    return [_inherited(item) for item in items]
