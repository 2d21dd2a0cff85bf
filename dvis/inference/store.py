"""Where the per-frame tensors of a video wait until its masks are made: device, host memory or a temporary
file.

Letters: T frames, N slots.
"""

from __future__ import annotations

import logging
import math
import mmap
import tempfile
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["FrameStore", "StoreSettings"]

logger = logging.getLogger(__name__)

GIGABYTE = 1024**3
MAPPED_FROM = 1024**2  # bytes; larger tensors have pages of their own
ALIGNMENT = 64  # bytes; tensors in the temporary file start at multiples of this


@dataclass(frozen=True)
class StoreSettings:
    """How much memory a video may take while it is processed.

    Attributes:
        max_device_gb: memory of the GPU that is used first (ignored on the CPU).
        max_host_gb: host memory that is used next; what is beyond goes to a temporary file.
        spill_dir: folder of that file; empty: the system's folder for temporary files.
        half_precision: keep float32 as float16. Halves the memory; mask borders may move by a pixel.
    """

    max_device_gb: float = 1.0
    max_host_gb: float = 0.5
    spill_dir: str = ""
    half_precision: bool = False

    def __post_init__(self) -> None:
        for key, value in (
            ("MAX_DEVICE_MEMORY_GB", self.max_device_gb),
            ("MAX_MEMORY_GB", self.max_host_gb),
        ):
            if not value >= 0 or math.isinf(value):
                raise ValueError(f"MODEL.MASK_FORMER.TEST.{key} must be 0 or a positive number, not {value}")


@dataclass(frozen=True)
class _Spilled:
    """A tensor in the temporary file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class _Track:
    """The chunks of one name in order, each with the number of its first frame."""

    device: torch.device  # where values came from and are wanted again
    chunks: list[Tensor | _Spilled] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    num_frames: int = 0


class FrameStore:
    """Per-frame tensors of one video by name, appended window by window and read back frame range by frame
    range.

    It alone decides where a tensor lives; what comes out equals what went in (unless half precision is
    asked for), on the device it came from. Use it as a context manager, or call :meth:`close`, to give
    everything back at once.
    """

    def __init__(self, settings: StoreSettings | None = None) -> None:
        """
        Args:
            settings: the budgets.
        """
        self.settings = settings or StoreSettings()
        self.bytes_used = {"device": 0, "host": 0, "disk": 0}
        self._tracks: dict[str, _Track] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Forget all tensors and remove the temporary file; calling it again does nothing."""
        self._tracks.clear()
        self.bytes_used = dict.fromkeys(self.bytes_used, 0)
        if self._file is not None:
            self._file.close()
            self._file = None

    def num_frames(self, name: str) -> int:
        """Number of frames stored under ``name``."""
        return self._tracks[name].num_frames if name in self._tracks else 0

    def append(self, name: str, values: Tensor) -> None:
        """Store the next frames of ``name``.

        Args:
            name: any name; the first call fixes the shape of one frame.
            values: ``T ...``.

        Raises:
            ValueError: if one frame has another shape than before.
            OSError: if the temporary file cannot be written; names the folder and the key to change.
        """
        track = self._tracks.setdefault(name, _Track(values.device))
        if track.chunks and tuple(track.chunks[0].shape[1:]) != tuple(values.shape[1:]):
            raise ValueError(
                f"frames of {name!r} have shape {tuple(track.chunks[0].shape[1:])}, "
                f"got {tuple(values.shape[1:])}"
            )
        if self.settings.half_precision and values.dtype == torch.float32:
            values = values.half()
        track.chunks.append(self._place(values.detach()))
        track.starts.append(track.num_frames)
        track.num_frames += values.shape[0]

    def read(self, name: str, start: int = 0, stop: int | None = None, slots: Tensor | None = None) -> Tensor:
        """Return frames ``start`` to ``stop`` (exclusive) of ``name`` on the device.

        Args:
            name: a name that was stored.
            start: first frame.
            stop: one past the last frame; None: to the end.
            slots: ``N`` int64 indices into the second axis, which only then are read; None: all.

        Returns:
            ``T ...`` in float32 where half precision was the store's own choice, else in the stored type.
        """
        track = self._tracks[name]
        stop = track.num_frames if stop is None else min(stop, track.num_frames)
        if not 0 <= start < stop:
            raise IndexError(
                f"frames {start} to {stop} of {name!r} are not among the {track.num_frames} stored"
            )
        picked = None if slots is None else slots.cpu()
        parts = []
        for first, chunk in zip(track.starts, track.chunks, strict=True):
            if first >= stop or first + chunk.shape[0] <= start:
                continue
            part = self._load(chunk)[max(start - first, 0) : stop - first]
            if picked is not None:
                part = part[:, picked.to(part.device)]
            parts.append(part.to(track.device))
        values = parts[0] if len(parts) == 1 else torch.cat(parts)
        return values.float() if self.settings.half_precision and values.is_floating_point() else values

    def _place(self, values: Tensor) -> Tensor | _Spilled:
        size = values.numel() * values.element_size()
        if values.is_cuda and self.bytes_used["device"] + size <= self.settings.max_device_gb * GIGABYTE:
            self.bytes_used["device"] += size
            return values.clone()  # a slice would keep alive what it was cut from
        if self.bytes_used["host"] + size <= self.settings.max_host_gb * GIGABYTE:
            self.bytes_used["host"] += size
            return _own(values)
        return self._spill(values)

    def _spill(self, values: Tensor) -> _Spilled:
        folder = self.settings.spill_dir or tempfile.gettempdir()
        # Bytes, because numpy has no bfloat16.
        content = values.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=folder, prefix="dvis-frames-")  # noqa: SIM115
                logger.info(
                    "What is kept of this video exceeds %.1f GB; more goes to a temporary file in %s.",
                    self.settings.max_host_gb,
                    folder,
                )
            offset = -(-self._file.seek(0, 2) // ALIGNMENT) * ALIGNMENT
            self._file.seek(offset)
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write {len(content)} bytes of a video to a temporary file in {folder} "
                f"({error.strerror}); set MODEL.MASK_FORMER.TEST.SPILL_DIR to a folder with space, or raise "
                "MODEL.MASK_FORMER.TEST.MAX_MEMORY_GB",
            ) from error
        self.bytes_used["disk"] += len(content)
        return _Spilled(offset, tuple(values.shape), values.dtype)

    def _load(self, chunk: Tensor | _Spilled) -> Tensor:
        if isinstance(chunk, Tensor):
            return chunk
        if 0 in chunk.shape:
            return torch.empty(chunk.shape, dtype=chunk.dtype)
        assert self._file is not None
        size = math.prod(chunk.shape) * chunk.dtype.itemsize
        # Copy-on-write: tensors must be writable, the file must not change. Only pages that are used are
        # read.
        content = np.memmap(self._file, dtype=np.uint8, mode="c", offset=chunk.offset, shape=(size,))
        return torch.from_numpy(content).view(chunk.dtype).view(chunk.shape)


def _own(values: Tensor) -> Tensor:
    """Copy ``values``, in its layout, to host memory of its own.

    Large ones get pages straight from the system: between the short-lived tensors of the network they would
    leave holes in the allocator's memory, about as large as themselves.
    """
    size = values.numel() * values.element_size()
    if size < MAPPED_FROM:
        return values.to("cpu", copy=True)
    pages = torch.frombuffer(mmap.mmap(-1, size), dtype=values.dtype)
    return pages.as_strided(values.shape, torch.empty_like(values, device="meta").stride()).copy_(values)
