"""Loggers that write to the terminal and to a file per process, and calls that log only now and then."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from types import FrameType
from typing import IO, Any

import torch
from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from termcolor import colored

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

_TIME_FORMAT = "%m/%d %H:%M:%S"
_DEFAULT_BUFFER_SIZE = 1024 * 1024  # bytes, for files that are not local


class _ColorfulFormatter(logging.Formatter):
    """Colours warnings and errors and abbreviates the name of the root logger."""

    def __init__(self, *args: Any, root_name: str, abbrev_name: str, **kwargs: Any) -> None:
        self._root_name = root_name + "."
        self._abbrev_name = abbrev_name + "." if abbrev_name else ""
        super().__init__(*args, **kwargs)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.name = record.name.replace(self._root_name, self._abbrev_name)
        log = super().formatMessage(record)
        if record.levelno == logging.WARNING:
            return colored("WARNING", "red", attrs=["blink"]) + " " + log
        if record.levelno >= logging.ERROR:
            return colored("ERROR", "red", attrs=["blink", "underline"]) + " " + log
        return log


@functools.lru_cache  # a second call must not add the handlers again
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Let a logger write everything to the terminal (of process 0 only) and to a file.

    Args:
        output: a file that ends in ``.txt`` or ``.log``, or a folder for ``log.txt``; process k > 0 adds
            ``.rank<k>`` to the name. None writes no file.
        distributed_rank: number of this process.
        color: use colours in the terminal.
        name: of the logger.
        abbrev_name: short form of ``name`` in the terminal; empty leaves the name out. By default ``d2`` for
            ``detectron2`` and ``name`` otherwise.
        enable_propagation: hand records to the loggers above, too.
        configure_stdout: write to the terminal.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_TIME_FORMAT)

    if configure_stdout and distributed_rank == 0:
        formatter: logging.Formatter = plain
        if color:
            formatter = _ColorfulFormatter(
                colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s",
                datefmt=_TIME_FORMAT,
                root_name=name,
                abbrev_name=str(abbrev_name),
            )
        _add_handler(logger, sys.stdout, formatter)
    if output is not None:
        filename = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            filename += f".rank{distributed_rank}"
        if folder := os.path.dirname(filename):
            PathManager.mkdirs(folder)
        _add_handler(logger, _cached_log_stream(filename), plain)
    return logger


def _add_handler(logger: logging.Logger, stream: IO[Any], formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    logger.addHandler(handler)


@functools.cache  # loggers of several names share one file
def _cached_log_stream(filename: str) -> IO[Any]:
    stream = PathManager.open(filename, "a", buffering=_log_buffer_size(filename))
    atexit.register(stream.close)
    return stream


def _log_buffer_size(filename: str) -> int:
    if "://" not in filename:
        return 1  # a local file is written line by line
    return int(os.environ.get("D2_LOG_BUFFER_SIZE", _DEFAULT_BUFFER_SIZE))


def _find_caller() -> tuple[str, tuple[str, int, str]]:
    """Return the module that called this file, and what identifies the place in it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename != __file__:
            module = frame.f_globals["__name__"]
            # The main program is shown under the root logger's name.
            return "detectron2" if module == "__main__" else module, (
                code.co_filename,
                frame.f_lineno,
                code.co_name,
            )
        frame = frame.f_back
    raise AssertionError("A function of this module was called by nobody.")


_LOG_COUNTER: Counter[tuple[Any, ...]] = Counter()
_LOG_TIMER: dict[tuple[Any, ...], float] = {}


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log the first ``n`` times only.

    Args:
        lvl: level, such as ``logging.INFO``.
        msg: message.
        n: number of times.
        name: of the logger; by default the caller's module.
        key: what counts as the same: ``"caller"``, ``"message"`` or both in a tuple.
    """
    if isinstance(key, str):
        key = (key,)
    assert len(key) > 0
    caller_module, caller_key = _find_caller()
    hash_key: tuple[Any, ...] = ()
    if "caller" in key:
        hash_key += caller_key
    if "message" in key:
        hash_key += (msg,)
    _LOG_COUNTER[hash_key] += 1
    if _LOG_COUNTER[hash_key] <= n:
        logging.getLogger(name or caller_module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first time and then every ``n``-th time that a place is reached.

    Args:
        lvl: level, such as ``logging.INFO``.
        msg: message.
        n: number of times.
        name: of the logger; by default the caller's module.
    """
    caller_module, key = _find_caller()
    _LOG_COUNTER[key] += 1
    if n == 1 or _LOG_COUNTER[key] % n == 1:
        logging.getLogger(name or caller_module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log no more often than every ``n`` seconds.

    Args:
        lvl: level, such as ``logging.INFO``.
        msg: message.
        n: seconds.
        name: of the logger; by default the caller's module.
    """
    caller_module, key = _find_caller()
    last_logged = _LOG_TIMER.get(key)
    current_time = time.time()
    if last_logged is None or current_time - last_logged >= n:
        logging.getLogger(name or caller_module).log(lvl, msg)
        _LOG_TIMER[key] = current_time


def create_small_table(small_dict: dict[str, Any]) -> str:
    """Return a table of one row, with the keys as its head."""
    return tabulate(
        [tuple(small_dict.values())],
        headers=tuple(small_dict.keys()),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )


def _log_api_usage(identifier: str) -> None:
    """Tell PyTorch's usage hook, if one is installed, that a component is in use."""
    torch._C._log_api_usage_once("detectron2." + identifier)
