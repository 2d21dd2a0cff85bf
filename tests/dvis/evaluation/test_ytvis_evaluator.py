"""The evaluator of instances: what it writes, what it scores, and what it says where it cannot."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from pycocotools import mask as mask_utils

import dvis
from dvis.data.rle import decode_rle
from dvis.data.toy import ToySettings, generate
from dvis.evaluation import YTVISEvaluator, build_evaluator
from dvis.evaluation.metrics.video_ap import evaluate_video_ap

CASES = Path(__file__).parents[2] / "data" / "evaluation"


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    generate(root / "toy", ToySettings(num_train=0, num_val=3, height=40, width=56, length=5), workers=1)
    return root


@pytest.fixture
def ground_truth(toy_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_root))
    return json.loads((toy_root / "toy" / "val.json").read_text())


def outputs(ground_truth: dict[str, Any], form: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The ground truth itself as a model's output, masks as one tensor or as codes."""
    pairs = []
    for video in ground_truth["videos"]:
        objects = [a for a in ground_truth["annotations"] if a["video_id"] == video["id"]]
        size = (video["height"], video["width"])
        empty = np.zeros(size, dtype=bool)
        tubes = [[decode_rle(m) if m else empty for m in a["segmentations"]] for a in objects]
        masks: Any = torch.from_numpy(np.array(tubes).reshape(-1, video["length"], *size))
        if form == "rle":
            masks = [
                [mask_utils.encode(np.asfortranarray(m, dtype=np.uint8)) for m in tube] for tube in masks
            ]
        result = {
            "image_size": size,
            "pred_scores": [0.9 - 0.1 * i for i in range(len(objects))],
            "pred_labels": [a["category_id"] - 1 for a in objects],
            "pred_masks": masks,
        }
        pairs.append(({"video_id": video["id"], "length": video["length"]}, result))
    return pairs


@pytest.mark.parametrize("form", ["tensor", "rle"])
def test_perfect_results(ground_truth: dict[str, Any], tmp_path: Path, form: str) -> None:
    evaluator = build_evaluator(dvis.load_config(), "toy_vis_val", tmp_path / "out")
    evaluator.reset()
    for video, result in reversed(outputs(ground_truth, form)):
        evaluator.process([video], [result] if form == "rle" else result)
    scores = evaluator.evaluate()["segm"]
    assert scores["AP"] == pytest.approx(100.0)
    assert math.isnan(scores["APl"])
    assert {"APso", "APmo", "APho", "AR1", "AR10", "AP-disc"} <= scores.keys()

    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["video_id"] for entry in written] == sorted(entry["video_id"] for entry in written)
    assert len(written) == len(ground_truth["annotations"])
    for entry, annotation in zip(written, ground_truth["annotations"], strict=True):
        assert entry.keys() == {"video_id", "category_id", "score", "segmentations"}
        assert entry["category_id"] == annotation["category_id"]
        assert entry["segmentations"] == annotation["segmentations"]
    assert not list((tmp_path / "out").glob(".*"))
    assert evaluate_video_ap(ground_truth, written, "ovis").stats["AP"] == pytest.approx(1.0)


def test_official_case_through_the_evaluator(tmp_path: Path) -> None:
    folder = CASES / "ytvis" / "standard"
    content = json.loads((folder / "gt.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())
    classes = {i: category["id"] for i, category in enumerate(content["categories"])}
    index = {category: i for i, category in classes.items()}
    evaluator = YTVISEvaluator("case", folder / "gt.json", classes, "ytvis", tmp_path)
    results = json.loads((folder / "results.json").read_text())
    for video in content["videos"]:
        own = [r for r in results if r["video_id"] == video["id"] and r["category_id"] in index]
        output = {
            "pred_scores": torch.tensor([r["score"] for r in own], dtype=torch.float64),
            "pred_labels": torch.tensor([index[r["category_id"]] for r in own]),
            "pred_masks": [r["segmentations"] for r in own],
        }
        evaluator.process([{"video_id": video["id"]}], [output])
    scores = evaluator.evaluate()["segm"]
    for name, row in (("AP", "AP"), ("APs", "AP_small"), ("AR10", "AR10")):
        assert scores[name] == pytest.approx(100 * expected["stats"][row], abs=1e-7)
    assert scores["AP-lizard"] != scores["AP-lizard"]  # no lizard in the ground truth: NaN


@pytest.mark.parametrize("annotations", [None, "missing"])
def test_without_public_ground_truth(
    tmp_path: Path, annotations: Any, caplog: pytest.LogCaptureFixture
) -> None:
    content: dict[str, Any] = {"videos": [{"id": 1}], "categories": [{"id": 1, "name": "a"}]}
    if annotations is None:
        content["annotations"] = None
    (tmp_path / "valid.json").write_text(json.dumps(content))
    evaluator = YTVISEvaluator("x_val", tmp_path / "valid.json", {0: 1}, "ytvis", tmp_path / "out")
    masks = torch.ones(1, 2, 4, 5, dtype=torch.bool)
    evaluator.process([{"video_id": 1}], [{"pred_scores": [0.5], "pred_labels": [0], "pred_masks": masks}])
    with caplog.at_level(logging.INFO, logger="dvis"):
        assert evaluator.evaluate() == {}
    assert "x_val has no public ground truth: nothing is scored here; the files for" in caplog.text
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 1


def test_no_predictions_at_all(ground_truth: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    evaluator = build_evaluator(dvis.load_config(), "toy_vis_val", None)
    evaluator.output_dir = None
    nothing = {
        "pred_scores": [],
        "pred_labels": [],
        "pred_masks": torch.zeros(0, 5, 40, 56, dtype=torch.bool),
    }
    evaluator.process([{"video_id": 1, "length": 5}], [nothing])
    with caplog.at_level(logging.WARNING, logger="dvis"):
        scores = evaluator.evaluate()["segm"]
    assert scores["AP"] == 0.0
    assert "2 videos have no results" in caplog.text
    evaluator.reset()
    assert evaluator.evaluate()["segm"]["AP50"] == 0.0


def test_outputs_that_do_not_fit_are_named(ground_truth: dict[str, Any]) -> None:
    evaluator = build_evaluator(dvis.load_config(), "toy_vis_val", None)
    masks = torch.ones(1, 4, 40, 56, dtype=torch.bool)
    output = {"pred_scores": [0.5], "pred_labels": [6], "pred_masks": masks}
    with pytest.raises(ValueError, match="toy_vis_val, video 3: class 6 is not one of the 6"):
        evaluator.process([{"video_id": 3, "length": 4}], [output])
    with pytest.raises(ValueError, match="video 3: masks for 4 of 5 frames"):
        evaluator.process([{"video_id": 3, "length": 5}], [{**output, "pred_labels": [0]}])


def test_data_sets_without_a_protocol() -> None:
    MetadataCatalog.get("a_test_set_of_something").set(evaluator_type="smell")
    with pytest.raises(ValueError, match="asks for the evaluation 'smell'; known are"):
        build_evaluator(dvis.load_config(), "a_test_set_of_something")
