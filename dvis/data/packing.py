"""Batches on their way from a loading process to training: all their tensors in one piece of memory.

PyTorch hands over every tensor by a file descriptor of its own, one after the other. A clip of 21 frames has
84 of them, so a few clips per batch meet the usual limit of 1024 open files.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

__all__ = ["PackedBatch", "pack", "pack_in_worker", "unpack"]

_ALIGNMENT = 64  # bytes; what CPU kernels like best, and a multiple of every element's size


@dataclass(frozen=True)
class PackedBatch:
    """A batch as two parts.

    Attributes:
        structure: pickled, with places of ``memory`` where its tensors were.
        memory: the elements of all tensors, uint8.
    """

    structure: bytes
    memory: Tensor


def pack_in_worker(batch: list[Any]) -> list[Any] | PackedBatch:
    """Pack a batch in a loading process; in the training process there is nothing to hand over."""
    return batch if get_worker_info() is None else pack(batch)


def pack(batch: Any) -> PackedBatch:
    """Pack anything that can be pickled. Its tensors must be dense, on the CPU and without gradients."""
    target = io.BytesIO()
    pickler = _Pickler(target)
    pickler.dump(batch)
    memory = torch.empty(pickler.size, dtype=torch.uint8)
    for offset, tensor in pickler.tensors.values():
        _view(memory, offset, tensor.dtype, tensor.shape).copy_(tensor)
    return PackedBatch(target.getvalue(), memory)


def unpack(batch: Any) -> Any:
    """Undo :func:`pack`; the tensors share one memory. What is not packed is returned as it is."""
    if not isinstance(batch, PackedBatch):
        return batch
    return _Unpickler(batch).load()


class _Pickler(pickle.Pickler):
    """Leaves tensors out, and gives each a place in the memory."""

    def __init__(self, target: io.BytesIO) -> None:
        super().__init__(target, pickle.HIGHEST_PROTOCOL)
        self.size = 0
        self.tensors: dict[int, tuple[int, Tensor]] = {}  # by id; held, so that no other gets the same

    def persistent_id(self, value: Any) -> Any:
        if type(value) is not Tensor:
            return None
        if id(value) not in self.tensors:
            self.tensors[id(value)] = self.size, value
            num_bytes = value.numel() * value.element_size()
            self.size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return self.tensors[id(value)][0], value.dtype, tuple(value.shape)


class _Unpickler(pickle.Unpickler):
    def __init__(self, batch: PackedBatch) -> None:
        super().__init__(io.BytesIO(batch.structure))
        self._memory = batch.memory

    def persistent_load(self, place: Any) -> Tensor:
        return _view(self._memory, *place)


def _view(memory: Tensor, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor of that type and shape at that place of the memory."""
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    return memory[offset : offset + num_bytes].view(dtype).view(shape)
