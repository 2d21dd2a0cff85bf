"""VSPW's conversion: sizes, values, splits, repetition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvis.data.errors import BrokenDataError
from dvis.data.label_images import read_class_map, write_png
from dvis.data.prepare import convert_vspw
from tests.scripts import load_script

prepare_vspw = load_script("datasets/prepare_vspw.py")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two videos of two frames, 10 x 15 and 16 x 9 pixels; the second has no masks."""
    folder = tmp_path / "VSPW"
    rng = np.random.default_rng(0)
    for video, size in (("1_a", (10, 15)), ("2_b", (16, 9))):
        for t in range(2):
            image = folder / "data" / video / "origin" / f"{t:08d}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
            if video == "1_a":
                (folder / "data" / video / "mask").mkdir(exist_ok=True)
                labels = rng.choice(np.array([0, 1, 124, 255], np.uint8), size)
                write_png(folder / "data" / video / "mask" / f"{t:08d}.png", labels)
    (folder / "train.txt").write_text("1_a")
    (folder / "test.txt").write_text("2_b\n")
    return folder


def test_frames_and_masks(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "VSPW_480p"
    prepare_vspw.main(["--source", str(source), "--target", str(target), "--workers", "1"])
    for t in range(2):
        image = Image.open(target / f"data/1_a/origin/{t:08d}.jpg")
        mask = read_class_map(target / f"data/1_a/mask/{t:08d}.png")
        assert image.size == (720, 480)
        assert mask.shape == (480, 720)
        np.testing.assert_array_equal(
            mask[24::48, 24::48], read_class_map(source / f"data/1_a/mask/{t:08d}.png")
        )
        assert Image.open(target / f"data/2_b/origin/{t:08d}.jpg").size == (270, 480)
    assert not (target / "data/2_b/mask").exists()
    assert (target / "train.txt").read_text() == "1_a\n"  # readers cut the last character of each line
    assert not (target / "val.txt").exists()
    assert not list(target.glob(".*"))


def test_complete_data_is_left_alone(source: Path, tmp_path: Path) -> None:
    convert_vspw(source, tmp_path / "out", height=20, workers=2)
    image = tmp_path / "out/data/1_a/origin/00000000.jpg"
    before = image.stat().st_mtime_ns
    convert_vspw(source, tmp_path / "out", height=20)
    assert image.stat().st_mtime_ns == before
    convert_vspw(source, tmp_path / "out", height=20, workers=1, force=True)
    assert image.stat().st_mtime_ns > before


def test_broken_sources_are_named(source: Path, tmp_path: Path) -> None:
    (source / "train.txt").write_text("1_a\n9_z\n")
    with pytest.raises(BrokenDataError, match=r"train\.txt: video 9_z is not there"):
        convert_vspw(source, tmp_path / "out", height=20, workers=1)
    mask = source / "data/1_a/mask/00000001.png"
    write_png(mask, np.zeros((10, 16), np.uint8))
    with pytest.raises(BrokenDataError, match=r"00000001\.png: scaled, it has \(20, 32\) pixels"):
        convert_vspw(source, tmp_path / "other", height=20, workers=1)
