"""VSPW as it is published to 480p, in the same layout: ``data/<video>/{origin,mask}`` and the split files.

Values of masks stay as they are: 0 = void, class + 1, 255 = ignore.

Source: VSPW, VSPW_480p.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from dvis.data.errors import BrokenDataError
from dvis.data.files import write_json
from dvis.data.label_images import write_png
from dvis.data.prepare.images import list_videos, read_labels, read_split, resize_image, resize_labels
from dvis.data.prepare.jobs import run_per_video

__all__ = ["convert_vspw"]

logger = logging.getLogger(__name__)

COMPLETE = "converted.json"


def convert_vspw(
    source: Path, target: Path, height: int = 480, workers: int | None = None, force: bool = False
) -> None:
    """Convert VSPW, or go on with a conversion that was stopped.

    Args:
        source: folder as published.
        target: folder to write.
        height: of the converted frames, in pixels.
        workers: processes; None: one per core.
        force: convert again what is complete.

    Raises:
        MissingDataError: if there are no videos.
        BrokenDataError: if a file is broken or a split names an unknown video; names the file.
    """
    if (target / COMPLETE).exists() and not force:
        logger.info("%s is complete already.", target)
        return
    names = list_videos(source / "data", "download VSPW from https://github.com/VSPW-dataset")
    records = target / f".converted_{height}"
    if force:
        shutil.rmtree(records, ignore_errors=True)
    jobs = {name: (source / "data" / name, target / "data" / name, height) for name in names}
    frames = run_per_video(_convert_video, jobs, records, workers, "VSPW")
    for split in ("train", "val", "test"):
        listing = source / f"{split}.txt"
        if listing.exists():
            # One name per line, with a final newline: some readers cut the last character of each line.
            content = "".join(f"{name}\n" for name in read_split(listing, names))
            (target / listing.name).write_text(content, encoding="utf-8")
    write_json(target / COMPLETE, {"height": height, "videos": len(names), "frames": sum(frames.values())})
    shutil.rmtree(records)


def _convert_video(source: Path, target: Path, height: int) -> int:
    """Convert one video; videos of the test split have no masks.

    Returns:
        the number of frames.
    """
    images = sorted((source / "origin").glob("*.jpg"))
    for image in images:
        size = resize_image(image, target / "origin" / image.name, height)
        mask = source / "mask" / f"{image.stem}.png"
        if mask.exists():
            labels = resize_labels(read_labels(mask), height)
            if labels.shape != size:
                raise BrokenDataError(f"{mask}: scaled, it has {labels.shape} pixels, its image {size}")
            (target / "mask").mkdir(exist_ok=True)
            write_png(target / "mask" / mask.name, labels)
    return len(images)
