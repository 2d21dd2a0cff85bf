"""Models of all three tasks through ``--eval-only``; the program for result files gives the same scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

import train_net_video
from tests.integration.conftest import ROOT, TINY
from tools import evaluate


@pytest.mark.parametrize("task", ["vps", "vss"])
def test_segments_through_eval_only(task: str, tmp_path: Path, data_root: Path) -> None:
    config = str(ROOT / f"configs/toy/MinVIS_toy_{task}.yaml")

    def run(*arguments: str) -> dict[str, dict[str, float]]:
        overrides = [*TINY, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "1", "TEST.ZIP", "True"]
        overrides += arguments[1:]
        return train_net_video.main(
            default_argument_parser().parse_args(["--config-file", config, *arguments[:1], *overrides])
        )

    run("--resume")  # trains one step
    results = run("--eval-only", "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))[task]

    folder = tmp_path / "inference" / f"toy_{task}_val"
    assert (folder / "submission.zip").is_file()
    toy = data_root / "toy"
    gt, pred = {"vps": (toy / "vipseg", folder), "vss": (toy / "vspw", folder)}[task]
    arguments = [
        "--task",
        task,
        "--gt",
        str(gt),
        "--pred",
        str(pred),
        "--json",
        str(tmp_path / "scores.json"),
    ]
    evaluate.main([*arguments, "--categories", "toy_vps", "--raw-masks"])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores == json.loads((folder / "scores.json").read_text())
    if task == "vps":
        assert results["STQ"] == pytest.approx(100 * scores["stq"]["STQ"])
    else:
        assert results["mIoU"] == pytest.approx(100 * scores["mIoU"])
