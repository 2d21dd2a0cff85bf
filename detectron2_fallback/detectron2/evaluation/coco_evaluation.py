"""Average precision of instances, computed by pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json, local_annotation_file
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from .evaluator import DatasetEvaluator

__all__ = ["COCOEvaluator", "instances_to_coco_json"]

_METRICS = {
    "bbox": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
    "segm": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
    "keypoints": ["AP", "AP50", "AP75", "APm", "APl"],
}


class COCOEvaluator(DatasetEvaluator):
    """AP of boxes, masks and keypoints, in percent.

    Args:
        dataset_name: its metadata has "json_file", or the data set is converted to COCO's format first.
        tasks: of "bbox", "segm", "keypoints"; None takes those that the predictions have. A config in this
            place (deprecated) means None and gives the sigmas of keypoints.
        distributed: whether results are gathered from all processes; else every process evaluates its own.
        output_dir: where "instances_predictions.pth" and "coco_instances_results.json" are written; None for
            nowhere.
        max_dets_per_image: limit of predictions per image and category; None for COCO's 100.
        use_fast_impl: has no effect here; results do not depend on it.
        kpt_oks_sigmas: of the keypoints; COCO's persons need none.
        allow_cached_coco: whether a data set that was converted before is used again.

    Raises:
        ValueError: if the data set has to be converted and ``output_dir`` is None.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        self._logger = logging.getLogger(__name__)
        if isinstance(tasks, CfgNode):
            self._logger.warning(
                "COCOEvaluator instantiated using config, this is deprecated behavior. "
                "Please pass in explicit arguments instead."
            )
            kpt_oks_sigmas = kpt_oks_sigmas or tasks.TEST.KEYPOINT_OKS_SIGMAS
            tasks = None
        self._distributed = distributed
        self._output_dir = output_dir
        limit = 100 if max_dets_per_image is None else max_dets_per_image
        self._max_dets_per_image = [1, 10, limit]
        self._tasks = tasks
        self._kpt_oks_sigmas = kpt_oks_sigmas
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        if self._metadata.get("json_file") is None:
            if output_dir is None:
                raise ValueError(
                    "output_dir must be provided to COCOEvaluator for datasets not in COCO format."
                )
            self._logger.info("Trying to convert '%s' to COCO format ...", dataset_name)
            cache_path = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            self._metadata.json_file = cache_path
            convert_to_coco_json(dataset_name, cache_path, allow_cached=allow_cached_coco)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api = COCO(local_annotation_file(self._metadata.json_file))
        # Test splits have no annotations.
        self._do_evaluation = "annotations" in self._coco_api.dataset
        self.reset()

    def reset(self) -> None:
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take one batch.

        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "instances": Instances with "scores", "pred_classes" (contiguous) and any of
                "pred_boxes", "pred_masks", "pred_keypoints".
        """
        for entry, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                self._predictions.append(
                    {
                        "image_id": entry["image_id"],
                        "instances": instances_to_coco_json(instances, entry["image_id"]),
                    }
                )

    def evaluate(self, img_ids: Sequence[int] | None = None) -> OrderedDict | None:
        """Gather from all processes and compute.

        Args:
            img_ids: images to evaluate on; None for all.

        Returns:
            Task -> metric -> percent, on the first process; an empty dict elsewhere and without predictions.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return OrderedDict()
        if len(predictions) == 0:
            self._logger.warning("[COCOEvaluator] Did not receive valid predictions.")
            return OrderedDict()
        if self._output_dir is not None:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as file:
                torch.save(predictions, file)
        self._results: OrderedDict = OrderedDict()
        self._eval_predictions(predictions, img_ids=img_ids)
        return copy.deepcopy(self._results)

    def _tasks_from_predictions(self, predictions: list[dict]) -> list[str]:
        """Tasks that a list of predictions can be evaluated for."""
        tasks = {"bbox"}
        for prediction in predictions:
            if "segmentation" in prediction:
                tasks.add("segm")
            if "keypoints" in prediction:
                tasks.add("keypoints")
        return sorted(tasks)

    def _to_dataset_ids(self, coco_results: list[dict]) -> None:
        """Undo the contiguous numbering of classes, in place."""
        if not hasattr(self._metadata, "thing_dataset_id_to_contiguous_id"):
            return
        reverse = {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        for result in coco_results:
            category = result["category_id"]
            assert category in reverse, (
                f"A prediction has class={category}, but the dataset only has {len(reverse)} classes and "
                f"predicted class id should be in [0, {len(reverse) - 1}]."
            )
            result["category_id"] = reverse[category]

    def _eval_predictions(self, predictions: list[dict], img_ids: Sequence[int] | None = None) -> None:
        self._logger.info("Preparing results for COCO format ...")
        coco_results = list(itertools.chain(*(prediction["instances"] for prediction in predictions)))
        tasks = self._tasks or self._tasks_from_predictions(coco_results)
        self._to_dataset_ids(coco_results)
        if self._output_dir is not None:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info("Saving results to %s", path)
            with PathManager.open(path, "w") as file:
                json.dump(coco_results, file)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        self._logger.info("Evaluating predictions with official COCO API...")
        for task in sorted(tasks):
            if task not in _METRICS:
                raise ValueError(f"Got unknown task: {task}; known are {sorted(_METRICS)}")
            coco_eval = (
                _evaluate_predictions_on_coco(
                    self._coco_api,
                    coco_results,
                    task,
                    kpt_oks_sigmas=self._kpt_oks_sigmas,
                    img_ids=img_ids,
                    max_dets_per_image=self._max_dets_per_image,
                )
                if len(coco_results) > 0
                else None  # pycocotools cannot handle no predictions
            )
            self._results[task] = self._derive_coco_results(
                coco_eval, task, class_names=self._metadata.get("thing_classes")
            )

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """The metrics of a finished evaluation as a dict, NaN where they are not defined.

        Args:
            coco_eval: summarised; None without predictions.
            iou_type: task.
            class_names: adds one AP per class.
        """
        metrics = _METRICS[iou_type]
        if coco_eval is None:
            self._logger.warning("No predictions from the model!")
            return dict.fromkeys(metrics, float("nan"))
        results = {
            metric: float(value * 100 if value >= 0 else "nan")
            for metric, value in zip(metrics, coco_eval.stats, strict=False)
        }
        self._logger.info("Evaluation results for %s: \n%s", iou_type, create_small_table(results))
        if not np.isfinite(sum(results.values())):
            self._logger.info("Some metrics cannot be computed and is shown as NaN.")
        if class_names is None or len(class_names) <= 1:
            return results

        # IoU threshold, recall, category, area range, limit of detections
        precisions = coco_eval.eval["precision"]
        assert len(class_names) == precisions.shape[2], (len(class_names), precisions.shape)
        per_category = []
        for index, name in enumerate(class_names):
            precision = precisions[:, :, index, 0, -1]
            precision = precision[precision > -1]
            per_category.append((name, float(precision.mean() * 100) if precision.size else float("nan")))
        self._logger.info("Per-category %s AP: \n%s", iou_type, _wide_table(per_category))
        results.update({f"AP-{name}": ap for name, ap in per_category})
        return results


def _wide_table(rows: Sequence[tuple[str, float]]) -> str:
    """A two-column table broken into columns side by side."""
    columns = min(6, len(rows) * 2)
    flat = list(itertools.chain(*rows))
    return tabulate(
        itertools.zip_longest(*(flat[i::columns] for i in range(columns))),
        tablefmt="pipe",
        floatfmt=".3f",
        headers=["category", "AP"] * (columns // 2),
        numalign="left",
    )


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict[str, Any]]:
    """Predictions of one image in COCO's result format.

    Args:
        instances: see :meth:`COCOEvaluator.process`.
        img_id: id of the image.
    """
    num_instances = len(instances)
    if num_instances == 0:
        return []
    scores = instances.scores.tolist()
    classes = instances.pred_classes.tolist()
    boxes = None
    if instances.has("pred_boxes"):
        boxes = BoxMode.convert(instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        boxes = boxes.tolist()
    rles = None
    if instances.has("pred_masks"):
        rles = [
            mask_util.encode(np.asfortranarray(np.asarray(mask), dtype=np.uint8))
            for mask in instances.pred_masks
        ]
        for rle in rles:
            rle["counts"] = rle["counts"].decode("utf-8")  # json knows no bytes
    keypoints = None
    if instances.has("pred_keypoints"):
        keypoints = instances.pred_keypoints.clone()
        keypoints[:, :, :2] -= 0.5  # COCO's keypoints are indices of pixels, ours coordinates
        keypoints = keypoints.flatten(1).tolist()

    results = []
    for k in range(num_instances):
        result = {"image_id": img_id, "category_id": classes[k], "score": scores[k]}
        if boxes is not None:
            result["bbox"] = boxes[k]
        if rles is not None:
            result["segmentation"] = rles[k]
        if keypoints is not None:
            result["keypoints"] = keypoints[k]
        results.append(result)
    return results


def _evaluate_predictions_on_coco(
    coco_gt: COCO,
    coco_results: list[dict],
    iou_type: str,
    kpt_oks_sigmas: Sequence[float] | None = None,
    img_ids: Sequence[int] | None = None,
    max_dets_per_image: Sequence[int] | None = None,
) -> COCOeval:
    """Run pycocotools; its tables go to the log."""
    assert len(coco_results) > 0, "no predictions"
    if iou_type == "segm":
        # With boxes present pycocotools would take the areas from them instead of the masks.
        coco_results = [{k: v for k, v in result.items() if k != "bbox"} for result in coco_results]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        coco_eval = _LimitedCOCOeval(coco_gt, coco_gt.loadRes(coco_results), iou_type)
        if max_dets_per_image is not None:
            assert len(max_dets_per_image) >= 3, (
                "COCOeval requires maxDets (and max_dets_per_image) of 3 values"
            )
            coco_eval.params.maxDets = list(max_dets_per_image)
        if iou_type == "keypoints":
            coco_eval.params.maxDets = [20]
            if kpt_oks_sigmas:
                coco_eval.params.kpt_oks_sigmas = np.array(kpt_oks_sigmas)
            num_predicted = len(coco_results[0]["keypoints"]) // 3
            num_sigmas = len(coco_eval.params.kpt_oks_sigmas)
            assert num_predicted == num_sigmas, (
                f"[COCOEvaluator] Prediction contains {num_predicted} keypoints, but there are {num_sigmas} "
                "sigmas; set TEST.KEYPOINT_OKS_SIGMAS."
            )
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    logging.getLogger(__name__).info("%s", printed.getvalue())
    return coco_eval


class _LimitedCOCOeval(COCOeval):
    """COCOeval whose AP honours the last entry of ``maxDets``, where pycocotools always looks for 100."""

    def summarize(self) -> None:
        super().summarize()
        if self.params.iouType != "keypoints" and self.params.maxDets[-1] != 100:
            self.stats[0] = self._mean_precision()

    def _mean_precision(self) -> float:
        precision = self.eval["precision"][:, :, :, 0, -1]
        precision = precision[precision > -1]
        return float(precision.mean()) if precision.size else -1.0
