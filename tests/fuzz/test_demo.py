"""Whatever the demo is given, it writes a video or ends with one line that says why not."""

from __future__ import annotations

import math
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from PIL import Image

import dvis
from demo import demo
from dvis.video_io import VideoWriter, open_video
from tests.fuzz.cases import fuzz, mutated_bytes, sizes
from tests.integration.conftest import CONFIG, TINY

SMALL = [*TINY, "INPUT.MIN_SIZE_TEST", "32", "MODEL.WEIGHTS", ""]


@cache
def segmenter() -> dvis.VideoSegmenter:
    return dvis.VideoSegmenter.from_config(dvis.load_config(CONFIG, SMALL))


@pytest.fixture(autouse=True)
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has the same model: what is generated are the inputs."""
    model = segmenter()
    monkeypatch.setattr(demo.VideoSegmenter, "from_config", lambda *args, **kwargs: model)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    with VideoWriter(path, 10) as writer:
        for t in range(3):
            writer.write(
                np.roll(np.eye(24, 32, dtype=np.uint8)[..., None] * np.uint8([200, 99, 31]), t, axis=0)
            )
    return path.read_bytes()


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    capsys.readouterr()
    try:
        code = demo.main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    message = capsys.readouterr().err
    assert code in (0, 1, 2)
    if code:
        assert "error: " in message
        assert "Traceback" not in message
    return code


def write_frames(folder: Path, shapes: list[tuple[int, int]], mode: str) -> None:
    folder.mkdir()
    for t, (height, width) in enumerate(shapes):
        image = Image.fromarray(np.full((height, width, 3), 40 * t, np.uint8))
        image.convert(mode).save(folder / f"{t}.png")


@sizes(25, 1000)
def test_folders_and_options(examples: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = st.one_of(st.just((24, 32)), st.just((24, 32)), st.tuples(st.integers(1, 40), st.integers(1, 40)))
    numbers = st.sampled_from(["0", "0.5", "-1", "7", "nan", "inf", "1e9", "x", "0.001"])
    options = st.fixed_dictionaries(
        {},
        optional={
            "--fps": numbers,
            "--scale": st.sampled_from(["1", "2", "0", "-3", "x"]),
            "--confidence-threshold": numbers,
            "--results": st.sampled_from(["out.json", "", "nowhere/out.json", "."]),
        },
    )
    suffixes = st.sampled_from([".mp4", "", ".mkv", ".txt", "/sub/out.mp4", ".MOV"])

    def check(shapes: list[Any], mode: str, options: dict[str, str], suffix: str, stream: bool) -> None:
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        write_frames(tmp_path / "in", shapes, mode)
        output = tmp_path / f"out{suffix}"
        arguments = ["--config-file", str(CONFIG), "--input", str(tmp_path / "in"), "--output", str(output)]
        for name, value in options.items():
            value = str(tmp_path / value) if name == "--results" and value else value
            arguments.append(f"{name}={value}")
        arguments += ["--stream"] if stream else []
        if run(arguments, capsys) == 0:
            assert len(list(open_video(output))) == len(shapes)
            fps = float(options.get("--fps", "10"))
            assert math.isfinite(fps)
            assert len(set(shapes)) == 1

    modes = st.sampled_from(["RGB", "L", "RGBA", "P", "1", "I;16"])
    fuzz(examples, check, st.lists(sides, max_size=3), modes, options, suffixes, st.booleans())


@sizes(15, 1000)
def test_damaged_videos(
    examples: int, clip: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(data: DataObject, stream: bool) -> None:
        (tmp_path / "in.mp4").write_bytes(mutated_bytes(data, clip))
        output = tmp_path / "out.mp4"
        output.unlink(missing_ok=True)
        arguments = [
            "--config-file",
            str(CONFIG),
            "--input",
            str(tmp_path / "in.mp4"),
            "--output",
            str(output),
        ]
        code = run([*arguments, *(["--stream"] if stream else [])], capsys)
        assert code or list(open_video(output))

    fuzz(examples, check, st.data(), st.booleans())


@sizes(60, 2000)
def test_any_arguments(examples: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
    names = st.sampled_from(
        [
            "--config-file",
            "--input",
            "--output",
            "--stream",
            "--scale",
            "--fps",
            "--opts",
            "--results",
            "--resul",
        ]
    )

    def check(words: list[str]) -> None:
        # No frames can come of it, so nothing is written outside of the test's folder.
        run([*words, "--input", str(tmp_path / "missing")], capsys)

    fuzz(
        examples,
        check,
        st.lists(names | texts, max_size=8).filter(
            lambda words: not {"-h"} & set(words) and not any(w.startswith(("-h", "--h")) for w in words)
        ),
    )
