"""A data set looked through from end to end; all that is wrong is collected, not only the first error.

*Errors* are what training or evaluation would stop at or get wrong. *Notes* are what may be meant so: classes
without objects, holes in the numbering of categories, objects that are never visible.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dvis.data.datasets import DATASETS, DatasetSpec, get_spec
from dvis.data.errors import BrokenDataError
from dvis.data.files import read_json
from dvis.data.label_images import read_class_map, read_segment_ids
from dvis.data.readers import UNREADABLE
from dvis.data.rle import checked_rle, rle_areas

__all__ = ["Report", "check_dataset"]

NUM_WORKERS = min(os.cpu_count() or 1, 8)  # threads: decoding runs outside of Python's lock


@dataclass
class Report:
    """What was found.

    Attributes:
        source: annotation file.
        counts: numbers of videos, frames and so on.
        classes: number of tracks (segments, frames) per class name.
        errors: each names file, video and annotation.
        notes: likewise.
    """

    source: str
    counts: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Sources:
    """Where the files of the data set lie; None: not to be looked at."""

    annotations: Path
    images: Path | None = None
    masks: Path | None = None
    spec: DatasetSpec | None = None


def check_dataset(name_or_path: str, images: Path | None = None, masks: Path | None = None) -> Report:
    """Look through a data set.

    Args:
        name_or_path: a registered name, or an annotation file: JSON of instances (YouTube-VIS, OVIS, COCO) or
            of panoptic segments (VIPSeg, COCO).
        images: folder of the frames; None: that of the registered data set; of a file none is looked at.
        masks: folder of panoptic PNGs, likewise.

    Raises:
        MissingDataError, FileNotFoundError: if the annotation file is missing.
        BrokenDataError: if it is not JSON, or of no known form.
    """
    if name_or_path in DATASETS:
        spec = get_spec(name_or_path)
        spec.check_files()
        folders = (images or spec.image_root, masks or (spec.mask_root if spec.masks else None))
        sources = _Sources(spec.annotation_path, *folders, spec)
        if spec.kind == "video_semantic":
            return _check_semantic(sources)
    else:
        path = Path(name_or_path)
        if not path.is_file():
            raise FileNotFoundError(
                f"{name_or_path} is neither a file nor a data set; known are {', '.join(sorted(DATASETS))}"
            )
        sources = _Sources(path, images, masks)
    content = read_json(sources.annotations)
    return _checker_of(content, sources)(content, sources)


def _checker_of(content: Any, sources: _Sources) -> Callable[[dict[str, Any], _Sources], Report]:
    """What looks at data of this form; a registered data set says which it should be."""
    path = sources.annotations
    kind = sources.spec.kind if sources.spec is not None else ""
    if isinstance(content, dict) and kind.endswith("panoptic"):
        keys = ("videos" if kind.startswith("video") else "images", "annotations")
        missing = [key for key in keys if key not in content]
        if missing:
            raise BrokenDataError(f"{path}: {', '.join(missing)} missing")
        return _check_panoptic_videos if kind.startswith("video") else _check_panoptic_images
    if isinstance(content, dict):
        first = next(iter(content.get("annotations") or [{}]))
        if "videos" in content:
            return _check_panoptic_videos if "annotations" in first else _check_instances
        if "images" in content:
            return _check_panoptic_images if "segments_info" in first else _check_instances
    raise BrokenDataError(f"{path}: neither videos nor images at the top level")


# ---- instances


def _check_instances(content: dict[str, Any], sources: _Sources) -> Report:
    """YouTube-VIS, OVIS, or COCO, whose images are videos of one frame."""
    report = Report(str(sources.annotations))
    is_video = "videos" in content
    kind = "video" if is_video else "image"
    where = str(sources.annotations)
    videos: dict[Any, dict[str, Any]] = {}
    for entry in content["videos" if is_video else "images"]:
        place = f"{where}, {kind} {entry.get('id', '?')}"
        names = "file_names" if is_video else "file_name"
        if not _has(entry, ("id", names, "height", "width"), place, report):
            continue
        if entry["id"] in videos:
            report.errors.append(f"{place}: the id is there twice")
        files = entry[names] if is_video else [entry[names]]
        if is_video and entry.get("length", len(files)) != len(files):
            report.errors.append(f"{place}: length {entry['length']}, but {len(files)} file names")
        if not files:
            report.errors.append(f"{place}: no frames")
        videos[entry["id"]] = {**entry, "files": files, "visible": np.zeros(len(files), bool)}
    names_of = _check_categories(content, sources, report)

    annotations = content.get("annotations")
    if annotations is None:
        report.notes.append(f"{where}: no annotations (a split without public ground truth)")
    tracks: Counter[int] = Counter()
    masks = crowds = 0
    seen: set[Any] = set()
    for annotation in tqdm(annotations or [], desc="annotations", unit=""):
        video_id = annotation.get("video_id" if is_video else "image_id", "?")
        place = f"{where}, {kind} {video_id}, annotation {annotation.get('id', '?')}"
        required = ("id", "video_id" if is_video else "image_id", "category_id")
        if not _has(annotation, (*required, "segmentations" if is_video else "segmentation"), place, report):
            continue
        if annotation["id"] in seen:
            report.errors.append(f"{place}: the id is there twice")
        seen.add(annotation["id"])
        if annotation["id"] == 0:
            report.notes.append(f"{place}: the official programs of video AP take a match with id 0 for none")
        if annotation["category_id"] not in names_of:
            report.errors.append(f"{place}: category {annotation['category_id']} does not exist")
        if video_id not in videos:
            report.errors.append(f"{place}: there is no such {kind}")
            continue
        if "iscrowd" not in annotation:
            report.notes.append(f"{place}: iscrowd is missing; scoring wants it")
        crowds += bool(annotation.get("iscrowd"))
        tracks[annotation["category_id"]] += 1
        num_errors = len(report.errors)
        visible = _check_masks(annotation, videos[video_id], is_video, place, report)
        masks += int(visible.sum())
        if not visible.any() and len(report.errors) == num_errors:
            report.notes.append(f"{place}: never visible")
        if len(visible) == len(videos[video_id]["visible"]):
            videos[video_id]["visible"] |= visible

    _count_videos(report, [len(video["files"]) for video in videos.values()], kind)
    report.counts |= {"tracks": sum(tracks.values()), "masks": masks, "crowds": crowds}
    if annotations is not None:
        report.counts["frames without objects"] = sum(int((~v["visible"]).sum()) for v in videos.values())
    _count_classes(report, names_of, tracks)
    if sources.images is not None:
        frames = [
            (
                f"{where}, {kind} {video_id}, frame {t}",
                sources.images / file,
                (video["height"], video["width"]),
            )
            for video_id, video in videos.items()
            for t, file in enumerate(video["files"])
        ]
        _check_images(frames, report)
    return report


def _check_masks(
    annotation: Mapping[str, Any], video: Mapping[str, Any], is_video: bool, place: str, report: Report
) -> np.ndarray[Any, Any]:
    """Look at the masks of one object; in which of its frames is it visible?"""
    length = len(video["files"])
    segmentations = annotation["segmentations"] if is_video else [annotation["segmentation"]]
    boxes = annotation.get("bboxes") if is_video else None
    for key in ("segmentations", "bboxes", "areas", "occlusion"):
        values = annotation.get(key)
        if is_video and values is not None and len(values) != length:
            report.errors.append(f"{place}: {len(values)} {key} for {length} frames")
    size = (video["height"], video["width"])
    visible = np.zeros(len(segmentations), bool)
    for t, segmentation in enumerate(segmentations):
        here = f"{place}, frame {t}" if is_video else place
        try:
            rle = checked_rle(segmentation, *size)
        except ValueError as error:
            report.errors.append(f"{here}: {error}")
            continue
        if rle is None:
            continue
        if boxes is not None and t < len(boxes) and not boxes[t]:
            report.notes.append(f"{here}: a mask without a box counts as not visible")
        else:
            visible[t] = rle_areas([rle])[0] > 0
    return visible


# ---- panoptic segments


def _check_panoptic_videos(content: dict[str, Any], sources: _Sources) -> Report:
    report = Report(str(sources.annotations))
    where = str(sources.annotations)
    names_of = _check_categories(content, sources, report)
    frames_of = {
        entry["video_id"]: entry["annotations"]
        for entry in content["annotations"]
        if _has(entry, ("video_id", "annotations"), f"{where}, video {entry.get('video_id', '?')}", report)
    }
    jobs: list[_Segments] = []
    images: list[tuple[str, Path, tuple[int, int]]] = []
    lengths = []
    tracks = 0
    for video in content["videos"]:
        name = video.get("video_id", "?")
        place = f"{where}, video {name}"
        if not _has(video, ("video_id", "images"), place, report):
            continue
        frames = frames_of.pop(name, None)
        lengths.append(len(video["images"]))
        if frames is None or len(frames) != len(video["images"]):
            found = "no" if frames is None else len(frames)
            report.errors.append(f"{place}: {len(video['images'])} images, {found} annotated frames")
            continue
        category_of: dict[int, int] = {}
        for t, (image, frame) in enumerate(zip(video["images"], frames, strict=True)):
            here = f"{place}, frame {t} ({image.get('file_name', '?')})"
            if not (
                _has(image, ("file_name", "height", "width"), here, report)
                and _has(frame, ("file_name", "segments_info"), here, report)
            ):
                continue
            size = (image["height"], image["width"])
            for segment in frame["segments_info"]:
                known = category_of.setdefault(segment["id"], segment["category_id"])
                if known != segment["category_id"]:
                    change = f"category {segment['category_id']}, before {known}"
                    report.notes.append(f"{here}, segment {segment['id']}: {change}")
            if sources.images is not None:
                file = (sources.images / name / image["file_name"]).with_suffix(".jpg")
                images.append((here, file, size))
            mask = None if sources.masks is None else sources.masks / name / frame["file_name"]
            jobs.append(_Segments(here, mask, size, frame["segments_info"]))
        tracks += len(category_of)
    report.errors += [
        f"{where}, video {name}: annotated, but not in the list of videos" for name in frames_of
    ]
    _count_videos(report, lengths, "video")
    report.counts["tracks"] = tracks
    _check_segments(jobs, names_of, report)
    _check_images(images, report)
    return report


def _check_panoptic_images(content: dict[str, Any], sources: _Sources) -> Report:
    report = Report(str(sources.annotations))
    where = str(sources.annotations)
    names_of = _check_categories(content, sources, report)
    entries = {entry["id"]: entry for entry in content["images"]}
    jobs: list[_Segments] = []
    images: list[tuple[str, Path, tuple[int, int]]] = []
    for annotation in content["annotations"]:
        here = f"{where}, image {annotation['image_id']}"
        if annotation["image_id"] not in entries:
            report.errors.append(f"{here}: annotated, but not in the list of images")
            continue
        image = entries[annotation["image_id"]]
        size = (image["height"], image["width"])
        mask = None if sources.masks is None else sources.masks / annotation["file_name"]
        jobs.append(_Segments(here, mask, size, annotation["segments_info"]))
        if sources.images is not None:
            images.append((here, sources.images / image["file_name"], size))
    _count_videos(report, [1] * len(entries), "image")
    _check_segments(jobs, names_of, report)
    _check_images(images, report)
    return report


@dataclass(frozen=True)
class _Segments:
    """The segments of one frame and the PNG that draws them (None: not to be looked at)."""

    place: str
    mask: Path | None
    size: tuple[int, int]
    infos: Sequence[Mapping[str, Any]]

    def problems(self) -> list[str]:
        """What does not fit between PNG and list."""
        if self.mask is None:
            return []
        try:
            ids = read_segment_ids(self.mask)
        except (FileNotFoundError, ValueError) as error:
            return [f"{self.place}: {error}"]
        if ids.shape != self.size:
            return [f"{self.place}: {self.mask} has {ids.shape} pixels, the frame {self.size}"]
        drawn = dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True)), strict=True))
        drawn.pop(0, None)
        listed = {segment["id"]: segment for segment in self.infos}
        found = []
        for segment_id in sorted(drawn.keys() - listed.keys()):
            found.append(f"{self.place}: {self.mask} has the segment {segment_id}, which is not listed")
        for segment_id, segment in listed.items():
            if segment_id not in drawn:
                found.append(f"{self.place}, segment {segment_id}: listed, but not in {self.mask}")
            elif segment.get("area", drawn[segment_id]) != drawn[segment_id]:
                found.append(
                    f"{self.place}, segment {segment_id}: area {segment['area']}, {self.mask} has "
                    f"{drawn[segment_id]} pixels"
                )
        return found


def _check_segments(frames: Sequence[_Segments], names_of: Mapping[int, str], report: Report) -> None:
    segments: Counter[int] = Counter()
    for frame in frames:
        ids = [segment["id"] for segment in frame.infos]
        if len(set(ids)) != len(ids):
            report.errors.append(f"{frame.place}: a segment id is listed twice")
        for segment in frame.infos:
            segments[segment["category_id"]] += 1
            if segment["category_id"] not in names_of:
                where = f"{frame.place}, segment {segment['id']}"
                report.errors.append(f"{where}: category {segment['category_id']} does not exist")
    report.counts["segments"] = sum(segments.values())
    report.counts["frames without objects"] = sum(not frame.infos for frame in frames)
    _count_classes(report, names_of, segments)
    for problems in _in_threads(_Segments.problems, frames, "masks"):
        report.errors += problems


# ---- semantic maps


def _check_semantic(sources: _Sources) -> Report:
    """VSPW: ``<video>/origin/<frame>.jpg`` and ``<video>/mask/<frame>.png`` of the videos in a list."""
    assert sources.spec is not None
    assert sources.images is not None
    report = Report(str(sources.annotations))
    names_of = {
        category_id: sources.spec.class_names()[k] for category_id, k in sources.spec.class_of_id().items()
    }
    allowed = np.zeros(256, bool)
    allowed[[0, 255, *(category_id + 1 for category_id in names_of)]] = True
    lengths, frames = [], []
    for name in sources.annotations.read_text(encoding="utf-8").split():
        place = f"{sources.annotations}, video {name}"
        files = sorted((sources.images / name / "origin").glob("*.jpg"))
        lengths.append(len(files))
        if not files:
            report.errors.append(f"{place}: no images in {sources.images / name / 'origin'}")
        folder = sources.images / name / "mask"
        if not folder.is_dir():
            report.notes.append(f"{place}: no masks (a split without public ground truth)")
        for file in files:
            mask = folder / f"{file.stem}.png" if folder.is_dir() else None
            frames.append((f"{place}, frame {file.stem}", file, mask))

    def look(frame: tuple[str, Path, Path | None]) -> tuple[list[str], set[int]]:
        place, file, mask = frame
        size, problem = _read_size(file)
        if problem:
            return [f"{place}: {problem}"], set()
        if mask is None:
            return [], set()
        try:
            labels = read_class_map(mask)
        except (FileNotFoundError, ValueError) as error:
            return [f"{place}: {error}"], set()
        if labels.shape != size:
            return [f"{place}: {mask} has {labels.shape} pixels, the image {size}"], set()
        values = np.unique(labels).tolist()
        unknown = [value for value in values if value > 255 or not allowed[value]]
        problems = [f"{place}: {mask} has the values {unknown}, which stand for no class"] if unknown else []
        return problems, {value - 1 for value in values if value - 1 in names_of}

    present: Counter[int] = Counter()
    empty = 0
    for (_, _, mask), (problems, classes) in zip(frames, _in_threads(look, frames, "frames"), strict=True):
        report.errors += problems
        present.update(classes)
        empty += mask is not None and not classes
    _count_videos(report, lengths, "video")
    report.counts["frames without objects"] = empty
    _count_classes(report, names_of, present)
    return report


# ---- what they share


def _has(entry: Mapping[str, Any], keys: Iterable[str], place: str, report: Report) -> bool:
    missing = [key for key in keys if key not in entry]
    if missing:
        report.errors.append(f"{place}: {', '.join(missing)} missing")
    return not missing


def _check_categories(content: Mapping[str, Any], sources: _Sources, report: Report) -> dict[int, str]:
    """Names by id, of those that are usable; those of a user's file for categories replace the others."""
    if sources.spec is not None and sources.spec.categories != sources.spec.annotations and sources.spec.rows:
        return {row["id"]: row["name"] for row in sources.spec.rows}
    names_of: dict[int, str] = {}
    for category in content.get("categories") or []:
        place = f"{report.source}, category {category.get('id', '?')}"
        if _has(category, ("id", "name"), place, report):
            if category["id"] in names_of:
                report.errors.append(f"{place}: the id is there twice")
            names_of[category["id"]] = category["name"]
    if not names_of:
        report.errors.append(f"{report.source}: no categories")
        return names_of
    if len(set(names_of.values())) < len(names_of):
        twice = [name for name, number in Counter(names_of.values()).items() if number > 1]
        report.notes.append(f"{report.source}: several categories are called {', '.join(twice)}")
    gaps = sorted(set(range(min(names_of), max(names_of))) - names_of.keys())
    if gaps:
        report.notes.append(f"{report.source}: no categories with the ids {gaps}")
    if sources.spec is not None:
        expected = sources.spec.class_of_id()
        unknown = sorted(names_of.keys() - expected.keys())
        if unknown:
            report.errors.append(f"{report.source}: {sources.spec.name} has no categories {unknown}")
    return names_of


def _count_videos(report: Report, lengths: Sequence[int], kind: str) -> None:
    report.counts[f"{kind}s"] = len(lengths)
    if kind == "video":
        report.counts["frames"] = sum(lengths)
        report.counts["shortest video"] = min(lengths, default=0)
        report.counts["longest video"] = max(lengths, default=0)


def _count_classes(report: Report, names_of: Mapping[int, str], numbers: Mapping[int, int]) -> None:
    report.counts["classes"] = len(names_of)
    report.classes = {name: numbers.get(category_id, 0) for category_id, name in names_of.items()}
    unused = [name for name, number in report.classes.items() if not number]
    if unused and numbers:
        report.notes.append(f"{report.source}: classes without objects: {', '.join(unused)}")


def _check_images(frames: Sequence[tuple[str, Path, tuple[int, int]]], report: Report) -> None:
    """Decode every image and compare its size with the annotations'."""

    def look(frame: tuple[str, Path, tuple[int, int]]) -> str:
        place, path, expected = frame
        size, problem = _read_size(path)
        if not problem and size != expected:
            problem = f"{path} has {size} pixels, the annotations say {expected}"
        return problem and f"{place}: {problem}"

    report.errors += [problem for problem in _in_threads(look, frames, "images") if problem]


def _read_size(path: Path) -> tuple[tuple[int, int], str]:
    """Height and width of an image that can be decoded, or what is wrong with it."""
    from PIL import Image

    if not path.is_file():
        return (0, 0), f"{path} is missing"
    try:
        with Image.open(path) as image:
            image.load()
            return (image.height, image.width), ""
    except UNREADABLE as error:
        return (0, 0), f"{path} cannot be read: {error}"


def _in_threads(look: Callable[[Any], Any], items: Sequence[Any], title: str) -> Iterable[Any]:
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        yield from tqdm(pool.map(look, items), total=len(items), desc=title, unit="")
