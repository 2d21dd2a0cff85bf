"""What a frozen segmenter said of a frame, remembered: training the later stages then costs only them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

import torch
from torch import Tensor

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

    Memory is one process's main memory; when it is full, further frames are segmented every time.
    """

    def __init__(self, max_gigabytes: float) -> None:
        """
        Args:
            max_gigabytes: what the remembered tensors may take, in 2**30 bytes.

        Raises:
            ValueError: if it is not positive.
        """
        if max_gigabytes <= 0:
            raise ValueError(f"MODEL.MASK_FORMER.FROZEN.CACHE_GB must be positive, not {max_gigabytes}")
        self.max_bytes = int(max_gigabytes * 2**30)
        self.num_bytes = 0
        self._known: dict[bytes, tuple[Tensor, ...]] = {}
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
        rows = []
        for frame in frames.flatten(0, 1):
            key = _content(frame)
            values = self._known.get(key)
            if values is None:
                output = segment(frame[None, None])
                values = tuple(getattr(output, name)[0, 0].detach().cpu() for name in _PARTS)
                self._remember(key, values)
            rows.append(values)
        stacked = (
            torch.stack(column).to(frames.device).unflatten(0, frames.shape[:2])
            for column in zip(*rows, strict=True)
        )
        return SegmenterOutput(masks=None, **dict(zip(_PARTS, stacked, strict=True)))

    def _remember(self, key: bytes, values: tuple[Tensor, ...]) -> None:
        size = sum(value.nbytes for value in values)
        if self.num_bytes + size > self.max_bytes:
            if not self._is_full:
                logger.warning(
                    "MODEL.MASK_FORMER.FROZEN.CACHE_GB is used up after %d frames; further ones are "
                    "segmented again each time",
                    len(self),
                )
            self._is_full = True
            return
        self._known[key] = values
        self.num_bytes += size


def _content(frame: Tensor) -> bytes:
    """A digest of the frame's size and pixels."""
    pixels = frame.detach().cpu().contiguous()
    digest = hashlib.blake2b(str(tuple(pixels.shape)).encode(), digest_size=16)
    digest.update(pixels.numpy().data)
    return digest.digest()
