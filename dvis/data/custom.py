"""The user's own data sets, described by the configuration alone (keys ``DATASETS.CUSTOM``)."""

from __future__ import annotations

import colorsys
import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from dvis.data.datasets import DATASETS, KINDS, DatasetSpec, data_root, register_dataset, require_path
from dvis.data.errors import BrokenDataError
from dvis.data.files import read_json

__all__ = ["use_custom_datasets"]

logger = logging.getLogger(__name__)

# Kind of data -> evaluation protocol; panoptic images have none.
_EVALUATORS = {
    "video_instance": "ytvis",
    "image_instance": "ytvis",
    "video_panoptic": "vps",
    "video_semantic": "vss",
}
_REQUIRED, _OPTIONAL = ("TYPES", "ANNOTATIONS", "IMAGES"), ("MASKS", "CATEGORIES")
_HOW_TO_GET = "correct the path in DATASETS.CUSTOM of the configuration"


def use_custom_datasets(cfg: CfgNode) -> None:
    """Register the data sets of ``DATASETS.CUSTOM`` and give the model as many classes as they have.

    To be called before the model and the loaders are built. Doing it again with the same data is harmless.
    The number of classes is that of the last data set of ``DATASETS.TRAIN`` (without any, of
    ``DATASETS.TEST``), if this is a custom one and ``DATASETS.CUSTOM.SET_NUM_CLASSES`` is true.

    Args:
        cfg: the configuration, not frozen; ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` is changed in place.

    Raises:
        ValueError: for lists of different lengths, an unknown type, missing settings, or a name that stands
            for another data set.
        MissingDataError: if the file with the categories is missing.
        BrokenDataError: if it has no usable categories.
    """
    custom = cfg.DATASETS.CUSTOM
    _check_lengths(custom)
    for number in range(len(custom.NAMES)):
        _register(_make_spec(custom, number))
    target = (cfg.DATASETS.TRAIN or cfg.DATASETS.TEST or ("",))[-1]
    if custom.SET_NUM_CLASSES and target in custom.NAMES:
        num_classes = len(DATASETS[target].class_names())
        logger.info("%s has %d classes, and so has the model", target, num_classes)
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes


def _check_lengths(custom: CfgNode) -> None:
    for key in (*_REQUIRED, *_OPTIONAL):
        entries = len(custom[key])
        if entries != len(custom.NAMES) and (entries or key in _REQUIRED):
            raise ValueError(
                f"DATASETS.CUSTOM.{key} has {entries} entries for {len(custom.NAMES)} data sets in "
                f"DATASETS.CUSTOM.NAMES: {', '.join(custom.NAMES) or 'none'}"
            )


def _make_spec(custom: CfgNode, number: int) -> DatasetSpec:
    name, kind = custom.NAMES[number], custom.TYPES[number]
    masks, categories = (custom[key][number] if custom[key] else "" for key in _OPTIONAL)
    if kind not in KINDS:
        raise ValueError(f"DATASETS.CUSTOM.TYPES: {kind!r} of {name} is not one of {', '.join(KINDS)}")
    if kind.endswith("panoptic") and not masks:
        raise ValueError(f"DATASETS.CUSTOM.MASKS: {name} is {kind} and needs the folder of its PNGs")
    if kind == "video_semantic" and not categories:
        raise ValueError(
            f"DATASETS.CUSTOM.CATEGORIES: {name} is {kind}, whose files name no classes; give a JSON file "
            "with a list of {id, name}"
        )
    source = categories or custom.ANNOTATIONS[number]
    return DatasetSpec(
        name,
        kind,
        source,
        custom.ANNOTATIONS[number],
        custom.IMAGES[number],
        masks,
        evaluator=_EVALUATORS.get(kind, ""),
        how_to_get=_HOW_TO_GET,
        rows=_read_categories(name, kind, source),
    )


def _read_categories(name: str, kind: str, source: str) -> tuple[dict[str, Any], ...]:
    """The category table of a JSON file that is a list of categories or has one under ``categories``.

    Class indices follow the category ids; those of panoptic and semantic data have things first.
    """
    path = data_root() / source
    require_path(path, name, _HOW_TO_GET)
    content = read_json(path)
    entries = content.get("categories") if isinstance(content, dict) else content
    if not entries or not isinstance(entries, list):
        raise BrokenDataError(f"{path}: no list of categories")
    for position, entry in enumerate(entries):
        _check_category(entry, kind, f"{path}, category {position} of the list")
    for key in ("id", "name"):
        values = [entry[key] for entry in entries]
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise BrokenDataError(f"{path}: several categories with the {key} {repeated[0]!r}")
    entries = sorted(entries, key=lambda entry: entry["id"])
    if kind == "video_semantic" and [entry["id"] for entry in entries] != list(range(len(entries))):
        raise BrokenDataError(
            f"{path}: ids of semantic categories must be 0, 1, 2, ... (a mask has id + 1, 0 for none), "
            f"got {[entry['id'] for entry in entries]}"
        )
    things_first = sorted(entries, key=lambda entry: not entry.get("isthing", 1))
    return tuple(
        {
            "id": entry["id"],
            "name": entry["name"],
            "isthing": int(entry.get("isthing", 1)),
            "color": list(entry.get("color") or _color(index)),
            "contiguous_id": index,
            "contiguous_id_things_first": things_first.index(entry),
            "raw_mask_label": entry["id"] + 1,
        }
        for index, entry in enumerate(entries)
    )


def _check_category(entry: Any, kind: str, where: str) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), int) or not entry.get("name"):
        raise BrokenDataError(f"{where}: expected {{id: number, name: text}}, got {entry!r}")
    if kind.endswith("panoptic") and entry.get("isthing") not in (0, 1):
        raise BrokenDataError(f"{where} ({entry['name']}): panoptic data needs isthing, 0 or 1")


def _color(index: int) -> list[int]:
    """An RGB colour; hues of successive classes are far apart (steps of the golden ratio)."""
    return [round(255 * channel) for channel in colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.7, 0.9)]


def _register(spec: DatasetSpec) -> None:
    if DATASETS.get(spec.name) == spec:
        return
    if spec.name in DatasetCatalog.list():
        raise ValueError(
            f"DATASETS.CUSTOM.NAMES: {spec.name} already stands for another data set; choose another name"
        )
    register_dataset(spec)
