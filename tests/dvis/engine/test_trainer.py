"""What checkpoints of a training hold, which are kept, and what a resumed run says and does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.engine import AMPTrainer
from torch import nn

import train_net_video
from dvis.checkpoint import VideoCheckpointer
from dvis.data import build_train_loader
from dvis.engine import VideoTrainer
from dvis.engine.accumulation import AccumulatingTrainer
from dvis.provenance import VERSION, code_version, environment
from tests.dvis.engine.training import arguments, final_state, read_losses, train

FAST = {"DATALOADER.NUM_WORKERS": 0}


def run(output: Path, *options: str, **settings: Any) -> str:
    """Train a tiny MinVIS; returns the log."""
    named = {name.replace("__", "."): value for name, value in settings.items()}
    train(arguments("minvis", output, *options, settings={**FAST, **named}))
    return (output / "log.txt").read_text()


def test_config_code_and_environment_travel_inside(tmp_path: Path) -> None:
    run(tmp_path, SOLVER__MAX_ITER=1)
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert yaml.safe_load(content["config"])["MODEL"]["META_ARCHITECTURE"] == "MinVIS"
    assert content["code"] == code_version()
    assert content["code"].startswith(VERSION)
    assert content["environment"] == environment()
    assert content["environment"]["torch"] == torch.__version__
    assert content["iteration"] == 0
    assert content["data"] == {"seed": 42, "next_clip": 2}
    assert len(content["random"]) == 1


@pytest.mark.parametrize(("keep", "kept"), [(2, [4, 5]), (0, [0, 1, 2, 3, 4, 5])])
def test_the_last_checkpoints_are_kept(keep: int, kept: list[int], tmp_path: Path) -> None:
    (tmp_path / "model_0000099.pth").write_bytes(b"of another run")
    settings = {"SOLVER__CHECKPOINT_PERIOD": 1, "SOLVER__CHECKPOINT_KEEP": keep}
    run(tmp_path, SOLVER__MAX_ITER=4, **settings)
    run(tmp_path, "--resume", SOLVER__MAX_ITER=6, **settings)
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == [*(f"model_{step:07d}.pth" for step in [*kept, 99]), "model_final.pth"]


@pytest.mark.parametrize("saves", [1, 2, 3])
def test_final_weights_are_there_wherever_the_run_was_ended(
    saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag, tagged = VideoCheckpointer.tag_last_checkpoint, []

    def end_after_saves(self: VideoCheckpointer, name: str) -> None:
        tag(self, name)
        tagged.append(name)
        if len(tagged) == saves:
            raise RuntimeError("ended")

    settings = {"SOLVER__MAX_ITER": 2, "SOLVER__CHECKPOINT_PERIOD": 1}
    with monkeypatch.context() as patch:
        patch.setattr(VideoCheckpointer, "tag_last_checkpoint", end_after_saves)
        with pytest.raises(RuntimeError, match="ended"):
            run(tmp_path, **settings)
    run(tmp_path, "--resume", **settings)
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 1


def test_bad_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.CHECKPOINT_KEEP must not be negative, got -1"):
        run(tmp_path, SOLVER__CHECKPOINT_KEEP=-1)
    with pytest.raises(ValueError, match=r"SOLVER\.CHECKPOINT_PERIOD must be at least 1, got 0"):
        run(tmp_path, SOLVER__CHECKPOINT_PERIOD=0)
    with pytest.raises(ValueError, match=r"ACCUMULATION_STEPS is 3; a process has 2 clips per batch"):
        run(tmp_path, SOLVER__ACCUMULATION_STEPS=3)


def test_resume_says_what_counts_and_what_has_changed(tmp_path: Path) -> None:
    run(tmp_path, SOLVER__MAX_ITER=2)
    other = tmp_path / "other.pth"
    log = run(tmp_path, "--resume", SOLVER__MAX_ITER=3, MODEL__WEIGHTS=other)  # which is not there
    assert f"Resuming: the checkpoint in {tmp_path} counts, MODEL.WEIGHTS ({other}) is not read" in log
    assert "Resuming with another SOLVER.MAX_ITER: 3 instead of 2" in log
    assert "another OUTPUT_DIR" not in log
    assert list(read_losses(tmp_path)) == [0, 1, 2]


def test_resume_without_a_checkpoint_starts(tmp_path: Path) -> None:
    log = run(tmp_path, "--resume", SOLVER__MAX_ITER=1)
    assert "Starting training from iteration 0" in log


def test_torchrun_resumes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, SOLVER__MAX_ITER=2)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert "Starting training from iteration 2" in run(tmp_path, SOLVER__MAX_ITER=3)


def test_a_random_seed_is_remembered(tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    run(pieces, SEED=-1, SOLVER__MAX_ITER=2)
    content = torch.load(pieces / "model_final.pth", weights_only=True)
    whole.mkdir()
    for name in ("model_final.pth", "last_checkpoint"):
        (whole / name).write_bytes((pieces / name).read_bytes())
    run(whole, "--resume", SEED=-1, SOLVER__MAX_ITER=5)
    run(pieces, "--resume", SEED=-1, SOLVER__MAX_ITER=4)
    run(pieces, "--resume", SEED=-1, SOLVER__MAX_ITER=5)
    assert read_losses(whole).keys() == {2, 3, 4}
    content_now = torch.load(pieces / "model_final.pth", weights_only=True)
    assert content_now["data"] == {"seed": content["data"]["seed"], "next_clip": 10}
    first, second = read_losses(whole), read_losses(pieces)
    assert first[2] == second[2]


def test_evaluation_on_the_way_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "plain", SOLVER__MAX_ITER=4)
    tested = {"TEST__EVAL_PERIOD": 1, "DATASETS__TEST": "('toy_vis_val',)"}
    run(tmp_path / "tested", SOLVER__MAX_ITER=4, **tested)
    assert read_losses(tmp_path / "plain") == read_losses(tmp_path / "tested")
    first, second = final_state(tmp_path / "plain"), final_state(tmp_path / "tested")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_batch_size_goes_on_with_the_next_clip(tmp_path: Path) -> None:
    run(tmp_path, SOLVER__MAX_ITER=3)
    settings = {**FAST, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.MAX_ITER": 5}
    trainer = VideoTrainer(train_net_video.setup(arguments("minvis", tmp_path, settings=settings)))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 3
    clips = next(iter(trainer.train_loader))
    stream = iter(build_train_loader(trainer.cfg))
    expected = [clip for _ in range(3) for clip in next(stream)][6:10]
    assert [clip["file_names"] for clip in clips] == [clip["file_names"] for clip in expected]


def test_checkpoints_of_other_programs_are_continued(tmp_path: Path) -> None:
    run(tmp_path, SOLVER__MAX_ITER=2)
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    for key in ("random", "data", "config", "code", "environment"):
        del content[key]
    torch.save(content, tmp_path / "model_final.pth")
    log = run(tmp_path, "--resume", SOLVER__MAX_ITER=3)
    assert "The checkpoint is from another program: random numbers are not those of" in log
    assert list(read_losses(tmp_path)) == [0, 1, 2]


def test_metrics_go_on_in_one_file(tmp_path: Path) -> None:
    run(tmp_path, SOLVER__MAX_ITER=2)
    run(tmp_path, "--resume", SOLVER__MAX_ITER=3)
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [1, 2]


@pytest.mark.parametrize("num_parts", [1, 2])
def test_the_scale_of_mixed_precision_is_saved(num_parts: int, tmp_path: Path) -> None:
    def trainer(scale: float) -> Any:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        if num_parts == 1:
            return AMPTrainer(model, [], optimizer, grad_scaler=scaler)
        accumulating = AccumulatingTrainer(model, [], optimizer, num_parts=2, mixed_precision=True)
        accumulating.grad_scaler = scaler
        return accumulating

    first, second = trainer(1024.0), trainer(8.0)
    VideoCheckpointer(first.model, str(tmp_path), trainer=first).save("model_0000000")
    assert VideoCheckpointer(second.model, str(tmp_path), trainer=second).resume() is not None
    assert second.grad_scaler.get_scale() == 1024.0
