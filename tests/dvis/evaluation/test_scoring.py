"""Official numbers of VIPSeg (VPQ, STQ), VSPW (mIoU, VC) and COCO panoptic (PQ) from files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dvis.evaluation.scoring import score_panoptic_images, score_video_panoptic, score_video_semantic
from tests.dvis.evaluation.official import CASES, assert_same, case_names, expected_of


def score_vipseg(folder: Path) -> dict[str, Any]:
    return score_video_panoptic(
        folder / "panoptic_gt_VIPSeg_val.json",
        folder / "panomasksRGB",
        folder / "pred" / "pred.json",
        folder / "pred" / "pan_pred",
    )


@pytest.mark.parametrize("case", case_names("vipseg"))
def test_vipseg_matches_the_official_scripts(case: str) -> None:
    assert_same(score_vipseg(CASES / "vipseg" / case), expected_of("vipseg", case))


@pytest.mark.parametrize("case", case_names("vspw"))
def test_vspw_matches_the_official_scripts(case: str) -> None:
    folder = CASES / "vspw" / case
    videos = (folder / "VSPW" / "val.txt").read_text().split()
    result = score_video_semantic(folder / "VSPW" / "data", videos, folder / "pred")
    assert_same(result, expected_of("vspw", case))


def test_vspw_masks_as_shipped() -> None:
    folder = CASES / "vspw" / "raw_masks"
    videos = (folder / "VSPW" / "val.txt").read_text().split()
    result = score_video_semantic(folder / "VSPW_raw_masks" / "data", videos, folder / "pred", raw_masks=True)
    assert_same(result, expected_of("vspw", "raw_masks"))


@pytest.mark.parametrize("case", case_names("coco_panoptic"))
def test_coco_panoptic_matches_panopticapi(case: str) -> None:
    folder = CASES / "coco_panoptic" / case
    result = score_panoptic_images(folder / "gt.json", folder / "gt", folder / "pred.json", folder / "pred")
    assert_same(result, expected_of("coco_panoptic", case))


@pytest.fixture
def vipseg_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CASES / "vipseg" / "stuff_only", tmp_path / "case"))


def edit_json(path: Path, edit: Any) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_broken_results_are_named(vipseg_copy: Path) -> None:
    pred = vipseg_copy / "pred" / "pred.json"
    original = pred.read_text()
    name = json.loads(original)["annotations"][0]["video_id"]

    edit_json(pred, lambda c: c["annotations"].pop(0))
    with pytest.raises(ValueError, match=f"no result for video {name}"):
        score_vipseg(vipseg_copy)

    pred.write_text(original)
    edit_json(pred, lambda c: c["annotations"][0]["annotations"].pop())
    with pytest.raises(ValueError, match=f"video {name} has 4 frames, the ground truth 5"):
        score_vipseg(vipseg_copy)

    pred.write_text(original)
    edit_json(pred, lambda c: c["annotations"][0]["annotations"][0]["segments_info"].pop())
    with pytest.raises(ValueError, match=rf"{name}.*in the image but not in the list"):
        score_vipseg(vipseg_copy)

    pred.write_text(original)
    segment = {"id": 77, "category_id": 0}
    edit_json(pred, lambda c: c["annotations"][0]["annotations"][0]["segments_info"].append(segment))
    with pytest.raises(ValueError, match=r"\[77\] are in the list but not in the image"):
        score_vipseg(vipseg_copy)

    pred.write_text(original[:100])
    with pytest.raises(ValueError, match=r"pred\.json is not valid JSON"):
        score_vipseg(vipseg_copy)

    pred.write_text(original)
    png = next((vipseg_copy / "pred" / "pan_pred" / name).iterdir())
    png.write_bytes(png.read_bytes()[:30])
    with pytest.raises(ValueError, match=png.name):
        score_vipseg(vipseg_copy)
    png.unlink()
    with pytest.raises(FileNotFoundError, match=png.name):
        score_vipseg(vipseg_copy)


def test_ground_truth_area_below_the_overlap_is_an_error(vipseg_copy: Path) -> None:
    def shrink(content: dict[str, Any]) -> None:
        for frame in content["annotations"][0]["annotations"]:
            for segment in frame["segments_info"]:
                segment["area"] = 1

    path = vipseg_copy / "panoptic_gt_VIPSeg_val.json"
    edit_json(path, shrink)
    video = json.loads(path.read_text())["annotations"][0]
    frame = video["annotations"][0]["file_name"]
    place = re.escape(f"{path}, video {video['video_id']}, {frame}, segment ")
    with pytest.raises(ValueError, match=rf"{place}\d+ \(area 1, drawn \d+\): the area of a ground-truth "):
        score_vipseg(vipseg_copy)
