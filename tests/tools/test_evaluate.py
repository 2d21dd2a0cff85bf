"""The evaluation program: official numbers in the official form, reports, and errors in one line."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dvis.data.toy import ToySettings, generate
from tests.dvis.evaluation.official import CASES, assert_same, case_names, expected_of
from tools import evaluate

FOLDERS = {
    "ytvis": "ytvis",
    "ovis": "ovis",
    "vps": "vipseg",
    "vss": "vspw",
    "panoptic": "coco_panoptic",
    "semseg": "semseg",
}
# Paths in a case's folder, as a user may name them.
NATURAL = {
    "ytvis": ("gt.json", "results.json"),
    "ovis": ("gt.json", "results.json"),
    "vps": ("panoptic_gt_VIPSeg_val.json", "pred"),
    "vss": ("VSPW", "pred"),
    "panoptic": ("gt.json", "pred.json"),
    "semseg": ("gt", "pred"),
}
ALL_CASES = [(task, case) for task, folder in FOLDERS.items() for case in case_names(folder)]


def run(tmp_path: Path, task: str, gt: Path, pred: Path, *more: str) -> Any:
    output = tmp_path / "out.json"
    evaluate.main(["--task", task, "--gt", str(gt), "--pred", str(pred), "--json", str(output), *more])
    return json.loads(output.read_text())


@pytest.mark.parametrize(("task", "case"), ALL_CASES)
def test_json_is_the_official_one(task: str, case: str, tmp_path: Path) -> None:
    folder = CASES / FOLDERS[task] / case
    gt, pred = NATURAL[task]
    assert_same(run(tmp_path, task, folder / gt, folder / pred), expected_of(FOLDERS[task], case))


@pytest.mark.parametrize(
    ("task", "case", "gt", "pred"),
    [
        ("ytvis", "crowd", ".", "."),
        ("vps", "stuff_only", ".", "pred/pred.json"),
        ("vps", "stuff_only", "panomasksRGB", "pred/pan_pred"),
        ("vps", "stuff_only", ".", "."),
        ("vss", "raw_masks", "VSPW/data", "pred"),
        ("vss", "raw_masks", "VSPW/val.txt", "."),
        ("vss", "raw_masks", ".", "."),
        ("panoptic", "standard", "gt", "pred"),
        ("panoptic", "standard", ".", "."),
        ("semseg", "ten_classes", ".", "."),
    ],
)
def test_other_paths_of_the_layout(task: str, case: str, gt: str, pred: str, tmp_path: Path) -> None:
    folder = CASES / FOLDERS[task] / case
    assert_same(run(tmp_path, task, folder / gt, folder / pred), expected_of(FOLDERS[task], case))


def test_masks_as_vspw_ships_them(tmp_path: Path) -> None:
    folder = CASES / "vspw" / "raw_masks"
    numbers = run(tmp_path, "vss", folder / "VSPW_raw_masks", folder / "pred", "--raw-masks")
    assert_same(numbers, expected_of("vspw", "raw_masks"))


def test_windows_may_be_chosen(tmp_path: Path) -> None:
    folder = CASES / "vipseg" / "standard"
    numbers = run(tmp_path, "vps", folder, folder / "pred", "--windows", "1", "4")
    expected = expected_of("vipseg", "standard")
    assert list(numbers["vpq"]) == ["1", "4"]
    mean = sum(expected["vpq"][k]["all"]["pq"] for k in ("1", "4")) / 2
    assert numbers["mean_vpq_windows_1_4"]["all"] == pytest.approx(mean, rel=1e-12)


def test_only_long_videos(tmp_path: Path) -> None:
    folder = CASES / "ytvis" / "standard"
    gt = json.loads((folder / "gt.json").read_text())
    lengths = sorted(len(video["file_names"]) for video in gt["videos"])
    limit = lengths[len(lengths) // 2]
    kept = {video["id"] for video in gt["videos"] if len(video["file_names"]) >= limit}
    part = {
        **gt,
        "videos": [video for video in gt["videos"] if video["id"] in kept],
        "annotations": [a for a in gt["annotations"] if a["video_id"] in kept],
    }
    results = [r for r in json.loads((folder / "results.json").read_text()) if r["video_id"] in kept]
    (tmp_path / "gt.json").write_text(json.dumps(part))
    (tmp_path / "results.json").write_text(json.dumps(results))
    expected = run(tmp_path, "ytvis", tmp_path, tmp_path)
    assert run(tmp_path, "ytvis", folder, folder, "--min-frames", str(limit)) == expected
    assert 0 < len(kept) < len(lengths)


def test_table_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CASES / "ovis" / "standard"
    expected = expected_of("ovis", "standard")
    run(tmp_path, "ovis", folder, folder, "--csv", str(tmp_path / "categories.csv"))
    output = capsys.readouterr().out
    assert "\n".join(expected["printed"]) in output
    with (tmp_path / "categories.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert float(rows["5"]["AP_light"]) == pytest.approx(expected["per_category"]["5"]["AP_light"])
    assert rows["1"]["AP"] == ""  # no such object


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world with its own ground truth as results of the three tasks."""
    root = tmp_path_factory.mktemp("toy")
    settings = ToySettings(num_train=0, num_val=3, height=40, width=56, length=10)
    generate(root / "toy", settings, workers=1)
    annotations = json.loads((root / "toy/val.json").read_text())["annotations"]
    keys = ("video_id", "category_id", "segmentations")
    results = [{**{key: a[key] for key in keys}, "score": 0.9} for a in annotations]
    (root / "results.json").write_text(json.dumps(results))
    shutil.copytree(root / "toy/vipseg/panomasksRGB", root / "vps/pan_pred")
    shutil.copy(root / "toy/vipseg/panoptic_gt_val.json", root / "vps/pred.json")
    for mask in (root / "toy/vspw/data").glob("*/mask"):
        shutil.copytree(mask, root / "vss" / mask.parent.name)
    return root


@pytest.mark.parametrize(
    ("task", "gt", "pred", "images", "charts"),
    [
        ("ovis", "val.json", "results.json", "val/JPEGImages", ["Precision and recall", "AP by occlusion"]),
        ("vps", "vipseg", "vps", "vipseg/images", ["VPQ by window", "Mean STQ by length (frames)"]),
        ("vss", "vspw", "vss", "vspw/data", ["IoU by category"]),
    ],
)
def test_html_report(
    toy: Path, tmp_path: Path, task: str, gt: str, pred: str, images: str, charts: list[str]
) -> None:
    report = tmp_path / "report.html"
    more = ["--html", str(report), "--images", str(toy / "toy" / images)]
    run(tmp_path, task, toy / "toy" / gt, toy / pred, *more, "--categories", "toy_vps")
    page = report.read_text()
    pictures = dict(re.findall(r'<img alt="([^"]+)" src="data:image/\w+;base64,([^"]+)"', page))
    assert {*charts, "ground truth", "prediction"} <= pictures.keys()
    assert base64.b64decode(pictures[charts[0]]).startswith(b"\x89PNG")
    assert base64.b64decode(pictures["prediction"]).startswith(b"\xff\xd8")
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing outside of the file
    assert "Worst videos" in page
    assert "All 3 videos" in page


def test_missing_frames_of_a_strip_are_named(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--html", str(tmp_path / "r.html"), "--images", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, "ovis", toy / "toy/val.json", toy / "results.json", *more)
    assert stop.value.code == 2
    assert re.fullmatch(r"error: no frame at .*val_\d+/00000\.jpg\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("task", "gt", "pred", "message"),
    [
        ("ytvis", "none.json", ".", r"error: .*none\.json: no such file or folder"),
        ("ytvis", "gt.json", "pictures", r"error: .*pictures: none of results\.json in this folder"),
        ("ytvis", "broken.json", "results.json", r"error: .*broken\.json is not valid JSON: .*"),
        (
            "ytvis",
            "no_annotations.json",
            "results.json",
            r"error: .*no_annotations\.json has no annotations: .*",
        ),
        (
            "ytvis",
            "gt.json",
            "other_video.json",
            r"error: .*other_video.json against .*: prediction 0 belongs to video 77, unknown to .*",
        ),
        (
            "ytvis",
            "cut.json",
            "results.json",
            r"error: .*cut.json, video 1, annotation 1, frame 0: broken .*",
        ),
        (
            "ytvis",
            "gt.json",
            "no_score.json",
            r"error: \S+no_score.json against \S+gt.json: prediction 0 has no field 'score'",
        ),
        ("ytvis", "gt.json", "gt.json", r"error: .*gt\.json: expected a list of predictions"),
        ("vps", ".", ".", r"error: .*none of panoptic_gt_.*"),
        ("vss", "pictures", ".", r"error: .*pictures: no videos .*"),
        ("semseg", "pictures", "pictures", r"error: .*meta\.json: no such file.*"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, task: str, gt: str, pred: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(CASES / "ytvis/crowd/gt.json", tmp_path)
    shutil.copy(CASES / "ytvis/crowd/results.json", tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "broken.json").write_text('{"videos": [')
    gt_content = json.loads((tmp_path / "gt.json").read_text())
    (tmp_path / "no_annotations.json").write_text(json.dumps({**gt_content, "annotations": None}))
    gt_content["annotations"][0]["segmentations"][0] = {"size": [2, 3], "counts": "abc"}
    (tmp_path / "cut.json").write_text(json.dumps(gt_content))
    result = {"video_id": 77, "category_id": 1, "score": 1.0, "segmentations": []}
    (tmp_path / "other_video.json").write_text(json.dumps([result]))
    (tmp_path / "no_score.json").write_text(
        json.dumps([{"video_id": 1, "category_id": 1, "segmentations": []}])
    )
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, task, tmp_path / gt, tmp_path / pred)
    assert stop.value.code == 2
    assert re.fullmatch(message + "\n", capsys.readouterr().err)
    assert not (tmp_path / "out.json").exists()


def test_classes_of_own_data(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (tmp_path, "vss", toy / "toy/vspw", toy / "vss", "--categories")
    rows = [{"id": k, "name": f"mine {k}"} for k in range(12)]
    (tmp_path / "mine.json").write_text(json.dumps({"categories": rows[::-1]}))
    run(*arguments, str(tmp_path / "mine.json"), "--csv", str(tmp_path / "mine.csv"))
    with (tmp_path / "mine.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [f"mine {k}" for k in range(12)]
    (tmp_path / "gap.json").write_text(json.dumps(rows[1:]))
    (tmp_path / "odd.json").write_text("[3]")
    for name, message in (
        ("vspw", "one of vipseg_vspw, toy_vps, not 'vspw'"),
        (str(tmp_path / "gap.json"), "gap.json: ids must be 0, 1, 2, ..., got [1, 2, "),
        (str(tmp_path / "odd.json"), "odd.json: expected a list of {id, name}"),
    ):
        with pytest.raises(SystemExit):
            run(*arguments, name)
        assert message in capsys.readouterr().err
