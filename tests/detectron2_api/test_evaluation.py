"""Evaluators, the inference loop, printing and checking of results."""

from __future__ import annotations

import copy
import json
import logging
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from torch import nn

import detectron2_fallback
from tests.reference import DATA

CASES = DATA / "evaluation"
NAME = "test_evaluation_data"
bundled_only = pytest.mark.skipif(not detectron2_fallback.is_bundled(), reason="a part of the bundled subset")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    DatasetCatalog.data.pop(NAME, None)
    MetadataCatalog.data.pop(NAME, None)


# ------------------------------------------------------------------ loop


class Recorder(DatasetEvaluator):
    """Remembers what it was given."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.seen: list[Any] = []

    def reset(self) -> None:
        self.seen = []

    def process(self, inputs: Any, outputs: Any) -> None:
        self.seen.append((inputs, outputs))

    def evaluate(self) -> Any:
        return self.result


def test_loop_evaluates_every_batch_without_gradients() -> None:
    model = nn.Linear(1, 1)
    model.train()
    modes = []

    def hook(module: nn.Module, *_: Any) -> None:
        modes.append((module.training, torch.is_grad_enabled()))

    model.register_forward_hook(hook)
    evaluator = Recorder({"task": {"AP": 1.0}})
    batches = [torch.ones(1) * i for i in range(7)]
    assert inference_on_dataset(model, batches, evaluator) == {"task": {"AP": 1.0}}
    assert [inputs.item() for inputs, _ in evaluator.seen] == list(range(7))
    assert modes == [(False, False)] * 7
    assert model.training


def test_loop_without_evaluator_and_with_several() -> None:
    assert inference_on_dataset(lambda x: x, [1, 2], None) == {}
    results = inference_on_dataset(lambda x: x, [1, 2], [Recorder({"a": 1}), Recorder(), Recorder({"b": 2})])
    assert results == {"a": 1, "b": 2}
    assert inference_on_dataset(lambda x: x, [1], Recorder(None)) == {}


def test_evaluators_cannot_report_the_same_task() -> None:
    evaluators = DatasetEvaluators([Recorder({"a": 1}), Recorder({"a": 2})])
    with pytest.raises(AssertionError):
        evaluators.evaluate()


def test_context_restores_the_mode() -> None:
    for training in (True, False):
        model = nn.Linear(1, 1)
        model.train(training)
        with inference_context(model):
            assert not model.training
        assert model.training == training


@bundled_only  # upstream leaves the model in eval mode
def test_context_restores_the_mode_after_an_error() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(RuntimeError), inference_context(model):
        raise RuntimeError
    assert model.training


# ------------------------------------------------------------------ printing and checking


def test_csv_format(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="detectron2.evaluation.testing"):
        print_csv_format({"bbox": {"AP": 12.34567, "AP-person": 3.0, "AP50": float("nan")}, "speed": 3})
    assert [record.getMessage() for record in caplog.records] == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 12.3457,nan",
        "copypaste: speed=3",
    ]
    print_csv_format({})


@pytest.mark.parametrize(
    ("expected", "good"),
    [
        ([], True),
        ([["bbox", "AP", 30.0, 0.5]], True),
        ([["bbox", "AP", 31.0, 0.5]], False),
        ([["bbox", "AP75", 30.0, 0.5]], False),
        ([["bbox", "AP50", 30.0, 0.5]], False),
    ],
)
def test_expected_results(expected: list, good: bool) -> None:
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = expected
    results = {"bbox": {"AP": 30.25, "AP50": float("nan")}}
    if good:
        assert verify_results(cfg, results)
    else:
        with pytest.raises(SystemExit) as error:
            verify_results(cfg, results)
        assert error.value.code == 1


def test_flat_results() -> None:
    assert flatten_results_dict({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a/b": 1, "a/c/d": 2, "e": 3}


# ------------------------------------------------------------------ semantic


def register_semantic(case: Path) -> list[str]:
    meta = json.loads((case / "meta.json").read_text())
    files = sorted(path.name for path in (case / "gt").iterdir())
    DatasetCatalog.register(
        NAME, lambda: [{"file_name": f, "sem_seg_file_name": str(case / "gt" / f)} for f in files]
    )
    MetadataCatalog.get(NAME).set(stuff_classes=meta["stuff_classes"], ignore_label=meta["ignore_label"])
    return files


def scores_of(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    return F.one_hot(torch.from_numpy(labels.astype(np.int64)), num_classes).permute(2, 0, 1).float()


@pytest.mark.parametrize("name", ["ten_classes", "with_absent_classes"])
def test_semantic_numbers(name: str, tmp_path: Path) -> None:
    case = CASES / "semseg" / name
    files = register_semantic(case)
    num_classes = len(MetadataCatalog.get(NAME).stuff_classes)
    evaluator = SemSegEvaluator(NAME, output_dir=str(tmp_path))
    evaluator.reset()
    for file in files:
        labels = np.asarray(Image.open(case / "pred" / file))
        evaluator.process([{"file_name": file}], [{"sem_seg": scores_of(labels, num_classes)}])
    results: Any = evaluator.evaluate()
    expected = json.loads((case / "expected.json").read_text())
    for metric, value in expected.items():
        actual = results["sem_seg"][metric]
        assert np.isnan(actual) if value is None else actual == pytest.approx(value, abs=1e-9), metric
    assert list(results["sem_seg"]) == list(expected)

    predictions = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    first = [p for p in predictions if p["file_name"] == files[0]]
    decoded = sum(mask_util.decode(p["segmentation"]).astype(int) * p["category_id"] for p in first)
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(case / "pred" / files[0])))
    assert (tmp_path / "sem_seg_evaluation.pth").is_file()


@bundled_only  # upstream fails in bincount
def test_semantic_prediction_of_another_size() -> None:
    case = CASES / "semseg" / "ten_classes"
    files = register_semantic(case)
    evaluator = SemSegEvaluator(NAME)
    with pytest.raises(ValueError, match=files[0]):
        evaluator.process([{"file_name": files[0]}], [{"sem_seg": torch.zeros(10, 3, 3)}])


# ------------------------------------------------------------------ panoptic


def panoptic_case(name: str) -> tuple[Path, dict, dict, dict]:
    case = CASES / "coco_panoptic" / name
    return (case, *(json.loads((case / f"{part}.json").read_text()) for part in ("gt", "pred", "expected")))


@pytest.mark.parametrize("name", ["standard", "crowd_and_void"])
def test_panoptic_evaluator(name: str, tmp_path: Path) -> None:
    if not detectron2_fallback.is_bundled():
        pytest.importorskip("panopticapi")
    case, gt, pred, expected = panoptic_case(name)
    ids: dict[bool, dict[int, int]] = {True: {}, False: {}}
    for i, category in enumerate(gt["categories"]):
        ids[bool(category["isthing"])][category["id"]] = i
    MetadataCatalog.get(NAME).set(
        panoptic_json=str(case / "gt.json"),
        panoptic_root=str(case / "gt"),
        thing_dataset_id_to_contiguous_id=ids[True],
        stuff_dataset_id_to_contiguous_id=ids[False],
    )
    evaluator = COCOPanopticEvaluator(NAME, output_dir=str(tmp_path))
    evaluator.reset()
    for annotation in pred["annotations"]:
        rgb = np.asarray(Image.open(case / "pred" / annotation["file_name"])).astype(np.int64)
        segments = []
        for segment in annotation["segments_info"]:
            isthing = segment["category_id"] in ids[True]
            category_id = ids[isthing][segment["category_id"]]
            segments.append({"id": segment["id"], "category_id": category_id, "isthing": isthing})
        before = copy.deepcopy(segments)
        evaluator.process(
            [
                {
                    "image_id": annotation["image_id"],
                    "file_name": annotation["file_name"].replace("png", "jpg"),
                }
            ],
            [{"panoptic_seg": (torch.from_numpy(rgb @ [1, 256, 256**2]), segments)}],
        )
        assert len(before) == len(segments)
    results: Any = evaluator.evaluate()
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for metric in ("pq", "sq", "rq"):
            value = results["panoptic_seg"][metric.upper() + suffix]
            assert value == pytest.approx(100 * expected[group][metric], rel=1e-9)
    written = json.loads((tmp_path / "predictions.json").read_text())["annotations"]
    assert [w["file_name"] for w in written] == [p["file_name"] for p in pred["annotations"]]


def test_panoptic_labels_without_segments() -> None:
    if not detectron2_fallback.is_bundled():
        pytest.importorskip("panopticapi")
    MetadataCatalog.get(NAME).set(
        panoptic_json="none.json",
        panoptic_root="none",
        label_divisor=1000,
        thing_dataset_id_to_contiguous_id={7: 0},
        stuff_dataset_id_to_contiguous_id={9: 1},
    )
    evaluator = COCOPanopticEvaluator(NAME)
    evaluator.reset()
    labels = torch.tensor([[-1, 3], [1000, 1000]])
    evaluator.process([{"image_id": 1, "file_name": "a/b.jpg"}], [{"panoptic_seg": (labels, None)}])
    (prediction,) = evaluator._predictions
    assert prediction["file_name"] == "b.png"
    segments = [{"id": 4, "category_id": 7}, {"id": 1001, "category_id": 9}]
    assert prediction["segments_info"] == segments


@bundled_only
class TestPanopticQuality:
    """The function behind the evaluator."""

    @pytest.mark.parametrize("name", ["standard", "crowd_and_void"])
    def test_files(self, name: str) -> None:
        from detectron2.evaluation.panoptic_quality import pq_compute

        case, _, _, expected = panoptic_case(name)
        quality = pq_compute(case / "gt.json", case / "pred.json", case / "gt", case / "pred")
        for group in ("All", "Things", "Stuff"):
            assert quality[group] == pytest.approx(expected[group], rel=1e-9)
        assert len(quality["per_class"]) == len(expected["per_class"])
        for category, values in expected["per_class"].items():
            assert quality["per_class"][int(category)] == pytest.approx(values, rel=1e-9)

    @staticmethod
    def count(gt: Any, gt_segments: Any, pred: Any, pred_segments: Any) -> tuple[float, int, int, int]:
        from detectron2.evaluation.panoptic_quality import count_segments

        counts = count_segments(np.array(gt), gt_segments, np.array(pred), pred_segments, {5: 0})
        return counts.iou.sum(), counts.tp.sum(), counts.fp.sum(), counts.fn.sum()

    @staticmethod
    def segment(segment_id: int, area: int = 0, iscrowd: int = 0) -> dict[str, int]:
        return {"id": segment_id, "category_id": 5, "area": area, "iscrowd": iscrowd}

    def test_exactly_half_is_no_match(self) -> None:
        gt, pred = [[1, 1, 1, 2]], [[3, 3, 4, 4]]
        segments = [self.segment(1, 4), self.segment(2, 1)]
        assert self.count(gt, segments, pred, [self.segment(3), self.segment(4)]) == (0, 0, 2, 2)
        segments[0]["area"] = 3
        assert self.count(gt, segments, pred, [self.segment(3), self.segment(4)]) == (2 / 3, 1, 1, 1)

    def test_void_is_not_held_against_a_prediction(self) -> None:
        assert self.count([[0, 0, 0, 1]], [self.segment(1, 1)], [[3, 3, 3, 3]], [self.segment(3)]) == (
            1,
            1,
            0,
            0,
        )
        assert self.count([[0, 0, 0, 9]], [], [[3, 3, 3, 3]], [self.segment(3)]) == (0, 0, 0, 0)
        assert self.count([[0, 0, 9, 9]], [], [[3, 3, 3, 3]], [self.segment(3)]) == (0, 0, 1, 0)

    def test_last_crowd_counts(self) -> None:
        crowds = [self.segment(1, 3, 1), self.segment(2, 1, 1)]
        assert self.count([[1, 1, 1, 2]], crowds, [[3, 3, 3, 3]], [self.segment(3)]) == (0, 0, 1, 0)
        assert self.count([[1, 1, 1, 2]], crowds[::-1], [[3, 3, 3, 3]], [self.segment(3)]) == (0, 0, 0, 0)

    def test_empty_groups_are_nan(self) -> None:
        from detectron2.evaluation.panoptic_quality import PanopticCounts, summarize

        quality = summarize(PanopticCounts.zeros(1), [{"id": 5, "isthing": 1}])
        assert quality["All"]["n"] == 0
        assert np.isnan(quality["All"]["pq"])
        assert quality["per_class"] == {5: {"pq": 0, "sq": 0, "rq": 0}}

    def test_inconsistent_predictions(self) -> None:
        gt = [self.segment(1, 2)]
        with pytest.raises(KeyError, match="segment 3"):
            self.count([[1, 1]], gt, [[3, 3]], [])
        with pytest.raises(KeyError, match="4"):
            self.count([[1, 1]], gt, [[3, 3]], [self.segment(3), self.segment(4)])
        with pytest.raises(KeyError, match="category_id 6"):
            self.count([[1, 1]], gt, [[3, 3]], [{"id": 3, "category_id": 6}])
        with pytest.raises(ValueError, match="shape"):
            self.count([[1, 1]], gt, [[3, 3, 3]], [self.segment(3)])

    def test_missing_prediction(self) -> None:
        from detectron2.evaluation.panoptic_quality import panoptic_quality

        with pytest.raises(KeyError, match="12"):
            panoptic_quality([{"image_id": 12, "segments_info": []}], [], [], lambda a: a, lambda a: a)  # type: ignore[arg-type, return-value]

    def test_ids_and_colours(self) -> None:
        from detectron2.evaluation.panoptic_quality import id2rgb, rgb2id

        ids = np.array([[0, 1, 255], [256, 65536, 256**3 - 1]])
        np.testing.assert_array_equal(rgb2id(id2rgb(ids)), ids)
        assert id2rgb(ids)[1, 0].tolist() == [0, 1, 0]


# ------------------------------------------------------------------ instances


def square(y: int, x: int, side: int) -> np.ndarray:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[y : y + side, x : x + side] = 1
    return mask


def coco_file(folder: Path) -> str:
    """Two images, classes 4 and 9, three objects."""
    objects = [(1, 4, square(2, 3, 20)), (1, 9, square(30, 30, 25)), (2, 9, square(5, 5, 40))]
    annotations = []
    for i, (image_id, category_id, mask) in enumerate(objects):
        rle = mask_util.encode(np.asfortranarray(mask))
        annotations.append(
            {
                "id": i + 1,
                "image_id": image_id,
                "category_id": category_id,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": mask_util.toBbox(rle).tolist(),
                "segmentation": {"size": [64, 64], "counts": rle["counts"].decode()},
            }
        )
    content = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 64} for i in (1, 2)],
        "categories": [{"id": 4, "name": "four"}, {"id": 9, "name": "nine"}],
        "annotations": annotations,
    }
    (folder / "gt.json").write_text(json.dumps(content))
    return str(folder / "gt.json")


def _corners(mask: np.ndarray) -> list[int]:
    ys, xs = mask.nonzero()
    return [int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]


def predictions(*items: tuple[int, float, np.ndarray], boxes: bool = True) -> Instances:
    instances = Instances((64, 64))
    masks = torch.from_numpy(np.stack([mask for _, _, mask in items]) if items else np.zeros((0, 64, 64)))
    instances.pred_masks = masks.bool()
    instances.pred_classes = torch.tensor([c for c, _, _ in items], dtype=torch.int64)
    instances.scores = torch.tensor([s for _, s, _ in items])
    if boxes:
        corners = [_corners(mask) for _, _, mask in items]
        instances.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
    return instances


def coco_evaluator(folder: Path, **arguments: Any) -> COCOEvaluator:
    MetadataCatalog.get(NAME).set(
        json_file=coco_file(folder),
        thing_classes=["four", "nine"],
        thing_dataset_id_to_contiguous_id={4: 0, 9: 1},
    )
    evaluator = COCOEvaluator(NAME, use_fast_impl=False, **arguments)
    evaluator.reset()
    return evaluator


def test_perfect_instances(tmp_path: Path) -> None:
    evaluator = coco_evaluator(tmp_path, output_dir=str(tmp_path / "out"))
    first = predictions((0, 0.9, square(2, 3, 20)), (1, 0.8, square(30, 30, 25)))
    evaluator.process([{"image_id": 1}], [{"instances": first}])
    evaluator.process([{"image_id": 2}], [{"instances": predictions((1, 0.7, square(5, 5, 40)))}])
    results: Any = evaluator.evaluate()
    assert set(results) == {"bbox", "segm"}
    for task in results.values():
        assert list(task) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-four", "AP-nine"]
        assert task["AP"] == task["AP50"] == task["AP-nine"] == pytest.approx(100)
        assert np.isnan(task["APl"])  # there is no large object
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [w["category_id"] for w in written] == [4, 9, 9]


def test_half_right_instances(tmp_path: Path) -> None:
    evaluator = coco_evaluator(tmp_path, tasks=("segm",))
    wrong = predictions(
        (0, 0.9, square(2, 3, 20)), (0, 0.95, square(40, 40, 20)), (1, 0.8, square(30, 30, 18))
    )
    evaluator.process(
        [{"image_id": 1}, {"image_id": 2}], [{"instances": wrong}, {"instances": predictions()}]
    )
    segm = evaluator.evaluate()["segm"]  # type: ignore[index]
    # class four: the better scored one is wrong, so precision is 1/2 at every recall
    assert segm["AP-four"] == pytest.approx(50)
    # class nine: one of two found, with IoU (18/25)^2 = 0.518, so only at the first threshold
    assert segm["AP-nine"] == pytest.approx(100 * 51 / 101 / 10)
    assert segm["AP"] == pytest.approx((segm["AP-four"] + segm["AP-nine"]) / 2)


def test_limit_of_detections(tmp_path: Path) -> None:
    """A right prediction behind 120 better scored wrong ones is seen only with a limit above COCO's 100."""
    wrong = [(1, 0.9, square(i // 11 * 2, i % 11 * 2, 2)) for i in range(120)]
    crowded = predictions(*wrong, (1, 0.8, square(30, 30, 25)))
    evaluator = coco_evaluator(tmp_path, tasks=("bbox",))
    evaluator.process([{"image_id": 1}], [{"instances": crowded}])
    assert evaluator.evaluate()["bbox"]["AP-nine"] == 0  # type: ignore[index]
    evaluator = coco_evaluator(tmp_path, tasks=("bbox",), max_dets_per_image=150)
    evaluator.process([{"image_id": 1}], [{"instances": crowded}])
    bbox = evaluator.evaluate()["bbox"]  # type: ignore[index]
    assert bbox["AP-nine"] == pytest.approx(100 / 121 * 51 / 101)  # one of two objects
    assert bbox["AP"] == pytest.approx(bbox["AP-nine"] / 2)


def test_no_predictions(tmp_path: Path) -> None:
    evaluator = coco_evaluator(tmp_path, tasks=("bbox",))
    assert evaluator.evaluate() == {}
    evaluator.process([{"image_id": 1}], [{"instances": predictions()}])
    assert all(np.isnan(value) for value in evaluator.evaluate()["bbox"].values())  # type: ignore[index]


def test_a_class_that_does_not_exist(tmp_path: Path) -> None:
    evaluator = coco_evaluator(tmp_path, tasks=("bbox",))
    evaluator.process([{"image_id": 1}], [{"instances": predictions((2, 0.9, square(2, 3, 20)))}])
    with pytest.raises(AssertionError):
        evaluator.evaluate()


def test_a_subset_of_the_images(tmp_path: Path) -> None:
    evaluator = coco_evaluator(tmp_path, tasks=("bbox",))
    evaluator.process([{"image_id": 2}], [{"instances": predictions((1, 0.7, square(5, 5, 40)))}])
    assert evaluator.evaluate(img_ids=[2])["bbox"]["AP"] == pytest.approx(100)  # type: ignore[index]


def test_results_in_coco_format() -> None:
    instances = predictions((1, 0.5, square(2, 3, 20)))
    (result,) = instances_to_coco_json(instances, 17)
    assert (result["image_id"], result["category_id"], result["score"]) == (17, 1, 0.5)
    assert result["bbox"] == [3, 2, 20, 20]
    np.testing.assert_array_equal(mask_util.decode(result["segmentation"]), square(2, 3, 20))
    json.dumps(result)
    assert instances_to_coco_json(predictions(), 17) == []


def test_other_data_sets_are_converted(tmp_path: Path) -> None:
    annotation = {"bbox": [3, 2, 23, 22], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    entry = {"file_name": "a", "image_id": 3, "height": 64, "width": 64, "annotations": [annotation]}
    DatasetCatalog.register(NAME, lambda: [entry])
    MetadataCatalog.get(NAME).set(thing_classes=["only"])
    with pytest.raises(ValueError, match="output_dir"):
        COCOEvaluator(NAME, use_fast_impl=False)
    evaluator = COCOEvaluator(NAME, output_dir=str(tmp_path), use_fast_impl=False, tasks=("bbox",))
    evaluator.reset()
    evaluator.process([{"image_id": 3}], [{"instances": predictions((0, 0.7, square(2, 3, 20)))}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)  # type: ignore[index]
    assert (tmp_path / f"{NAME}_coco_format.json").is_file()


def test_evaluators_are_found_where_upstream_has_them() -> None:
    import detectron2.evaluation as package

    assert isinstance(package, types.ModuleType)
    for name in ("evaluator", "coco_evaluation", "panoptic_evaluation", "sem_seg_evaluation", "testing"):
        assert hasattr(package, name)
