"""Handing weights from stage to stage, skipping finished stages, stopping at a failed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import ROOT
from tests.tools.fake_program import FakeProgram
from tools import train_stages

STAGES = [str(ROOT / "configs/toy" / f"{name}.yaml") for name in ("MinVIS_toy", "DVIS_Online_toy")]


def test_weights_are_handed_over_and_finished_stages_skipped(tmp_path: Path) -> None:
    program = FakeProgram()
    arguments = [*STAGES, "--output", str(tmp_path), "--num-gpus", "2", "SOLVER.MAX_ITER", "5"]
    assert train_stages.main(arguments, program) == 0
    first, second = program.commands
    assert "MODEL.WEIGHTS" not in first
    assert second[second.index("MODEL.WEIGHTS") + 1] == str(tmp_path / "MinVIS_toy" / "model_final.pth")
    for command in (first, second):
        assert command[command.index("--num-gpus") + 1] == "2"
        assert command[command.index("SOLVER.MAX_ITER") + 1] == "5"
        assert command.index("--num-gpus") < command.index("SOLVER.MAX_ITER"), "options come before pairs"

    assert train_stages.main(arguments, program) == 0
    assert len(program.commands) == 2, "nothing is left to do"


def test_a_failed_stage_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = FakeProgram(fail_at=0)
    assert train_stages.main([*STAGES, "--output", str(tmp_path), "SOLVER.MAX_ITER", "5"], program) == 3
    assert len(program.commands) == 1
    assert "run the same command to continue" in capsys.readouterr().err


def test_longer_schedule_reopens_a_finished_stage(tmp_path: Path) -> None:
    arguments = [STAGES[0], "--output", str(tmp_path), "SOLVER.MAX_ITER"]
    assert train_stages.main([*arguments, "5"], FakeProgram()) == 0
    program = FakeProgram(fail_at=0)
    assert train_stages.main([*arguments, "9"], program) == 3
    assert "--resume" in program.commands[0]


def test_wrong_config_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_stages.main(["nowhere.yaml"], FakeProgram())
    assert "nowhere.yaml: no such file" in capsys.readouterr().err
    assert train_stages.main(["MODEL.DEVICE", "cpu"], FakeProgram()) == 2
