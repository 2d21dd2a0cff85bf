"""Which implementations of multi-scale deformable attention this machine has, and which one a call uses."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.pixel_decoder.ops import build_ops
from mask2former.modeling.pixel_decoder.ops.functions import pytorch_backend

logger = logging.getLogger(__name__)

BACKENDS = ("cuda", "cpp", "pytorch")
# Where each compiled back end runs.
_DEVICES = {"cuda": "cuda", "cpp": "cpu"}


def available_backends() -> tuple[str, ...]:
    """Names of the back ends that can be used here, fastest first; ``pytorch`` is always among them."""
    return tuple(name for name in BACKENDS if why_unavailable(name) is None)


def backend_report() -> dict[str, str]:
    """For each back end "available" (with what) or "not available" (with the reason), in words."""
    report = {}
    for name in BACKENDS:
        reason = why_unavailable(name)
        if reason is not None:
            report[name] = f"not available: {reason}"
        elif name == "pytorch":
            report[name] = f"available: PyTorch {torch.__version__}"
        else:
            report[name] = f"available: {_find_library(name)}"
    return report


def why_unavailable(name: str) -> str | None:
    """The reason why ``name`` cannot be used on this machine, or None if it can.

    Raises:
        ValueError: if there is no back end of that name.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or None, got {name!r}")
    if name == "pytorch":
        return None
    if name == "cuda" and not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return _load(name)


def choose_backend(value: Tensor, backend: str | None = None) -> str:
    """The back end for this ``value``: the one asked for, or the fastest that there is for its device.

    Raises:
        ValueError: if there is no back end of that name, or it does not run on this device.
        RuntimeError: if it is not available on this machine; the message has the reason.
    """
    device = value.device.type
    if backend is not None:
        reason = why_unavailable(backend)
        if reason is not None:
            raise RuntimeError(f"ms_deform_attn backend {backend!r} is not available: {reason}")
        if _DEVICES.get(backend, device) != device:
            raise ValueError(f"backend {backend!r} needs tensors on {_DEVICES[backend]}, got {device}")
        return backend
    for name, runs_on in _DEVICES.items():
        if runs_on == device:
            reason = why_unavailable(name)
            if reason is None:
                return name
            _warn_once(name, reason)
    return "pytorch"


def run_forward(backend: str, value: Tensor, *others: Tensor) -> Tensor:
    """``B Lq M*D`` in value's dtype, from value, spatial shapes, level starts, locations and attention.

    Locations and attention are in the dtype to compute in: float64 for a float64 value, else float32.
    """
    if backend == "cuda":
        return torch.ops.dvis.ms_deform_attn_cuda_forward(*_on_device_of(value, value, *others))
    inputs = (value.to(others[-1].dtype), *others)
    if backend == "cpp":
        output = torch.ops.dvis.ms_deform_attn_cpp_forward(*_on_device_of(value, *inputs))
    else:
        output = pytorch_backend.forward(*inputs)
    return output.to(value.dtype)


def run_forward_from_offsets(value: Tensor, *others: Any) -> Tensor:
    """``B Lq M*D`` in value's dtype by the C++ back end, from value, spatial shapes, level starts, reference
    points, offsets, logits and the number of points; the last two tensors may be columns of a wider one.
    """
    *contiguous, offsets, logits, points = others
    inputs = _on_device_of(value, value, *contiguous)
    return torch.ops.dvis.ms_deform_attn_cpp_from_offsets(*inputs, offsets, logits, points)


def run_backward(backend: str, value: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value (in its dtype), locations and attention; the last argument is the output's."""
    if backend == "cuda":
        return torch.ops.dvis.ms_deform_attn_cuda_backward(*_on_device_of(value, value, *others))
    dtype = others[-2].dtype
    inputs = (value.to(dtype), *others[:-1], others[-1].to(dtype))
    if backend == "cpp":
        grads = torch.ops.dvis.ms_deform_attn_cpp_backward(*_on_device_of(value, *inputs))
    else:
        grads = pytorch_backend.backward(*inputs)
    return grads[0].to(value.dtype), grads[1], grads[2]


def _on_device_of(value: Tensor, *tensors: Tensor) -> list[Tensor]:
    """What the compiled code asks for; only the small level tables can be elsewhere."""
    return [t.to(value.device, non_blocking=True).contiguous() for t in tensors]


@cache
def _warn_once(name: str, reason: str) -> None:
    logger.warning(
        "ms_deform_attn: the %s back end is not available (%s); using PyTorch, which is slower", name, reason
    )


def _find_library(name: str) -> Path | None:
    paths = [build_ops.OPS / file_name for file_name in build_ops.library_names(name)]
    return next((path for path in paths if path.is_file()), None)


@cache
def _load(name: str) -> str | None:
    """Load a compiled back end; None, or the reason why it cannot be."""
    library = _find_library(name)
    if library is None:
        note = build_ops.failure_note(name)
        if note.is_file():
            return f"the last build failed: {note.read_text().strip()}"
        return f"not built for PyTorch {torch.__version__} (run: sh {build_ops.OPS / 'make.sh'})"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"{library} cannot be loaded: {error.__cause__ or error} (build it again: sh make.sh)"
    return None
