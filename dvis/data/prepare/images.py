"""Resizing of frames and label images to a height, as the published conversions do it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.label_images import read_class_map
from dvis.data.readers import UNREADABLE

__all__ = ["list_videos", "read_labels", "read_split", "resize_image", "resize_labels", "scaled_size"]


def scaled_size(height: int, width: int, target: int) -> tuple[int, int]:
    """Height and width of an image that is scaled to the height ``target``; the width is rounded down."""
    return target, int(target * width / height)


def resize_image(source: Path, path: Path, target: int) -> tuple[int, int]:
    """Scale an image file bilinearly to the height ``target`` and save it as JPEG (Pillow's quality, 75).

    Returns:
        new height and width.

    Raises:
        BrokenDataError: if the source is not an image.
    """
    try:
        with Image.open(source) as image:
            size = scaled_size(image.height, image.width, target)
            resized = image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
    except UNREADABLE as error:
        raise BrokenDataError(f"cannot read {source}: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    resized.save(path, "JPEG")
    return size


def resize_labels(labels: NDArray[Any], target: int) -> NDArray[Any]:
    """Scale labels ``H W`` to the height ``target``, each pixel taking the nearest one's."""
    height, width = labels.shape
    new_height, new_width = scaled_size(height, width, target)
    rows = ((np.arange(new_height) + 0.5) * height / new_height).astype(int)
    columns = ((np.arange(new_width) + 0.5) * width / new_width).astype(int)
    return labels[rows[:, None], columns]


def read_labels(path: Path) -> NDArray[Any]:
    """Labels of a single-channel image, ``H W``.

    Raises:
        BrokenDataError: if it cannot be read.
    """
    try:
        return read_class_map(path)
    except ValueError as error:
        raise BrokenDataError(str(error)) from error


def list_videos(folder: Path, how_to_get: str) -> list[str]:
    """Names of the videos, that is subfolders.

    Raises:
        MissingDataError: if there are none.
    """
    videos = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not videos:
        raise MissingDataError(f"{folder.absolute()}: no videos there; {how_to_get}")
    return videos


def read_split(path: Path, known: Sequence[str]) -> list[str]:
    """Names in a split file, one per line.

    Raises:
        BrokenDataError: if one of them is not known.
    """
    names = path.read_text(encoding="utf-8").split()
    unknown = [name for name in names if name not in set(known)]
    if unknown:
        raise BrokenDataError(f"{path}: video {unknown[0]} is not there (and {len(unknown) - 1} more)")
    return names
