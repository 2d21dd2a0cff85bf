"""Video instance segmentation: YouTube-VIS and OVIS."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from dvis.data.errors import BrokenDataError
from dvis.data.files import read_json, write_json
from dvis.data.rle import encode_mask, rle_areas, to_rle
from dvis.evaluation.evaluator import VideoEvaluator
from dvis.evaluation.metrics.video_ap import Protocol, VideoAPResult
from dvis.evaluation.scoring import check_ground_truth, instance_numbers, score_instances

__all__ = ["YTVISEvaluator"]

logger = logging.getLogger(__name__)

# Rows of the summary under the names that papers and training frameworks use.
_REPORTED = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "AP_small",
    "APm": "AP_medium",
    "APl": "AP_large",
    "APso": "AP_light",
    "APmo": "AP_medium_occ",
    "APho": "AP_heavy",
    "AR1": "AR1",
    "AR10": "AR10",
}


class YTVISEvaluator(VideoEvaluator):
    """Writes ``results.json`` for the benchmark's server and scores it where ground truth is there.

    Args:
        dataset_name: for messages.
        annotation_path: annotation file of the split; its ``annotations`` may be missing or null. Images in
            COCO form are videos of one frame.
        id_of_class: dataset category id of each class index.
        protocol: ``ytvis`` or ``ovis``.
        output_dir: folder of ``results.json``; None writes nothing.
        zip_results: see `VideoEvaluator`.
        categories: each with ``id`` and ``name``; empty: those of the annotation file.
        parts: annotation files of parts of the split, by name, which are scored separately as well (rows
            ``AP_<name>`` and so on); those that are not there are left out.
    """

    task = "vis"

    def __init__(
        self,
        dataset_name: str,
        annotation_path: str | Path,
        id_of_class: Mapping[int, int],
        protocol: Protocol = "ytvis",
        output_dir: str | Path | None = None,
        *,
        zip_results: bool = False,
        categories: Sequence[Mapping[str, Any]] = (),
        parts: Mapping[str, Path] | None = None,
    ) -> None:
        super().__init__(dataset_name, output_dir, zip_results=zip_results)
        self.annotation_path = Path(annotation_path)
        self.categories = list(categories)
        self.parts = dict(parts or {})
        self.id_of_class = dict(id_of_class)
        self.protocol = protocol

    def encode(self, video: Mapping[str, Any], output: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Predicted tubes in the server's form.

        Args:
            video: the model's input, with ``video_id`` and, if known, ``length``.
            output: ``pred_scores`` ``N``, ``pred_labels`` ``N`` (class index), ``pred_masks`` (``N T H W``
                bool, or per object a list with one run-length code per frame).

        Raises:
            ValueError: for a label that is no class of the data set, or a wrong number of frames; names the
                video.
        """
        tubes = []
        for score, label, masks in zip(
            output["pred_scores"], output["pred_labels"], output["pred_masks"], strict=True
        ):
            where = f"{self.dataset_name}, video {video['video_id']}"
            if int(label) not in self.id_of_class:
                raise ValueError(
                    f"{where}: class {int(label)} is not one of the {len(self.id_of_class)} of the data set"
                )
            if len(masks) != video.get("length", len(masks)):
                raise ValueError(f"{where}: masks for {len(masks)} of {video['length']} frames")
            tubes.append(
                {
                    "video_id": video["video_id"],
                    "category_id": self.id_of_class[int(label)],
                    "score": float(score),
                    "segmentations": [_to_code(mask) for mask in masks],
                }
            )
        return tubes

    def write(self, results: Mapping[Any, Any], output_dir: Path) -> dict[str, Path]:
        path = output_dir / "results.json"
        write_json(path, _in_order(results))
        logger.info("Results of %d videos are in %s", len(results), path)
        return {path.name: path}

    def score(self, results: Mapping[Any, Any]) -> dict[str, dict[str, float]] | None:
        content = read_json(self.annotation_path)
        if not content.get("annotations"):
            return None
        if self.categories:
            content["categories"] = self.categories
        ground_truth = _as_videos(content)
        check_ground_truth(self.annotation_path, ground_truth)
        _add_areas(ground_truth)
        missing = len({video["id"] for video in ground_truth["videos"]} - results.keys())
        if missing:
            logger.warning("%s: %d videos have no results and count as empty.", self.dataset_name, missing)
        pred_json = (self.output_dir or Path()) / "results.json"
        result = score_instances(
            self.annotation_path, ground_truth, pred_json, _in_order(results), self.protocol
        )
        self.save_numbers(instance_numbers(result))
        logger.info("%s:\n%s", self.dataset_name, "\n".join(result.printed_rows()))
        return {"segm": {**_report(result), **self._report_parts(result, ground_truth)}}

    def _report_parts(self, result: VideoAPResult, ground_truth: Mapping[str, Any]) -> dict[str, float]:
        known = {video["id"] for video in ground_truth["videos"]}
        report: dict[str, float] = {}
        for name, path in self.parts.items():
            if not path.is_file():
                logger.info("%s is not there: its videos are not scored separately.", path)
                continue
            videos = {video["id"] for video in read_json(path)["videos"]}
            if not videos <= known:
                raise BrokenDataError(
                    f"{path}, video {min(videos - known)}: not in {self.annotation_path}; divide that again"
                )
            part = result.restricted_to(videos)
            rows = "\n".join(part.printed_rows())
            logger.info("%s, %d videos of %s:\n%s", self.dataset_name, len(videos), path.name, rows)
            report |= {
                f"{title}_{name}": _percent(part.stats[row])
                for title, row in _REPORTED.items()
                if row in part.stats
            }
        return report


def _as_videos(content: dict[str, Any]) -> dict[str, Any]:
    """COCO's images as videos of one frame; crowd flags that are missing are filled in."""
    videos = content["videos"] if "videos" in content else content["images"]
    annotations = []
    for given in content["annotations"]:
        annotation = {"iscrowd": 0, **given}
        if "videos" not in content:
            annotation |= {"video_id": given["image_id"], "segmentations": [given["segmentation"]]}
            annotation |= {"areas": [given["area"]]} if "area" in given else {}
        annotations.append(annotation)
    return {**content, "videos": videos, "annotations": annotations}


def _add_areas(ground_truth: dict[str, Any]) -> None:
    """Measure the objects for which the file does not say how large they are."""
    sizes = {video["id"]: (video["height"], video["width"]) for video in ground_truth["videos"]}
    for annotation in ground_truth["annotations"]:
        if "areas" not in annotation:
            codes = [to_rle(mask, *sizes[annotation["video_id"]]) for mask in annotation["segmentations"]]
            annotation["areas"] = [float(rle_areas([code])[0]) if code else None for code in codes]


def _in_order(results: Mapping[Any, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Tubes by video, so that files do not depend on which process had which video."""
    return [tube for video_id in sorted(results) for tube in results[video_id]]


def _to_code(mask: Any) -> dict[str, Any] | None:
    """One frame's mask as the server takes it: text, or null where there is nothing."""
    if mask is None:
        return None
    if isinstance(mask, Mapping):
        counts = mask["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        code = {"size": [int(side) for side in mask["size"]], "counts": text}
        return code if rle_areas([code])[0] else None
    pixels = np.asarray(mask, dtype=bool)
    return encode_mask(pixels) if pixels.any() else None


def _report(result: VideoAPResult) -> dict[str, float]:
    """Percent by the usual names, NaN where nothing is defined; then the AP of each category."""
    report = {name: _percent(result.stats[row]) for name, row in _REPORTED.items() if row in result.stats}
    names, per_category = result.category_names, result.per_category()
    by_category = {f"AP-{names[k]}": _percent(rows["AP"]) for k, rows in per_category.items()}
    table = tabulate(
        [(name.removeprefix("AP-"), value) for name, value in by_category.items()],
        headers=("category", "AP"),
        floatfmt=".3f",
        tablefmt="pipe",
    )
    logger.info("AP per category:\n%s", table)
    return {**report, **by_category}


def _percent(value: float) -> float:
    return 100 * value if value > -1 else math.nan
