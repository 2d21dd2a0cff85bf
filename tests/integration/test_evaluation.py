"""Models of all three tasks through ``--eval-only``; the program for result files gives the same scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.engine import default_argument_parser

import train_net_video
from tests.integration.conftest import CONFIG, TINY
from tools import evaluate

# Task -> configuration, and the official program that scores its files.
TASKS = {
    "vis": (CONFIG, "ovis"),
    "vps": (CONFIG.with_name("MinVIS_toy_vps.yaml"), "vps"),
    "vss": (CONFIG.with_name("MinVIS_toy_vss.yaml"), "vss"),
}


def evaluate_only(config: Path, output: Path, *overrides: str) -> dict[str, dict[str, float]]:
    arguments = ["--config-file", str(config), "--eval-only", *TINY, "OUTPUT_DIR", str(output), *overrides]
    results: Any = train_net_video.main(default_argument_parser().parse_args(arguments))
    return results


@pytest.mark.parametrize("task", TASKS)
def test_every_task_through_eval_only(
    task: str, tmp_path: Path, data_root: Path, random_weights: Callable[[Path], str]
) -> None:
    config, program = TASKS[task]
    results = evaluate_only(config, tmp_path, "MODEL.WEIGHTS", random_weights(config), "TEST.ZIP", "True")

    toy, folder = data_root / "toy", tmp_path / "inference" / f"toy_{task}_val"
    assert (folder / "submission.zip").is_file()
    gt, pred = {
        "vis": (toy / "val.json", folder / "results.json"),
        "vps": (toy / "vipseg", folder),
        "vss": (toy / "vspw", folder),
    }[task]
    output = tmp_path / "scores.json"
    arguments = ["--task", program, "--gt", str(gt), "--pred", str(pred), "--json", str(output)]
    evaluate.main([*arguments, "--categories", "toy_vps", "--raw-masks"])
    scores = json.loads(output.read_text())
    assert scores == json.loads((folder / "scores.json").read_text())
    if task == "vis":
        assert results["segm"]["AP"] == pytest.approx(100 * scores["stats"]["AP"])
        assert {f"AP-{name}" for name in ("disc", "star", "cross")} <= results["segm"].keys()
    elif task == "vps":
        assert results["vps"]["STQ"] == pytest.approx(100 * scores["stq"]["STQ"])
        assert not math.isnan(results["vps"]["VPQ1"])
    else:
        assert results["vss"]["mIoU"] == pytest.approx(100 * scores["mIoU"])
        assert not math.isnan(results["vss"]["fwIoU"])


def test_without_ground_truth_the_files_are_written_and_one_line_says_so(
    tmp_path: Path,
    data_root: Path,
    random_weights: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "data" / "toy"
    root.mkdir(parents=True)
    (root / "val").symlink_to(data_root / "toy" / "val")
    content = json.loads((data_root / "toy" / "val.json").read_text())
    (root / "val.json").write_text(json.dumps({**content, "annotations": None}))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    results = evaluate_only(CONFIG, tmp_path, "MODEL.WEIGHTS", random_weights(CONFIG))
    assert not results
    assert json.loads((tmp_path / "inference/toy_vis_val/results.json").read_text())
    lines = [line for line in capsys.readouterr().out.splitlines() if "no public ground truth" in line]
    assert len(lines) == 1
