"""What a frozen segmenter said of a frame, remembered: training the later stages then costs only them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dvis.data.files import atomic_path
from dvis.modeling.structures import SegmenterOutput

__all__ = ["SegmenterCache"]

logger = logging.getLogger(__name__)

_PARTS = ("logits", "queries", "mask_features", "mask_embeds")


class SegmenterCache:
    """Remembers the outputs of a segmenter that does not change, by the content of the padded frame.

    A frame that comes again with the same pixels, from whatever clip, is not segmented again. That pays where
    augmentation gives few different forms of a frame. Frames are segmented one by one: the last bits of a
    product may depend on how many are computed together, and what is remembered must not depend on what came
    before, or a resumed training would not be the same.

    Memory is one process's main memory; when it is full, further frames are segmented every time, or read
    from the folder if there is one. Processes and trainings share a folder: each segmenter has a part of its
    own in it, which is named after what the segmenter makes of a fixed frame, so that other weights, another
    precision or changed code are never taken for it.
    """

    def __init__(self, max_gigabytes: float, folder: str | os.PathLike[str] | None = None) -> None:
        """
        Args:
            max_gigabytes: what the remembered tensors may take in memory, in 2**30 bytes.
            folder: where they are also kept, one file per frame, without a limit; None: nowhere.

        Raises:
            ValueError: if the memory is negative.
        """
        if max_gigabytes < 0:
            raise ValueError(
                f"MODEL.MASK_FORMER.FROZEN.CACHE_GB must not be negative, but is {max_gigabytes}"
            )
        self.max_bytes = int(max_gigabytes * 2**30)
        self.num_bytes = 0
        self._folder = None if folder is None else Path(folder)
        self._own_folder: Path | None = None
        self._is_writable = True
        self._known: dict[str, tuple[Tensor, ...]] = {}
        self._is_full = False

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, segment: Callable[[Tensor], SegmenterOutput], frames: Tensor) -> SegmenterOutput:
        """Segment ``B T 3 H W``, as far as it is not known.

        Args:
            segment: the frozen segmenter on a single frame, ``1 1 3 H W``.
            frames: normalised and padded, ``B T 3 H W``.

        Returns:
            Logits, queries, mask features and mask embeddings, without gradient.
        """
        if self._folder is not None and self._own_folder is None:
            self._own_folder = self._folder / _name_of(segment, frames.device)
            self._own_folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for frame in frames.flatten(0, 1):
            key = _content(frame)
            values = self._known.get(key)
            if values is None:
                values = self._read(key)
                if values is None:
                    values = _outputs(segment, frame)
                    self._write(key, values)
                self._remember(key, values)
            rows.append(values)
        stacked = (
            torch.stack(column).to(frames.device).unflatten(0, frames.shape[:2])
            for column in zip(*rows, strict=True)
        )
        return SegmenterOutput(masks=None, **dict(zip(_PARTS, stacked, strict=True)))

    def _remember(self, key: str, values: tuple[Tensor, ...]) -> None:
        size = sum(value.nbytes for value in values)
        if self.num_bytes + size > self.max_bytes:
            if not self._is_full and self._own_folder is None:
                logger.warning(
                    "MODEL.MASK_FORMER.FROZEN.CACHE_GB is used up after %d frames; further ones are "
                    "segmented again each time",
                    len(self),
                )
            self._is_full = True
            return
        self._known[key] = values
        self.num_bytes += size

    def _read(self, key: str) -> tuple[Tensor, ...] | None:
        """What the folder has of a frame; None if it has nothing that can be read."""
        if self._own_folder is None:
            return None
        path = self._own_folder / f"{key}.pt"
        try:
            return tuple(torch.load(path, weights_only=True))
        except FileNotFoundError:
            return None
        except Exception as error:  # torch.load raises all kinds of errors for a damaged file
            logger.warning("%s cannot be read (%r); the frame is segmented again", path, error)
            return None

    def _write(self, key: str, values: tuple[Tensor, ...]) -> None:
        if self._own_folder is None or not self._is_writable:
            return
        try:
            # Not flushed: a file that a power cut damages is only made again.
            with atomic_path(self._own_folder / f"{key}.pt", flush=False) as temporary:
                torch.save(values, temporary)
        except (OSError, RuntimeError) as error:  # a full disk may come as either
            logger.warning("%s takes no more frames: %s", self._own_folder, error)
            self._is_writable = False


def _outputs(segment: Callable[[Tensor], SegmenterOutput], frame: Tensor) -> tuple[Tensor, ...]:
    output = segment(frame[None, None])
    # Copies, so that no more than the frame's part is kept and written.
    return tuple(getattr(output, name)[0, 0].detach().cpu().clone() for name in _PARTS)


def _name_of(segment: Callable[[Tensor], SegmenterOutput], device: torch.device) -> str:
    """A name for what the segmenter computes, down to the last bit."""
    frame = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    digest = hashlib.blake2b(digest_size=8)
    for values in _outputs(segment, frame.to(device)):
        digest.update(_bytes(values))
    return digest.hexdigest()


def _content(frame: Tensor) -> str:
    """A digest of the frame's size and pixels."""
    digest = hashlib.blake2b(str(tuple(frame.shape)).encode(), digest_size=16)
    digest.update(_bytes(frame.detach().cpu()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
