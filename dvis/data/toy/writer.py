"""Writes the toy world as data sets in the published formats.

    <output>/
        dataset.json                            settings; written last, so it marks a complete data set
        {train,val}.json                        instances as in YouTube-VIS, with the occlusion labels of OVIS
        {train,val}/JPEGImages/<video>/<frame>.jpg
        vipseg/panoptic_gt_{train,val}.json     panoptic segments as in VIPSeg (720P layout)
        vipseg/{images,panomasksRGB}/<video>/<frame>.{jpg,png}
        vspw/{train,val}.txt                    semantic maps as in VSPW_480p
        vspw/data/<video>/{origin,mask}/<frame>.{jpg,png}

Every video is drawn from its own generator (seed, split, number), so more videos leave the first ones as they
are. A video counts as done once its record lies in ``.parts``; a stopped generation continues there.

Source: project choice; formats as published by the benchmarks.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dvis.data.categories import load_categories
from dvis.data.files import read_json, write_json
from dvis.data.rle import encode_mask
from dvis.data.toy.scene import LEVELS, STUFF, VOID, ToyVideo, render_video

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
# Objects that show fewer pixels than this are absent from the frame; the pixels belong to no class.
MIN_VISIBLE_PIXELS = 10
# Share of an object that is hidden, from which on it is slightly or severely occluded.
SLIGHT_OCCLUSION, SEVERE_OCCLUSION = 0.05, 0.5

_FORMAT_VERSION = 1
_OWN_ENTRIES = ("dataset.json", "train.json", "val.json", "train", "val", "vipseg", "vspw", ".parts")
_PROGRESS = ".generating.json"


@dataclasses.dataclass(frozen=True)
class ToySettings:
    """What determines every byte of a generated data set.

    Attributes:
        seed: seed of all random numbers.
        num_train: videos of the training split.
        num_val: videos of the validation split.
        height: frame height in pixels.
        width: frame width in pixels.
        length: frames per video; 0 becomes the level's own number.
        level: name of the difficulty level.
    """

    seed: int = 0
    num_train: int = 480
    num_val: int = 40
    height: int = 96
    width: int = 128
    length: int = 0
    level: str = "easy"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {sorted(LEVELS)}, got {self.level!r}")
        if self.length < 0:
            raise ValueError(f"a video's number of frames is not negative, got {self.length}")
        if not self.length:
            object.__setattr__(self, "length", LEVELS[self.level].length)
        if min(self.num_train, self.num_val) < 0:
            raise ValueError(f"numbers of videos are not negative, got {self.num_train} and {self.num_val}")
        if self.seed < 0:
            raise ValueError(f"the seed is not negative, got {self.seed}")


def generate(
    output: str | os.PathLike[str],
    settings: ToySettings = ToySettings(),
    workers: int | None = None,
    force: bool = False,
) -> Path:
    """Generate the data set or finish one that was stopped; leave a complete one with these settings alone.

    Args:
        output: folder of the data set.
        settings: what to generate.
        workers: processes; None: one per core, at most 8.
        force: replace a data set with other settings.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder holds a data set with other settings and ``force`` is not set, or files
            that are not of a toy data set.
    """
    output = Path(output)
    wanted = {"version": _FORMAT_VERSION, **dataclasses.asdict(settings)}
    if _settings_in(output / "dataset.json") == wanted:
        logger.info("%s is complete already.", output)
        return output
    if _settings_in(output / _PROGRESS) != wanted:
        _clear(output, force)
        write_json(output / _PROGRESS, wanted)

    jobs = [
        (output, settings, split, index)
        for split, count in zip(SPLITS, (settings.num_train, settings.num_val), strict=True)
        for index in range(count)
    ]
    pending = [job for job in jobs if not _record_path(output, job[2], job[3]).exists()]
    workers = min(workers or min(os.cpu_count() or 1, 8), max(len(pending), 1))
    with tqdm(total=len(jobs), initial=len(jobs) - len(pending), desc="toy videos", unit="video") as bar:
        if workers == 1:
            for job in pending:
                _write_video(*job)
                bar.update()
        else:
            with ProcessPoolExecutor(workers) as pool:
                for _ in pool.map(_write_video, *zip(*pending, strict=True)):
                    bar.update()
    for split in SPLITS:
        _write_annotations(
            output, split, [_record_path(output, split, index) for _, _, name, index in jobs if name == split]
        )
    write_json(output / "dataset.json", wanted, indent=1)
    shutil.rmtree(output / ".parts", ignore_errors=True)
    (output / _PROGRESS).unlink(missing_ok=True)
    return output


def _settings_in(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def _clear(output: Path, force: bool) -> None:
    """Remove what an earlier generation left behind, if that is what lies there and it may be removed."""
    present = {entry.name for entry in output.iterdir()} if output.exists() else set()
    if not present:
        return
    if not present & {"dataset.json", _PROGRESS}:
        raise FileExistsError(f"{output} holds files that are not of a toy data set; choose another folder")
    if not force:
        raise FileExistsError(
            f"{output} holds a toy data set with other settings; choose another folder or use --force"
        )
    for name in _OWN_ENTRIES:
        entry = output / name
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _record_path(output: Path, split: str, index: int) -> Path:
    return output / ".parts" / f"{_video_name(split, index)}.json"


def _video_name(split: str, index: int) -> str:
    return f"{split}_{index:04d}"


def _write_video(output: Path, settings: ToySettings, split: str, index: int) -> None:
    """Render one video and write its images, then the record with its annotations."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    video = render_video(rng, settings.height, settings.width, settings.length, LEVELS[settings.level])
    _drop_slivers(video)
    name = _video_name(split, index)
    frame_names = [f"{t:05d}" for t in range(settings.length)]
    images = output / split / "JPEGImages" / name
    panoptic, segments = _panoptic_maps(video)
    for t, frame_name in enumerate(frame_names):
        image = images / f"{frame_name}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(video.frames[t]).save(image, quality=92, subsampling=0)
        _link(image, output / "vipseg" / "images" / name / image.name)
        _link(image, output / "vspw" / "data" / name / "origin" / image.name)
        _save_png(output / "vipseg" / "panomasksRGB" / name / f"{frame_name}.png", panoptic[t])
        semantic = np.where(video.labels[t] == VOID, 0, video.labels[t] + 1).astype(np.uint8)
        _save_png(output / "vspw" / "data" / name / "mask" / f"{frame_name}.png", semantic)
    record = {
        "name": name,
        "frames": frame_names,
        "height": settings.height,
        "width": settings.width,
        "objects": _instance_annotations(video),
        "segments": segments,
    }
    write_json(_record_path(output, split, index), record)


def _drop_slivers(video: ToyVideo) -> None:
    """Take objects that hardly show in a frame out of its ground truth."""
    for instances, labels in zip(video.instances, video.labels, strict=True):
        counts = np.bincount(instances.ravel())
        sliver = (counts > 0) & (counts < MIN_VISIBLE_PIXELS)
        sliver[0] = False
        dropped = sliver[instances]
        labels[dropped] = VOID
        instances[dropped] = 0


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)


def _save_png(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _instance_annotations(video: ToyVideo) -> list[dict[str, Any]]:
    """Tracks of the objects that are seen at least once, without the ids that the whole split gives."""
    length, height, width = video.instances.shape
    objects = []
    for i, thing in enumerate(video.classes):
        masks = video.instances == i + 1
        if not masks.any():
            continue
        entry: dict[str, Any] = {
            "category_id": thing + 1,
            "iscrowd": 0,
            "height": height,
            "width": width,
            "length": length,
            "segmentations": [],
            "bboxes": [],
            "areas": [],
            "occlusion": [],
        }
        for t, mask in enumerate(masks):
            rows, columns = np.nonzero(mask)
            present = len(rows) > 0
            entry["segmentations"].append(encode_mask(mask) if present else None)
            entry["areas"].append(len(rows) if present else None)
            entry["bboxes"].append(_box(rows, columns) if present else None)
            entry["occlusion"].append(_occlusion_label(float(video.hidden[i, t])) if present else None)
        objects.append(entry)
    return objects


def _box(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> list[int]:
    """x, y, width, height of the pixels."""
    x, y = int(columns.min()), int(rows.min())
    return [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1]


def _occlusion_label(hidden: float) -> str:
    if hidden < SLIGHT_OCCLUSION:
        return "no_occlusion"
    return "slight_occlusion" if hidden < SEVERE_OCCLUSION else "severe_occlusion"


def _panoptic_maps(video: ToyVideo) -> tuple[NDArray[np.uint8], list[list[dict[str, Any]]]]:
    """Colour-coded segments ``T H W 3`` and the description of every frame's segments, stuff first.

    A segment has one colour in the whole video: stuff that of its category, the first object of a category
    the category's, further ones a shade of it.
    """
    categories = load_categories("toy_vps")
    colors = [tuple(category["color"]) for category in categories]
    taken = set(colors[: len(STUFF)])
    color_of: dict[tuple[int, int], tuple[int, ...]] = {
        (label, 0): color for label, color in enumerate(colors[: len(STUFF)])
    }
    for number, thing in enumerate(video.classes, start=1):
        label = len(STUFF) + thing
        shade, color = 0, colors[label]
        while color in taken:
            shade += 1
            color = tuple(
                (channel + (7 * shade if channel < 128 else -7 * shade)) % 256 for channel in colors[label]
            )
        taken.add(color)
        color_of[label, number] = color

    maps = np.zeros((*video.labels.shape, 3), dtype=np.uint8)
    frames = []
    for t in range(len(video.labels)):
        segments = []
        for (label, number), color in sorted(color_of.items()):
            mask = (video.labels[t] == label) & (video.instances[t] == number)
            if mask.any():
                maps[t][mask] = color
                segments.append(
                    {
                        "id": color[0] + 256 * color[1] + 65536 * color[2],
                        "category_id": categories[label]["id"],
                        "iscrowd": 0,
                        "area": int(mask.sum()),
                    }
                )
        frames.append(segments)
    return maps, frames


def _write_annotations(output: Path, split: str, records: list[Path]) -> None:
    """Join the records of a split's videos into the three annotation files."""
    videos = [read_json(path) for path in records]
    instances: dict[str, Any] = {
        "info": {"description": f"toy world, {split}"},
        "licenses": [],
        "videos": [],
        "categories": [
            {"id": category["id"], "name": category["name"], "supercategory": "shape"}
            for category in load_categories("toy_vis")
        ],
        "annotations": [],
    }
    panoptic: dict[str, Any] = {
        "categories": [
            {key: category[key] for key in ("id", "name", "isthing", "color")}
            for category in load_categories("toy_vps")
        ],
        "videos": [],
        "annotations": [],
    }
    for video_id, video in enumerate(videos, start=1):
        name, frames, size = (
            video["name"],
            video["frames"],
            {"width": video["width"], "height": video["height"]},
        )
        instances["videos"].append(
            {
                "id": video_id,
                **size,
                "length": len(frames),
                "file_names": [f"{name}/{frame}.jpg" for frame in frames],
            }
        )
        for entry in video["objects"]:
            number = len(instances["annotations"]) + 1
            instances["annotations"].append({"id": number, "video_id": video_id, **entry})
        panoptic["videos"].append(
            {
                "video_id": name,
                "images": [{"id": frame, **size, "file_name": f"{frame}.png"} for frame in frames],
            }
        )
        panoptic["annotations"].append(
            {
                "video_id": name,
                "annotations": [
                    {"image_id": frame, "file_name": f"{frame}.png", "segments_info": segments}
                    for frame, segments in zip(frames, video["segments"], strict=True)
                ],
            }
        )
    write_json(output / f"{split}.json", instances)
    write_json(output / "vipseg" / f"panoptic_gt_{split}.json", panoptic)
    (output / "vspw").mkdir(exist_ok=True)
    (output / "vspw" / f"{split}.txt").write_text("".join(f"{video['name']}\n" for video in videos))
