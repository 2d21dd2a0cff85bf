"""The training program from the outside: trains, resumes, evaluates; bad input ends in one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import default_argument_parser

import train_net_video
from tests.integration.conftest import CONFIG, ROOT, TINY


def run(*arguments: str, overrides: list[str]) -> dict[str, Any]:
    args = default_argument_parser().parse_args([*arguments, *TINY, *overrides])
    return train_net_video.main(args)


def train(output: Path, iterations: int, *arguments: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    settings = ["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", str(iterations), *overrides]
    return run("--config-file", str(CONFIG), *arguments, overrides=settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    output = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_data))
        train(output, 2)
    return output


def test_training_writes_checkpoint_metrics_config_and_score(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"model_final.pth", "metrics.json", "config.yaml", "log.txt", "last_checkpoint"} <= names
    assert any("tfevents" in name for name in names)
    rows = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(row["total_loss"])) for row in rows if "total_loss" in row)
    assert any("segm/AP" in row for row in rows), "evaluated at the end"
    results = json.loads((trained / "inference" / "toy_vis_val" / "results.json").read_text())
    assert {"video_id", "score", "category_id", "segmentations"} <= set(results[0])


def test_resume_continues_the_iteration_count(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(output, 2)
    train(output, 3, "--resume")
    state = torch.load(output / "model_final.pth", weights_only=True)
    assert state["iteration"] == 2
    log = (output / "log.txt").read_text()
    assert "Starting training from iteration 2" in log


def test_eval_only_reproduces_the_score_of_training(trained: Path, tmp_path: Path) -> None:
    overrides = ["MODEL.WEIGHTS", str(trained / "model_final.pth"), "OUTPUT_DIR", str(tmp_path)]
    results = run("--config-file", str(CONFIG), "--eval-only", overrides=overrides)
    rows = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    at_the_end = next(row for row in rows if "segm/AP" in row)
    assert results["segm"]["AP"] == pytest.approx(at_the_end["segm/AP"], nan_ok=True)
    first, second = (path / "inference/toy_vis_val/results.json" for path in (trained, tmp_path))
    assert first.read_text() == second.read_text()


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("nowhere.yaml", [], "nowhere.yaml: no such file"),
        (CONFIG, ["MODEL.MASK_FORMER.HIDEN_DIM", "64"], "did you mean MODEL.MASK_FORMER.HIDDEN_DIM?"),
        (CONFIG, ["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER"),
        (CONFIG, ["DATASETS.TRAIN", "('toy_vis_trian',)"], "did you mean 'toy_vis_train'?"),
        (CONFIG, ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"], "toy_vis_train has 6 classes"),
        (CONFIG, ["DATASETS.TEST", "('ovis_val',)"], "DETECTRON2_DATASETS"),
        (CONFIG, ["MODEL.WEIGHTS", "no_such_model.pth"], "no_such_model.pth"),
    ],
)
def test_wrong_input_is_one_line(
    config: Any, overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--config-file", str(config), overrides=["OUTPUT_DIR", str(tmp_path), *overrides])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_missing_data_folder_says_which_variable_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "empty"))
    with pytest.raises(SystemExit):
        train(tmp_path, 1)
    error = capsys.readouterr().err
    assert "DETECTRON2_DATASETS" in error
    assert str(tmp_path / "empty" / "toy") in error
    assert "generate_toy.py" in error


def test_foreign_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"encoder.weight": torch.zeros(3)}}, tmp_path / "foreign.pth")
    overrides = ["MODEL.WEIGHTS", str(tmp_path / "foreign.pth"), "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(SystemExit):
        run("--config-file", str(CONFIG), "--eval-only", overrides=overrides)
    error = capsys.readouterr().err
    assert "foreign.pth" in error
    assert "encoder.weight" in error


@pytest.mark.slow
@pytest.mark.parametrize("start", ["--num-gpus", "torchrun"])
def test_two_processes_train_and_evaluate(start: str, tmp_path: Path, trained: Path) -> None:
    program = [str(ROOT / "train_net_video.py"), "--config-file", str(CONFIG)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *(torchrun if start == "torchrun" else []), *program]
    if start == "--num-gpus":
        command += ["--num-gpus", "2"]
    command += [*TINY, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model_final.pth").is_file()
    results = json.loads((tmp_path / "inference/toy_vis_val/results.json").read_text())
    assert {row["video_id"] for row in results} == {1, 2}, "both ranks' videos are there"
