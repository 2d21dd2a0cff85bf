"""COCO's instance format, to and from data-set dicts; folders of semantic maps."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager
from fvcore.common.timer import Timer
from iopath.common.file_io import file_lock

__all__ = [
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "load_coco_json",
    "load_sem_seg",
    "register_coco_instances",
]

logger = logging.getLogger(__name__)

_FASTER_THAN_THIS_NEEDS_NO_MESSAGE = 1  # seconds


def local_annotation_file(path: str | os.PathLike) -> str:
    """A local path of an annotation file.

    Raises:
        FileNotFoundError: if there is none; the message says where builtin data sets are searched.
    """
    local = PathManager.get_local_path(os.fspath(path))
    if not os.path.isfile(local):
        raise FileNotFoundError(
            f"annotation file {local} does not exist. The builtin data sets are searched below the folder in "
            "the environment variable DETECTRON2_DATASETS (default: ./datasets)."
        )
    return local


def _set_categories(coco_api: Any, dataset_name: str) -> dict[int, int]:
    """Write class names and id map of the json to the metadata; return the map."""
    metadata = MetadataCatalog.get(dataset_name)
    category_ids = sorted(coco_api.getCatIds())
    categories = coco_api.loadCats(category_ids)
    metadata.thing_classes = [c["name"] for c in sorted(categories, key=lambda category: category["id"])]
    if not (min(category_ids) == 1 and max(category_ids) == len(category_ids)) and "coco" not in dataset_name:
        logger.warning(
            "Category ids in annotations are not in [1, #categories]! We'll apply a mapping for you."
        )
    id_map = {category_id: i for i, category_id in enumerate(category_ids)}
    metadata.thing_dataset_id_to_contiguous_id = id_map
    return id_map


def _valid_segmentation(segmentation: Any) -> Any:
    """Compress an RLE, keep only polygons of at least three points; empty if nothing is left."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]


def _shift_keypoints(keypoints: list[float]) -> list[float]:
    """COCO's keypoints are indices of pixels; ours are coordinates of their centres."""
    return [value if i % 3 == 2 else value + 0.5 for i, value in enumerate(keypoints)]


def load_coco_json(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict]:
    """Load a json in COCO's instance format ("instances_*.json", "person_keypoints_*.json" and the like).

    Args:
        json_file: path of the json.
        image_root: folder of the images.
        dataset_name: registered name. If given, class names and id map of the json are written to its
            metadata and category ids become contiguous; otherwise they are those of the file.
        extra_annotation_keys: further keys of annotations to keep.

    Returns:
        One dict per image in the order of image ids: "file_name", "height", "width", "image_id" and
        "annotations".

    Raises:
        ValueError: if an annotation has an empty box.
        KeyError: if an annotation has a category that the file does not list.
    """
    from pycocotools.coco import COCO

    timer = Timer()
    json_file = local_annotation_file(json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco_api = COCO(json_file)
    if timer.seconds() > _FASTER_THAN_THIS_NEEDS_NO_MESSAGE:
        logger.info("Loading %s takes %.2f seconds.", json_file, timer.seconds())

    id_map = None if dataset_name is None else _set_categories(coco_api, dataset_name)
    image_ids = sorted(coco_api.imgs)
    images = coco_api.loadImgs(image_ids)
    annotations_of_images = [coco_api.imgToAnns[image_id] for image_id in image_ids]
    num_matched = sum(len(annotations) for annotations in annotations_of_images)
    num_annotations = len(coco_api.anns)
    if num_matched < num_annotations:
        logger.warning(
            "%s contains %d annotations, but only %d of them match to images in the file.",
            json_file,
            num_annotations,
            num_matched,
        )
    if "minival" not in json_file:
        # The "minival" files of 2014 do repeat ids, and are too common to refuse.
        ids = [annotation["id"] for annotations in annotations_of_images for annotation in annotations]
        assert len(set(ids)) == len(ids), f"Annotation ids in '{json_file}' are not unique!"
    logger.info("Loaded %d images in COCO format from %s", len(images), json_file)

    kept_keys = ["iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or ())]
    dataset_dicts = []
    num_invalid = 0
    for image, image_annotations in zip(images, annotations_of_images, strict=True):
        objects = []
        for annotation in image_annotations:
            # Fails only with files that somebody made wrong, or with a broken pycocotools.
            assert annotation["image_id"] == image["id"], (annotation["image_id"], image["id"])
            assert annotation.get("ignore", 0) == 0, '"ignore" in COCO json file is not supported.'
            obj = {key: annotation[key] for key in kept_keys if key in annotation}
            if "bbox" in obj and len(obj["bbox"]) == 0:
                raise ValueError(
                    f"One annotation of image {image['id']} contains empty 'bbox' value! "
                    "This json does not have valid COCO format."
                )
            if annotation.get("segmentation"):
                obj["segmentation"] = _valid_segmentation(annotation["segmentation"])
                if len(obj["segmentation"]) == 0:
                    num_invalid += 1
                    continue
            if annotation.get("keypoints"):
                obj["keypoints"] = _shift_keypoints(annotation["keypoints"])
            obj["bbox_mode"] = BoxMode.XYWH_ABS
            if id_map is not None:
                if obj["category_id"] not in id_map:
                    raise KeyError(
                        f"Encountered category_id={obj['category_id']} but this id does not exist in "
                        f"'categories' of the json file {json_file}."
                    )
                obj["category_id"] = id_map[obj["category_id"]]
            objects.append(obj)
        dataset_dicts.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                "annotations": objects,
            }
        )
    if num_invalid > 0:
        logger.warning(
            "Filtered out %d instances without valid segmentation (polygons of at least three points) of "
            "%s. There might be issues in your dataset generation process.",
            num_invalid,
            json_file,
        )
    return dataset_dicts


def load_sem_seg(
    gt_root: str | os.PathLike,
    image_root: str | os.PathLike,
    gt_ext: str = "png",
    image_ext: str = "jpg",
) -> list[dict]:
    """Pair images with their semantic maps by file name without extension.

    Args:
        gt_root: folder of the maps.
        image_root: folder of the images.
        gt_ext: extension of the maps.
        image_ext: extension of the images.

    Returns:
        One dict per pair, sorted: "file_name", "sem_seg_file_name". Files without partner are left out, with
        a warning.

    Raises:
        AssertionError: if there is no map.
    """

    def find(root: str, extension: str) -> dict[str, str]:
        names = [name for name in PathManager.ls(root) if name.endswith(extension)]
        return {os.path.splitext(name)[0]: os.path.join(root, name) for name in names}

    maps = find(PathManager.get_local_path(os.fspath(gt_root)), gt_ext)
    images = find(PathManager.get_local_path(os.fspath(image_root)), image_ext)
    assert len(maps) > 0, f"No annotations found in {gt_root}."
    paired = sorted(maps.keys() & images.keys())
    if len(images) != len(maps):
        logger.warning(
            "Directory %s and %s has %d and %d files, respectively. Will use their intersection of %d files.",
            image_root,
            gt_root,
            len(images),
            len(maps),
            len(paired),
        )
    logger.info("Loaded %d images with semantic segmentation from %s", len(paired), image_root)
    return [{"file_name": images[key], "sem_seg_file_name": maps[key]} for key in paired]


def _coco_annotation(annotation: dict, annotation_id: int, image: dict, reverse_id_map: dict | None) -> dict:
    """One annotation in COCO's format; ``image`` is its COCO image entry."""
    box = np.asarray(annotation["bbox"]).tolist()
    assert len(box) in (4, 5), f"bbox has to be of length 4 or 5, got {box}"
    mode = annotation["bbox_mode"]
    rotated = len(box) == 5
    to_mode = BoxMode.XYWHA_ABS if rotated else BoxMode.XYWH_ABS
    box = BoxMode.convert(box, mode, to_mode)
    category = annotation["category_id"]
    coco: dict[str, Any] = {
        "id": annotation_id,
        "image_id": image["id"],
        "bbox": [round(float(value), 3) for value in box],
        "area": float(box[2] * box[3]),
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "category_id": int(category if reverse_id_map is None else reverse_id_map[category]),
    }
    if "keypoints" in annotation:
        # back from coordinates to pixel indices
        keypoints = [
            value if i % 3 == 2 else value - 0.5
            for i, value in enumerate(np.asarray(annotation["keypoints"]).reshape(-1).tolist())
        ]
        coco["keypoints"] = keypoints
        coco["num_keypoints"] = sum(visible > 0 for visible in keypoints[2::3])
    if "segmentation" in annotation:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            polygons = [np.asarray(polygon).tolist() for polygon in segmentation]
            coco["segmentation"] = polygons
            coco["area"] = PolygonMasks([polygons]).area()[0].item()
        elif isinstance(segmentation, dict):
            segmentation = _valid_segmentation(segmentation)
            coco["area"] = float(mask_util.area(segmentation).item())
            counts = segmentation["counts"]
            coco["segmentation"] = {
                "size": [int(side) for side in segmentation["size"]],
                "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
            }
        else:
            raise TypeError(f"Unknown segmentation type {type(segmentation)}!")
    return coco


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """A registered instance data set in COCO's json format.

    Args:
        dataset_name: registered name; its metadata has "thing_classes" and perhaps
            "thing_dataset_id_to_contiguous_id", which is undone.

    Returns:
        A dict that ``json.dump`` accepts, with "info", "images", "categories" and "annotations".
    """
    dataset_dicts = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    id_map = metadata.get("thing_dataset_id_to_contiguous_id")
    reverse_id_map = None if id_map is None else {v: k for k, v in id_map.items()}
    categories = [
        {"id": i if reverse_id_map is None else reverse_id_map[i], "name": name}
        for i, name in enumerate(metadata.thing_classes)
    ]
    logger.info("Converting dataset dicts into COCO format")
    images: list[dict] = []
    annotations: list[dict] = []
    for position, dataset_dict in enumerate(dataset_dicts):
        image = {
            "id": dataset_dict.get("image_id", position),
            "width": int(dataset_dict["width"]),
            "height": int(dataset_dict["height"]),
            "file_name": str(dataset_dict["file_name"]),
        }
        images.append(image)
        for annotation in dataset_dict.get("annotations", []):
            annotations.append(_coco_annotation(annotation, len(annotations) + 1, image, reverse_id_map))
    logger.info("Conversion finished, #images: %d, #annotations: %d", len(images), len(annotations))
    coco: dict[str, Any] = {
        "info": {
            "date_created": str(datetime.datetime.now()),
            "description": "Automatically generated COCO json file for Detectron2.",
        },
        "images": images,
        "categories": categories,
        "licenses": None,
    }
    if annotations:  # a test split has none, and evaluation goes by the missing key
        coco["annotations"] = annotations
    return coco


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered instance data set to a file in COCO's json format.

    Args:
        dataset_name: see :func:`convert_to_coco_dict`.
        output_file: where to; the folder is created.
        allow_cached: whether to keep a file that exists already.
    """
    PathManager.mkdirs(os.path.dirname(output_file) or ".")
    with file_lock(output_file):  # all processes want it at the same time
        if PathManager.exists(output_file) and allow_cached:
            logger.warning(
                "Using previously cached COCO format annotations at '%s'. "
                "You need to clear the cache file if your dataset has been modified.",
                output_file,
            )
            return
        logger.info("Converting annotations of dataset '%s' to COCO format ...", dataset_name)
        coco_dict = convert_to_coco_dict(dataset_name)
        logger.info("Caching COCO format annotations at '%s' ...", output_file)
        # A run that is killed here must not leave half a file that the next run takes for a cache.
        temporary = output_file + ".tmp"
        with PathManager.open(temporary, "w") as file:
            json.dump(coco_dict, file)
        os.replace(temporary, output_file)


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register a data set in COCO's instance format.

    Args:
        name: name of the data set.
        metadata: extra metadata; may be empty, since class names are read from the json when it is loaded.
        json_file: path of the json.
        image_root: folder of the images.
    """
    assert isinstance(name, str), name
    assert isinstance(json_file, (str, os.PathLike)), json_file
    assert isinstance(image_root, (str, os.PathLike)), image_root
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )
