"""What the command-line programs share."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["INPUT_ERROR", "clear_errors", "finite", "positive", "positive_int"]

INPUT_ERROR = 2  # exit code


@contextmanager
def clear_errors(*kinds: type[Exception]) -> Iterator[None]:
    """End the program with one ``error:`` line, exit code 2, where the user's input is at fault.

    To be put around the reading of configurations, data and weights, whose errors name the file and the key.
    Around computation, where a traceback is what helps, only with kinds of errors that always mean input.

    Args:
        kinds: errors to report; none: missing files, unknown keys and wrong values.
    """
    kinds = kinds or (FileNotFoundError, KeyError, ValueError)
    try:
        yield
    except kinds as error:
        # str() of a KeyError is the repr of its message, and of an OSError begins with its number.
        message = error.args[0] if len(error.args) == 1 else error
        sys.stderr.write(f"error: {message}\n")
        raise SystemExit(INPUT_ERROR) from error


def finite(text: str) -> float:
    """A number on the command line, as ``type`` of an argparse argument."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def positive(text: str) -> float:
    """Likewise: a number above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def positive_int(text: str) -> int:
    """Likewise: a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value
