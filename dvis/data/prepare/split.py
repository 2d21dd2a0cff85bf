"""Splits of data sets in YouTube-VIS form: own ones for training and validation, short and long videos."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.files import read_json, write_json

__all__ = ["choose_validation", "divide_by_length", "divide_by_reference", "split_videos"]

logger = logging.getLogger(__name__)


def split_videos(source: Path, train: Path, val: Path, num_val: int, seed: int = 0) -> tuple[int, int]:
    """Share the videos of an annotation file out to two files with the same categories.

    Args:
        source: annotation file of a training split (YouTube-VIS or OVIS).
        train, val: files to write.
        num_val: videos of the validation split.
        seed: the same seed gives the same split.

    Returns:
        numbers of training and of validation videos.

    Raises:
        BrokenDataError: if the file is broken or has no annotations.
        ValueError: if there are not more than ``num_val`` videos.
    """
    content = read_json(source)
    if not content.get("annotations"):
        raise BrokenDataError(f"{source} has no annotations: only a split with ground truth can be divided")
    categories: dict[Any, set[int]] = {video["id"]: set() for video in content["videos"]}
    for annotation in content["annotations"]:
        if annotation["video_id"] not in categories:
            where = f"{source}, annotation {annotation.get('id', '?')}"
            raise BrokenDataError(f"{where}: there is no video {annotation['video_id']}")
        categories[annotation["video_id"]].add(annotation["category_id"])
    if not 0 < num_val < len(categories):
        raise ValueError(f"{source} has {len(categories)} videos; {num_val} cannot be set aside")
    chosen = choose_validation(categories, num_val, seed)
    write_json(train, _part(content, categories.keys() - chosen))
    write_json(val, _part(content, chosen))
    return len(categories) - num_val, num_val


def divide_by_reference(source: Path, reference: Path) -> tuple[int, int]:
    """Divide a file into ``<stem>_short.json`` (videos of the reference) and ``<stem>_long.json`` (others).

    YouTube-VIS 2022 has the videos of 2021 and long ones. Videos are known by the folder of their frames.

    Returns:
        numbers of short and of long videos.

    Raises:
        MissingDataError: if a file is missing.
        BrokenDataError: if a file is broken or the reference has videos that the source lacks.
    """
    if not reference.is_file():
        raise MissingDataError(
            f"{reference.absolute()} is missing, whose videos are the short ones; or say how many frames a "
            "long one has: --min-frames"
        )
    known = {_folder(video) for video in _read(reference)["videos"]}
    lacking = known - {_folder(video) for video in _read(source)["videos"]}
    if lacking:
        raise BrokenDataError(
            f"{source} lacks {len(lacking)} of the {len(known)} videos of {reference}: {min(lacking)}, ..."
        )
    return _divide(source, lambda video: _folder(video) not in known)


def divide_by_length(source: Path, min_frames: int) -> tuple[int, int]:
    """As `divide_by_reference`; videos of at least ``min_frames`` frames are long."""
    return _divide(source, lambda video: len(video["file_names"]) >= min_frames)


def _divide(source: Path, is_long: Callable[[Mapping[str, Any]], bool]) -> tuple[int, int]:
    content = _read(source)
    long = {video["id"] for video in content["videos"] if is_long(video)}
    short = {video["id"] for video in content["videos"]} - long
    for name, part in (("short", short), ("long", long)):
        path = source.with_name(f"{source.stem}_{name}.json")
        write_json(path, _part(content, part))
        logger.info("%s: %d videos", path, len(part))
    return len(short), len(long)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingDataError(f"{path.absolute()} is missing; see datasets/README.md")
    content = read_json(path)
    for video in content["videos"] if isinstance(content, dict) and "videos" in content else [{}]:
        if not video.get("file_names"):
            raise BrokenDataError(f"{path}, video {video.get('id', '?')}: no file_names")
    return content


def _folder(video: Mapping[str, Any]) -> str:
    return video["file_names"][0].rpartition("/")[0]


def choose_validation(categories: Mapping[Any, Collection[int]], num_val: int, seed: int) -> set[Any]:
    """Choose videos at random, but so that both parts have every category, as far as the numbers allow.

    Args:
        categories: categories that occur, by video.
        num_val: how many videos to choose.
        seed: of the random choice.
    """
    rng = np.random.default_rng(seed)
    videos = list(categories)
    order = [videos[i] for i in rng.permutation(len(videos))]
    of_category: dict[int, list[Any]] = defaultdict(list)
    for video in order:
        for category in categories[video]:
            of_category[category].append(video)
    chosen: set[Any] = set()
    kept: set[Any] = set()  # must stay in the training part
    # Rare categories have the least choice: they come first.
    for _, members in sorted(of_category.items(), key=lambda item: (len(item[1]), item[0])):
        free = [video for video in members if video not in chosen]
        if not kept.intersection(members) and free:
            kept.add(free[-1])
        candidates = [video for video in members if video not in kept]
        if not chosen.intersection(members) and candidates and len(chosen) < num_val:
            chosen.add(candidates[0])
    rest = [video for video in order if video not in chosen]
    rest.sort(key=lambda video: video in kept)  # stable: what must stay comes last
    chosen.update(rest[: num_val - len(chosen)])
    return chosen


def _part(content: Mapping[str, Any], videos: Collection[Any]) -> dict[str, Any]:
    part = {**content, "videos": [video for video in content["videos"] if video["id"] in videos]}
    if content.get("annotations"):  # absent or null where ground truth is not public
        part["annotations"] = [a for a in content["annotations"] if a["video_id"] in videos]
    return part
