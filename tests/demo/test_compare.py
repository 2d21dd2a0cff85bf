"""The program that draws several models side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from demo import compare
from dvis.video_io import open_video
from tests.integration.conftest import CONFIG, TINY
from tests.integration.conftest import data_root as data_root
from tests.integration.conftest import tiny_data as tiny_data

ONLINE = CONFIG.with_name("DVIS_Online_toy.yaml")
SMALL = [*TINY, "INPUT.MIN_SIZE_TEST", "32", "MODEL.TRACKER.DECODER_LAYERS", "1"]


def run(root: Path, output: Path, *arguments: str, overrides: tuple[str, ...] = ()) -> int:
    models = ["--model", "MinVIS", str(CONFIG), "", "--model", "online", str(ONLINE), ""]
    source = ["--input", str(root / "toy" / "val" / "JPEGImages" / "val_0001"), "--output", str(output)]
    return compare.main(
        [*models, *source, "--confidence-threshold", "0", *arguments, "--opts", *SMALL, *overrides]
    )


def test_with_ground_truth(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, gif, scores = tmp_path / "side.mp4", tmp_path / "side.gif", tmp_path / "scores.json"
    truth = ["--truth", str(data_root / "toy" / "val.json")]
    code = run(data_root, output, *truth, "--gif", str(gif), "--json", str(scores), "--scale", "2")
    assert code == 0
    written = open_video(output)
    assert written.size == (2 * 160 + 4, 128 + 22)
    assert len(list(written)) == 4
    with Image.open(gif) as image:
        assert getattr(image, "n_frames", 1) == 4
    printed = capsys.readouterr().out
    assert "id switches" in printed
    assert "| online " in printed
    numbers = json.loads(scores.read_text())
    assert list(numbers) == ["MinVIS", "online"]
    assert {"AP", "AP50", "AP_heavy", "id_switches"} <= set(numbers["online"])


def test_without_ground_truth(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data_root, tmp_path / "frames") == 0
    assert len(list((tmp_path / "frames").glob("*.jpg"))) == 4
    assert not capsys.readouterr().out


def test_shipped_models_are_the_default(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(Path(config).is_file() for _, config, _ in compare.SHIPPED)
    monkeypatch.setattr(compare, "SHIPPED", [[title, config, ""] for title, config, _ in compare.SHIPPED])
    source = ["--input", str(data_root / "toy" / "val" / "JPEGImages" / "val_0001")]
    truth = ["--truth", str(data_root / "toy" / "val.json")]
    assert compare.main([*source, *truth, "--output", str(tmp_path / "side.mp4"), "--opts", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {title} " in printed for title in ("MinVIS", "DVIS online", "DVIS offline"))


def test_other_tasks_are_drawn_but_not_scored(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("MODEL.MASK_FORMER.TEST.TASK", "vss")
    assert run(data_root, tmp_path / "side.mp4", overrides=overrides) == 0
    assert len(list(open_video(tmp_path / "side.mp4"))) == 4
    truth = ["--truth", str(data_root / "toy" / "val.json")]
    assert run(data_root, tmp_path / "side.mp4", *truth, overrides=overrides) == 2
    assert "task vis" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        (("--truth", "none.json"), (), "none.json"),
        (("--scale", "0"), (), "argument --scale: 0 is not positive"),
        (("--fps", "-1"), (), "argument --fps: -1 is not positive"),
        ((), ("MODEL.NO_SUCH", "1"), "MODEL.NO_SUCH"),
    ],
)
def test_wrong_input_is_one_line(
    data_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    overrides: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(data_root, tmp_path / "side.mp4", *arguments, overrides=overrides)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
