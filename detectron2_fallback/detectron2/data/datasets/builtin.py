"""Registers the builtin data sets under the folder of the environment variable ``DETECTRON2_DATASETS``.

Nothing is opened here: a data set that is not on disk does no harm until somebody loads it.
"""

from __future__ import annotations

import os

from detectron2.data.catalog import MetadataCatalog

from .builtin_meta import _get_builtin_metadata
from .coco import register_coco_instances
from .coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated

__all__ = ["register_all_coco"]

# name -> (image folder, instance json), below the root
_PREDEFINED_SPLITS_COCO = {
    "coco": {
        "coco_2014_train": ("coco/train2014", "coco/annotations/instances_train2014.json"),
        "coco_2014_val": ("coco/val2014", "coco/annotations/instances_val2014.json"),
        "coco_2014_minival": ("coco/val2014", "coco/annotations/instances_minival2014.json"),
        "coco_2014_valminusminival": ("coco/val2014", "coco/annotations/instances_valminusminival2014.json"),
        "coco_2017_train": ("coco/train2017", "coco/annotations/instances_train2017.json"),
        "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json"),
        "coco_2017_test": ("coco/test2017", "coco/annotations/image_info_test2017.json"),
        "coco_2017_test-dev": ("coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
        "coco_2017_val_100": ("coco/val2017", "coco/annotations/instances_val2017_100.json"),
    },
    "coco_person": {
        "keypoints_coco_2014_train": ("coco/train2014", "coco/annotations/person_keypoints_train2014.json"),
        "keypoints_coco_2014_val": ("coco/val2014", "coco/annotations/person_keypoints_val2014.json"),
        "keypoints_coco_2017_train": ("coco/train2017", "coco/annotations/person_keypoints_train2017.json"),
        "keypoints_coco_2017_val": ("coco/val2017", "coco/annotations/person_keypoints_val2017.json"),
        "keypoints_coco_2017_val_100": (
            "coco/val2017",
            "coco/annotations/person_keypoints_val2017_100.json",
        ),
    },
}

# name -> (folder of panoptic PNGs, panoptic json, folder of semantic maps), below the root
_PREDEFINED_SPLITS_COCO_PANOPTIC = {
    f"coco_2017_{split}_panoptic": (
        f"coco/panoptic_{folder}",
        f"coco/annotations/panoptic_{folder}.json",
        f"coco/panoptic_stuff_{folder}",
    )
    for split, folder in (("train", "train2017"), ("val", "val2017"), ("val_100", "val2017_100"))
}


def register_all_coco(root: str) -> None:
    """Register COCO instances, keypoints and panoptic segmentation.

    Args:
        root: the folder that holds "coco/".
    """
    for family, splits in _PREDEFINED_SPLITS_COCO.items():
        for name, (image_root, json_file) in splits.items():
            register_coco_instances(
                name,
                _get_builtin_metadata(family),
                os.path.join(root, json_file),
                os.path.join(root, image_root),
            )
    for name, (panoptic_root, panoptic_json, semantic_root) in _PREDEFINED_SPLITS_COCO_PANOPTIC.items():
        instances = MetadataCatalog.get(name.removesuffix("_panoptic"))
        register_coco_panoptic_separated(
            name,
            _get_builtin_metadata("coco_panoptic_separated"),
            instances.image_root,
            os.path.join(root, panoptic_root),
            os.path.join(root, panoptic_json),
            os.path.join(root, semantic_root),
            instances.json_file,
        )
        register_coco_panoptic(
            name,
            _get_builtin_metadata("coco_panoptic_standard"),
            instances.image_root,
            os.path.join(root, panoptic_root),
            os.path.join(root, panoptic_json),
            instances.json_file,
        )


register_all_coco(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
