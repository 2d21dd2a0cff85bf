"""Registration, category tables, loaders, and messages for what is missing or broken."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dvis.data.categories import load_categories, load_mapping
from dvis.data.datasets import (
    DATASETS,
    DatasetSpec,
    get_spec,
    load_image_instances,
    load_panoptic_videos,
    load_video_instances,
)
from dvis.data.errors import BrokenDataError, MissingDataError

PUBLISHED = {
    **dict.fromkeys([f"ytvis_2019_{split}" for split in ("train", "val", "test")], 40),
    **dict.fromkeys([f"ytvis_2021_{split}" for split in ("train", "val", "test")], 40),
    **dict.fromkeys(
        [f"ytvis_2022_{split}" for split in ("train", "val", "val_short", "val_long", "test")], 40
    ),
    **dict.fromkeys([f"ovis_{split}" for split in ("train", "val", "test")], 25),
    **dict.fromkeys([f"panoVSPW_vps_video_{split}" for split in ("train", "val", "test")], 124),
    **dict.fromkeys([f"VSPW_vss_video_{split}" for split in ("train", "val", "test")], 124),
    **dict.fromkeys([f"coco2{target}_train" for target in ("ytvis2019", "ytvis2021", "ovis")], 80),
    "coco_panoptic_video_train": 133,
    "toy_vis_train": 6,
    "toy_vps_train": 11,
    "toy_vss_val": 11,
}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_and_their_classes(name: str) -> None:
    spec, metadata = get_spec(name), MetadataCatalog.get(name)
    assert name in DatasetCatalog.list()
    assert len(spec.class_names()) == PUBLISHED[name]
    assert sorted(spec.class_of_id().values()) == list(range(PUBLISHED[name]))
    assert metadata.thing_classes == spec.class_names()
    things = metadata.thing_dataset_id_to_contiguous_id
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id", {})
    assert {**things, **stuff} == spec.class_of_id()
    # Things come first: the panoptic results rely on it.
    assert sorted(things.values()) == list(range(len(things)))


def test_importing_opens_no_file_of_a_data_set(tmp_path: Path) -> None:
    code = (
        "import sys; opened = []; "
        "sys.addaudithook(lambda name, args: opened.append(str(args[0])) if name == 'open' else None); "
        f"import dvis.data; assert not [path for path in opened if path.startswith({str(tmp_path)!r})]; "
        "assert 'ovis_train' in dvis.data.DATASETS"
    )
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=Path(__file__).parents[3])


def test_missing_files_say_what_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(MissingDataError) as error:
        DatasetCatalog.get("toy_vis_train")
    for part in (
        "toy_vis_train", str(tmp_path / "toy" / "train.json"), "DETECTRON2_DATASETS", "generate_toy.py",
    ):  # fmt: skip
        assert part in str(error.value)
    assert isinstance(error.value, FileNotFoundError)
    write(tmp_path / "toy" / "train.json", {"videos": []})
    with pytest.raises(MissingDataError, match="JPEGImages is missing"):
        DatasetCatalog.get("toy_vis_train")

    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDataError, match=r"not set, which means ./datasets"):
        DatasetCatalog.get("ovis_train")


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("toy_vis_train", "generate_toy.py"),
        ("panoVSPW_vps_video_train", "prepare_vipseg.py"),
        ("VSPW_vss_video_val", "prepare_vspw.py"),
        ("coco2ovis_train", "prepare_coco.py"),
        ("ytvis_2022_val_long", "prepare_ytvis_2022.py"),
    ],
)
def test_how_to_get_names_the_program(
    name: str, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(MissingDataError, match=f"python datasets/{script}"):
        get_spec(name).load()
    assert (Path(__file__).parents[3] / "datasets" / script).is_file()


def test_coco_mappings_lead_to_classes_of_the_same_thing() -> None:
    for source, target, size, classes in (
        ("coco2ytvis2019_train", "ytvis_2019_train", 21, 19),
        ("coco2ytvis2021_train", "ytvis_2021_train", 23, 21),
        ("coco2ovis_train", "ovis_train", 17, 15),
    ):
        class_map = get_spec(source).class_map_to(get_spec(target))
        assert len(class_map) == size
        assert len(set(class_map.values())) == classes
        names = get_spec(source).class_names(), get_spec(target).class_names()
        assert names[1][class_map[names[0].index("person")]].lower() == "person"
        assert names[1][class_map[names[0].index("zebra")]].lower() == "zebra"
    cars = get_spec("coco2ovis_train")
    assert {
        cars.class_map_to(get_spec("ovis_train"))[cars.class_names().index(n)] for n in ("car", "bus")
    } == {24}
    same = get_spec("toy_vis_train")
    assert same.class_map_to(get_spec("toy_vis_val")) == {i: i for i in range(6)}
    with pytest.raises(ValueError, match="no mapping"):
        same.class_map_to(get_spec("ovis_train"))
    with pytest.raises(ValueError, match="no mapping"):
        get_spec("coco2ovis_train").class_map_to(get_spec("toy_vis_train"))
    with pytest.raises(KeyError, match="toy"):
        load_mapping("toy")


def test_vipseg_classes_are_things_first() -> None:
    rows = load_categories("vipseg_vspw")
    assert get_spec("panoVSPW_vps_video_val").class_of_id() == {
        row["id"]: row["contiguous_id_things_first"] for row in rows
    }


def test_specs_are_checked() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        DatasetSpec("x", "video_text", "ovis", "a.json", "images")
    with pytest.raises(KeyError, match="ovis_train"):
        get_spec("ovis_training")
    assert all(name == spec.name for name, spec in DATASETS.items())


def test_toy_records(toy_data: Path) -> None:
    for task, key in (("vis", "annotations"), ("vps", "segments_infos"), ("vss", "sem_seg_file_names")):
        for split, count in (("train", 3), ("val", 2)):
            records = DatasetCatalog.get(f"toy_{task}_{split}")
            assert len(records) == count
            for record in records:
                assert record["length"] == len(record["file_names"]) == 8
                assert all(Path(name).exists() for name in record["file_names"])
                assert key in record
                if task != "vss":
                    assert (record["height"], record["width"]) == (40, 56)
    assert {r["video_id"] for r in DatasetCatalog.get("toy_vis_val")} == {1, 2}
    assert {r["video_id"] for r in DatasetCatalog.get("toy_vps_val")} == {"val_0000", "val_0001"}


VIDEO = {
    "videos": [{"id": 7, "width": 4, "height": 3, "length": 2, "file_names": ["v/0.jpg", "v/1.jpg"]}],
    "categories": [{"id": 1, "name": "a"}, {"id": 5, "name": "b"}],
    "annotations": [
        {
            "id": 9, "video_id": 7, "category_id": 5, "iscrowd": 0,
            "segmentations": [{"size": [3, 4], "counts": [2, 10]}, {"size": [3, 4], "counts": [2, 10]}],
            "bboxes": [[0, 0, 4, 3], None],
        }
    ],
}  # fmt: skip


def test_video_json(tmp_path: Path) -> None:
    (record,) = load_video_instances(write(tmp_path / "a.json", VIDEO), tmp_path, {1: 0, 5: 1})
    assert record["file_names"] == [str(tmp_path / "v/0.jpg"), str(tmp_path / "v/1.jpg")]
    (annotation,) = record["annotations"]
    assert annotation["category_id"] == 1
    # Without a box the object is not there.
    assert [mask is not None for mask in annotation["segmentations"]] == [True, False]


@pytest.mark.parametrize("annotations", [None, "missing", []])
def test_splits_without_public_ground_truth(tmp_path: Path, annotations: Any) -> None:
    content = {**VIDEO, "annotations": annotations}
    if annotations == "missing":
        del content["annotations"]
    (record,) = load_video_instances(write(tmp_path / "a.json", content), tmp_path, {1: 0, 5: 1})
    assert record.get("annotations", "none") == ([] if annotations == [] else "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 3}, r"a\.json, video 7, annotation 9: category 3 is not one of .*\[1, 5\]"),
        ({"video_id": 8}, r"a\.json, video 8, annotation 9: there is no such video"),
        ({"segmentations": [None]}, r"video 7, annotation 9: 1 segmentations and 2 boxes for 2 frames"),
        ({"segmentations": ...}, r"video 7, annotation 9: segmentations missing"),
    ],
)
def test_broken_annotations_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    content = copy.deepcopy(VIDEO)
    for key, value in changes.items():
        content["annotations"][0][key] = value
        if value is ...:
            del content["annotations"][0][key]
    with pytest.raises(BrokenDataError, match=message):
        load_video_instances(write(tmp_path / "a.json", content), tmp_path, {1: 0, 5: 1})


def test_broken_json_is_named(tmp_path: Path) -> None:
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "videos missing"),
    ):
        with pytest.raises(BrokenDataError, match=rf"a\.json.*{message}"):
            load_video_instances(write(tmp_path / "a.json", text), tmp_path, {})


def test_image_json(tmp_path: Path) -> None:
    content = {
        "images": [
            {"id": 3, "file_name": "3.jpg", "height": 8, "width": 9},
            {"id": 4, "file_name": "4.jpg", "height": 8, "width": 9},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 2, "iscrowd": 0, "segmentation": [[0, 0, 4, 0, 4, 4]]},
            {
                "id": 2, "image_id": 3, "category_id": 2, "iscrowd": 1,
                "segmentation": {"size": [8, 9], "counts": [0, 72]},
            },
        ],
    }  # fmt: skip
    first, second = load_image_instances(write(tmp_path / "c.json", content), tmp_path, {2: 0})
    assert (first["length"], first["video_id"], len(first["annotations"])) == (1, 3, 2)
    assert second["annotations"] == []
    content["annotations"][0]["image_id"] = 99
    with pytest.raises(BrokenDataError, match="image 99, annotation 1"):
        load_image_instances(write(tmp_path / "c.json", content), tmp_path, {2: 0})


def test_panoptic_images_of_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    segment = {"id": 300, "category_id": 92, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2]}
    entry = {"image_id": 5, "file_name": "000005.png", "segments_info": [segment]}
    write(tmp_path / "coco/annotations/panoptic_train2017.json", {"images": [], "annotations": [entry]})
    for folder in ("train2017", "panoptic_train2017"):
        (tmp_path / "coco" / folder).mkdir(parents=True)
    (record,) = DatasetCatalog.get("coco_panoptic_video_train")
    assert record["file_names"] == [str(tmp_path / "coco/train2017/000005.jpg")]
    assert record["segments_infos"][0][0]["category_id"] == 80  # banner, the first of COCO's stuff


def test_semantic_videos_without_masks_or_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = tmp_path / "VSPW_480p" / "data" / "127_-hIVCYO4C90" / "origin"
    folder.mkdir(parents=True)
    write(tmp_path / "VSPW_480p" / "test.txt", "127_-hIVCYO4C90")
    with pytest.raises(MissingDataError, match="127_-hIVCYO4C90: no images"):
        DatasetCatalog.get("VSPW_vss_video_test")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "00000001.jpg")
    (record,) = DatasetCatalog.get("VSPW_vss_video_test")
    assert record["video_id"] == "127_-hIVCYO4C90"
    assert "sem_seg_file_names" not in record


def test_panoptic_entries_that_do_not_fit(toy_data: Path, tmp_path: Path) -> None:
    content = json.loads((toy_data / "toy/vipseg/panoptic_gt_val.json").read_text())
    classes = get_spec("toy_vps_val").class_of_id()
    short = copy.deepcopy(content)
    short["annotations"][1]["annotations"].pop()
    with pytest.raises(BrokenDataError, match="video val_0001: 8 images, 7 annotated frames"):
        load_panoptic_videos(write(tmp_path / "p.json", short), tmp_path, tmp_path, classes)
    content["annotations"][0]["annotations"][2]["segments_info"][0]["category_id"] = 77
    with pytest.raises(BrokenDataError, match=r"video val_0000, 00002\.png, segment \d+: category 77"):
        load_panoptic_videos(write(tmp_path / "p.json", content), tmp_path, tmp_path, classes)
