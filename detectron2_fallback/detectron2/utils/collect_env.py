"""A description of the machine and its software, for logs and bug reports."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections import defaultdict

import numpy as np
import torch
from tabulate import tabulate

__all__ = ["collect_env_info"]

_VARIABLES = ("CUDA_HOME", "CUDA_VISIBLE_DEVICES", "DETECTRON2_DATASETS", "DVIS_DETECTRON2")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("GPU available", "No: torch.cuda.is_available() == False")]
    devices = defaultdict(list)
    for k in range(torch.cuda.device_count()):
        capability = ".".join(str(x) for x in torch.cuda.get_device_capability(k))
        devices[f"{torch.cuda.get_device_name(k)} (arch={capability})"].append(str(k))
    rows = [("GPU available", "Yes")]
    rows += [("GPU " + ",".join(numbers), name) for name, numbers in devices.items()]
    return [
        *rows,
        ("CUDA of PyTorch", str(torch.version.cuda)),
        ("cuDNN", str(torch.backends.cudnn.version())),
    ]


def _opencv() -> str:
    try:
        import cv2
    except ImportError as error:
        return f"not usable: {error}"
    return cv2.__version__


def collect_env_info() -> str:
    """Return a table of versions, devices and settings, followed by PyTorch's build settings."""
    import detectron2

    rows = [
        ("sys.platform", f"{sys.platform} ({platform.platform()})"),
        ("Python", sys.version.replace("\n", "")),
        ("numpy", np.__version__),
        ("detectron2", f"{detectron2.__version__} @{os.path.dirname(detectron2.__file__)}"),
        ("PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"),
        ("PyTorch debug build", str(torch.version.debug)),
        *_gpus(),
        ("CPU threads", f"{torch.get_num_threads()} of {os.cpu_count()}"),
        ("cv2", _opencv()),
        *[(name, _version(name)) for name in ("torchvision", "Pillow", "fvcore", "iopath", "pycocotools")],
        *[(name, os.environ[name]) for name in _VARIABLES if name in os.environ],
    ]
    return tabulate(rows) + "\n" + torch.__config__.show()
