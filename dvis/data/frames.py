"""A video whose frames are decoded when they are asked for, so that its length costs no memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, overload

import numpy as np
import torch
from detectron2.data.transforms import ResizeTransform
from torch import Tensor

from dvis.data.augmentation import shortest_edge_size
from dvis.data.readers import read_frame

__all__ = ["LazyFrames"]


class LazyFrames(Sequence[Tensor]):
    """The frames of a record as a sequence of ``3 H W`` uint8 tensors; nothing is kept but what is read
    ahead.

    Args:
        record: of a data set, see ``dvis.data.datasets``.
        image_format: channel order, ``RGB`` or ``BGR``.
        short: length of the shorter side in pixels; 0 keeps the size.
        longest: largest length of the longer side in pixels.
        read_ahead: frames after the one asked for that a background thread decodes.

    Raises:
        MissingDataError, BrokenDataError: when a frame is read that is missing or broken; names video and
            frame.
    """

    def __init__(
        self, record: Mapping[str, Any], image_format: str, short: int, longest: float, read_ahead: int = 0
    ) -> None:
        keys = ("video_id", "source", "file_names", "height", "width")
        self._record: dict[str, Any] = {key: record.get(key) for key in keys}
        self._image_format = image_format
        self._short = short
        self._longest = longest
        self._read_ahead = read_ahead
        self._pending: dict[int, Future[Tensor]] = {}
        self._reader: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._record["file_names"])

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the stored frames; of the first frame if the record does not say."""
        if self._record["height"] is None:
            image = read_frame(self._record, 0, self._image_format)
            self._record.update(height=image.shape[0], width=image.shape[1])
        return self._record["height"], self._record["width"]

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[t] for t in range(len(self))[index]]
        t = range(len(self))[index]
        if not self._read_ahead:
            return self._decode(t)
        ahead = range(t, min(t + 1 + self._read_ahead, len(self)))
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="frames")
        # Whoever jumps to another place does not want what lies in between.
        for old in [old for old in self._pending if old not in ahead]:
            self._pending.pop(old).cancel()
        for new in ahead:
            if new not in self._pending:
                self._pending[new] = self._reader.submit(self._decode, new)
        return self._pending.pop(t).result()

    def __iter__(self) -> Iterator[Tensor]:
        for t in range(len(self)):
            yield self[t]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pending": {}, "_reader": None}

    def _decode(self, t: int) -> Tensor:
        image = read_frame(self._record, t, self._image_format)
        height, width = image.shape[:2]
        if self._short:
            size = shortest_edge_size((height, width), self._short, self._longest)
            if size != (height, width):
                image = ResizeTransform(height, width, *size).apply_image(image)
        return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
