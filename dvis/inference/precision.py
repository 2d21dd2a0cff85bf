"""Which precision the segmenter computes in at inference."""

from __future__ import annotations

import torch

__all__ = ["PRECISIONS", "autocast_dtype", "check_precision"]

PRECISIONS = ("float32", "bfloat16", "auto")


def check_precision(precision: str, key: str = "MODEL.MASK_FORMER.TEST.PRECISION") -> None:
    """Raise ``ValueError``, which names the configuration key, for a precision that is not known."""
    if precision not in PRECISIONS:
        raise ValueError(f"{key} is {precision!r}; allowed are {', '.join(PRECISIONS)}")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of the segmenter's large products (convolutions, linear layers, attention) on a device.

    Where to sample, sampling itself, normalisation, softmax, class scores, matching, tracker and refiner stay
    in float32 whatever this says.

    Args:
        precision: one of ``PRECISIONS``; ``auto`` is bfloat16 where the hardware computes in it, else
            float32.
        device: where the model is.

    Returns:
        The type for autocast; None: no autocast.

    Raises:
        ValueError: for an unknown precision.
    """
    check_precision(precision)
    if precision == "float32" or (precision == "auto" and not _computes_in_bfloat16(device)):
        return None
    return torch.bfloat16


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Whether there are units for bfloat16 products; an emulation would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # AVX-512 without AMX gains little; where PyTorch cannot tell, nothing is risked.
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and supported is not None and bool(supported())
