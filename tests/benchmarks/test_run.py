"""The benchmark of the models: its clock, its variants, and a small real run of each command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.run import STAGES, TRAINING_STAGES, StageClock, main, median_of, table, variant
from dvis.video_io import VideoWriter
from tests.dvis.tiny import OVERRIDES

ROOT = Path(__file__).resolve().parents[2]


def test_a_stage_inside_another_counts_for_itself() -> None:
    clock = StageClock(cuda=False)
    with clock.stage("outer"):
        time.sleep(0.02)
        with clock.stage("inner"):
            time.sleep(0.06)
    assert 0.015 < clock.seconds["outer"] < clock.seconds["inner"]
    assert clock.seconds["inner"] > 0.055


def test_median_and_table() -> None:
    median = median_of([{"total": 1.0}, {"total": 9.0}, {"total": 2.0}])
    assert median == {"total": 2.0}
    assert table([["online", 0.123456]], ["mode", "s"]) == "| mode | s |\n| --- | --- |\n| online | 0.123 |"


def test_words_of_a_variant() -> None:
    with variant(["OP=pytorch", "THREADS=1", "TEST.EVAL_PERIOD=3"]) as change:
        assert change == {"op": "pytorch", "threads": 1, "opts": ["TEST.EVAL_PERIOD", "3"]}
    with pytest.raises(SystemExit, match="'fast' is not KEY=VALUE"), variant(["fast"]):
        pass


TINY = [f"{key}={value}" for key, value in OVERRIDES.items()]


def run(words: str, tmp_path: Path) -> tuple[list[dict[str, Any]], str]:
    """Run a command on tiny models as a user would, in a process of its own; what it measured and printed."""
    file = tmp_path / "measured.json"
    command = [sys.executable, str(ROOT / "benchmarks/run.py"), *words.split(), "--repeats", "1"]
    command += ["--json", str(file), "--a", "THREADS=1", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())["measured"], done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("inference --frames 0", "lengths, sizes and counts are positive"),
        ("complexity --scales 1 0", "lengths, sizes and counts are positive"),
        ("end-to-end --input missing.mp4", "missing.mp4: no such file"),
        ("inference --json missing/measured.json", "missing/measured.json: there is no such folder"),
        ("complexity --plot missing/plot.png", "missing/plot.png: there is no such folder"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_measured(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *words.split()])
    monkeypatch.setattr("benchmarks.run.run_once", None)  # would be the measurement
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_inference(tmp_path: Path) -> None:
    (measured,), printed = run("inference --modes offline --frames 2 --size 64 96", tmp_path)
    assert all(measured[stage] > 0 for stage in STAGES)
    assert sum(measured[stage] for stage in STAGES) == pytest.approx(measured["total"], rel=0.05)
    assert measured["peak RSS, GB"] > 0.1
    assert "| offline | 2 |" in printed


def test_memory(tmp_path: Path) -> None:
    measured, _ = run("memory --modes online --frames 1 2 --size 64 96", tmp_path)
    assert [m["frames"] for m in measured] == [1, 2]


def test_end_to_end(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        for t in range(2):
            writer.write(np.full((32, 48, 3), 100 * t, np.uint8))
    words = f"end-to-end --modes minvis --input {tmp_path / 'clip.mp4'}"
    (measured,), _ = run(words, tmp_path)
    assert measured["total"] > 0
    assert measured["drawing"] > 0


def test_training(tmp_path: Path) -> None:
    (measured,), _ = run("training --modes offline --frames 3 --size 64 96 --steps 1", tmp_path)
    parts = sum(measured[stage] for stage in TRAINING_STAGES)
    assert parts == pytest.approx(measured["forward"], rel=0.05)
    assert measured["forward"] + measured["backward"] == pytest.approx(measured["total"])


def test_data(tmp_path: Path) -> None:
    (measured,), _ = run("data --modes online --frames 2 --size 90 160 --steps 1", tmp_path)
    assert measured["clips per second"] > 0


def test_profile(tmp_path: Path) -> None:
    (measured,), printed = run("profile training --modes online --frames 2 --size 64 96", tmp_path)
    shares = [share for _, share, _ in measured["shares"]]
    assert 0.5 < sum(shares) <= 1.001
    assert shares == sorted(shares, reverse=True)
    assert "| operator or kernel | share | calls |" in printed


def test_complexity(tmp_path: Path) -> None:
    words = "complexity --modes online --frames 1 --size 64 96 --queries 5 --instances 3 --scales 1"
    measured, _ = run(f"{words} --plot {tmp_path / 'plot.png'}", tmp_path)
    assert [m["axis"] for m in measured] == ["frames", "queries", "instances", "megapixels"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_pair_with_a_plain_form(tmp_path: Path) -> None:
    words = "pair training --modes online --frames 2 --size 64 96 --steps 1 --b PLAIN=masks,segmenter"
    (measured,), printed = run(words + " THREADS=1 " + " ".join(TINY), tmp_path)
    assert measured["A"]["total"] > 0
    assert measured["B"]["total"] > 0
    assert "B / A" in printed
