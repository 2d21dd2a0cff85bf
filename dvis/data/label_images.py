"""Label images on disk: class maps and the RGB-coded segment ids of panoptic segmentation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvis.data.errors import BrokenDataError, MissingDataError

__all__ = ["read_class_map", "read_segment_ids", "replaced_folder", "segment_ids_to_rgb", "write_png"]


def read_segment_ids(path: str | os.PathLike[str]) -> NDArray[np.uint32]:
    """Segment ids of an RGB image, ``R + 256 G + 65536 B``, ``H W``.

    Raises:
        MissingDataError: if the file is missing.
        BrokenDataError: if it is not an 8-bit RGB image.
    """
    import cv2

    image = _read(path)
    if image.dtype != np.uint8 or image.ndim != 3:
        raise BrokenDataError(
            f"{path}: expected an 8-bit RGB image, got shape {image.shape} of {image.dtype}"
        )
    # OpenCV gives B G R (A). As R G B 0 in memory the four bytes are the id as a little-endian number.
    rgba = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGBA)
    return rgba.view("<u4")[..., 0] & np.uint32(0xFFFFFF)


def segment_ids_to_rgb(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """The image that `read_segment_ids` turns into ``ids`` (``H W``, below 2^24): ``H W 3``."""
    return np.stack([ids & 0xFF, (ids >> 8) & 0xFF, (ids >> 16) & 0xFF], axis=-1).astype(np.uint8)


def read_class_map(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Class indices of a single-channel image, ``H W``; palette images give their indices.

    Raises:
        MissingDataError: if the file is missing.
        BrokenDataError: if it is not a single-channel image.
    """
    image = _read(path)
    if image.ndim == 3:  # OpenCV expands palettes; Pillow keeps the indices
        from PIL import Image

        with Image.open(path) as palette:
            image = np.asarray(palette)
    if image.ndim != 2:
        raise BrokenDataError(f"{path}: expected a single-channel image, got shape {image.shape}")
    return image


def write_png(path: str | os.PathLike[str], image: NDArray[Any]) -> None:
    """Write a label image, ``H W`` (8 or 16 bits) or ``H W 3`` (RGB, 8 bits), as PNG.

    Raises:
        OSError: if it cannot be written.
    """
    import cv2

    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    # Label images have long runs: the fastest setting is nearly as small as the best.
    if not cv2.imwrite(os.fspath(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"{path}: cannot be written")


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``path`` when the block ends without an error, else is removed."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(path: str | os.PathLike[str]) -> NDArray[Any]:
    import cv2

    if not Path(path).is_file():
        raise MissingDataError(f"{path}: no such label image")
    image = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise BrokenDataError(f"{path}: cannot be read as an image")
    return image
