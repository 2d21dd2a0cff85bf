"""Panoptic and semantic evaluation end to end; resuming, packing and several processes for all tasks."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

import dvis
from dvis.engine import VideoTrainer
from dvis.engine.launch import leave_process_groups
from dvis.evaluation import VideoEvaluator, build_evaluator, fingerprint
from tests.dvis.evaluation.perfect import Oracle

SCORES = {
    "vps": ("VPQ", "VPQ_th", "VPQ_st", "VPQ1", "VPQ8", "VPQ_with_8", "STQ", "AQ", "SQ"),
    "vss": ("mIoU", "fwIoU", "Acc", "Acc_class", "VC8"),
}


def config(task: str, tmp_path: Path, *overrides: Any) -> CfgNode:
    fixed = ["DATASETS.TEST", (f"toy_{task}_val",), "MODEL.MASK_FORMER.TEST.TASK", task]
    return dvis.load_config(None, [*fixed, "OUTPUT_DIR", str(tmp_path), *overrides])


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("task", ["vps", "vss"])
def test_perfect_results_through_the_loader(task: str, toy: Path, tmp_path: Path) -> None:
    cfg = config(task, tmp_path)
    results = VideoTrainer.test(cfg, Oracle(f"toy_{task}_val"))[task]
    assert {name: results[name] for name in SCORES[task]} == pytest.approx(dict.fromkeys(SCORES[task], 100.0))
    written = files_in(tmp_path / "inference" / f"toy_{task}_val")
    pngs = [name for name in written if name.endswith(".png")]
    assert len(pngs) == 3 * 10
    others = {"vps": {"pred.json", "scores.json"}, "vss": {"scores.json"}}[task]
    assert set(written) - set(pngs) == others  # no records, no temporary files


@pytest.mark.parametrize("task", ["vps", "vss"])
def test_an_interrupted_evaluation_goes_on(
    task: str, toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"toy_{task}_val"
    VideoTrainer.test(config(task, tmp_path / "once"), Oracle(name))

    cfg = config(task, tmp_path / "twice", "TEST.RESUME", True)
    first, second = Oracle(name, stop_after=2), Oracle(name)
    with pytest.raises(KeyboardInterrupt):
        VideoTrainer.test(cfg, first)
    with caplog.at_level(logging.INFO, logger="dvis"):
        VideoTrainer.test(cfg, second)
    assert len(first.asked) == 2
    assert second.asked == [video for video in second.records if video not in first.asked]
    assert "going on after 2 finished videos" in caplog.text
    assert files_in(tmp_path / "twice") == files_in(tmp_path / "once")

    # What is complete is not gone on with.
    third = Oracle(name)
    VideoTrainer.test(cfg, third)
    assert len(third.asked) == 3


def test_interrupted_after_the_last_video(toy: Path, tmp_path: Path) -> None:
    cfg = config("vps", tmp_path, "TEST.RESUME", True)
    model = Oracle("toy_vps_val")
    evaluator = build_evaluator(cfg, "toy_vps_val")
    assert isinstance(evaluator, VideoEvaluator)
    evaluator.begin(fingerprint(cfg, model), resume=True)
    evaluator.reset()
    for video in VideoTrainer.build_test_loader(cfg, "toy_vps_val"):
        evaluator.process(video, model(video))
    again = Oracle("toy_vps_val")
    assert VideoTrainer.test(cfg, again)["vps"]["VPQ"] == pytest.approx(100.0)
    assert again.asked == []


@pytest.mark.parametrize("change", ["weights", "settings", "not asked for"])
def test_other_evaluations_start_anew(change: str, toy: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        VideoTrainer.test(config("vss", tmp_path), Oracle("toy_vss_val", stop_after=2))
    model = Oracle("toy_vss_val", value=2.0 if change == "weights" else 1.0)
    overrides = ["INPUT.MIN_SIZE_TEST", 77] if change == "settings" else []
    VideoTrainer.test(config("vss", tmp_path, "TEST.RESUME", change != "not asked for", *overrides), model)
    assert len(model.asked) == 3


def test_fingerprint_sees_weights_and_settings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.BatchNorm1d(3).to(torch.bfloat16)
    cfg = config("vis", tmp_path)
    same = config("vis", tmp_path / "other", "MODEL.WEIGHTS", "elsewhere.pth", "TEST.ZIP", True)
    assert fingerprint(cfg, model) == fingerprint(same, model)
    assert fingerprint(cfg, model) != fingerprint(config("vss", tmp_path), model)
    before = fingerprint(cfg, model)
    model.num_batches_tracked.add_(1)
    assert fingerprint(cfg, model) != before


@pytest.mark.parametrize("task", ["vps", "vss"])
def test_submission_is_packed(task: str, toy: Path, tmp_path: Path) -> None:
    VideoTrainer.test(config(task, tmp_path, "TEST.ZIP", True), Oracle(f"toy_{task}_val"))
    folder = tmp_path / "inference" / f"toy_{task}_val"
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
    frames = {f"{video}/{t:05d}.png" for video in ("val_0000", "val_0001", "val_0002") for t in range(10)}
    if task == "vps":
        assert names == {"pred.json", *(f"pan_pred/{frame}" for frame in frames)}
    else:
        assert names == frames


def test_instances_are_packed_and_resumed(toy: Path, tmp_path: Path) -> None:
    cfg = config("vis", tmp_path, "TEST.ZIP", True)
    output = {
        "task": "vis",
        "pred_scores": [0.5],
        "pred_labels": [0],
        "pred_masks": torch.ones(1, 10, 40, 56, dtype=torch.bool),
    }
    evaluator: Any = build_evaluator(cfg, "toy_vis_val")
    evaluator.begin("run", resume=True)
    evaluator.reset()
    evaluator.process([{"video_id": 2, "length": 10}], [output])

    evaluator = build_evaluator(cfg, "toy_vis_val")
    assert evaluator.begin("run", resume=True) == {2}
    evaluator.reset()
    for video_id in (3, 1):
        evaluator.process([{"video_id": video_id, "length": 10}], [output])
    assert evaluator.evaluate()["segm"]["AP"] >= 0
    folder = tmp_path / "inference/toy_vis_val"
    results = json.loads((folder / "results.json").read_text())
    assert [result["video_id"] for result in results] == [1, 2, 3]
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        assert archive.namelist() == ["results.json"]
    assert set(files_in(folder)) == {"results.json", "scores.json", "submission.zip"}


def test_a_model_of_another_task_is_refused(toy: Path, tmp_path: Path) -> None:
    cfg = config("vss", tmp_path)
    with pytest.raises(
        ValueError, match=r"TEST\.TASK is 'vss'; toy_vps_val is evaluated on results of 'vps'"
    ):
        build_evaluator(cfg, "toy_vps_val")
    evaluator = build_evaluator(cfg, "toy_vss_val")
    with pytest.raises(ValueError, match="the task 'vss', the model's are of 'vps'"):
        evaluator.process([{"video_id": "val_0000"}], [{"task": "vps"}])


def evaluate_in_process(rank: int, address: str, root: str, output: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.multiprocessing.current_process()
    comm.create_local_process_group(2)
    cfg = config("vps", Path(output), "TEST.RESUME", True)
    model = Oracle("toy_vps_val")
    results = VideoTrainer.test(cfg, model)
    asked = comm.all_gather(model.asked)
    if rank == 0:
        (Path(output) / "check.json").write_text(json.dumps({"results": results, "asked": asked}))
    else:
        assert results == {}
    leave_process_groups()


def test_two_processes_share_the_videos_and_write_once(toy: Path, tmp_path: Path) -> None:
    VideoTrainer.test(config("vps", tmp_path / "one"), Oracle("toy_vps_val"))
    (tmp_path / "two").mkdir()
    address = f"file://{tmp_path / 'rendezvous'}"
    torch.multiprocessing.spawn(
        evaluate_in_process, args=(address, str(toy), str(tmp_path / "two")), nprocs=2
    )
    check = json.loads((tmp_path / "two/check.json").read_text())
    assert check["results"]["vps"]["VPQ"] == pytest.approx(100.0)
    assert sorted(video for part in check["asked"] for video in part) == ["val_0000", "val_0001", "val_0002"]
    assert all(check["asked"])
    assert files_in(tmp_path / "two/inference") == files_in(tmp_path / "one/inference")
