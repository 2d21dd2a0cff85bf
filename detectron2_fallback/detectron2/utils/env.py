"""Random seeds and the set-up of libraries when detectron2 is imported."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import random
import sys
from collections.abc import Iterable, MutableMapping
from datetime import datetime
from types import ModuleType
from typing import Any

import numpy as np
import torch

__all__ = ["seed_all_rng"]

TORCH_VERSION = tuple(int(x) for x in torch.__version__.split(".")[:2])
"""PyTorch's version as a tuple of two ints, e.g. ``(2, 4)``."""

DOC_BUILDING = os.getenv("_DOC_BUILDING", False)
"""Whether documentation is being built; decorators then leave signatures alone."""


def seed_all_rng(seed: int | None = None) -> None:
    """Seed the generators of numpy, torch and Python's ``random``.

    Args:
        seed: with None, one is made from the process id, the time and the system's randomness.
    """
    if seed is None:
        now = int(datetime.now().strftime("%S%f"))
        seed = os.getpid() + now + int.from_bytes(os.urandom(2), "big")
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)


def _import_file(module_name: str, file_path: str, make_importable: bool = False) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, file_path)
    if spec is None or spec.loader is None:
        raise ImportError(f"Cannot import {module_name} from {file_path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if make_importable:
        sys.modules[module_name] = module
    return module


def _configure_libraries() -> None:
    if int(os.environ.get("DETECTRON2_DISABLE_CV2", "0")):
        sys.modules["cv2"] = None  # type: ignore[assignment]
        return
    # OpenCL inside OpenCV slows down programs that use CUDA.
    os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"
    try:
        import cv2
    except ImportError:  # not installed, or its shared libraries are missing: needed only by who uses it
        return
    cv2.ocl.setUseOpenCL(False)


_ENV_SETUP_DONE = False


def setup_environment() -> None:
    """Configure libraries once per process, then run the user's hook.

    The hook is a Python file or module named by environment variable ``DETECTRON2_ENV_MODULE``; it must have
    a function ``setup_environment()``.
    """
    global _ENV_SETUP_DONE
    if _ENV_SETUP_DONE:
        return
    _ENV_SETUP_DONE = True
    _configure_libraries()
    if custom_module := os.environ.get("DETECTRON2_ENV_MODULE"):
        setup_custom_environment(custom_module)


def setup_custom_environment(custom_module: str) -> None:
    """Call ``setup_environment()`` of a module, given by its name or by a path that ends in ``.py``."""
    if custom_module.endswith(".py"):
        module = _import_file("detectron2.utils.env.custom_module", custom_module)
    else:
        module = importlib.import_module(custom_module)
    assert callable(getattr(module, "setup_environment", None)), (
        f"Custom environment module defined in {custom_module} does not have the required callable attribute "
        "'setup_environment'."
    )
    module.setup_environment()


def fixup_module_metadata(
    module_name: str, namespace: MutableMapping[str, Any], keys: Iterable[str] | None = None
) -> None:
    """While documentation is built, let objects of a package look as if its ``__init__`` defined them.

    Args:
        module_name: name of the package.
        namespace: its ``globals()``.
        keys: public names to change; by default all that do not start with an underscore.
    """
    if not DOC_BUILDING:
        return
    seen: set[int] = set()

    def fix(qualname: str, name: str, obj: Any) -> None:
        if id(obj) in seen:
            return
        seen.add(id(obj))
        module = getattr(obj, "__module__", None)
        if module is None or not (module == module_name or module.startswith(module_name + ".")):
            return
        obj.__module__ = module_name
        if hasattr(obj, "__name__") and "." not in obj.__name__:
            obj.__name__ = name
            obj.__qualname__ = qualname
        if isinstance(obj, type):
            for attribute, value in obj.__dict__.items():
                fix(f"{qualname}.{attribute}", attribute, value)

    for name in namespace.keys() if keys is None else keys:
        if not name.startswith("_"):
            fix(name, name, namespace[name])
