"""Semantic segmentation: IoU, boundary IoU and accuracy of classes."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.comm import all_gather, is_main_process, synchronize
from detectron2.utils.file_io import PathManager
from PIL import Image
from scipy.ndimage import minimum_filter1d

from .evaluator import DatasetEvaluator

__all__ = ["SemSegEvaluator", "load_image_into_numpy_array"]

_BOUNDARY_WIDTH = 0.02  # of the diagonal; Boundary IoU (arXiv:2103.16562)


def load_image_into_numpy_array(filename: str, copy: bool = False, dtype: Any = None) -> np.ndarray:
    """Read an image file as it is.

    Args:
        filename: path.
        copy: whether the result must be writable.
        dtype: of the result; None for that of the file.
    """
    with PathManager.open(filename, "rb") as file:
        array = np.asarray(Image.open(file), dtype=dtype)
    return array.copy() if copy and not array.flags.writeable else array


class SemSegEvaluator(DatasetEvaluator):
    """Metrics over the pixels of a data set.

    Args:
        dataset_name: its elements have "file_name" and "sem_seg_file_name", its metadata has "stuff_classes",
            "ignore_label" and perhaps "stuff_dataset_id_to_contiguous_id".
        distributed: whether results are gathered from all processes; else every process evaluates its own.
        output_dir: for "sem_seg_predictions.json" and "sem_seg_evaluation.pth"; None writes nothing.
        sem_seg_loading_fn: reads a ground truth map, with ``dtype``.
        num_classes: deprecated; comes from the metadata.
        ignore_label: deprecated; comes from the metadata.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        sem_seg_loading_fn: Callable[..., np.ndarray] = load_image_into_numpy_array,
        num_classes: int | None = None,
        ignore_label: int | None = None,
    ) -> None:
        self._logger = logging.getLogger(__name__)
        for name, value in (("num_classes", num_classes), ("ignore_label", ignore_label)):
            if value is not None:
                self._logger.warning(
                    "SemSegEvaluator(%s) is deprecated! It should be obtained from metadata.", name
                )
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._cpu_device = torch.device("cpu")
        self.input_file_to_gt_file = {
            record["file_name"]: record["sem_seg_file_name"] for record in DatasetCatalog.get(dataset_name)
        }
        metadata = MetadataCatalog.get(dataset_name)
        id_map = metadata.get("stuff_dataset_id_to_contiguous_id")
        self._contiguous_id_to_dataset_id = None if id_map is None else {v: k for k, v in id_map.items()}
        self._class_names = metadata.stuff_classes
        self._num_classes = len(self._class_names)
        if num_classes is not None:
            assert self._num_classes == num_classes, f"{self._num_classes} != {num_classes}"
        self._ignore_label = metadata.ignore_label if ignore_label is None else ignore_label
        self.sem_seg_loading_fn = sem_seg_loading_fn
        # Boundaries are differences of label maps, which are computed in uint8.
        self._compute_boundary_iou = self._num_classes < np.iinfo(np.uint8).max
        if not self._compute_boundary_iou:
            self._logger.warning("Boundary IoU is not computed for %d classes.", self._num_classes)
        self.reset()

    def reset(self) -> None:
        # rows: prediction, columns: ground truth, the last of each for what is ignored
        shape = (self._num_classes + 1, self._num_classes + 1)
        self._conf_matrix = np.zeros(shape, dtype=np.int64)
        self._b_conf_matrix = np.zeros(shape, dtype=np.int64)
        self._predictions: list[dict[str, Any]] = []

    def _confusion(self, pred: np.ndarray, gt: np.ndarray) -> np.ndarray:
        side = self._num_classes + 1
        pairs = side * pred.reshape(-1).astype(np.int64) + gt.reshape(-1)
        return np.bincount(pairs, minlength=side**2).reshape(side, side)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take one batch.

        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "sem_seg", class scores ``K H W`` (logits or probabilities).
        """
        for entry, output in zip(inputs, outputs, strict=True):
            pred = output["sem_seg"].argmax(dim=0).to(self._cpu_device).numpy().astype(int)
            gt_file = self.input_file_to_gt_file[entry["file_name"]]
            gt = np.array(self.sem_seg_loading_fn(gt_file, dtype=int))
            if gt.shape != pred.shape:
                raise ValueError(f"{gt_file} has shape {gt.shape}, the prediction {pred.shape}")
            gt[gt == self._ignore_label] = self._num_classes
            self._conf_matrix += self._confusion(pred, gt)
            if self._compute_boundary_iou:
                self._b_conf_matrix += self._confusion(
                    self._mask_to_boundary(pred.astype(np.uint8)), self._mask_to_boundary(gt.astype(np.uint8))
                )
            self._predictions.extend(self.encode_json_sem_seg(pred, entry["file_name"]))

    def evaluate(self) -> OrderedDict | None:
        """Metrics in percent; classes that do not occur in the ground truth are NaN and in no mean.

        Returns:
            {"sem_seg": {"mIoU", "fwIoU", "mACC", "pACC", and per class "IoU-x", "BoundaryIoU-x",
            "min(IoU, B-Iou)-x", "ACC-x"}}; None on other processes than the first.
        """
        if self._distributed:
            synchronize()
            conf_matrices = all_gather(self._conf_matrix)
            b_conf_matrices = all_gather(self._b_conf_matrix)
            self._predictions = list(itertools.chain(*all_gather(self._predictions)))
            if not is_main_process():
                return None
            self._conf_matrix = np.sum(conf_matrices, axis=0)
            self._b_conf_matrix = np.sum(b_conf_matrices, axis=0)

        if self._output_dir is not None:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_predictions.json"), "w") as file:
                file.write(json.dumps(self._predictions))
        res = self._metrics()
        if self._output_dir is not None:
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_evaluation.pth"), "wb") as file:
                torch.save(res, file)
        results = OrderedDict({"sem_seg": res})
        self._logger.info(results)
        return results

    def _metrics(self) -> dict[str, float]:
        tp, pos_pred, pos_gt = _marginals(self._conf_matrix)
        union = pos_gt + pos_pred - tp
        occurs = pos_gt > 0
        iou_valid = occurs & (union > 0)
        acc = _ratio(tp, pos_gt, occurs, np.nan)
        iou = _ratio(tp, union, iou_valid, np.nan)
        frequency = pos_gt / np.sum(pos_gt)
        b_iou = None
        if self._compute_boundary_iou:
            b_tp, b_pos_pred, b_pos_gt = _marginals(self._b_conf_matrix)
            b_union = b_pos_gt + b_pos_pred - b_tp
            b_iou = _ratio(b_tp, b_union, b_union > 0, np.nan)

        res = {
            "mIoU": 100 * np.sum(iou[iou_valid]) / np.sum(iou_valid),
            "fwIoU": 100 * np.sum(iou[iou_valid] * frequency[iou_valid]),
        }
        for i, name in enumerate(self._class_names):
            res[f"IoU-{name}"] = 100 * iou[i]
            if b_iou is not None:
                res[f"BoundaryIoU-{name}"] = 100 * b_iou[i]
                res[f"min(IoU, B-Iou)-{name}"] = 100 * np.minimum(iou[i], b_iou[i])
        res["mACC"] = 100 * np.sum(acc[occurs]) / np.sum(occurs)
        res["pACC"] = 100 * np.sum(tp) / np.sum(pos_gt)
        for i, name in enumerate(self._class_names):
            res[f"ACC-{name}"] = 100 * acc[i]
        return {key: float(value) for key, value in res.items()}

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """A label map in the format of COCO stuff: one RLE per class that occurs.

        Args:
            sem_seg: ``H W`` contiguous classes.
            input_file_name: of the image.
        """
        encoded = []
        for label in np.unique(sem_seg).tolist():
            if self._contiguous_id_to_dataset_id is not None:
                assert label in self._contiguous_id_to_dataset_id, (
                    f"Label {label} is not in the metadata info for {self._dataset_name}"
                )
                category_id = self._contiguous_id_to_dataset_id[label]
            else:
                category_id = label
            rle = mask_util.encode(np.asfortranarray(sem_seg == label, dtype=np.uint8))
            rle["counts"] = rle["counts"].decode("utf-8")
            encoded.append({"file_name": input_file_name, "category_id": category_id, "segmentation": rle})
        return encoded

    def _mask_to_boundary(self, mask: np.ndarray, dilation_ratio: float = _BOUNDARY_WIDTH) -> np.ndarray:
        """A label map minus its erosion: what is left is non-zero only near boundaries.

        Args:
            mask: ``H W`` uint8.
            dilation_ratio: width of the boundary relative to the diagonal of the image.

        Returns:
            ``H W`` uint8.
        """
        assert mask.ndim == 2, "mask_to_boundary expects a 2-dimensional image"
        height, width = mask.shape
        size = 2 * max(1, round(dilation_ratio * float(np.hypot(height, width)))) + 1
        # Erosion is the smallest value in a square window. Zeros outside make the image's edge a boundary.
        eroded = mask
        for axis in (0, 1):
            eroded = minimum_filter1d(eroded, size, axis=axis, mode="constant", cval=0)
        return mask - eroded


def _marginals(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correct, predicted and true pixels of every class, without those ignored by ground truth."""
    counted = confusion[:-1, :-1]
    return (
        confusion.diagonal()[:-1].astype(float),
        counted.sum(axis=1).astype(float),
        counted.sum(axis=0).astype(float),
    )


def _ratio(above: np.ndarray, below: np.ndarray, where: np.ndarray, otherwise: float) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), otherwise), where=where)
