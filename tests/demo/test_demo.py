"""The demo program: every kind of input, output that plays, broken and odd input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from demo import demo
from dvis.data.rle import decode_rle
from dvis.video_io import FrameWriter, VideoWriter, open_video
from tests.integration.conftest import CONFIG, TINY

SMALL = [*TINY, "INPUT.MIN_SIZE_TEST", "32", "MODEL.WEIGHTS", ""]


def run(source: object, output: object, *arguments: str, overrides: tuple[str, ...] = ()) -> int:
    config = ["--config-file", str(CONFIG), "--input", str(source), "--output", str(output)]
    return demo.main([*config, "--confidence-threshold", "0", *arguments, "--opts", *SMALL, *overrides])


def frames(count: int, width: int = 48, height: int = 33) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    background = rng.integers(0, 255, (height, width, 3), np.uint8)
    return [np.roll(background, 2 * index, axis=1) for index in range(count)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "clip.mp4", 12.5) as writer:
        for frame in frames(9):
            writer.write(frame)
    return writer.path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with FrameWriter(tmp_path / "frames") as writer:
        for frame in frames(5):
            writer.write(frame)
    return writer.path


@pytest.mark.parametrize("mode", [(), ("--stream",)], ids=["whole", "stream"])
def test_video_to_video(clip: Path, tmp_path: Path, mode: tuple[str, ...]) -> None:
    assert run(clip, tmp_path / "out.mp4", *mode) == 0
    written, source = open_video(tmp_path / "out.mp4"), open_video(clip)
    assert (written.size, written.fps) == (source.size, pytest.approx(12.5))
    drawn = list(written)
    assert len(drawn) == 9
    difference = [np.abs(a.astype(int) - b).mean() for a, b in zip(drawn, source, strict=True)]
    assert min(difference) > 2, "something is drawn on every frame (threshold 0)"


def test_folder_glob_and_single_image(folder: Path, tmp_path: Path) -> None:
    for number, source in enumerate((folder, folder / "*.jpg", folder / "000002.jpg")):
        assert run(source, tmp_path / f"out{number}") == 0
    assert [len(list((tmp_path / f"out{n}").glob("*.jpg"))) for n in range(3)] == [5, 5, 1]


def test_results_file(clip: Path, tmp_path: Path) -> None:
    assert run(clip, tmp_path / "out.mp4", "--results", str(tmp_path / "out.json")) == 0
    results = json.loads((tmp_path / "out.json").read_text())
    assert (results["num_frames"], results["height"], results["width"]) == (9, 34, 48)
    assert results["objects"]
    for found in results["objects"]:
        assert {"id", "label", "name", "score", "segmentations"} == set(found)
        assert len(found["segmentations"]) == 9
        assert decode_rle(found["segmentations"][0]).shape == (34, 48)


@pytest.mark.parametrize("task", ["vps", "vss"])
@pytest.mark.parametrize("mode", [(), ("--stream",)], ids=["whole", "stream"])
def test_other_tasks(clip: Path, tmp_path: Path, task: str, mode: tuple[str, ...]) -> None:
    overrides = ("MODEL.MASK_FORMER.TEST.TASK", task, "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0")
    assert run(clip, tmp_path / "out.mp4", *mode, overrides=overrides) == 0
    assert len(list(open_video(tmp_path / "out.mp4"))) == 9


def test_small_videos_can_be_enlarged(clip: Path, tmp_path: Path) -> None:
    assert run(clip, tmp_path / "out.mp4", "--scale", "3") == 0
    assert open_video(tmp_path / "out.mp4").size == (144, 102)


def test_nothing_found_is_said(clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(clip, tmp_path / "out.mp4", "--confidence-threshold", "1.1") == 0
    assert "No object scores above 1.10" in caplog.text
    assert len(list(open_video(tmp_path / "out.mp4"))) == 9


def test_broken_frame_keeps_what_was_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "000003.jpg"
    path.write_bytes(path.read_bytes()[:200])
    for mode in ((), ("--stream",)):
        assert run(folder, tmp_path / "out.mp4", *mode) == 1
        error = capsys.readouterr().err
        assert "000003.jpg" in error
        assert "the output holds what was read before" in error
        assert len(list(open_video(tmp_path / "out.mp4"))) == 3


@pytest.mark.parametrize(
    ("source", "output", "extra", "message"),
    [
        ("nowhere.mp4", "out.mp4", (), "nowhere.mp4: no such video file"),
        ("empty.mp4", "out.mp4", (), "empty.mp4: the file is empty"),
        ("clip.mp4", "out.gif", (), "out.gif: give a folder or a file ending in"),
        ("clip.mp4", "out.mp4", ("MODEL.WEIGHTS", "no.pth"), "no.pth"),
        ("clip.mp4", "out.mp4", ("MODEL.WEIGHT", "no.pth"), "did you mean MODEL.WEIGHTS"),
    ],
)
def test_wrong_input_is_one_line(
    clip: Path,
    tmp_path: Path,
    source: str,
    output: str,
    extra: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / source, tmp_path / output, overrides=extra)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_results_need_a_whole_video(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(clip, tmp_path / "out.mp4", "--stream", "--results", str(tmp_path / "out.json")) == 2
    assert "--results is for instances of a whole video" in capsys.readouterr().err


def test_places_where_nothing_can_be_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path / "out.mp4", "--results", str(tmp_path))
    assert stop.value.code == 2
    assert f"error: --results {tmp_path}: is a folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run(folder, tmp_path / "file" / "frames") == 1
    error = capsys.readouterr().err
    assert "error: " in error
    assert "Traceback" not in error
