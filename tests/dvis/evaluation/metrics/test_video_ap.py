"""Official numbers, agreement with a plain version, and answers where the official programs crash."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from dvis.data.errors import BrokenDataError
from dvis.data.rle import encode_mask, run_lengths
from dvis.evaluation.metrics.video_ap import evaluate_video_ap, occlusion_score
from tests.dvis.evaluation.metrics import plain_video_ap

CASES = Path(__file__).parents[3] / "data" / "evaluation"
ALL_CASES = sorted((p.parent.name, p.name) for task in ("ytvis", "ovis") for p in (CASES / task).iterdir())


def load(task: str, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = CASES / task / name
    return json.loads((folder / "gt.json").read_text()), json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(("task", "name"), ALL_CASES)
def test_official_numbers(task: str, name: str) -> None:
    result = evaluate_video_ap(*load(task, name), task)
    expected = json.loads((CASES / task / name / "expected.json").read_text())
    assert list(result.stats.values()) == pytest.approx(expected["stats_in_printed_order"], abs=1e-9)
    assert result.stats == pytest.approx(expected["stats"], abs=1e-9)
    assert result.num_empty_pairs == expected["mismatch_messages"]
    printed = [line for line in expected["printed"] if line.startswith("Average")]
    assert result.printed_rows() == printed

    matrices = expected["iou_matrices_video,category_rows_by_descending_score"]
    assert {f"{v},{c}" for v, c in result.iou_matrices} == set(matrices)
    for (video, category), matrix in result.iou_matrices.items():
        np.testing.assert_allclose(matrix, matrices[f"{video},{category}"], atol=1e-9, rtol=0)

    for category, rows in result.per_category().items():
        wanted = expected["per_category"].get(str(category), dict.fromkeys(rows, -1.0))
        assert rows == pytest.approx(wanted, abs=1e-9)

    curves = np.load(CASES / task / name / "curves.npz")
    assert result.category_ids == curves["category_ids"].tolist()
    for key in ("precision", "recall", "scores"):
        np.testing.assert_allclose(getattr(result, key), curves[key], atol=1e-9, rtol=0)


def random_case(
    seed: int, videos: int, frames: int, objects: int, predictions: int, size: int = 24, categories: int = 3
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Boxes that jitter around objects, with gaps, crowd, ties and predictions of empty categories."""
    rng = np.random.default_rng(seed)

    def tube(base: np.ndarray, spread: float) -> list[Any]:
        codes: list[Any] = []
        for _ in range(frames):
            x, y, w, h = (base + rng.normal(0, spread, 4)).round().astype(int).clip(0, size)
            mask = np.zeros((size, size), dtype=bool)
            mask[y : y + h, x : x + w] = True
            codes.append(encode_mask(mask) if mask.any() and rng.random() > 0.1 else None)
        return codes

    gt: dict[str, Any] = {
        "videos": [
            {
                "id": v + 1,
                "width": size,
                "height": size,
                "length": frames,
                "file_names": [f"{v}/{t}.jpg" for t in range(frames)],
            }
            for v in range(videos)
        ],
        "categories": [{"id": c + 1, "name": f"c{c}"} for c in range(categories)],
        "annotations": [],
    }
    results = []
    for v in range(videos):
        bases = rng.uniform(0, size, (objects, 4)) * [0.6, 0.6, 0.6, 0.6] + [0, 0, 2, 2]
        labels = rng.integers(1, categories + 1, objects)
        for base, label in zip(bases, labels, strict=True):
            codes = tube(base, 0.6)
            gt["annotations"].append(
                {
                    "id": len(gt["annotations"]) + 1,
                    "video_id": v + 1,
                    "category_id": int(label),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentations": codes,
                    "areas": [
                        float(mask_utils.area(c)) * rng.choice([1.0, 400.0]) if c else None for c in codes
                    ],
                    "occlusion": ["no_occlusion"] * frames,
                }
            )
        for _ in range(predictions):
            pick = rng.integers(objects)
            results.append(
                {
                    "video_id": v + 1,
                    "category_id": int(
                        labels[pick] if rng.random() < 0.8 else rng.integers(1, categories + 1)
                    ),
                    "score": round(rng.random(), 1),
                    "segmentations": tube(bases[pick], 0.8),
                }
            )
    return gt, results


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_plain_version(seed: int) -> None:
    gt, results = random_case(seed, videos=4, frames=3, objects=4, predictions=14)
    result = evaluate_video_ap(gt, results)
    precision, recall = plain_video_ap.evaluate(gt, results)
    np.testing.assert_allclose(result.precision, precision, atol=1e-12)
    np.testing.assert_allclose(result.recall, recall, atol=1e-12)


def test_no_predictions_give_zero_rows_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    gt, _ = load("ytvis", "standard")
    with caplog.at_level(logging.WARNING):
        stats = evaluate_video_ap(gt, []).stats
    assert set(stats.values()) <= {0.0, -1.0}
    assert stats["AP"] == stats["AR100"] == 0.0
    assert "no predictions" in caplog.text


@pytest.mark.parametrize("annotations", [None, []])
def test_no_objects_give_undefined_rows_and_a_warning(
    annotations: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gt, results = load("ytvis", "standard")
    with caplog.at_level(logging.WARNING):
        result = evaluate_video_ap({**gt, "annotations": annotations}, results)
    assert set(result.stats.values()) == {-1.0}
    assert "no annotations" in caplog.text


def test_predictions_may_be_uncompressed_or_polygons() -> None:
    """The official programs crash here."""
    gt, results = load("ytvis", "good_predictions")
    expected = evaluate_video_ap(gt, results).stats
    for result in results:
        for code in result["segmentations"]:
            if code:
                code["counts"] = run_lengths(code["counts"]).tolist()
    assert evaluate_video_ap(gt, results).stats == expected


def test_frame_without_pixels_is_like_null() -> None:
    gt, results = load("ytvis", "good_predictions")
    expected = evaluate_video_ap(gt, results)
    sizes = {video["id"]: (video["height"], video["width"]) for video in gt["videos"]}
    for result in results:
        empty = encode_mask(np.zeros(sizes[result["video_id"]], dtype=bool))
        result["segmentations"] = [code or empty for code in result["segmentations"]]
    np.testing.assert_array_equal(evaluate_video_ap(gt, results).precision, expected.precision)


def test_more_codes_than_pycocotools_counts_at_once() -> None:
    gt, results = random_case(3, videos=1, frames=80, objects=4, predictions=6, categories=1)
    precision, _ = plain_video_ap.evaluate(gt, results)
    np.testing.assert_allclose(evaluate_video_ap(gt, results).precision, precision, atol=1e-12)


@pytest.mark.parametrize("task", ["ytvis", "ovis"])
def test_several_processes_find_the_same(task: str) -> None:
    gt, results = load(task, "standard")
    alone, shared = (evaluate_video_ap(gt, results, task, workers=workers) for workers in (1, 3))
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(shared, name))
    assert alone.stats == shared.stats
    assert alone.iou_matrices.keys() == shared.iou_matrices.keys()
    assert alone.empty_pairs == shared.empty_pairs

    gt["annotations"][-1]["segmentations"][0] = {"size": [10, 10], "counts": [3, 4]}
    with pytest.raises(
        BrokenDataError, match=rf"annotation {gt['annotations'][-1]['id']} .*frame 0: .*cover 7"
    ):
        evaluate_video_ap(gt, results, task, workers=3)


def test_broken_input_is_named() -> None:
    gt, results = load("ovis", "standard")
    with pytest.raises(ValueError, match="'ytvis' or 'ovis'"):
        evaluate_video_ap(gt, results, "coco")  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="prediction 0 belongs to video 4711"):
        evaluate_video_ap(gt, [{**results[0], "video_id": 4711}], "ovis")

    with pytest.raises(BrokenDataError, match="prediction 0 has no field 'score'"):
        evaluate_video_ap(gt, [{k: v for k, v in results[0].items() if k != "score"}], "ovis")

    for field in ("iscrowd", "occlusion"):
        broken = copy.deepcopy(gt)
        del broken["annotations"][2][field]
        with pytest.raises(
            BrokenDataError, match=f"annotation {broken['annotations'][2]['id']} .* no field '{field}'"
        ):
            evaluate_video_ap(broken, results, "ovis")

    broken = copy.deepcopy(gt)
    first = broken["annotations"][0]
    first["segmentations"][1] = {"size": [10, 10], "counts": [3, 4]}
    with pytest.raises(ValueError, match=f"annotation {first['id']} .*frame 1: .*cover 7 pixels"):
        evaluate_video_ap(broken, results, "ovis")

    broken = copy.deepcopy(gt)
    broken["annotations"][0]["occlusion"] = [None] * len(first["segmentations"])
    with pytest.raises(ValueError, match=f"annotation {first['id']} .*all occlusion labels are null"):
        evaluate_video_ap(broken, results, "ovis")

    gt_pairs = {(a["video_id"], a["category_id"]) for a in gt["annotations"]}
    short = next(r for r in results if (r["video_id"], r["category_id"]) in gt_pairs)
    with pytest.raises(ValueError, match=f"video {short['video_id']}.*one entry per frame"):
        evaluate_video_ap(gt, [{**short, "segmentations": short["segmentations"][:-1]}], "ovis")


def test_annotation_id_zero_is_a_miss_as_officially(caplog: pytest.LogCaptureFixture) -> None:
    gt, results = load("ytvis", "one_perfect_prediction")
    gt["annotations"][0]["id"] = 0
    with caplog.at_level(logging.WARNING):
        stats = evaluate_video_ap(gt, results).stats
    assert stats["AP"] == 0.0
    assert "has id 0" in caplog.text


def test_occlusion_score_takes_the_larger_half() -> None:
    labels = ["severe_occlusion", None, "no_occlusion", "slight_occlusion"]
    assert occlusion_score(labels) == pytest.approx((0.75 + 0.25) / 2)
    with pytest.raises(ValueError, match="half_hidden"):
        occlusion_score(["half_hidden"])
