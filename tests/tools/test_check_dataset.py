"""The data set check finds what is broken, says where, and counts what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from dvis.data.label_images import read_class_map, read_segment_ids, segment_ids_to_rgb, write_png
from dvis.data.toy import ToySettings, generate
from tools import check_dataset

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generate(root / "toy", ToySettings(num_train=0, num_val=3, height=40, width=56, length=5), workers=1)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path / "toy"


def edit_json(path: Path, edit: Edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["toy_vis_val", "toy_vps_val", "toy_vss_val"])
def test_a_sound_data_set_is_counted(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_dataset.main([name]) == 0
    lines = dict(
        line.strip().rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[:2] == "  "
    )
    assert (lines["videos"], lines["frames"], lines["longest video"]) == ("3", "15", "5")
    content = json.loads((root / "val.json").read_text())
    if name == "toy_vis_val":
        assert int(lines["tracks"]) == len(content["annotations"])
        assert int(lines["masks"]) == sum(
            m is not None for a in content["annotations"] for m in a["segmentations"]
        )
        assert int(lines["disc"]) == sum(a["category_id"] == 1 for a in content["annotations"])


def annotation(key: str, value: Any) -> Edit:
    return lambda content: content["annotations"][2].update({key: value})


def broken_mask(value: Any) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][2]["segmentations"][1] = value

    return edit


BROKEN_INSTANCES: dict[str, tuple[Edit, str]] = {
    "cut text": (broken_mask({"size": [40, 56], "counts": "abc"}), "frame 1: broken mask: "),
    "short runs": (
        broken_mask({"size": [40, 56], "counts": [3, 4]}),
        "frame 1: broken mask: the runs cover 7",
    ),
    "other size": (
        broken_mask({"size": [20, 56], "counts": [20 * 56]}),
        "frame 1: the mask has (20, 56) pixels, the frame (40, 56)",
    ),
    "no mask": (broken_mask(5), "frame 1: broken mask: a mask is null, polygons or"),
    "category": (annotation("category_id", 77), "category 77 does not exist"),
    "lengths": (annotation("bboxes", [None]), "1 bboxes for 5 frames"),
    "twice": (annotation("id", 1), "the id is there twice"),
}


@pytest.mark.parametrize("case", BROKEN_INSTANCES)
def test_broken_annotations_are_named(case: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit, message = BROKEN_INSTANCES[case]
    path = root / "val.json"
    third = json.loads(path.read_text())["annotations"][2]
    edit_json(path, edit)
    assert check_dataset.main(["toy_vis_val"]) == 1
    number = 1 if case == "twice" else third["id"]
    place = f"error: {path}, video {third['video_id']}, annotation {number}"
    output = capsys.readouterr().out
    assert any(line.startswith(place) and message in line for line in output.splitlines())


def test_other_errors_of_instances(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "val.json"

    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["video_id"] = 99
        del content["annotations"][1]["category_id"]
        content["videos"][0]["length"] = 7
        content["videos"][1]["id"] = content["videos"][0]["id"]
        content["categories"].append({"id": 9, "name": "disc"})
        content["annotations"][2]["segmentations"] = [None] * 5

    edit_json(path, edit)
    frames = root / "val/JPEGImages"
    (frames / "val_0000/00000.jpg").unlink()
    (frames / "val_0002/00001.jpg").write_bytes((frames / "val_0002/00001.jpg").read_bytes()[:200])
    Image.new("RGB", (10, 12)).save(frames / "val_0002/00002.jpg")
    assert check_dataset.main([str(path), "--images", str(frames)]) == 1
    output = capsys.readouterr().out
    for message in (
        f"error: {path}, video 99, annotation 1: there is no such video",
        f"error: {path}, video 1, annotation 2: category_id missing",
        f"error: {path}, video 1: length 7, but 5 file names",
        f"error: {path}, video 1: the id is there twice",
        "annotation 3: never visible",
        f"error: {path}, video 3, frame 1: {frames / 'val_0002/00001.jpg'} cannot be read",
        f"{frames / 'val_0002/00002.jpg'} has (12, 10) pixels, the annotations say (40, 56)",
        f"note: {path}: no categories with the ids [7, 8]",
        f"note: {path}: several categories are called disc",
    ):
        assert message in output
    assert check_dataset.main(["toy_vis_val", "--limit", "2"]) == 1
    output = capsys.readouterr().out
    assert "toy_vis_val has no categories [9]" not in output  # cut off
    assert "more errors" in output


def test_a_split_without_ground_truth_is_sound(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_json(root / "val.json", lambda content: content.pop("annotations"))
    assert check_dataset.main(["toy_vis_val"]) == 0
    assert "no annotations (a split without public ground truth)" in capsys.readouterr().out


def test_images_of_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    polygon = [0.0, 0.0, 3.0, 0.0, 3.0, 3.0]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 8, "width": 6} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [polygon]},
            {
                "id": 2,
                "image_id": 1,
                "category_id": 3,
                "iscrowd": 1,
                "segmentation": {"size": [8, 6], "counts": [47]},
            },
            {"id": 3, "image_id": 5, "category_id": 3, "segmentation": [polygon]},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    Image.new("RGB", (6, 8)).save(tmp_path / "1.jpg")
    assert check_dataset.main([str(path), "--images", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert f"error: {path}, image 1, annotation 2: broken mask" in output
    assert f"error: {path}, image 5, annotation 3: there is no such image" in output
    assert f"error: {path}, image 2, frame 0: {tmp_path / '2.jpg'} is missing" in output
    assert "no categories with the ids [2]" in output
    assert "frames without objects" in output
    assert output.endswith("3 errors, 1 notes\n")


def test_panoptic_errors(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, masks = root / "vipseg/panoptic_gt_val.json", root / "vipseg/panomasksRGB"

    def edit(content: dict[str, Any]) -> None:
        first = content["annotations"][0]["annotations"]
        first[0]["segments_info"][0]["area"] += 1
        first[1]["segments_info"].append({"id": 77, "category_id": 99, "iscrowd": 0, "area": 4})
        content["annotations"][1]["annotations"].pop()
        content["annotations"].append({"video_id": "lost", "annotations": []})

    edit_json(path, edit)
    ids = read_segment_ids(masks / "val_0002/00003.png")
    write_png(masks / "val_0002/00003.png", segment_ids_to_rgb(np.where(ids == ids[0, 0], 4711, ids)))
    (masks / "val_0002/00004.png").unlink()
    assert check_dataset.main(["toy_vps_val"]) == 1
    output = capsys.readouterr().out
    for message in (
        "video val_0000, frame 0 (00000.png), segment ",
        ": area ",
        "video val_0000, frame 1 (00001.png), segment 77: category 99 does not exist",
        "video val_0000, frame 1 (00001.png), segment 77: listed, but not in",
        "video val_0001: 5 images, 4 annotated frames",
        "video lost: annotated, but not in the list of videos",
        "has the segment 4711, which is not listed",
        "00004.png: no such label image",
    ):
        assert message in output, message


def test_panoptic_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "1.png", segment_ids_to_rgb(np.full((4, 6), 9, np.uint32)))
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 4, "width": 6}],
        "annotations": [
            {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 9, "category_id": 1, "area": 24}]},
        ],
        "categories": [{"id": 1, "name": "sky"}],
    }
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    assert check_dataset.main([str(path), "--masks", str(tmp_path)]) == 0
    content["annotations"].append({"image_id": 2, "file_name": "2.png", "segments_info": []})
    path.write_text(json.dumps(content))
    assert check_dataset.main([str(path), "--masks", str(tmp_path)]) == 1
    assert "image 2: annotated, but not in the list of images" in capsys.readouterr().out


def test_semantic_errors(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "vspw/data/val_0001"
    labels = read_class_map(folder / "mask/00001.png").copy()
    labels[0, 0] = 200
    write_png(folder / "mask/00001.png", labels)
    write_png(folder / "mask/00002.png", labels[:20])
    (folder / "mask/00003.png").unlink()
    shutil.rmtree(root / "vspw/data/val_0002")
    assert check_dataset.main(["toy_vss_val"]) == 1
    output = capsys.readouterr().out
    for message in (
        "video val_0001, frame 00001: ",
        "has the values [200], which stand for no class",
        "00002.png has (20, 56) pixels, the image (40, 56)",
        "00003.png: no such label image",
        "video val_0002: no images in",
    ):
        assert message in output


def test_what_is_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content, message in (
        ("none.json", None, "none.json is neither a file nor a data set; known are "),
        ("cut.json", "{", "cut.json is not valid JSON"),
        ("list.json", "[]", "list.json: neither videos nor images at the top level"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(SystemExit) as stop:
            check_dataset.main([str(tmp_path / name)])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def configure(root: Path, **custom: Any) -> Path:
    """A configuration with one data set of each form, all made from the toy under other names."""
    instances = json.loads((root / "val.json").read_text())
    for category in instances["categories"]:
        category["name"] = f"my {category['name']}"
    (root / "my_videos.json").write_text(json.dumps(instances))
    images = {
        "images": [{**video, "file_name": video["file_names"][0]} for video in instances["videos"]],
        "annotations": [
            {"id": a["id"], "image_id": a["video_id"], "category_id": a["category_id"], "segmentation": mask}
            for a in instances["annotations"]
            if (mask := a["segmentations"][0])
        ],
        "categories": instances["categories"],
    }
    (root / "my_images.json").write_text(json.dumps(images))
    panoptic = json.loads((root / "vipseg/panoptic_gt_val.json").read_text())
    (root / "my_classes.json").write_text(json.dumps(panoptic.pop("categories")))
    (root / "my_segments.json").write_text(json.dumps(panoptic))
    names = ["my_videos", "my_images", "my_segments", "my_maps"]
    settings = {
        # Names stay registered, and the tests have different folders.
        "NAMES": [f"{name}_{root.parent.name}" for name in names],
        "TYPES": ["video_instance", "image_instance", "video_panoptic", "video_semantic"],
        "ANNOTATIONS": [*(str(root / f"{name}.json") for name in names[:3]), str(root / "vspw/val.txt")],
        "IMAGES": ["toy/val/JPEGImages", "toy/val/JPEGImages", "toy/vipseg/images", "toy/vspw/data"],
        "MASKS": ["", "", "toy/vipseg/panomasksRGB", ""],
        "CATEGORIES": ["", "", str(root / "my_classes.json"), str(root / "my_classes.json")],
        **custom,
    }
    config = {"DATASETS": {"CUSTOM": settings, "TRAIN": settings["NAMES"][:2], "TEST": settings["NAMES"][2:]}}
    (root / "my.yaml").write_text(yaml.safe_dump(config))
    return root / "my.yaml"


def test_custom_data_sets_of_a_configuration(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(configure(root))
    assert check_dataset.main(["--config-file", config]) == 0
    output = capsys.readouterr().out
    for name in ("my_videos.json", "my_images.json", "my_segments.json", "val.txt", "my disc", "sky"):
        assert name in output
    assert output.count(" 0 errors") + output.count("\n0 errors") == 4

    edit_json(root / "my_segments.json", lambda c: c["annotations"][1]["annotations"].pop())
    assert check_dataset.main(["--config-file", config]) == 1
    error = f"error: {root / 'my_segments.json'}, video val_0001: 5 images, 4 annotated frames"
    assert error in capsys.readouterr().out
    assert check_dataset.main([f"my_videos_{root.parent.name}", "--config-file", config]) == 0

    (root / "val/JPEGImages/val_0001/00000.jpg").unlink()
    images = f"my_images_{root.parent.name}"
    assert check_dataset.main([images, "--config-file", config]) == 1
    assert "00000.jpg is missing" in capsys.readouterr().out


def test_wrong_configurations_of_custom_data_sets(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(configure(root, TYPES=["video"] * 4))
    for arguments, message in (
        (["--config-file", config], "'video' of my_videos"),
        (["--config-file", str(root / "no.yaml")], "no.yaml: no such file"),
        (
            ["--config-file", config, "--opts", "DATASETS.CUSTOM.NAMES", "['a']"],
            "has 4 entries for 1 data sets",
        ),
        ([], "name a data set, an annotation file, or a configuration"),
        (["a", "b", "--images", "x"], "--images and --masks are the folders of one"),
    ):
        with pytest.raises(SystemExit) as stop:
            check_dataset.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_a_panoptic_set_without_annotations_is_one(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_json(root / "vipseg/panoptic_gt_val.json", lambda c: c.update(annotations=[]))
    assert check_dataset.main(["toy_vps_val"]) == 1
    assert "video val_0000: 5 images, no annotated frames" in capsys.readouterr().out
    edit_json(root / "vipseg/panoptic_gt_val.json", lambda c: c.pop("annotations"))
    with pytest.raises(SystemExit):
        check_dataset.main(["toy_vps_val"])
    assert "panoptic_gt_val.json: annotations missing" in capsys.readouterr().err
