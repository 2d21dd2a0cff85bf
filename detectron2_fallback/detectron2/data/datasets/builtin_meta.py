"""Class names, colours and id maps of the builtin data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["COCO_CATEGORIES", "COCO_PERSON_KEYPOINT_FLIP_MAP", "COCO_PERSON_KEYPOINT_NAMES"]

COCO_CATEGORIES: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("coco_categories.json").read_text(encoding="utf-8")
)
"""COCO panoptic 2017: 80 things, then 53 stuff, each with "id", "name", "isthing" and "color" (RGB)."""

COCO_PERSON_KEYPOINT_NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)

COCO_PERSON_KEYPOINT_FLIP_MAP = tuple(
    (name, name.replace("left_", "right_")) for name in COCO_PERSON_KEYPOINT_NAMES if name.startswith("left_")
)

_COLOR_OF_ALL_THINGS = [82, 18, 128]


def _things() -> list[dict[str, Any]]:
    return [category for category in COCO_CATEGORIES if category["isthing"] == 1]


def _stuff() -> list[dict[str, Any]]:
    return [category for category in COCO_CATEGORIES if category["isthing"] == 0]


def _get_coco_instances_meta() -> dict[str, Any]:
    """80 things, contiguous ids 0..79 in the order of their dataset ids."""
    things = _things()
    assert len(things) == 80, len(things)
    return {
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(things)},
        "thing_classes": [category["name"] for category in things],
        "thing_colors": [category["color"] for category in things],
    }


def _get_coco_panoptic_separated_meta() -> dict[str, Any]:
    """Things and stuff numbered separately; in the semantic maps 0 is "any thing" and 1..53 is stuff."""
    stuff = _stuff()
    assert len(stuff) == 53, len(stuff)
    # Dataset id 0 is what the preparation of the semantic maps writes for all things.
    stuff_ids = {category["id"]: i + 1 for i, category in enumerate(stuff)}
    stuff_ids[0] = 0
    names = [category["name"].replace("-other", "").replace("-merged", "") for category in stuff]
    return {
        "stuff_dataset_id_to_contiguous_id": stuff_ids,
        "stuff_classes": ["things", *names],
        "stuff_colors": [_COLOR_OF_ALL_THINGS, *(category["color"] for category in stuff)],
        **_get_coco_instances_meta(),
    }


def _get_coco_panoptic_standard_meta() -> dict[str, Any]:
    """Things and stuff numbered together, 0..132.

    Names and colours of all classes stand under "thing_*" and again under "stuff_*", because drawing looks
    them up separately.
    """
    names = [category["name"] for category in COCO_CATEGORIES]
    colors = [category["color"] for category in COCO_CATEGORIES]
    numbered = list(enumerate(COCO_CATEGORIES))
    return {
        "thing_classes": names,
        "thing_colors": colors,
        "stuff_classes": list(names),
        "stuff_colors": list(colors),
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in numbered if c["isthing"]},
        "stuff_dataset_id_to_contiguous_id": {c["id"]: i for i, c in numbered if not c["isthing"]},
    }


def _get_coco_person_meta() -> dict[str, Any]:
    return {
        "thing_classes": ["person"],
        "keypoint_names": COCO_PERSON_KEYPOINT_NAMES,
        "keypoint_flip_map": COCO_PERSON_KEYPOINT_FLIP_MAP,
    }


_METADATA = {
    "coco": _get_coco_instances_meta,
    "coco_panoptic_separated": _get_coco_panoptic_separated_meta,
    "coco_panoptic_standard": _get_coco_panoptic_standard_meta,
    "coco_person": _get_coco_person_meta,
}


def _get_builtin_metadata(dataset_name: str) -> dict[str, Any]:
    """Metadata of a builtin family of data sets.

    Raises:
        KeyError: if the family is unknown.
    """
    if dataset_name not in _METADATA:
        raise KeyError(f"No built-in metadata for dataset {dataset_name}")
    return _METADATA[dataset_name]()
