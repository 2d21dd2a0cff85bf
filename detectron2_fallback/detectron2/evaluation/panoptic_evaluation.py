"""Panoptic quality of a model's outputs on a data set in COCO's panoptic format."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image
from tabulate import tabulate

from .evaluator import DatasetEvaluator
from .panoptic_quality import id2rgb, panoptic_quality, read_segment_ids

__all__ = ["COCOPanopticEvaluator"]

logger = logging.getLogger(__name__)


class COCOPanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of all, thing and stuff classes, in percent.

    Args:
        dataset_name: its metadata has "panoptic_json", "panoptic_root" and the two id maps.
        output_dir: where "predictions.json" is written; None for nowhere.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        self._metadata = MetadataCatalog.get(dataset_name)
        self._thing_contiguous_id_to_dataset_id = {
            v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()
        }
        self._stuff_contiguous_id_to_dataset_id = {
            v: k for k, v in self._metadata.stuff_dataset_id_to_contiguous_id.items()
        }
        self._output_dir = output_dir
        if output_dir is not None:
            PathManager.mkdirs(output_dir)
        self.reset()

    def reset(self) -> None:
        self._predictions: list[dict[str, Any]] = []

    def _convert_category_id(self, segment_info: dict) -> dict:
        """A copy with the dataset's category id; without "isthing" it has one already."""
        segment_info = dict(segment_info)
        isthing = segment_info.pop("isthing", None)
        if isthing is not None:
            table = (
                self._thing_contiguous_id_to_dataset_id
                if isthing
                else self._stuff_contiguous_id_to_dataset_id
            )
            segment_info["category_id"] = table[segment_info["category_id"]]
        return segment_info

    def _segments_of_labels(self, panoptic_img: np.ndarray) -> list[dict]:
        """Segments of a map whose labels are class * label_divisor + instance (-1 = none)."""
        things = set(self._metadata.thing_dataset_id_to_contiguous_id.values())
        segments = []
        for label in np.unique(panoptic_img).tolist():
            if label == -1:
                continue
            category = label // self._metadata.label_divisor
            # one more, because 0 will be void
            segments.append({"id": label + 1, "category_id": category, "isthing": category in things})
        return segments

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take one batch.

        Args:
            inputs: dicts with "image_id" and "file_name".
            outputs: dicts with "panoptic_seg": ``H W`` segment ids (0 = void) and the list of segments with
                "id", "category_id" (contiguous) and "isthing". If the list is None, the map holds class *
                label_divisor + instance, with -1 for void.
        """
        for entry, output in zip(inputs, outputs, strict=True):
            panoptic, segments = output["panoptic_seg"]
            panoptic_img = panoptic.cpu().numpy()
            if segments is None:
                segments = self._segments_of_labels(panoptic_img)
                panoptic_img = panoptic_img + 1
            stem = os.path.splitext(os.path.basename(entry["file_name"]))[0]
            with io.BytesIO() as buffer:
                Image.fromarray(id2rgb(panoptic_img)).save(buffer, format="PNG")
                self._predictions.append(
                    {
                        "image_id": entry["image_id"],
                        "file_name": stem + ".png",
                        "png_string": buffer.getvalue(),
                        "segments_info": [self._convert_category_id(segment) for segment in segments],
                    }
                )

    def evaluate(self) -> OrderedDict | None:
        """Gather from all processes; on the first one, {"panoptic_seg": {"PQ", ..., "RQ_st"}}."""
        comm.synchronize()
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        predictions = list(itertools.chain(*gathered))
        with open(PathManager.get_local_path(self._metadata.panoptic_json)) as file:
            ground_truth = json.load(file)
        gt_folder = PathManager.get_local_path(self._metadata.panoptic_root)
        pngs = {prediction["image_id"]: prediction.pop("png_string") for prediction in predictions}
        if self._output_dir is not None:
            path = os.path.join(self._output_dir, "predictions.json")
            logger.info("Writing all panoptic predictions to %s ...", path)
            with PathManager.open(path, "w") as file:
                json.dump({**ground_truth, "annotations": predictions}, file)

        quality = panoptic_quality(
            ground_truth["annotations"],
            predictions,
            ground_truth["categories"],
            lambda annotation: read_segment_ids(os.path.join(gt_folder, annotation["file_name"])),
            lambda annotation: read_segment_ids(io.BytesIO(pngs[annotation["image_id"]])),
        )
        _print_panoptic_results(quality)
        return OrderedDict(
            panoptic_seg={
                f"{metric.upper()}{suffix}": 100 * quality[group][metric]
                for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
                for metric in ("pq", "sq", "rq")
            }
        )


def _print_panoptic_results(quality: Mapping[str, Any]) -> None:
    rows = [
        [group, *(quality[group][metric] * 100 for metric in ("pq", "sq", "rq")), quality[group]["n"]]
        for group in ("All", "Things", "Stuff")
    ]
    table = tabulate(
        rows,
        headers=["", "PQ", "SQ", "RQ", "#categories"],
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )
    logger.info("Panoptic Evaluation Results:\n%s", table)
