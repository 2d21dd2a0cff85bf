"""Category tables of the data sets; each is a JSON file beside this one."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["load_categories", "load_mapping"]


@cache
def _read(name: str) -> dict[str, Any]:
    text = resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)


def load_categories(name: str) -> list[dict[str, Any]]:
    """Categories in file order: ``id``, ``name``, ``isthing``, ``color`` (RGB), contiguous ids.

    Args:
        name: ``ytvis_2019``, ``ytvis_2021``, ``ovis``, ``vipseg_vspw``, ``coco_panoptic``, ``toy_vis`` or
            ``toy_vps``.
    """
    return _read(name)["categories"]


def load_mapping(target: str) -> dict[int, int]:
    """COCO category id -> category id of the target data set (``ytvis_2019``, ``ytvis_2021`` or ``ovis``).

    Raises:
        KeyError: if there is no mapping to that data set; names those there are.
    """
    tables = _read("coco_to_video_mappings")
    key = f"coco_to_{target}"
    if key not in tables:
        raise KeyError(f"no mapping from COCO to {target!r}; there are {sorted(tables)}")
    return {row["coco_id"]: row["target_id"] for row in tables[key]}
