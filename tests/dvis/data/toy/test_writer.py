"""The written data set: its formats agree with each other, and it is complete or not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvis.data.categories import load_categories
from dvis.data.rle import decode_rle
from dvis.data.toy import LEVELS, ToySettings, generate, writer
from dvis.data.toy.sheet import picture_sheet

SETTINGS = ToySettings(num_train=2, num_val=1, height=40, width=56, length=6)
SCRIPT = Path(__file__).parents[4] / "datasets" / "generate_toy.py"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("data") / "toy", SETTINGS, workers=1)


def all_bytes(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def test_same_seed_same_bytes(toy: Path, tmp_path: Path) -> None:
    assert all_bytes(generate(tmp_path / "toy", SETTINGS, workers=2)) == all_bytes(toy)


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_gives_the_same_bytes(tmp_path: Path, level: str) -> None:
    settings = ToySettings(num_train=1, num_val=0, height=32, width=48, length=4, level=level)
    first, second = (all_bytes(generate(tmp_path / name, settings, workers=1)) for name in ("a", "b"))
    assert first == second
    assert len([name for name in first if name.endswith(".jpg")]) == 3 * 4  # for three tasks


def test_each_level_has_its_own_length() -> None:
    assert ToySettings().length == 16
    assert ToySettings(level="occluded").length == 24
    assert ToySettings(level="occluded", length=5).length == 5


def test_more_videos_keep_the_first_ones(toy: Path, tmp_path: Path) -> None:
    settings = ToySettings(num_train=3, num_val=1, height=40, width=56, length=6)
    more, less = all_bytes(generate(tmp_path / "toy", settings, workers=1)), all_bytes(toy)
    same = [name for name in less if name.endswith((".jpg", ".png"))]
    assert all(more[name] == less[name] for name in same)


def test_instances_are_in_ovis_form(toy: Path) -> None:
    content = json.loads((toy / "train.json").read_text())
    assert [category["id"] for category in content["categories"]] == [
        c["id"] for c in load_categories("toy_vis")
    ]
    assert [video["id"] for video in content["videos"]] == [1, 2]
    for video in content["videos"]:
        assert video["length"] == len(video["file_names"]) == 6
        for name in video["file_names"]:
            assert Image.open(toy / "train" / "JPEGImages" / name).size == (56, 40)
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    for annotation in content["annotations"]:
        assert any(annotation["segmentations"])
        columns = [annotation[k] for k in ("segmentations", "bboxes", "areas", "occlusion")]
        for segmentation, box, area, occlusion in zip(*columns, strict=True):
            assert len({value is None for value in (segmentation, box, area, occlusion)}) == 1
            if segmentation:
                mask = decode_rle(segmentation)
                assert mask.sum() == area >= writer.MIN_VISIBLE_PIXELS
                rows, cols = np.nonzero(mask)
                assert [cols.min(), rows.min()] == box[:2]
                assert [np.ptp(cols) + 1, np.ptp(rows) + 1] == box[2:]
                assert occlusion in ("no_occlusion", "slight_occlusion", "severe_occlusion")


def test_panoptic_and_semantic_agree_with_instances(toy: Path) -> None:
    instances = json.loads((toy / "val.json").read_text())
    panoptic = json.loads((toy / "vipseg" / "panoptic_gt_val.json").read_text())
    categories = {category["id"]: category for category in panoptic["categories"]}
    thing_name = {category["id"]: category["name"] for category in load_categories("toy_vis")}
    assert (toy / "vspw" / "val.txt").read_text() == "val_0000\n"
    (video,), (entry,) = panoptic["videos"], panoptic["annotations"]
    for t, (image, frame) in enumerate(zip(video["images"], entry["annotations"], strict=True)):
        folder = toy / "vipseg"
        assert (folder / "images" / video["video_id"] / image["file_name"].replace("png", "jpg")).exists()
        rgb = np.array(Image.open(folder / "panomasksRGB" / video["video_id"] / frame["file_name"])).astype(
            int
        )
        ids = rgb @ [1, 256, 65536]
        semantic = np.array(
            Image.open(toy / "vspw" / "data" / "val_0000" / "mask" / frame["file_name"])
        ).astype(int)
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in frame["segments_info"]}
        np.testing.assert_array_equal(ids == 0, semantic == 0)
        for segment in frame["segments_info"]:
            mask = ids == segment["id"]
            assert mask.sum() == segment["area"]
            assert (semantic[mask] == segment["category_id"] + 1).all()
        things = sorted(
            (categories[s["category_id"]]["name"], (ids == s["id"]).tobytes())
            for s in frame["segments_info"]
            if categories[s["category_id"]]["isthing"]
        )
        objects = sorted(
            (thing_name[a["category_id"]], decode_rle(a["segmentations"][t]).tobytes())
            for a in instances["annotations"]
            if a["segmentations"][t]
        )
        assert things == objects


def test_stopped_generation_is_not_complete_and_continues(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, calls = tmp_path / "toy", []
    original = writer._write_video

    def stop_after_two(*job: object) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(job)
        original(*job)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "_write_video", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        generate(output, SETTINGS, workers=1)
    assert not any((output / name).exists() for name in ("dataset.json", "train.json", "val.json"))
    calls.clear()
    generate(output, SETTINGS, workers=1)
    assert len(calls) == 1
    assert all_bytes(output) == all_bytes(toy)
    generate(output, SETTINGS, workers=1)  # complete: nothing left to do
    assert len(calls) == 1


def test_other_settings_need_force_and_foreign_files_stay(tmp_path: Path) -> None:
    output = tmp_path / "toy"
    small = ToySettings(num_train=1, num_val=0, height=32, width=32, length=1)
    generate(output, small, workers=1)
    other = ToySettings(seed=1, num_train=1, num_val=0, height=32, width=32, length=1)
    with pytest.raises(FileExistsError, match="other settings"):
        generate(output, other, workers=1)
    before = all_bytes(output)
    generate(output, other, workers=1, force=True)
    assert before.keys() == all_bytes(output).keys()
    assert before != all_bytes(output)

    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_text("dear to me")
    with pytest.raises(FileExistsError, match="not of a toy data set"):
        generate(foreign, small, force=True)
    assert (foreign / "holiday.jpg").exists()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="level must be one of"):
        ToySettings(level="impossible")
    with pytest.raises(ValueError, match="not negative"):
        ToySettings(num_val=-1)
    with pytest.raises(ValueError, match="not negative, got -2"):
        ToySettings(length=-2)
    with pytest.raises(ValueError, match="seed"):
        ToySettings(seed=-1)


def test_command_line(tmp_path: Path) -> None:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
    command = [
        sys.executable,
        str(SCRIPT),
        "--num-train",
        "1",
        "--num-val",
        "1",
        "--length",
        "2",
        "--workers",
        "1",
    ]
    done = subprocess.run(
        [*command, "--size", "32x40"], env=environment, capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "toy") in done.stdout
    assert json.loads((tmp_path / "toy" / "train.json").read_text())["videos"][0]["width"] == 40
    subprocess.run(
        [*command, "--size", "32x40", "--level", "crowded"], env=environment, capture_output=True, check=True
    )
    assert json.loads((tmp_path / "toy_crowded" / "dataset.json").read_text())["level"] == "crowded"
    wrong = subprocess.run(
        [*command, "--size", "large"], env=environment, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "HEIGHTxWIDTH" in wrong.stderr


def test_sheet_has_a_row_per_level(tmp_path: Path) -> None:
    sheet = picture_sheet(num_frames=2, height=24, width=32)
    assert sheet.shape[0] == len(LEVELS) * 28 - 4
    assert len({row.tobytes() for row in np.split(sheet[: 28 * 4], 4)}) == 4
    np.testing.assert_array_equal(sheet, picture_sheet(num_frames=2, height=24, width=32))
    assert (sheet != picture_sheet(num_frames=2, height=24, width=32, outlines=True)).any()


def test_sheet_in_the_documentation_is_small() -> None:
    path = SCRIPT.parents[1] / "docs" / "toy_levels.png"
    assert Image.open(path).format == "PNG"
    assert path.stat().st_size < 400_000
