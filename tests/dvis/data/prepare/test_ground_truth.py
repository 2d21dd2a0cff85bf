"""Published ground truth takes the place of the list of videos, after a check; then it is scored locally."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dvis
from dvis.data.categories import load_categories
from dvis.data.datasets import get_spec
from dvis.data.rle import decode_rle
from dvis.data.toy import ToySettings, generate
from dvis.evaluation import build_evaluator
from tests.scripts import load_script

prepare_ground_truth = load_script("datasets/prepare_ground_truth.py")
prepare_ytvis_2022 = load_script("datasets/prepare_ytvis_2022.py")

Content = dict[str, Any]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    generate(root, ToySettings(num_train=0, num_val=3, height=40, width=56, length=5), workers=1)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OVIS as it is downloaded: frames and a list of videos, made from the toy."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    shutil.copytree(pristine / "val/JPEGImages", tmp_path / "ovis/valid")
    (tmp_path / "ovis/annotations").mkdir()
    listed = {**published(pristine), "annotations": None}
    (tmp_path / "ovis/annotations/annotations_valid.json").write_text(json.dumps(listed))
    return tmp_path


def published(pristine: Path, table: str = "ovis") -> Content:
    """The toy's instances under the first of the categories of a benchmark."""
    content = json.loads((pristine / "val.json").read_text())
    rows = load_categories(table)
    return {**content, "categories": [{"id": row["id"], "name": row["name"]} for row in rows]}


def renumbered(content: Content) -> Content:
    """The same videos in another order under other ids."""
    videos = [{**video, "id": 70 - video["id"]} for video in reversed(content["videos"])]
    annotations = [{**a, "video_id": 70 - a["video_id"]} for a in content["annotations"]]
    return {**content, "videos": videos, "annotations": annotations}


def install(source: Path, *options: str, name: str = "ovis_val") -> None:
    prepare_ground_truth.main([name, "--source", str(source), "--workers", "1", *options])


def scores_of_perfect_results(name: str) -> dict[str, float]:
    spec = get_spec(name)
    evaluator = build_evaluator(dvis.load_config(), name, None)
    evaluator.reset()
    for record in spec.load():
        size = (record["height"], record["width"])
        tubes = [
            [np.zeros(size, bool) if m is None else decode_rle(m) for m in a["segmentations"]]
            for a in record["annotations"]
        ]
        output = {
            "pred_scores": [0.9] * len(tubes),
            "pred_labels": [a["category_id"] for a in record["annotations"]],
            "pred_masks": np.array(tubes),
        }
        evaluator.process([{"video_id": record["video_id"], "length": record["length"]}], [output])
    return evaluator.evaluate()["segm"]


@pytest.mark.parametrize("form", ["json", "zip"])
def test_ground_truth_is_scored_once_it_is_installed(form: str, root: Path, pristine: Path) -> None:
    target = root / "ovis/annotations/annotations_valid.json"
    listed = json.loads(target.read_text())
    source = root / f"published.{form}"
    text = json.dumps(renumbered(published(pristine)))
    if form == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("valid/instances.json", text)
            archive.writestr("valid/README", "")
    else:
        source.write_text(text)
    install(source)
    # The list's numbering counts: results are numbered so.
    assert json.loads(target.read_text()) == published(pristine)
    assert json.loads(target.with_name("annotations_valid_without_annotations.json").read_text()) == listed
    assert sorted(path.name for path in target.parent.iterdir()) == [
        "annotations_valid.json",
        "annotations_valid_without_annotations.json",
    ]
    scores = scores_of_perfect_results("ovis_val")
    assert scores["AP"] == pytest.approx(100)
    assert {"APso", "APmo", "APho"} <= scores.keys()


def test_repeating_is_harmless_and_other_annotations_stay(
    root: Path, pristine: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = root / "published.json"
    content = published(pristine)
    source.write_text(json.dumps(content))
    install(source)
    with caplog.at_level("INFO"):
        install(source)
    assert "has these annotations already" in caplog.text
    kept = root / "ovis/annotations/annotations_valid_without_annotations.json"
    assert json.loads(kept.read_text())["annotations"] is None
    content["annotations"].pop()
    source.write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        install(source)
    assert "has other annotations already; --force" in capsys.readouterr().err
    install(source, "--force")
    target = root / "ovis/annotations/annotations_valid.json"
    assert json.loads(target.read_text()) == content


def test_a_stopped_check_goes_on(root: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvis.data.prepare import ground_truth

    source = root / "published.json"
    source.write_text(json.dumps(published(pristine)))
    seen: list[int] = []
    check = ground_truth._check_video

    def count(*arguments: Any) -> int:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return check(*arguments)

    monkeypatch.setattr(ground_truth, "_check_video", count)
    with pytest.raises(KeyboardInterrupt):
        install(source)
    assert json.loads((root / "ovis/annotations/annotations_valid.json").read_text())["annotations"] is None
    install(source)
    assert len(seen) == 2 + 2, "of three videos one was done"


def first(**changes: Any) -> Callable[[Content], None]:
    return lambda content: content["annotations"][0].update(changes)


def other_mask(content: Content) -> None:
    content["annotations"][1]["segmentations"][2] = {"size": [40, 56], "counts": "abc"}


BROKEN: dict[str, tuple[Callable[[Content], Any], str]] = {
    "no annotations": (lambda c: c.pop("annotations"), "no annotations: this is not the ground truth"),
    "categories": (lambda c: c["categories"][4].update(name="Unicorn"), "id 5 is 'Unicorn' instead of"),
    "too many videos": (
        lambda c: c["videos"].append({**c["videos"][0], "id": 9, "file_names": ["x/0.jpg"]}),
        "video 9: not in",
    ),
    "video missing": (lambda c: c["videos"].pop(), "has no video with the frames of video 3 (val_0002/"),
    "size": (lambda c: c["videos"][0].update(height=41), "height 41, but 40 in video 1 (val_0000/"),
    "video of an annotation": (first(video_id=44), "video 44, annotation 1: there is no such video"),
    "category": (first(category_id=44), "annotation 1: category 44 does not exist"),
    "no occlusion": (lambda c: c["annotations"][0].pop("occlusion"), "annotation 1: occlusion missing"),
    "length": (first(areas=[3]), "annotation 1: 1 areas for 5 frames"),
    "mask": (other_mask, "annotation 2, frame 2: broken mask: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_not_installed(
    case: str, root: Path, pristine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, message = BROKEN[case]
    content = published(pristine)
    edit(content)
    source = root / "published.json"
    source.write_text(json.dumps(content))
    target = root / "ovis/annotations/annotations_valid.json"
    before = target.read_text()
    with pytest.raises(SystemExit) as stop:
        install(source)
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {source}")
    assert message in error
    assert target.read_text() == before


def test_files_that_are_not_there(root: Path, pristine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(source: Path, *options: str) -> str:
        with pytest.raises(SystemExit):
            install(source, *options)
        return capsys.readouterr().err.splitlines()[-1]

    assert "none.json is missing" in error_of(root / "none.json")
    (root / "cut.json").write_text("{")
    assert "cut.json is not valid JSON" in error_of(root / "cut.json")
    with zipfile.ZipFile(root / "two.zip", "w") as archive:
        for name in ("a.json", "b.json"):
            archive.writestr(name, "{}")
    assert "two.zip has 2 JSON files; say which: --member ['a.json', 'b.json']" in error_of(root / "two.zip")
    assert "two.zip has no 'c.json'" in error_of(root / "two.zip", "--member", "c.json")
    (root / "published.json").write_text(json.dumps(published(pristine)))
    (root / "ovis/valid/val_0001/00003.jpg").unlink()
    error = error_of(root / "published.json")
    assert "video 2: " in error
    assert "00003.jpg is missing" in error


def test_without_a_list_of_videos(root: Path, pristine: Path) -> None:
    target = root / "ovis/annotations/annotations_valid.json"
    target.unlink()
    (root / "published.json").write_text(json.dumps(published(pristine)))
    install(root / "published.json")
    assert json.loads(target.read_text()) == published(pristine)


def test_short_and_long_videos_of_2022(
    root: Path, pristine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = published(pristine, "ytvis_2021")
    folder = root / "ytvis_2022/valid"
    shutil.copytree(pristine / "val/JPEGImages", folder / "JPEGImages")
    (folder / "instances.json").write_text(json.dumps({**content, "annotations": None}))
    with pytest.raises(SystemExit):
        prepare_ytvis_2022.main([])
    assert "ytvis_2021/valid.json is missing, whose videos are the short ones" in capsys.readouterr().err
    (root / "ytvis_2021").mkdir()
    short = {"videos": [{**video, "id": 90} for video in content["videos"][1:]]}
    (root / "ytvis_2021/valid.json").write_text(json.dumps(short))

    prepare_ytvis_2022.main([])
    assert [r["video_id"] for r in get_spec("ytvis_2022_val_short").load()] == [2, 3]
    assert [r["video_id"] for r in get_spec("ytvis_2022_val_long").load()] == [1]
    assert json.loads((folder / "instances_long.json").read_text())["annotations"] is None

    (root / "published.json").write_text(json.dumps(content))
    install(root / "published.json", name="ytvis_2022_val")
    prepare_ytvis_2022.main([])
    long = json.loads((folder / "instances_long.json").read_text())
    assert {a["video_id"] for a in long["annotations"]} == {1}
    scores = scores_of_perfect_results("ytvis_2022_val")
    for name in ("AP", "AP_short", "AP_long"):
        assert scores[name] == pytest.approx(100)
    for name in ("short", "long"):
        alone = scores_of_perfect_results(f"ytvis_2022_val_{name}")
        for row in ("AP", "AP50", "AR1", "APs"):
            assert scores[f"{row}_{name}"] == pytest.approx(alone[row], nan_ok=True)
    assert not math.isnan(scores["AR10_long"])

    prepare_ytvis_2022.main(["--min-frames", "6"])
    assert json.loads((folder / "instances_long.json").read_text())["videos"] == []
    short["videos"][0]["file_names"] = ["elsewhere/0.jpg"]
    (root / "ytvis_2021/valid.json").write_text(json.dumps(short))
    with pytest.raises(SystemExit):
        prepare_ytvis_2022.main([])
    assert "lacks 1 of the 2 videos of" in capsys.readouterr().err
