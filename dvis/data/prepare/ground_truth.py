"""Ground truth of a validation split that was published after the split itself.

A split was first published as a list of videos without annotations. A file with annotations replaces it once
it is known to be about the same videos and frames under the same ids: results are numbered by the list.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dvis.data.datasets import DatasetSpec
from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.files import read_json, write_json
from dvis.data.prepare.jobs import run_per_video
from dvis.data.rle import checked_rle

__all__ = ["install_ground_truth"]

logger = logging.getLogger(__name__)

Content = dict[str, Any]


def install_ground_truth(
    spec: DatasetSpec,
    source: Path,
    member: str = "",
    workers: int | None = None,
    force: bool = False,
) -> Path:
    """Check published ground truth and put it where evaluation looks for it.

    Checked are the categories, the videos and frames against the file that is replaced and against the folder
    of frames (as far as either is there), and every mask. The file that is replaced stays beside it, as
    ``<name>_without_annotations.json``. A check that was stopped goes on.

    Args:
        spec: the split, of YouTube-VIS or OVIS.
        source: the file as published: JSON, or a zip archive with it.
        member: which file of the archive; may be left out if it has one JSON file only.
        workers: processes; None: one per core.
        force: replace a file that has annotations already.

    Returns:
        the file that has the annotations now.

    Raises:
        MissingDataError: if the source or frames are missing.
        BrokenDataError: if anything does not fit; names file, video and annotation.
        ValueError: if the split has other annotations already.
    """
    target = spec.annotation_path
    content, digest = _read(source, member)
    for key in ("videos", "annotations", "categories"):
        if not isinstance(content.get(key), list) or not content[key]:
            raise BrokenDataError(f"{source}: no {key}: this is not the ground truth of a data set")
    _check_categories(spec, content, source)
    listed = read_json(target) if target.is_file() else None
    if listed is not None:
        content = _numbered_like(listed, target, content, source)
        if listed == content:
            logger.info("%s has these annotations already.", target)
        elif listed.get("annotations") and not force:
            raise ValueError(f"{target} has other annotations already; --force replaces them")
    else:
        logger.warning("%s is not there: videos are compared with the frames only.", target)
    _check_frames(spec, content, source)

    records = target.parent / f".{target.stem}_checked_{digest[:12]}"
    masks = _check_masks(spec, content, source, records, workers)
    if listed is not None and not listed.get("annotations"):
        write_json(target.with_name(f"{target.stem}_without_annotations.json"), listed)
    if listed != content:
        write_json(target, content)
    shutil.rmtree(records)
    logger.info(
        "%s: %d videos, %d objects, %d masks; %s is scored locally now.",
        target, len(content["videos"]), len(content["annotations"]), masks, spec.name,
    )  # fmt: skip
    return target


def _read(source: Path, member: str) -> tuple[Content, str]:
    """The JSON object, and a digest of its file."""
    if not source.is_file():
        raise MissingDataError(f"{source.absolute()} is missing: expected a JSON file or a zip archive")
    raw = source.read_bytes()
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            names = [name for name in archive.namelist() if name.endswith(".json")]
            if not member and len(names) != 1:
                raise ValueError(f"{source} has {len(names)} JSON files; say which: --member {names}")
            if member and member not in names:
                raise ValueError(f"{source} has no {member!r}, only {names}")
            raw = archive.read(member or names[0])
    try:
        content = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrokenDataError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BrokenDataError(f"{source}: expected a JSON object with videos, annotations and categories")
    return content, hashlib.sha256(raw).hexdigest()


def _check_categories(spec: DatasetSpec, content: Content, source: Path) -> None:
    expected = {id_: spec.class_names()[index] for id_, index in spec.class_of_id().items()}
    found = {category.get("id"): category.get("name") for category in content["categories"]}
    different = sorted(id_ for id_ in expected.keys() | found.keys() if expected.get(id_) != found.get(id_))
    if different:
        id_ = different[0]
        raise BrokenDataError(
            f"{source}: {len(different)} categories are not those of {spec.name}; id {id_} is "
            f"{found.get(id_)!r} instead of {expected.get(id_)!r}"
        )


def _numbered_like(listed: Content, target: Path, content: Content, source: Path) -> Content:
    """The content with the list's videos, in its order and under its ids; frames tell which is which."""
    own = {tuple(video["file_names"]): video for video in content["videos"]}
    new_id: dict[Any, Any] = {}
    for video in listed["videos"]:
        place = f"video {video['id']} ({video['file_names'][0]}, ...) of {target}"
        if tuple(video["file_names"]) not in own:
            raise BrokenDataError(f"{source} has no video with the frames of {place}")
        other = own.pop(tuple(video["file_names"]))
        for key in ("height", "width"):
            if other[key] != video[key]:
                raise BrokenDataError(f"{source}: {key} {other[key]}, but {video[key]} in {place}")
        new_id[other["id"]] = video["id"]
    if own:
        video = next(iter(own.values()))
        raise BrokenDataError(f"{source}, video {video['id']}: not in {target} (and {len(own) - 1} more)")
    annotations = []
    for annotation in content["annotations"]:
        if annotation.get("video_id") not in new_id:
            raise BrokenDataError(f"{_place(source, annotation)}: there is no such video")
        annotations.append({**annotation, "video_id": new_id[annotation["video_id"]]})
    return {**content, "videos": listed["videos"], "annotations": annotations}


def _check_frames(spec: DatasetSpec, content: Content, source: Path) -> None:
    if not spec.image_root.is_dir():
        logger.warning("%s is not there: frames are not looked for.", spec.image_root)
        return
    for video in tqdm(content["videos"], desc="frames", unit="video"):
        for name in video["file_names"]:
            if not (spec.image_root / name).is_file():
                raise MissingDataError(f"{source}, video {video['id']}: {spec.image_root / name} is missing")


def _check_masks(
    spec: DatasetSpec, content: Content, source: Path, records: Path, workers: int | None
) -> int:
    """Look at every annotation; returns the number of masks."""
    required = ["id", "category_id", "segmentations", *(["occlusion"] if spec.evaluator == "ovis" else [])]
    known = spec.class_of_id()
    of_video: dict[Any, list[Mapping[str, Any]]] = {video["id"]: [] for video in content["videos"]}
    for annotation in content["annotations"]:
        missing = [key for key in required if key not in annotation]
        if missing:
            raise BrokenDataError(f"{_place(source, annotation)}: {', '.join(missing)} missing")
        if annotation["category_id"] not in known:
            raise BrokenDataError(
                f"{_place(source, annotation)}: category {annotation['category_id']} does not exist"
            )
        if annotation.get("video_id") not in of_video:
            raise BrokenDataError(f"{_place(source, annotation)}: there is no such video")
        of_video[annotation["video_id"]].append(annotation)
    jobs = {
        str(video["id"]): (
            str(source),
            (video["height"], video["width"]),
            len(video["file_names"]),
            of_video[video["id"]],
        )
        for video in content["videos"]
    }
    return sum(run_per_video(_check_video, jobs, records, workers, "masks").values())


def _check_video(
    source: str, size: tuple[int, int], length: int, annotations: Sequence[Mapping[str, Any]]
) -> int:
    masks = 0
    for annotation in annotations:
        place = _place(source, annotation)
        for key in ("segmentations", "occlusion", "areas", "bboxes"):
            values = annotation.get(key)
            if values is not None and len(values) != length:
                raise BrokenDataError(f"{place}: {len(values)} {key} for {length} frames")
        for t, segmentation in enumerate(annotation["segmentations"]):
            try:
                masks += checked_rle(segmentation, *size) is not None
            except ValueError as error:
                raise BrokenDataError(f"{place}, frame {t}: {error}") from error
    return masks


def _place(source: Path | str, annotation: Mapping[str, Any]) -> str:
    return f"{source}, video {annotation.get('video_id', '?')}, annotation {annotation.get('id', '?')}"
