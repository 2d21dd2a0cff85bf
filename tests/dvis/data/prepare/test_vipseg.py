"""VIPSeg's conversion against the official output; stopped, repeated and broken conversions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dvis.data.categories import load_categories
from dvis.data.errors import BrokenDataError
from dvis.data.label_images import read_class_map, read_segment_ids, write_png
from dvis.data.prepare import convert_vipseg, vipseg
from tests.reference import DATA
from tests.scripts import load_script

prepare_vipseg = load_script("datasets/prepare_vipseg.py")

SOURCE = DATA / "evaluation" / "vipseg_conversion" / "input"
OFFICIAL = DATA / "evaluation" / "vipseg_conversion" / "official_output" / "VIPSeg_720P"
FRAMES = [(video, f"{t:08d}") for video in ("1_raw013", "2_raw013") for t in range(3)]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("vipseg") / "VIPSeg_720P"
    prepare_vipseg.main(["--source", str(SOURCE), "--target", str(target), "--workers", "1"])
    return target


def all_bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("video", "frame"), FRAMES)
def test_images_and_raw_masks_are_the_official_ones(converted: Path, video: str, frame: str) -> None:
    file = f"images/{video}/{frame}.jpg"
    ours, official = (np.asarray(Image.open(root / file), dtype=int) for root in (converted, OFFICIAL))
    assert ours.shape == official.shape
    assert np.abs(ours - official).mean() < 1  # JPEG libraries differ
    file = f"panomasks/{video}/{frame}.png"
    np.testing.assert_array_equal(read_class_map(converted / file), read_class_map(OFFICIAL / file))


@pytest.mark.parametrize("split", ["", "_train", "_val"])
def test_annotations_are_the_official_ones(converted: Path, split: str) -> None:
    """All but the ids of things, which are random: they are compared up to renaming."""
    name = f"panoptic_gt_VIPSeg{split}.json"
    ours, official = (json.loads((root / name).read_text()) for root in (converted, OFFICIAL))
    assert ours["categories"] == official["categories"]
    assert ours["videos"] == official["videos"]
    assert list(ours) == list(official)
    stuff = {c["id"] for c in load_categories("vipseg_vspw") if not c["isthing"]}
    for our_video, video in zip(ours["annotations"], official["annotations"], strict=True):
        assert our_video["video_id"] == video["video_id"]
        renamed: dict[int, int] = {0: 0}
        for our_frame, frame in zip(our_video["annotations"], video["annotations"], strict=True):
            for our_segment, segment in zip(our_frame["segments_info"], frame["segments_info"], strict=True):
                assert {**our_segment, "id": 0} == {**segment, "id": 0}
                assert list(our_segment) == list(segment)
                assert renamed.setdefault(our_segment["id"], segment["id"]) == segment["id"]
                if segment["category_id"] in stuff:
                    assert our_segment["id"] == segment["id"]
            file = f"panomasksRGB/{video['video_id']}/{frame['file_name']}"
            ids = read_segment_ids(converted / file)
            mapped = np.zeros_like(ids)
            for our_id, official_id in renamed.items():
                mapped[ids == our_id] = official_id
            np.testing.assert_array_equal(mapped, read_segment_ids(OFFICIAL / file))
        assert len(set(renamed.values())) == len(renamed)


def test_only_the_result_is_left(converted: Path) -> None:
    assert sorted(entry.name for entry in converted.iterdir()) == [
        "images",
        "panomasks",
        "panomasksRGB",
        "panoptic_gt_VIPSeg.json",
        "panoptic_gt_VIPSeg_train.json",
        "panoptic_gt_VIPSeg_val.json",
        "train.txt",
        "val.txt",
    ]


def small_source(folder: Path) -> Path:
    """Three videos of two frames of 12 x 20 pixels; the last one has no masks."""
    rng = np.random.default_rng(0)
    for video in ("a", "b", "c"):
        for t in range(2):
            image = folder / "imgs" / video / f"{t:05d}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)).save(image)
            if video != "c":
                raw = rng.choice(np.array([0, 3, 5, 49, 6100, 6101, 4900], np.uint16), (12, 20))
                path = folder / "panomasks" / video / f"{t:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_png(path, raw)
    (folder / "train.txt").write_text("b\n")
    (folder / "val.txt").write_text("a\n")
    (folder / "test.txt").write_text("c")
    return folder


def test_test_split_has_frames_without_segments(tmp_path: Path) -> None:
    source = small_source(tmp_path / "in")
    convert_vipseg(source, tmp_path / "out", height=24, workers=1)
    content = json.loads((tmp_path / "out/panoptic_gt_VIPSeg_test.json").read_text())
    assert [video["video_id"] for video in content["videos"]] == ["c"]
    assert content["videos"][0]["images"][1] == {
        "id": "00001",
        "width": 40,
        "height": 24,
        "file_name": "00001.png",
    }
    assert [f["segments_info"] for f in content["annotations"][0]["annotations"]] == [[], []]
    everything = json.loads((tmp_path / "out/panoptic_gt_VIPSeg.json").read_text())
    assert [video["video_id"] for video in everything["videos"]] == ["a", "b"]
    assert not (tmp_path / "out/panomasks/c").exists()


def test_stopped_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small_source(tmp_path / "in")
    convert_vipseg(source, tmp_path / "once", height=24, workers=1)

    original, done = vipseg._convert_video, []

    def stopping(*arguments: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments[2])
        return original(*arguments)

    monkeypatch.setattr(vipseg, "_convert_video", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert_vipseg(source, tmp_path / "twice", height=24, workers=1)
    assert not list((tmp_path / "twice").glob("*.json"))
    done.clear()
    convert_vipseg(source, tmp_path / "twice", height=24, workers=1)
    assert done == ["c"]
    assert all_bytes(tmp_path / "twice") == all_bytes(tmp_path / "once")

    done.clear()
    convert_vipseg(source, tmp_path / "twice", height=24, workers=1)
    assert not done


def test_several_processes_give_the_same(tmp_path: Path) -> None:
    source = small_source(tmp_path / "in")
    for workers in (1, 2):
        convert_vipseg(source, tmp_path / str(workers), height=24, workers=workers)
    assert all_bytes(tmp_path / "1") == all_bytes(tmp_path / "2")


def test_broken_sources_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = small_source(tmp_path / "in")
    mask = source / "panomasks/b/00001.png"
    write_png(mask, np.full((12, 20), 12700, np.uint16))
    with pytest.raises(BrokenDataError, match=r"b/00001\.png: the value 12700 stands for no category"):
        convert_vipseg(source, tmp_path / "out", height=24, workers=2)
    write_png(mask, np.ones((12, 30), np.uint16))
    with pytest.raises(
        BrokenDataError, match=r"b/00001\.png: scaled, it has \(24, 60\) pixels, its image \(24, 40\)"
    ):
        convert_vipseg(source, tmp_path / "out", height=24, workers=1)
    mask.write_bytes(b"no image")
    with pytest.raises(BrokenDataError, match=r"b/00001\.png: cannot be read"):
        convert_vipseg(source, tmp_path / "out", height=24, workers=1)
    mask.unlink()
    image = source / "imgs/b/00001.jpg"
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(BrokenDataError, match=r"cannot read .*b/00001\.jpg"):
        convert_vipseg(source, tmp_path / "out", height=24, workers=1)
    shutil.rmtree(source / "imgs/b")
    with pytest.raises(BrokenDataError, match=r"train\.txt: video b is not there"):
        convert_vipseg(source, tmp_path / "out", height=24, workers=1)
    with pytest.raises(SystemExit):
        prepare_vipseg.main(["--source", str(tmp_path / "nowhere"), "--target", str(tmp_path / "new")])
    assert "nowhere/imgs: no videos there; download VIPSeg" in capsys.readouterr().err
