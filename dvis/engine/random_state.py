"""The state of every random generator of a process, as plain data that a checkpoint can hold."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["get_random_state", "preserved_random_state", "set_random_state"]


def get_random_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and PyTorch's global generators (CPU and current GPU)."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),  # a list: checkpoints hold no arrays
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`get_random_state` gave; a GPU's state is left out on machines without one."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """What is drawn inside changes nothing of what is drawn afterwards."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)
