"""A set of named per-instance attributes of one image."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import torch

__all__ = ["Instances"]


class Instances:
    """``N`` instances of one image; every field (attribute) has length ``N``.

    A field is set as an attribute, read as an attribute, and indexed together with all others::

        instances = Instances((480, 640), gt_boxes=Boxes(boxes))
        instances.gt_classes = torch.tensor([0, 3])
        first = instances[0:1]
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """
        Args:
            image_size: ``(height, width)``.
            kwargs: fields.
        """
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)``."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        if name == "_fields" or name not in self._fields:  # the former while an instance is unpickled
            raise AttributeError(f"Cannot find field '{name}' in the given Instances!")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Set field ``name``.

        Raises:
            AssertionError: if the length of ``value`` is not that of the other fields.
        """
        with warnings.catch_warnings(record=True):  # tracing warns about len() of a tensor
            length = len(value)
        if self._fields:
            assert len(self) == length, (
                f"Adding a field of length {length} to a Instances of length {len(self)}"
            )
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Return whether field ``name`` exists."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Remove field ``name``.

        Raises:
            KeyError: if it does not exist.
        """
        del self._fields[name]

    def get(self, name: str) -> Any:
        """Return field ``name``.

        Raises:
            KeyError: if it does not exist.
        """
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Return all fields; changes of the dict change the instances."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """Return instances whose fields went through their ``to(*args, **kwargs)`` where they have one."""
        ret = Instances(self._image_size)
        for name, value in self._fields.items():
            ret.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return ret

    def __getitem__(self, item: int | slice | list[int] | torch.Tensor) -> Instances:
        """Index all fields; an int gives one instance.

        Raises:
            IndexError: if an int is out of range.
        """
        if type(item) is int:  # not bool, which is one too
            if item >= len(self) or item < -len(self):
                raise IndexError("Instances index out of range!")
            item = slice(item, None, len(self))
        ret = Instances(self._image_size)
        for name, value in self._fields.items():
            ret.set(name, value[item])
        return ret

    def __len__(self) -> int:
        for value in self._fields.values():
            return value.__len__()  # not len(), which would turn a traced length into a constant
        raise NotImplementedError("Empty Instances does not support __len__!")

    def __iter__(self) -> Any:
        raise NotImplementedError("`Instances` object is not iterable!")

    @staticmethod
    def cat(instance_lists: list[Instances]) -> Instances:
        """Concatenate instances of one image.

        Raises:
            AssertionError: if the list is empty or the image sizes differ.
            ValueError: if a field's type cannot be concatenated.
        """
        assert all(isinstance(i, Instances) for i in instance_lists)
        assert len(instance_lists) > 0
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        if not isinstance(first.image_size, torch.Tensor):  # it is one while tracing
            for other in instance_lists[1:]:
                assert other.image_size == first.image_size
        ret = Instances(first.image_size)
        for name in first._fields:
            ret.set(name, _cat_values([i.get(name) for i in instance_lists]))
        return ret

    def __str__(self) -> str:
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        height, width = self._image_size
        count = len(self) if self._fields else 0
        return (
            f"{type(self).__name__}(num_instances={count}, image_height={height}, image_width={width}, "
            f"fields=[{fields}])"
        )

    __repr__ = __str__


def _cat_values(values: list[Any]) -> Any:
    kind = type(values[0])
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values, dim=0)
    if isinstance(values[0], list):
        return list(itertools.chain(*values))
    if hasattr(kind, "cat"):
        return kind.cat(values)
    raise ValueError(f"Unsupported type {kind} for concatenation")
