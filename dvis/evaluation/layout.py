"""Where the files of a result and of its ground truth lie, from whatever path of them the user names.

Every function takes a file or a folder of the published layouts and finds the files that belong to it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "PanopticFiles",
    "SemanticVideos",
    "find_label_folder",
    "find_panoptic_images",
    "find_semantic_prediction",
    "find_semantic_videos",
    "find_video_panoptic",
    "find_video_panoptic_prediction",
    "find_vis_ground_truth",
    "find_vis_results",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PanopticFiles:
    """A panoptic JSON and the folder of its PNGs."""

    json: Path
    masks: Path


@dataclass(frozen=True)
class SemanticVideos:
    """A folder with ``<video>/mask/<frame>.png`` and the videos to score."""

    root: Path
    videos: list[str]


def find_vis_ground_truth(path: Path) -> Path:
    """Annotation file in YouTube-VIS or OVIS form.

    Raises:
        FileNotFoundError: if it is not there; says what was looked for. So do all functions here.
    """
    return _file(path, ("gt.json", "instances.json", "valid.json", "val.json", "annotations_valid.json"))


def find_vis_results(path: Path) -> Path:
    """Result file of instances."""
    return _file(path, ("results.json",))


def find_video_panoptic(path: Path) -> PanopticFiles:
    """Ground truth in VIPSeg form: the JSON, its folder, or the folder ``panomasksRGB`` beside it."""
    folder = path.parent if path.name == "panomasksRGB" else path
    json = _file(folder, ("panoptic_gt_*_val.json", "panoptic_gt_val.json", "panoptic_gt_*.json"))
    return PanopticFiles(json, _folder([json.parent / "panomasksRGB"]))


def find_video_panoptic_prediction(path: Path) -> PanopticFiles:
    """Result in VIPSeg form: ``pred.json``, the folder ``pan_pred`` beside it, or what holds both."""
    folder = path.parent if path.name == "pan_pred" else path
    json = _file(folder, ("pred.json", "pred/pred.json"))
    return PanopticFiles(json, _folder([json.parent / "pan_pred"]))


def find_panoptic_images(path: Path, role: str) -> PanopticFiles:
    """Ground truth (``role`` "gt") or result ("pred") in COCO's panoptic form.

    The PNGs lie in a folder of that name or of the JSON's beside it, or (COCO) in one beside its folder.
    """
    beside = path.with_suffix(".json")
    json = beside if path.is_dir() and beside.is_file() else _file(path, (f"{role}.json", "panoptic_*.json"))
    return PanopticFiles(
        json, _folder([json.with_suffix(""), json.parent / role, json.parent.parent / json.stem])
    )


def find_semantic_videos(path: Path) -> SemanticVideos:
    """Ground truth in VSPW form: the folder with ``val.txt`` and ``data``, either of the two, or what holds
    the folder ``VSPW``. Without a list all videos in ``data`` are taken.
    """
    if path.is_file():
        listing, root = path, _folder([path.parent / "data"])
    else:
        if not (path / "data").is_dir() and (path / "VSPW").is_dir():
            path = path / "VSPW"
        root = path / "data" if (path / "data").is_dir() else _existing(path)
        listing = root.parent / "val.txt"
    if listing.is_file():
        videos = listing.read_text(encoding="utf-8").split()
    else:
        videos = sorted(entry.parent.name for entry in root.glob("*/mask"))
        logger.warning("%s is missing: all %d videos in %s are scored.", listing, len(videos), root)
    if not videos:
        raise FileNotFoundError(f"{root}: no videos (<video>/mask/<frame>.png)")
    return SemanticVideos(root, videos)


def find_semantic_prediction(path: Path, videos: Sequence[str]) -> Path:
    """Folder with ``<video>/<frame>.png``: the given one, or one in it."""
    _existing(path)
    for folder in (path, path / "pred", path / "predictions"):
        if any((folder / video).is_dir() for video in videos):
            return folder
    raise FileNotFoundError(f"{path}: no folder of any of the {len(videos)} videos ({videos[0]}, ...)")


def find_label_folder(path: Path, role: str) -> Path:
    """Folder of label maps: the given one, or (what holds it) its subfolder ``role``."""
    _existing(path)
    return _folder([path / role, path if path.is_dir() else path.parent / role])


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return path


def _file(path: Path, patterns: Iterable[str]) -> Path:
    """The path itself if it is a file, or the first file in it that fits a pattern."""
    if _existing(path).is_file():
        return path
    for pattern in patterns:
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise FileNotFoundError(f"{path} holds several files {pattern} ({names}): name one of them")
        if found:
            return found[0]
    raise FileNotFoundError(f"{path}: none of {', '.join(patterns)} in this folder")


def _folder(candidates: Sequence[Path]) -> Path:
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no such folder: {' or '.join(str(folder) for folder in candidates)}")
