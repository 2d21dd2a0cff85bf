"""VIPSeg as it is published to 720p and to COCO's panoptic format.

    <source>/                                      <target>/
        imgs/<video>/<frame>.jpg                       images/<video>/<frame>.jpg
        panomasks/<video>/<frame>.png                  panomasks/<video>/<frame>.png       raw values, scaled
        {train,val,test}.txt                           panomasksRGB/<video>/<frame>.png    segment ids
                                                       panoptic_gt_VIPSeg{,_train,_val,_test}.json

Raw values: 0 = void; below 125 category + 1; above, (category + 1) * 100 + number of the object. A segment
keeps one colour in the whole video. Colours are those of ``SegmentColors``, seeded by the video's name.

Source: VIPSeg, conversion scripts; format as published.
"""

from __future__ import annotations

import logging
import shutil
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvis.data.categories import load_categories
from dvis.data.colors import SegmentColors, color_to_id
from dvis.data.errors import BrokenDataError
from dvis.data.files import write_json
from dvis.data.label_images import write_png
from dvis.data.prepare.images import list_videos, read_labels, read_split, resize_image, resize_labels
from dvis.data.prepare.jobs import run_per_video

__all__ = ["convert_vipseg"]

logger = logging.getLogger(__name__)

NAME = "panoptic_gt_VIPSeg"
FIRST_OBJECT = 125  # raw values from here on have the number of an object


def convert_vipseg(
    source: Path, target: Path, height: int = 720, workers: int | None = None, force: bool = False
) -> None:
    """Convert VIPSeg, or go on with a conversion that was stopped.

    Args:
        source: folder as published.
        target: folder to write.
        height: of the converted frames, in pixels.
        workers: processes; None: one per core.
        force: convert again what is complete.

    Raises:
        MissingDataError: if there are no images.
        BrokenDataError: if a file is broken, a mask has an impossible value, or a split names an unknown
            video; names the file.
    """
    if (target / f"{NAME}.json").exists() and not force:
        logger.info("%s is complete already.", target)
        return
    names = list_videos(source / "imgs", "download VIPSeg from https://github.com/VIPSeg-Dataset")
    records = target / f".converted_{height}"
    if force:
        shutil.rmtree(records, ignore_errors=True)
    jobs = {name: (source, target, name, height) for name in names}
    videos = run_per_video(_convert_video, jobs, records, workers, "VIPSeg")

    labelled = [name for name in names if any(frame["segments"] is not None for frame in videos[name])]
    for split in ("train", "val", "test"):
        listing = source / f"{split}.txt"
        if listing.exists():
            wanted = set(read_split(listing, names))
            # The ground truth of the test split is not public: its file lists the frames.
            chosen = [name for name in names if name in wanted]
            if split != "test":
                chosen = [name for name in labelled if name in wanted]
            write_json(target / f"{NAME}_{split}.json", _annotations(videos, chosen))
            shutil.copyfile(listing, target / listing.name)
    write_json(target / f"{NAME}.json", _annotations(videos, labelled))  # last: it marks complete data
    shutil.rmtree(records)


def _convert_video(source: Path, target: Path, name: str, height: int) -> list[dict[str, Any]]:
    """Convert the frames of one video.

    Returns:
        per frame its ``name``, ``size`` and ``segments`` (None without a mask).
    """
    categories = load_categories("vipseg_vspw")
    colors = SegmentColors(categories, seed=zlib.crc32(name.encode()))
    known = {category["id"] for category in categories}
    color_of: dict[int, tuple[int, int, int]] = {0: (0, 0, 0)}
    frames = []
    for image in sorted((source / "imgs" / name).glob("*.jpg")):
        size = resize_image(image, target / "images" / name / image.name, height)
        frame: dict[str, Any] = {"name": image.stem, "size": size, "segments": None}
        mask = source / "panomasks" / name / f"{image.stem}.png"
        if mask.exists():
            raw = resize_labels(read_labels(mask), height)
            if raw.shape != size:
                raise BrokenDataError(f"{mask}: scaled, it has {raw.shape} pixels, its image {size}")
            frame["segments"] = _write_masks(
                raw, target, f"{name}/{mask.name}", mask, colors, color_of, known
            )
        frames.append(frame)
    return frames


def _write_masks(
    raw: NDArray[Any],
    target: Path,
    file: str,
    source: Path,
    colors: SegmentColors,
    color_of: dict[int, tuple[int, int, int]],
    known: Collection[int],
) -> list[dict[str, Any]]:
    """Write the raw and the coloured mask of a frame and describe its segments, in order of raw value.

    ``color_of``, the colour of each raw value, grows with what is new in the frame.
    """
    values, index, areas = np.unique(raw, return_inverse=True, return_counts=True)
    segments = []
    for value, area in zip(values.tolist(), areas.tolist(), strict=True):
        if value == 0:
            continue
        category_id = (value if value < FIRST_OBJECT else value // 100) - 1
        if category_id not in known:
            raise BrokenDataError(f"{source}: the value {value} stands for no category")
        if value not in color_of:
            color_of[value] = colors.take(category_id)
        segment_id = color_to_id(color_of[value])
        segments.append({"id": segment_id, "category_id": category_id, "iscrowd": 0, "area": area})
    painted = np.array([color_of[value] for value in values.tolist()], np.uint8)[index.reshape(raw.shape)]
    for folder, image in (("panomasks", raw), ("panomasksRGB", painted)):
        path = target / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, image)
    return segments


def _annotations(videos: Mapping[str, list[dict[str, Any]]], names: Collection[str]) -> dict[str, Any]:
    """The annotation file of some videos; a video without any mask gets frames without segments."""
    content: dict[str, Any] = {"videos": [], "annotations": []}
    for name in names:
        frames = [frame for frame in videos[name] if frame["segments"] is not None] or videos[name]
        files = [(frame, frame["name"], f"{frame['name']}.png") for frame in frames]
        content["videos"].append(
            {
                "video_id": name,
                "images": [
                    {"id": stem, "width": frame["size"][1], "height": frame["size"][0], "file_name": file}
                    for frame, stem, file in files
                ],
            }
        )
        content["annotations"].append(
            {
                "video_id": name,
                "annotations": [
                    {"image_id": stem, "file_name": file, "segments_info": frame["segments"] or []}
                    for frame, stem, file in files
                ],
            }
        )
    keys = ("id", "name", "isthing", "color")
    content["categories"] = [{key: row[key] for key in keys} for row in load_categories("vipseg_vspw")]
    return content
