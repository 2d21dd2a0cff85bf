"""Makes detectron2 importable before any test module is, whichever one is installed."""

import logging
from collections.abc import Iterator

import pytest

import detectron2_fallback  # noqa: F401


@pytest.fixture(autouse=True)
def _no_stale_console() -> Iterator[None]:
    """Drop console handlers that a program left behind: they write to a captured, closed stream."""
    yield
    names = (None, "dvis", "mask2former", "detectron2", "fvcore")
    for logger in map(logging.getLogger, names):
        for handler in [h for h in logger.handlers if type(h) is logging.StreamHandler]:
            logger.removeHandler(handler)
