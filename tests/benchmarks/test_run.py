"""The benchmark of the models: its clock, its variants, and one small real run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.run import STAGES, StageClock, median_of, table, variant

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


def test_small_run(tmp_path: Path) -> None:
    words = "inference --modes offline --frames 2 --size 64 96 --repeats 1 --a OP=pytorch THREADS=1"
    command = [sys.executable, str(ROOT / "benchmarks/run.py"), *words.split()]
    file = tmp_path / "times.json"
    done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(file.read_text())["measured"]
    assert all(measured[stage] > 0 for stage in STAGES)
    assert sum(measured[stage] for stage in STAGES) == pytest.approx(measured["total"], rel=0.05)
    assert measured["peak RSS, GB"] > 0.1
    assert "| offline | 2 |" in done.stdout
