"""COCO panoptic segmentation: a json with segments and one PNG of segment ids per image."""

from __future__ import annotations

import json
import os
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from .coco import load_coco_json, load_sem_seg, local_annotation_file

__all__ = ["load_coco_panoptic_json", "register_coco_panoptic", "register_coco_panoptic_separated"]


def _convert_category_id(segment_info: dict, meta: dict) -> dict:
    """A copy of a segment with the contiguous class id, and "isthing"."""
    category = segment_info["category_id"]
    isthing = category in meta["thing_dataset_id_to_contiguous_id"]
    table = meta["thing_dataset_id_to_contiguous_id" if isthing else "stuff_dataset_id_to_contiguous_id"]
    return {**segment_info, "category_id": table[category], "isthing": isthing}


def load_coco_panoptic_json(json_file: str, image_dir: str, gt_dir: str, meta: dict[str, Any]) -> list[dict]:
    """Load a COCO panoptic data set.

    Args:
        json_file: path of the json.
        image_dir: folder of the images ("<name>.jpg" for the mask "<name>.png").
        gt_dir: folder of the PNGs.
        meta: with "thing_dataset_id_to_contiguous_id" and "stuff_dataset_id_to_contiguous_id".

    Returns:
        One dict per image: "file_name", "image_id", "pan_seg_file_name" and "segments_info".
    """
    with open(local_annotation_file(json_file)) as file:
        json_info = json.load(file)
    dataset_dicts = []
    for annotation in json_info["annotations"]:
        stem = os.path.splitext(annotation["file_name"])[0]
        dataset_dicts.append(
            {
                "file_name": os.path.join(image_dir, stem + ".jpg"),
                "image_id": int(annotation["image_id"]),
                "pan_seg_file_name": os.path.join(gt_dir, annotation["file_name"]),
                "segments_info": [_convert_category_id(s, meta) for s in annotation["segments_info"]],
            }
        )
    assert len(dataset_dicts), f"No images found in {image_dir}!"
    # A wrong folder should be noticed now rather than in the first batch.
    for key in ("file_name", "pan_seg_file_name"):
        assert PathManager.isfile(dataset_dicts[0][key]), dataset_dicts[0][key]
    return dataset_dicts


def register_coco_panoptic(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    instances_json: str | None = None,
) -> None:
    """Register a data set in COCO's panoptic format under ``name``.

    Args:
        name: name of the data set.
        metadata: extra metadata, among them the two id maps.
        image_root: folder of the images.
        panoptic_root: folder of the PNGs.
        panoptic_json: path of the panoptic json.
        instances_json: path of an instance json, for the instance evaluation.
    """
    DatasetCatalog.register(
        name, lambda: load_coco_panoptic_json(panoptic_json, image_root, panoptic_root, metadata)
    )
    MetadataCatalog.get(name).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
        **metadata,
    )


def register_coco_panoptic_separated(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str,
    instances_json: str,
) -> None:
    """Register ``<name>_separated`` (instances + semantic maps) and ``<name>_stuffonly`` (semantic maps).

    This is what Panoptic FPN trains on: thing annotations from the instance json, stuff from semantic maps
    that were made of the panoptic ones.

    Args:
        name: of the panoptic data set.
        metadata: extra metadata, among them the two id maps.
        image_root: folder of the images.
        panoptic_root: folder of the panoptic PNGs.
        panoptic_json: path of the panoptic json.
        sem_seg_root: folder of the semantic maps.
        instances_json: path of the instance json.
    """
    panoptic_name = name + "_separated"
    DatasetCatalog.register(
        panoptic_name,
        lambda: merge_to_panoptic(
            load_coco_json(instances_json, image_root, panoptic_name),
            load_sem_seg(sem_seg_root, image_root),
        ),
    )
    MetadataCatalog.get(panoptic_name).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        sem_seg_root=sem_seg_root,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        **metadata,
    )
    semantic_name = name + "_stuffonly"
    DatasetCatalog.register(semantic_name, lambda: load_sem_seg(sem_seg_root, image_root))
    MetadataCatalog.get(semantic_name).set(
        sem_seg_root=sem_seg_root,
        image_root=image_root,
        evaluator_type="sem_seg",
        ignore_label=255,
        **metadata,
    )


def merge_to_panoptic(detection_dicts: list[dict], sem_seg_dicts: list[dict]) -> list[dict]:
    """Add the semantic map of the same image to every detection dict.

    Args:
        detection_dicts: with "file_name" and annotations.
        sem_seg_dicts: with "file_name" and "sem_seg_file_name".

    Returns:
        Copies of ``detection_dicts`` with "sem_seg_file_name".
    """
    assert len(sem_seg_dicts), "no semantic maps"
    semantic_of = {entry["file_name"]: entry for entry in sem_seg_dicts}
    return [{**entry, **semantic_of[entry["file_name"]]} for entry in detection_dicts]
