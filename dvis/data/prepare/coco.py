"""COCO instances of the categories that a video data set knows, for joint training."""

from __future__ import annotations

import logging
from pathlib import Path

from tqdm import tqdm

from dvis.data.categories import load_mapping
from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.files import read_json, write_json

__all__ = ["TARGETS", "filter_coco"]

logger = logging.getLogger(__name__)

# Name in the file -> category table.
TARGETS = {"ytvis2019": "ytvis_2019", "ytvis2021": "ytvis_2021", "ovis": "ovis"}


def filter_coco(annotation_folder: Path, split: str, force: bool = False) -> list[Path]:
    """Write ``coco2<target>_<split>.json`` for every target; files that are there already stay.

    All images and all categories are kept, and category ids stay COCO's; of the annotations those are kept
    whose category has a counterpart in the target.

    Args:
        annotation_folder: with ``instances_<split>2017.json``.
        split: ``train`` or ``val``.
        force: write files again.

    Returns:
        the files that were written.

    Raises:
        MissingDataError, BrokenDataError: if COCO's file is missing or broken.

    Source: DVIS and its predecessors, COCO as pseudo videos.
    """
    paths = {target: annotation_folder / f"coco2{target}_{split}.json" for target in TARGETS}
    pending = {target: path for target, path in paths.items() if force or not path.exists()}
    if not pending:
        logger.info("%s: the files of the split %s are complete already.", annotation_folder, split)
        return []
    source = annotation_folder / f"instances_{split}2017.json"
    if not source.is_file():
        raise MissingDataError(
            f"{source.absolute()} is missing; download COCO 2017 from https://cocodataset.org"
        )
    content = read_json(source)
    if not isinstance(content, dict) or "annotations" not in content:
        raise BrokenDataError(f"{source}: annotations missing")
    for target, path in tqdm(pending.items(), desc=f"COCO {split}", unit="file"):
        kept = load_mapping(TARGETS[target])
        annotations = [a for a in content["annotations"] if a["category_id"] in kept]
        write_json(path, {**content, "annotations": annotations})
        logger.info("%s: %d of %d annotations", path, len(annotations), len(content["annotations"]))
    return list(pending.values())
