"""Makes ``import detectron2`` work on machines that do not have it.

Importing this package adds one finder to ``sys.meta_path``. It answers for ``detectron2`` with the subset
bundled in this folder if nothing else provides that package. Environment variable
``DVIS_DETECTRON2=fallback`` makes the subset win over an installed one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["is_bundled", "which"]

_NAME = "detectron2"
_VARIABLE = "DVIS_DETECTRON2"
_SUBSET = Path(__file__).resolve().parent / _NAME


class SubsetFinder:
    """Meta path finder that knows one top-level package: the bundled ``detectron2``.

    Args:
        forced: answer also if another finder provides the package.
    """

    def __init__(self, forced: bool) -> None:
        self.forced = forced

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the subset (or of a real package elsewhere) for ``detectron2``, else None."""
        if fullname != _NAME:
            return None
        if not self.forced and (installed := _find_installed()) is not None:
            return installed
        _teach_spawned_processes()
        return importlib.util.spec_from_file_location(
            _NAME, _SUBSET / "__init__.py", submodule_search_locations=[str(_SUBSET)]
        )


def _is_ours(finder: object) -> bool:
    return type(finder).__module__ == __name__  # by name: a reload makes a new class


def _other_specs() -> list[ModuleSpec]:
    """What the other finders answer for the package, in their order."""
    specs = (finder.find_spec(_NAME, None) for finder in sys.meta_path if not _is_ours(finder))
    return [spec for spec in specs if spec is not None]


def _is_namespace(spec: ModuleSpec) -> bool:
    return spec.loader is None or spec.origin is None


def _find_installed() -> ModuleSpec | None:
    """Spec of a detectron2 that is not ours. A folder without ``__init__.py``, such as a clone of upstream's
    repository beside the program, looks like a namespace package to Python but provides nothing.
    """
    return next((spec for spec in _other_specs() if not _is_namespace(spec)), None)


def _rebuild(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(*args)


def _reduce_process(process: Any) -> tuple[Any, ...]:
    function, args, *state = process.__reduce_ex__(4)
    return (_rebuild, (function, args), *state)


def _teach_spawned_processes() -> None:
    """Let a spawned process find the subset before it unpickles what it has to run.

    Such a process starts with an empty ``sys.meta_path`` and may be handed objects of ``detectron2`` at once.
    Pickled through :func:`_rebuild`, the process object itself imports this package first.
    """
    from multiprocessing import context, reduction

    for name in ("Process", "SpawnProcess", "ForkServerProcess"):
        if hasattr(context, name):  # Windows has no fork server
            reduction.ForkingPickler.register(getattr(context, name), _reduce_process)


def _install() -> None:
    choice = os.environ.get(_VARIABLE, "")
    if choice not in ("", "fallback"):
        raise ValueError(
            f"Environment variable {_VARIABLE} is {choice!r}; allowed are 'fallback' (use the bundled subset "
            "of detectron2) and nothing (use an installed detectron2 if there is one)."
        )
    forced = choice == "fallback"
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_ours(finder)]
    loaded = sys.modules.get(_NAME)
    if forced and loaded is not None and not _is_subset(loaded):
        raise ImportError(
            f"{_VARIABLE}=fallback asks for the bundled subset of detectron2, but {loaded.__file__} is "
            "already imported. Import dvis, mask2former or detectron2_fallback first."
        )
    first = next(iter(_other_specs()), None)
    hidden_by_folder = first is not None and _is_namespace(first)
    # Behind the other finders, so that an editable install (a finder of its own) comes first.
    sys.meta_path.insert(0 if forced or hidden_by_folder else len(sys.meta_path), SubsetFinder(forced))


def _is_subset(module: ModuleType) -> bool:
    return Path(module.__file__ or "").resolve().parent == _SUBSET


def is_bundled() -> bool:
    """Whether ``import detectron2`` gives the bundled subset."""
    return _is_subset(importlib.import_module(_NAME))


def which() -> str:
    """Say for logs which detectron2 is in use: ``upstream <version> at <path>`` or ``bundled subset ...``."""
    module = importlib.import_module(_NAME)
    kind = "bundled subset" if _is_subset(module) else "upstream"
    return f"{kind} {module.__version__} at {Path(module.__file__ or '').parent}"


_install()
