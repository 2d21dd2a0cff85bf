"""COCO's instances of the categories of video data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dvis.data.categories import load_mapping
from tests.scripts import load_script

prepare_coco = load_script("datasets/prepare_coco.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    content: dict[str, Any] = {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 4} for i in (1, 2)],
        # 1 person, 16 bird, 90 toothbrush: the last one occurs in no video set
        "annotations": [
            {"id": n, "image_id": 1, "category_id": c, "iscrowd": n % 2, "segmentation": []}
            for n, c in enumerate((1, 16, 90, 3, 8))
        ],
        "categories": [{"id": c, "name": str(c)} for c in (1, 3, 8, 16, 90)],
    }
    for split in ("train", "val"):
        (tmp_path / f"instances_{split}2017.json").write_text(json.dumps(content))
    return tmp_path


def test_annotations_of_known_categories_stay(folder: Path) -> None:
    prepare_coco.main(["--annotations", str(folder)])
    original = json.loads((folder / "instances_train2017.json").read_text())
    for target, table in (("ytvis2019", "ytvis_2019"), ("ytvis2021", "ytvis_2021"), ("ovis", "ovis")):
        for split in ("train", "val"):
            content = json.loads((folder / f"coco2{target}_{split}.json").read_text())
            kept = [a for a in original["annotations"] if a["category_id"] in load_mapping(table)]
            assert content == {**original, "annotations": kept}
    ovis = json.loads((folder / "coco2ovis_train.json").read_text())["annotations"]
    assert [a["category_id"] for a in ovis] == [1, 3, 8]  # birds of COCO are not mapped to OVIS


def test_files_that_are_there_stay(folder: Path) -> None:
    prepare_coco.main(["--annotations", str(folder)])
    path = folder / "coco2ovis_val.json"
    path.write_text("kept")
    prepare_coco.main(["--annotations", str(folder)])
    assert path.read_text() == "kept"
    prepare_coco.main(["--annotations", str(folder), "--force", "--splits", "val"])
    assert path.read_text() != "kept"


def test_missing_and_broken_files_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "instances_val2017.json").write_text("{")
    with pytest.raises(SystemExit):
        prepare_coco.main(["--annotations", str(folder), "--splits", "val"])
    assert "instances_val2017.json is not valid JSON" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare_coco.main(["--annotations", str(folder / "none")])
    assert "none/instances_train2017.json is missing; download COCO 2017" in capsys.readouterr().err
