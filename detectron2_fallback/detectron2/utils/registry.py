"""Registries, and the conversion between objects and their dotted names."""

from __future__ import annotations

import importlib
import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def _convert_target_to_string(t: Any) -> str:
    """Return a dotted name that :func:`locate` turns into ``t`` again.

    The shortest prefix of the module's name that exposes the same object is used: ``torch.nn.Linear`` rather
    than ``torch.nn.modules.linear.Linear``.
    """
    module, qualname = t.__module__, t.__qualname__
    parts = module.split(".")
    for length in range(1, len(parts)):
        candidate = ".".join([*parts[:length], qualname])
        try:
            if locate(candidate) is t:
                return candidate
        except ImportError:
            continue
    return f"{module}.{qualname}"


def locate(name: str) -> Any:
    """Return the object that has the dotted ``name``.

    Raises:
        ImportError: if there is no such object.
    """
    found = pydoc.locate(name)
    if found is None:
        # pydoc stops at the first name that is no module, class or plain attribute; Hydra's rule is to import
        # the longest prefix that is a module and to walk the rest.
        found = _walk(name)
    return found


def _walk(name: str) -> Any:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[length:]:
                found = getattr(found, part)
        except AttributeError as error:
            raise ImportError(f"Cannot dynamically locate object {name}!") from error
        return found
    raise ImportError(f"Cannot dynamically locate object {name}!")
