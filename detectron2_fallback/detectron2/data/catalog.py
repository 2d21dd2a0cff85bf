"""Global registries: data set name -> loading function, data set name -> metadata."""

from __future__ import annotations

import logging
import types
from collections import UserDict
from collections.abc import Callable
from typing import Any

from detectron2.utils.logger import log_first_n

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _DatasetCatalog(UserDict):
    """Maps the name of a data set to the function that loads it.

    The function is called without arguments, only when the data set is asked for, and returns a list of
    dicts (one per image or video). Calling it twice must give the same content.
    """

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Register ``func`` as the loader of ``name``; a name can be registered only once."""
        assert callable(func), "You must register a function with `DatasetCatalog.register`!"
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> Any:  # type: ignore[override]
        """Call the registered function and return its result.

        Raises:
            KeyError: if ``name`` is not registered; the message lists the registered names.
        """
        try:
            func = self[name]
        except KeyError as error:
            raise KeyError(
                f"Dataset '{name}' is not registered! Available datasets are: {', '.join(self.keys())}"
            ) from error
        return func()

    def list(self) -> list[str]:
        """Names of all registered data sets."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Alias of ``pop``."""
        self.pop(name)

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self.keys())})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
"""The one catalog of loading functions."""


class Metadata(types.SimpleNamespace):
    """Facts about a data set (class names, colours, paths) that do not need its content.

    An attribute can be set again only to an equal value, so that two parts of a program cannot silently
    disagree about a data set.
    """

    name: str = "N/A"

    _RENAMED = {  # noqa: RUF012 - a SimpleNamespace has no annotations to speak of
        "class_names": "thing_classes",
        "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
        "stuff_class_names": "stuff_classes",
    }

    def _warn_renamed(self, key: str) -> str:
        new_key = self._RENAMED[key]
        log_first_n(logging.WARNING, f"Metadata '{key}' was renamed to '{new_key}'!", n=10)
        return new_key

    def __getattr__(self, key: str) -> Any:
        if key in self._RENAMED:
            return getattr(self, self._warn_renamed(key))
        # The name is an attribute of the class, so what is missing here is always a fact of the data set.
        if len(self.__dict__) > 1:
            raise AttributeError(
                f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'. "
                f"Available keys are {self.__dict__.keys()!s}."
            )
        raise AttributeError(
            f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}': metadata is empty."
        )

    def __setattr__(self, key: str, val: Any) -> None:
        if key in self._RENAMED:
            key = self._warn_renamed(key)
        missing = object()
        old_val = self.__dict__.get(key, missing)
        assert old_val is missing or old_val == val, (
            f"Attribute '{key}' in the metadata of '{self.name}' cannot be set to a different value!\n"
            f"{old_val} != {val}"
        )
        super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """All metadata as a dict; changing the dict does not change the metadata."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> Metadata:
        """Set several attributes and return self."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute ``key``, or ``default`` if it is not set."""
        try:
            return getattr(self, key)
        except AttributeError:
            return default


class _MetadataCatalog(UserDict):
    """Maps the name of a data set to its :class:`Metadata`; an unknown name gets an empty one."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        assert len(name), "the name of a data set must not be empty"
        found = super().get(name, None)
        if found is None:
            found = self[name] = Metadata(name=name)
        return found

    def list(self) -> list[str]:
        """Names of all data sets that have metadata."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Alias of ``pop``."""
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self.keys())})"

    __repr__ = __str__


MetadataCatalog = _MetadataCatalog()
"""The one catalog of metadata."""
