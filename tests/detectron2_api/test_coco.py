"""COCO's formats, builtin registrations and metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    convert_to_coco_json,
    load_coco_json,
    load_sem_seg,
    register_coco_instances,
    register_coco_panoptic,
    register_coco_panoptic_separated,
)
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, _get_builtin_metadata
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from detectron2.structures import BoxMode
from PIL import Image

import detectron2_fallback

NAME = "test_coco_data"


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before[0]:
        DatasetCatalog.remove(name)
    for name in set(MetadataCatalog.list()) - before[1]:
        MetadataCatalog.remove(name)


def ring() -> np.ndarray:
    y, x = np.mgrid[:100, :100]
    distance = np.hypot(x - 50, y - 50)
    return ((distance > 10) & (distance < 20)).astype(np.uint8)


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, len(flat)]).tolist()
    return {"counts": counts if flat[0] == 0 else [0, *counts], "size": list(mask.shape)}


def dicts_of(*annotations: dict[str, Any]) -> list[dict]:
    return [
        {"file_name": "test", "image_id": 0, "height": 100, "width": 100, "annotations": list(annotations)}
    ]


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


# ------------------------------------------------------------------ to COCO and back


bundled_only = pytest.mark.skipif(not detectron2_fallback.is_bundled(), reason="upstream cannot do this")


@pytest.mark.parametrize(
    "encode",
    [
        lambda mask: mask_util.encode(np.asfortranarray(mask)),
        pytest.param(uncompressed, marks=bundled_only),
    ],
)
def test_masks_survive_the_json(tmp_path: Path, encode: Any) -> None:
    mask = ring()
    ys, xs = mask.nonzero()
    box = [int(v) for v in (xs.min(), ys.min(), xs.max(), ys.max())]
    annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    DatasetCatalog.register(NAME, lambda: dicts_of({**annotation, "segmentation": encode(mask)}))
    MetadataCatalog.get(NAME).set(thing_classes=["ring"])
    (entry,) = load_coco_json(write(tmp_path / "test.json", convert_to_coco_dict(NAME)), "")
    (loaded,) = entry["annotations"]
    np.testing.assert_array_equal(mask_util.decode(loaded["segmentation"]), mask)
    assert loaded["bbox_mode"] == BoxMode.XYWH_ABS
    assert BoxMode.convert(loaded["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) == box


def test_uncompressed_code_is_the_same_mask() -> None:
    compressed = mask_util.encode(np.asfortranarray(ring()))
    assert mask_util.frPyObjects(uncompressed(ring()), 100, 100) == compressed


def test_coco_dict() -> None:
    rotated = {"bbox": [10, 10, 10, 10, 5], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 0, "iscrowd": 0}
    upright = {"bbox": [15, 15, 18, 19], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 1}
    triangle = {**upright, "segmentation": [[0, 0, 10, 0, 0, 10]], "iscrowd": 0}
    DatasetCatalog.register(NAME, lambda: dicts_of(rotated, upright, triangle))
    MetadataCatalog.get(NAME).set(thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={5: 0, 9: 1})
    coco = convert_to_coco_dict(NAME)
    json.dumps(coco)
    assert coco["categories"] == [{"id": 5, "name": "a"}, {"id": 9, "name": "b"}]
    first, second, third = coco["annotations"]
    assert first["bbox"] == [10, 10, 10, 10, 5]
    assert first["area"] == pytest.approx(100)
    assert second["bbox"] == [15, 15, 3, 4]
    assert second["area"] == 12
    assert [a["iscrowd"] for a in coco["annotations"]] == [0, 1, 0]
    assert [a["category_id"] for a in coco["annotations"]] == [5, 9, 9]
    assert [a["id"] for a in coco["annotations"]] == [1, 2, 3]
    assert third["area"] == pytest.approx(50)
    assert coco["images"] == [{"id": 0, "width": 100, "height": 100, "file_name": "test"}]


def test_coco_json_is_cached(tmp_path: Path) -> None:
    annotation = {"bbox": [1, 1, 2, 2], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    DatasetCatalog.register(NAME, lambda: dicts_of(annotation))
    MetadataCatalog.get(NAME).set(thing_classes=["a"])
    path = tmp_path / "folder" / "cache.json"
    convert_to_coco_json(NAME, str(path))
    assert len(json.loads(path.read_text())["annotations"]) == 1
    path.write_text("{}")
    convert_to_coco_json(NAME, str(path))
    assert path.read_text() == "{}"
    convert_to_coco_json(NAME, str(path), allow_cached=False)
    assert len(json.loads(path.read_text())["annotations"]) == 1
    assert not list(path.parent.glob("*.tmp"))


# ------------------------------------------------------------------ instances


def instance_json(**changes: Any) -> dict[str, Any]:
    annotation = {
        "id": 1,
        "image_id": 7,
        "category_id": 3,
        "iscrowd": 0,
        "bbox": [1, 2, 3, 4],
        "area": 12,
        "segmentation": [[1, 2, 4, 2, 4, 6]],
        "keypoints": [1, 2, 2],
        "colour": "red",
    }
    return {
        "info": {},
        "images": [
            {"id": 9, "file_name": "nine.jpg", "height": 20, "width": 30},
            {"id": 7, "file_name": "seven.jpg", "height": 10, "width": 12},
        ],
        "categories": [{"id": 8, "name": "late"}, {"id": 3, "name": "early"}],
        "annotations": [{**annotation, **changes}],
    }


def test_instances_load_in_the_order_of_image_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "instances.json", instance_json())
    register_coco_instances(NAME, {"extra": 1}, path, "images")
    metadata = MetadataCatalog.get(NAME)
    assert (metadata.json_file, metadata.image_root, metadata.evaluator_type) == (path, "images", "coco")
    assert metadata.extra == 1
    first, second = DatasetCatalog.get(NAME)
    assert metadata.thing_classes == ["early", "late"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 8: 1}
    assert first == {
        "file_name": os.path.join("images", "seven.jpg"),
        "height": 10,
        "width": 12,
        "image_id": 7,
        "annotations": [
            {
                "iscrowd": 0,
                "bbox": [1, 2, 3, 4],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "keypoints": [1.5, 2.5, 2],
                "segmentation": [[1, 2, 4, 2, 4, 6]],
            }
        ],
    }
    assert second["image_id"] == 9
    assert second["annotations"] == []


def test_extra_keys_and_dataset_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "instances.json", instance_json())
    (annotation,) = load_coco_json(path, "", extra_annotation_keys=["colour"])[0]["annotations"]
    assert annotation["colour"] == "red"
    assert annotation["category_id"] == 3


def test_degenerate_polygons_are_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", instance_json(segmentation=[[1, 2, 4, 2]]))
    assert load_coco_json(path, "")[0]["annotations"] == []
    path = write(tmp_path / "b.json", instance_json(segmentation=[[1, 2, 4, 2], [1, 2, 4, 2, 4, 6]]))
    assert load_coco_json(path, "")[0]["annotations"][0]["segmentation"] == [[1, 2, 4, 2, 4, 6]]


def test_broken_instance_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        load_coco_json(str(tmp_path / "missing.json"), "")
    with pytest.raises(ValueError, match="bbox"):
        load_coco_json(write(tmp_path / "box.json", instance_json(bbox=[])), "")
    with pytest.raises(KeyError, match="4"):
        load_coco_json(write(tmp_path / "category.json", instance_json(category_id=4)), "", NAME)
    twice = instance_json()
    twice["annotations"].append(dict(twice["annotations"][0]))
    with pytest.raises(AssertionError, match="unique"):
        load_coco_json(write(tmp_path / "twice.json", twice), "")


# ------------------------------------------------------------------ semantic and panoptic


def test_semantic_maps_are_paired_by_name(tmp_path: Path) -> None:
    for folder, files in (("images", "abc"), ("maps", "cba")):
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / f"{file}.{'jpg' if folder == 'images' else 'png'}").touch()
    images, maps = str(tmp_path / "images"), str(tmp_path / "maps")
    pairs = load_sem_seg(maps, images)
    assert [os.path.basename(p["file_name"]) for p in pairs] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [os.path.basename(p["sem_seg_file_name"]) for p in pairs] == ["a.png", "b.png", "c.png"]
    (tmp_path / "maps" / "b.png").unlink()
    assert [os.path.basename(p["file_name"]) for p in load_sem_seg(maps, images)] == ["a.jpg", "c.jpg"]
    assert len(load_sem_seg(images, maps, gt_ext="jpg", image_ext="png")) == 2
    with pytest.raises(AssertionError):
        load_sem_seg(maps, images, gt_ext="bmp")


def panoptic_files(root: Path) -> str:
    (root / "images").mkdir()
    (root / "pan").mkdir()
    Image.new("RGB", (4, 4)).save(root / "images" / "x.jpg")
    Image.new("RGB", (4, 4)).save(root / "pan" / "x.png")
    segments = [{"id": 1, "category_id": 18, "iscrowd": 0}, {"id": 2, "category_id": 200, "iscrowd": 0}]
    annotation = {"image_id": 12, "file_name": "x.png", "segments_info": segments}
    return write(root / "panoptic.json", {"annotations": [annotation]})


def test_panoptic_standard(tmp_path: Path) -> None:
    path = panoptic_files(tmp_path)
    meta = _get_builtin_metadata("coco_panoptic_standard")
    register_coco_panoptic(
        NAME, meta, str(tmp_path / "images"), str(tmp_path / "pan"), path, "instances.json"
    )
    (entry,) = DatasetCatalog.get(NAME)
    assert entry["image_id"] == 12
    assert entry["file_name"] == str(tmp_path / "images" / "x.jpg")
    assert entry["pan_seg_file_name"] == str(tmp_path / "pan" / "x.png")
    assert entry["segments_info"] == [
        {"id": 1, "category_id": 16, "iscrowd": 0, "isthing": True},
        {"id": 2, "category_id": 132, "iscrowd": 0, "isthing": False},
    ]
    metadata = MetadataCatalog.get(NAME)
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.label_divisor == 1000
    assert metadata.ignore_label == 255
    assert metadata.json_file == "instances.json"
    (tmp_path / "images" / "x.jpg").unlink()
    with pytest.raises(AssertionError, match=r"x\.jpg"):
        load_coco_panoptic_json(path, str(tmp_path / "images"), str(tmp_path / "pan"), meta)


def test_panoptic_separated(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "stuff").mkdir()
    for name in ("seven", "nine"):
        (tmp_path / "images" / f"{name}.jpg").touch()
        (tmp_path / "stuff" / f"{name}.png").touch()
    path = write(tmp_path / "instances.json", instance_json())
    meta = {"stuff_classes": ["things", "sky"]}
    images, stuff = str(tmp_path / "images"), str(tmp_path / "stuff")
    register_coco_panoptic_separated(NAME, meta, images, "pan", "panoptic.json", stuff, path)
    first, second = DatasetCatalog.get(NAME + "_separated")
    assert first["sem_seg_file_name"] == os.path.join(stuff, "seven.png")
    assert len(first["annotations"]) == 1
    assert second["sem_seg_file_name"] == os.path.join(stuff, "nine.png")
    only_stuff = DatasetCatalog.get(NAME + "_stuffonly")
    assert [set(entry) for entry in only_stuff] == [{"file_name", "sem_seg_file_name"}] * 2
    assert MetadataCatalog.get(NAME + "_stuffonly").evaluator_type == "sem_seg"
    assert MetadataCatalog.get(NAME + "_separated").sem_seg_root == stuff


# ------------------------------------------------------------------ builtin


@pytest.mark.parametrize(
    "name",
    [
        "coco_2014_train",
        "coco_2014_minival",
        "coco_2017_train",
        "coco_2017_val",
        "coco_2017_test-dev",
        "coco_2017_val_100",
        "keypoints_coco_2017_train",
        "coco_2017_train_panoptic",
        "coco_2017_val_panoptic",
        "coco_2017_val_panoptic_separated",
        "coco_2017_val_panoptic_stuffonly",
        "coco_2017_val_100_panoptic",
    ],
)
def test_builtin_names(name: str) -> None:
    assert name in DatasetCatalog.list()
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    assert MetadataCatalog.get(name).image_root.startswith(os.path.join(root, "coco"))


def test_coco_instances() -> None:
    metadata = MetadataCatalog.get("coco_2017_train")
    assert len(metadata.thing_classes) == len(metadata.thing_colors) == 80
    assert metadata.thing_classes[0] == "person"
    assert metadata.thing_classes[79] == "toothbrush"
    assert metadata.thing_dataset_id_to_contiguous_id[1] == 0
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 79
    assert sorted(metadata.thing_dataset_id_to_contiguous_id.values()) == list(range(80))


def test_coco_panoptic() -> None:
    assert len(COCO_CATEGORIES) == 133
    assert sum(category["isthing"] for category in COCO_CATEGORIES) == 80
    standard = MetadataCatalog.get("coco_2017_val_panoptic")
    assert len(standard.thing_classes) == len(standard.stuff_classes) == 133
    assert len(standard.thing_colors) == len(standard.stuff_colors) == 133
    assert standard.thing_dataset_id_to_contiguous_id[90] == 79
    assert standard.stuff_dataset_id_to_contiguous_id[92] == 80
    assert standard.stuff_dataset_id_to_contiguous_id[200] == 132
    separated = MetadataCatalog.get("coco_2017_val_panoptic_separated")
    assert len(separated.thing_classes) == 80
    assert len(separated.stuff_classes) == len(separated.stuff_colors) == 54
    assert separated.stuff_classes[0] == "things"
    assert separated.stuff_dataset_id_to_contiguous_id[0] == 0
    assert separated.stuff_dataset_id_to_contiguous_id[92] == 1
    assert separated.stuff_dataset_id_to_contiguous_id[200] == 53
    assert "wall" in separated.stuff_classes  # without "-other-merged"


def test_keypoints_of_persons() -> None:
    metadata = MetadataCatalog.get("keypoints_coco_2017_val")
    assert metadata.thing_classes == ["person"]
    assert len(metadata.keypoint_names) == 17
    assert len(metadata.keypoint_flip_map) == 8


def test_unknown_family() -> None:
    with pytest.raises(KeyError):
        _get_builtin_metadata("no_such_data_set")
