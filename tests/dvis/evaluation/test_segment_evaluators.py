"""What the panoptic and the semantic evaluator write, and what they say about outputs that do not fit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dvis.data.label_images import read_class_map, read_segment_ids
from dvis.evaluation import VPSEvaluator, VSSEvaluator

CATEGORIES = [
    {"id": 4, "name": "sky", "isthing": 0, "color": [10, 20, 30]},
    {"id": 7, "name": "dog", "isthing": 1, "color": [200, 100, 50]},
]
IDS = {0: 7, 1: 4}  # class index -> dataset id, things first
VIDEO = {"video_id": "127_-hIVCY", "file_names": ["x/a.jpg", "x/b.jpg"], "height": 3, "width": 4}


def panoptic_evaluator(tmp_path: Path, segments: list[Any] | None = None) -> VPSEvaluator:
    frames = [{"file_name": f"{n}.png", "segments_info": segments or []} for n in "ab"]
    name = VIDEO["video_id"]
    content = {
        "categories": CATEGORIES,
        "videos": [{"video_id": name}],
        "annotations": [{"video_id": name, "annotations": frames}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    return VPSEvaluator("x_test", tmp_path / "gt.json", tmp_path / "gt", IDS, tmp_path / "out")


def panoptic_output() -> dict[str, Any]:
    masks = torch.zeros(2, 3, 4, dtype=torch.int32)
    masks[0, 0] = 1  # a row of sky
    masks[0, 1:, 2:] = 3  # a dog of 2 x 2
    masks[1, 2] = 2  # another one, in the second frame
    segments = [
        {"id": 1, "isthing": False, "category_id": 1},
        {"id": 2, "isthing": True, "category_id": 0},
        {"id": 3, "isthing": True, "category_id": 0},
    ]
    return {"task": "vps", "pred_masks": masks, "segments_infos": segments, "pred_ids": [5, 2, 9]}


def test_panoptic_files_are_the_servers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = panoptic_evaluator(tmp_path)
    evaluator.reset()
    evaluator.process([VIDEO], [panoptic_output()])
    with caplog.at_level(logging.INFO, logger="dvis"):
        assert evaluator.evaluate() == {}
    assert "x_test has no public ground truth: nothing is scored here; the files for" in caplog.text

    content = json.loads((tmp_path / "out/pred.json").read_text())
    (video,) = content["annotations"]
    assert video["video_id"] == VIDEO["video_id"]
    first, second = video["annotations"]
    assert first["file_name"] == "a.png"
    sky, dog = first["segments_info"]
    assert sky == {
        "id": 10 + 256 * 20 + 65536 * 30,
        "category_id": 4,
        "area": 4,
        "bbox": [0, 0, 4, 1],
        "iscrowd": 0,
    }
    assert (dog["category_id"], dog["area"], dog["bbox"]) == (7, 4, [2, 1, 2, 2])
    (other,) = second["segments_info"]
    # The segment that comes first has its category's colour, the next one a colour nearby.
    assert other["id"] == 200 + 256 * 100 + 65536 * 50 != dog["id"]
    channels = [dog["id"] & 255, dog["id"] >> 8 & 255, dog["id"] >> 16]
    assert np.abs(np.array(channels) - [200, 100, 50]).max() <= 30

    folder = tmp_path / "out/pan_pred" / str(VIDEO["video_id"])
    assert sorted(p.name for p in folder.iterdir()) == ["a.png", "b.png"]
    ids = read_segment_ids(folder / "a.png")
    expected = np.zeros((3, 4), int)
    expected[0] = sky["id"]
    expected[1:, 2:] = dog["id"]
    np.testing.assert_array_equal(ids, expected)


def test_panoptic_outputs_that_do_not_fit_are_named(tmp_path: Path) -> None:
    evaluator = panoptic_evaluator(tmp_path)
    where = "x_test, video 127_-hIVCY"
    output = panoptic_output()
    with pytest.raises(ValueError, match=rf"{where}: masks have the shape \(1, 3, 4\), expected \(2, 3, 4\)"):
        evaluator.process([VIDEO], [{**output, "pred_masks": output["pred_masks"][:1]}])
    for kept in (output["segments_infos"][:2], [output["segments_infos"][0], output["segments_infos"][2]]):
        with pytest.raises(ValueError, match=f"{where}, frame .: a mask has an id that is not in"):
            evaluator.process([VIDEO], [{**output, "segments_infos": kept}])
    with pytest.raises(ValueError, match=f"{where}: class 2 is not one of the 2"):
        evaluator.process([VIDEO], [{**output, "segments_infos": [{"id": 1, "category_id": 2}]}])
    assert not list((tmp_path / "out").rglob("*.png"))
    nothing = {"pred_masks": torch.zeros(2, 3, 4, dtype=torch.int32), "segments_infos": [], "pred_ids": []}
    evaluator.process([VIDEO], [nothing])
    evaluator.evaluate()
    content = json.loads((tmp_path / "out/pred.json").read_text())
    assert [frame["segments_info"] for frame in content["annotations"][0]["annotations"]] == [[], []]


def test_repeated_evaluation_writes_the_same(tmp_path: Path) -> None:
    written = []
    for _ in range(2):
        evaluator = panoptic_evaluator(tmp_path)
        evaluator.reset()
        evaluator.process([VIDEO], panoptic_output())
        evaluator.evaluate()
        written.append((tmp_path / "out/pred.json").read_bytes())
    assert written[0] == written[1]


def test_results_of_an_earlier_evaluation_are_removed(tmp_path: Path) -> None:
    evaluator = panoptic_evaluator(tmp_path)
    evaluator.reset()
    evaluator.process([{**VIDEO, "video_id": "old"}], [panoptic_output()])
    evaluator.reset()
    assert not list((tmp_path / "out").rglob("*.png"))


def test_semantic_files_are_the_servers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "test.txt").write_text(f"{VIDEO['video_id']}\n")
    ids = {0: 2, 1: 0, 2: 1}
    evaluator = VSSEvaluator("x_test", tmp_path / "test.txt", tmp_path / "data", ids, tmp_path / "out")
    evaluator.reset()
    masks = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4) % 3
    evaluator.process([VIDEO], [{"task": "vss", "pred_masks": masks}])
    with caplog.at_level(logging.INFO, logger="dvis"):
        assert evaluator.evaluate() == {}
    assert "nothing is scored here" in caplog.text
    folder = tmp_path / "out/predictions" / str(VIDEO["video_id"])
    for t, name in enumerate(("a.png", "b.png")):
        labels = read_class_map(folder / name)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, np.array([2, 0, 1])[masks[t].numpy()])

    where = "x_test, video 127_-hIVCY"
    masks[1, 2, 3] = 3
    with pytest.raises(ValueError, match=f"{where}, frame 1: class 3 is not one of the 3"):
        evaluator.process([VIDEO], [{"pred_masks": masks}])
    with pytest.raises(ValueError, match=rf"{where}: masks have the shape \(2, 3, 3\)"):
        evaluator.process([VIDEO], [{"pred_masks": masks[..., :3]}])
