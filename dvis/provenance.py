"""What a result was made with: versions of the code and of what it runs on."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

import detectron2_fallback

__all__ = ["VERSION", "code_version", "environment"]

VERSION = "0.1.0"  # of this package; setup.py reads it here
_ROOT = Path(__file__).resolve().parents[1]


@functools.cache  # as the code was when the program started
def code_version() -> str:
    """The package's version and, in a clone of the repository, what ``git describe`` says of it."""
    if not (_ROOT / ".git").exists():
        return VERSION
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--tags"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # no git, or not the owner's clone
        return VERSION
    return f"{VERSION} ({described.strip()})"


def environment() -> dict[str, str]:
    """Versions of Python, PyTorch, NumPy, detectron2 and CUDA; the system and its device."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "detectron2": detectron2_fallback.which().partition(" at ")[0],
        "cuda": str(torch.version.cuda) if cuda else "none",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "system": platform.platform(),
    }
