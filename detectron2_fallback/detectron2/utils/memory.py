"""Retrying a function that ran out of GPU memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

__all__ = ["retry_if_cuda_oom"]


@contextmanager
def _ignore_torch_cuda_oom() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "CUDA out of memory. " not in str(error):
            raise


def _to_cpu(x: Any) -> Any:
    is_on_gpu = getattr(getattr(x, "device", None), "type", None) == "cuda"
    return x.to(device="cpu") if is_on_gpu and hasattr(x, "to") else x


def retry_if_cuda_oom(func: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function try again when the GPU's memory is full.

    The second attempt comes after PyTorch's cache was emptied, the third with all arguments moved to the CPU,
    so the function has to accept them there, and its results may be there.

    Args:
        func: without effects beside its result; arguments inside of containers are not moved.
    """

    @wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _ignore_torch_cuda_oom():
            return func(*args, **kwargs)
        torch.cuda.empty_cache()
        with _ignore_torch_cuda_oom():
            return func(*args, **kwargs)
        logging.getLogger(__name__).info("Attempting to copy inputs of %s to CPU due to CUDA OOM", func)
        return func(*map(_to_cpu, args), **{name: _to_cpu(value) for name, value in kwargs.items()})

    return wrapped
