"""The user's own data sets train and evaluate by configuration alone; what is wrong with them is said."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser

import dvis
import train_net_video
from dvis.data import BrokenDataError, check_datasets, get_spec, use_custom_datasets
from dvis.data.label_images import read_class_map, write_png
from tests.integration.conftest import CONFIG, ROOT, TINY

# Category id of the toy -> id and name of ours: other names, holes in the ids, another order.
CLASSES = {
    1: (70, "plate"),
    2: (5, "box"),
    3: (12, "tent"),
    4: (13, "spark"),
    5: (90, "tyre"),
    6: (3, "plus"),
}
CATEGORIES = [{"id": number, "name": name} for number, name in CLASSES.values()]
NAMES = ["plus", "box", "tent", "spark", "plate", "tyre"]  # by id
UNUSED = {"id": 40, "name": "nowhere"}
# Panoptic category id of the toy -> ours: holes, another order, too large for a byte.
SEGMENT_IDS = {number: 300 - 7 * number for number in range(11)}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def as_videos(toy: Path, split: str, **changes: Any) -> dict[str, Any]:
    """The toy's instances with our classes, without what only the benchmarks have."""
    content = json.loads((toy / f"{split}.json").read_text())
    optional = ("areas", "iscrowd", "occlusion", "bboxes")
    annotations = [
        {key: value for key, value in row.items() if key not in optional}
        | {"category_id": CLASSES[row["category_id"]][0]}
        for row in content["annotations"]
    ]
    return {"videos": content["videos"], "categories": CATEGORIES, "annotations": annotations, **changes}


def as_images(toy: Path, split: str) -> dict[str, Any]:
    """The first frame of every video, in COCO form."""
    content = as_videos(toy, split)
    images = [{**video, "file_name": video["file_names"][0]} for video in content["videos"]]
    annotations = [
        {**row, "image_id": row["video_id"], "segmentation": row["segmentations"][0]}
        for row in content["annotations"]
        if row["segmentations"][0]
    ]
    keys = ("id", "image_id", "category_id", "segmentation")
    return {
        "images": images,
        "categories": [*CATEGORIES, UNUSED],
        "annotations": [{key: row[key] for key in keys} for row in annotations],
    }


def as_vipseg(toy: Path, split: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The toy's segments with other ids, and their categories with other names, without colours."""
    content = json.loads((toy / "vipseg" / f"panoptic_gt_{split}.json").read_text())
    for video in content["annotations"]:
        for segment in (segment for frame in video["annotations"] for segment in frame["segments_info"]):
            segment["category_id"] = SEGMENT_IDS[segment["category_id"]]
    categories = [
        {"id": SEGMENT_IDS[row["id"]], "name": f"my {row['name']}", "isthing": row["isthing"]}
        for row in content.pop("categories")
    ]
    return content, categories


def write_vspw(toy: Path, target: Path) -> None:
    """The toy's semantic maps with their classes in reversed order, under other names; splits and classes."""
    table = json.loads((toy / "vipseg" / "panoptic_gt_train.json").read_text())["categories"]
    last = len(table) - 1
    write(target / "classes.json", [{"id": last - row["id"], "name": f"my {row['name']}"} for row in table])
    shutil.copytree(toy / "vspw", target, dirs_exist_ok=True)
    for path in target.glob("data/*/mask/*.png"):
        labels = read_class_map(path)
        write_png(path, np.where(labels == 0, 0, last + 2 - labels).astype(np.uint8))


def configure(path: Path, train: str, val: str, kind: str, base: Path = CONFIG, **custom: Any) -> Path:
    """A configuration of two data sets, whose annotations lie in ``path``."""
    names = [f"{path.name}_train", f"{path.name}_val"]
    settings = {
        "NAMES": names,
        "TYPES": [kind, kind],
        "ANNOTATIONS": [str(path / train), str(path / val)],
        "IMAGES": ["toy/train/JPEGImages", "toy/val/JPEGImages"],
        **custom,
    }
    datasets = {
        "TRAIN": names[:1],
        "TEST": names[1:],
        "DATASET_TYPE": [kind],
        "DATASET_TYPE_TEST": [kind],
        "CUSTOM": settings,
    }
    file = path / "custom.yaml"
    # No number of classes here; that of the base is the toy's.
    file.write_text(
        yaml.safe_dump({"_BASE_": str(base), "DATASETS": datasets, "OUTPUT_DIR": str(path / "out")})
    )
    return file


def run(config: Path, *arguments: str) -> Any:
    given = ["--config-file", str(config), *arguments, *TINY, "SOLVER.MAX_ITER", "2"]
    return train_net_video.main(default_argument_parser().parse_args(given))


def train_and_evaluate(config: Path, task: str = "segm") -> dict[str, Any]:
    run(config)
    config.write_text(
        config.read_text() + f"MODEL: {{WEIGHTS: {config.parent / 'out' / 'model_final.pth'}}}\n"
    )
    return run(config, "--eval-only")[task]


def test_videos_train_and_evaluate(data_root: Path, tmp_path: Path) -> None:
    content = as_videos(data_root / "toy", "train", categories=[*CATEGORIES, UNUSED])
    write(tmp_path / "train.json", content)
    write(tmp_path / "val.json", {**as_videos(data_root / "toy", "val"), "categories": content["categories"]})
    scores = train_and_evaluate(configure(tmp_path, "train.json", "val.json", "video_instance"))
    assert {"AP", "AP-plate", "AP-plus", "AP-nowhere"} <= scores.keys()
    predicted = json.loads((tmp_path / f"out/inference/{tmp_path.name}_val/results.json").read_text())
    assert predicted
    assert {row["category_id"] for row in predicted} <= {row["id"] for row in content["categories"]}
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert written["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] == 7


def test_images_train_as_pseudo_videos_and_evaluate(data_root: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        content = as_images(data_root / "toy", split)
        write(tmp_path / "classes.json", content.pop("categories"))
        write(tmp_path / f"{split}.json", content)
    classes = [str(tmp_path / "classes.json")] * 2
    scores = train_and_evaluate(
        configure(tmp_path, "train.json", "val.json", "image_instance", CATEGORIES=classes)
    )
    assert {"AP", "AP-plate", "AP-nowhere"} <= scores.keys()
    predicted = json.loads((tmp_path / f"out/inference/{tmp_path.name}_val/results.json").read_text())
    assert all(len(row["segmentations"]) == 1 for row in predicted)


@pytest.mark.parametrize("apart", [False, True], ids=["categories inside", "categories apart"])
def test_panoptic_folders_train_and_evaluate(apart: bool, data_root: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        content, categories = as_vipseg(data_root / "toy", split)
        write(tmp_path / f"{split}.json", content if apart else {**content, "categories": categories})
    write(tmp_path / "classes.json", categories)
    config = configure(
        tmp_path,
        "train.json",
        "val.json",
        "video_panoptic",
        CONFIG.with_name("MinVIS_toy_vps.yaml"),
        IMAGES=["toy/vipseg/images"] * 2,
        MASKS=["toy/vipseg/panomasksRGB"] * 2,
        CATEGORIES=[str(tmp_path / "classes.json")] * 2 if apart else [],
    )
    scores = train_and_evaluate(config, "vps")
    assert np.isfinite([scores[name] for name in ("VPQ1", "VPQ2", "VPQ4", "STQ", "AQ", "SQ")]).all()
    predicted = json.loads((tmp_path / f"out/inference/{tmp_path.name}_val/pred.json").read_text())
    frames = [frame for video in predicted["annotations"] for frame in video["annotations"]]
    assert {s["category_id"] for frame in frames for s in frame["segments_info"]} <= {*SEGMENT_IDS.values()}


def test_semantic_folders_train_and_evaluate(data_root: Path, tmp_path: Path) -> None:
    write_vspw(data_root / "toy", tmp_path)
    config = configure(
        tmp_path,
        "train.txt",
        "val.txt",
        "video_semantic",
        CONFIG.with_name("MinVIS_toy_vss.yaml"),
        IMAGES=[str(tmp_path / "data")] * 2,
        CATEGORIES=[str(tmp_path / "classes.json")] * 2,
    )
    scores = train_and_evaluate(config, "vss")
    assert {"mIoU", "VC8"} <= scores.keys()
    assert 0 <= scores["mIoU"] <= 100
    masks = list((tmp_path / f"out/inference/{tmp_path.name}_val/predictions").glob("*/*.png"))
    assert masks
    assert all(read_class_map(path).max() <= 10 for path in masks)
    assert MetadataCatalog.get(f"{tmp_path.name}_val").thing_classes[0] == "my cross"


def test_the_example_of_the_documentation(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "datasets" / "README.md").read_text()
    example = text[text.index("## Your own data") :].split("```yaml\n")[1].split("```")[0]
    (tmp_path / "my.yaml").write_text(example.replace("_BASE_: ", f"_BASE_: {ROOT}/"))
    for split in ("train", "val"):
        write(tmp_path / "cells" / f"{split}.json", as_videos(data_root / "toy", split))
        shutil.copytree(
            data_root / "toy" / split / "JPEGImages", tmp_path / "cells/frames", dirs_exist_ok=True
        )
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = dvis.load_config(tmp_path / "my.yaml")
    use_custom_datasets(cfg)
    check_datasets(cfg)
    assert [len(get_spec(name).load()) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)] == [2, 2]
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert num_classes == len(CLASSES)


def test_registration_is_idempotent_and_guards_names(data_root: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / f"{split}.json", as_videos(data_root / "toy", split))
    cfg = dvis.load_config(configure(tmp_path, "train.json", "val.json", "video_instance"))
    use_custom_datasets(cfg)
    use_custom_datasets(cfg)
    name = cfg.DATASETS.TRAIN[0]
    assert MetadataCatalog.get(name).thing_classes == NAMES
    assert get_spec(name).class_of_id()[70] == NAMES.index("plate")
    other = copy.deepcopy(cfg)
    other.DATASETS.CUSTOM.IMAGES = ["elsewhere", "elsewhere"]
    with pytest.raises(ValueError, match=f"{name} already stands for another data set"):
        use_custom_datasets(other)
    cfg.DATASETS.CUSTOM.NAMES = ["ovis_train", name]
    with pytest.raises(ValueError, match="ovis_train already stands for another data set"):
        use_custom_datasets(cfg)


@pytest.mark.parametrize("fixed", [True, False])
def test_number_of_classes_may_be_fixed(fixed: bool, data_root: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.json", as_images(data_root / "toy", "train"))
    cfg = dvis.load_config(
        configure(tmp_path, "a.json", "a.json", "image_instance", SET_NUM_CLASSES=not fixed)
    )
    use_custom_datasets(cfg)
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert num_classes == (6 if fixed else 7)


def test_classes_of_joint_training_are_mapped_by_name(data_root: Path, tmp_path: Path) -> None:
    write(tmp_path / "images.json", as_images(data_root / "toy", "train"))
    renumbered = [{"id": i, "name": name} for i, name in enumerate(["tyre", "plate", "boat"], start=1)]
    write(tmp_path / "videos.json", {"videos": [], "categories": renumbered, "annotations": []})
    kinds = ["image_instance", "video_instance"]
    config = configure(tmp_path, "images.json", "videos.json", "video_instance", TYPES=kinds)
    cfg = dvis.load_config(config)
    use_custom_datasets(cfg)
    images, videos = (get_spec(name) for name in cfg.DATASETS.CUSTOM.NAMES)
    names = images.class_names()
    assert images.class_map_to(videos) == {names.index("tyre"): 0, names.index("plate"): 1}


def test_panoptic_and_semantic_folders_load(data_root: Path, tmp_path: Path) -> None:
    toy = data_root / "toy"
    table = json.loads((toy / "vipseg" / "panoptic_gt_train.json").read_text())["categories"]
    (tmp_path / "classes.json").write_text(json.dumps(table))
    custom = {
        "NAMES": [f"{tmp_path.name}_vps", f"{tmp_path.name}_vss"],
        "TYPES": ["video_panoptic", "video_semantic"],
        "ANNOTATIONS": ["toy/vipseg/panoptic_gt_train.json", "toy/vspw/train.txt"],
        "IMAGES": ["toy/vipseg/images", "toy/vspw/data"],
        "MASKS": ["toy/vipseg/panomasksRGB", ""],
        "CATEGORIES": ["", str(tmp_path / "classes.json")],
    }
    overrides = [part for key, value in custom.items() for part in (f"DATASETS.CUSTOM.{key}", value)]
    use_custom_datasets(dvis.load_config(None, overrides))
    for name, published in zip(custom["NAMES"], ("toy_vps_train", "toy_vss_train"), strict=True):
        spec, reference = get_spec(name), get_spec(published)
        assert spec.class_of_id() == reference.class_of_id() or spec.kind == "video_semantic"
        record, expected = spec.load()[0], reference.load()[0]
        ours, theirs = (s.reader()(r, 0) for s, r in ((spec, record), (reference, expected)))
        named = [[s.class_names()[k] for k in o.classes] for s, o in ((spec, ours), (reference, theirs))]
        assert named[0] == named[1]


def test_unknown_category_names_file_video_and_annotation(data_root: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.json", as_videos(data_root / "toy", "train", categories=[UNUSED]))
    cfg = dvis.load_config(configure(tmp_path, "a.json", "a.json", "video_instance"))
    use_custom_datasets(cfg)
    with pytest.raises(BrokenDataError, match=r"a.json, video 1, annotation 1: category \d+ is not one of"):
        get_spec(cfg.DATASETS.TRAIN[0]).load()


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ({"ANNOTATIONS": ["no.json", "no.json"]}, "no.json is missing"),
        ({"IMAGES": ["nowhere", "nowhere"]}, "nowhere is missing"),
        ({"IMAGES": ["toy"]}, "DATASETS.CUSTOM.IMAGES has 1 entries for 2 data sets"),
        ({"MASKS": ["toy"]}, "DATASETS.CUSTOM.MASKS has 1 entries for 2 data sets"),
        ({"TYPES": ["video", "video"]}, "'video' of {name}_train is not one of video_instance"),
        ({"TYPES": ["video_panoptic"] * 2}, "needs the folder of its PNGs"),
        ({"TYPES": ["video_semantic"] * 2}, "give a JSON file"),
        ({"TYPES": ["image_instance"] * 2}, "DATASET_TYPE says video_instance for {name}_train"),
        ({"CATEGORIES": ["{root}/few.json", ""]}, "{name}_val has other classes than {name}_train"),
        ({"CATEGORIES": ["{root}/twice.json", ""]}, "several categories with the id 5"),
        ({"CATEGORIES": ["{root}/odd.json", ""]}, "odd.json, category 0 of the list"),
        ({"CATEGORIES": ["{root}/none.json", ""]}, "none.json: no list of categories"),
        ({"NAMES": ["toy_vis_train", "x"]}, "toy_vis_train already stands for another data set"),
        ({"SET_NUM_CLASSES": False, "CATEGORIES": ["{root}/more.json"] * 2}, "NUM_CLASSES is 6, but"),
    ],
)
def test_wrong_definitions_are_one_line(
    custom: dict[str, Any], message: str, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.json", as_videos(data_root / "toy", "train"))
    write(tmp_path / "few.json", CATEGORIES[-1:])
    write(tmp_path / "more.json", [*CATEGORIES, UNUSED])
    write(tmp_path / "twice.json", [*CATEGORIES, {"id": 5, "name": "again"}])
    write(tmp_path / "odd.json", [{"name": "no id"}])
    write(tmp_path / "none.json", {"videos": []})
    filled: dict[str, Any] = {
        key: [entry.format(root=tmp_path) for entry in value] if isinstance(value, list) else value
        for key, value in custom.items()
    }
    with pytest.raises(SystemExit) as stop:
        run(configure(tmp_path, "a.json", "a.json", "video_instance", **filled))
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message.format(name=tmp_path.name) in error
