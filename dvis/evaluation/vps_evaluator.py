"""Video panoptic segmentation: VIPSeg."""

from __future__ import annotations

import logging
import shutil
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dvis.data.colors import SegmentColors, color_to_id
from dvis.data.files import read_json, write_json
from dvis.data.label_images import replaced_folder, write_png
from dvis.evaluation.evaluator import VideoEvaluator
from dvis.evaluation.scoring import NUM_WORKERS, score_video_panoptic

__all__ = ["VPSEvaluator"]

logger = logging.getLogger(__name__)

MASKS = "pan_pred"


class VPSEvaluator(VideoEvaluator):
    """Writes ``pred.json`` and ``pan_pred/<video>/<frame>.png``, and scores them where there is ground truth.

    Args:
        dataset_name: for messages.
        gt_json: ``panoptic_gt_*.json`` of the split; gives categories and the order of videos.
        gt_masks: folder of the ground truth's PNGs.
        id_of_class: dataset category id of each class index.
        output_dir: folder of the results, one that all processes share.
        zip_results: see `VideoEvaluator`.
        categories: each with ``id`` and ``isthing``, and ``color`` (RGB) or none; empty: those of the JSON.
    """

    task = "vps"
    output_dir: Path

    def __init__(
        self,
        dataset_name: str,
        gt_json: str | Path,
        gt_masks: str | Path,
        id_of_class: Mapping[int, int],
        output_dir: str | Path,
        *,
        zip_results: bool = False,
        categories: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(dataset_name, output_dir, zip_results=zip_results)
        self.categories = list(categories)
        self.gt_json = Path(gt_json)
        self.gt_masks = Path(gt_masks)
        self.id_of_class = dict(id_of_class)
        self._ground_truth: dict[str, Any] = {}

    @property
    def ground_truth(self) -> dict[str, Any]:
        if not self._ground_truth:
            self._ground_truth = read_json(self.gt_json)
            if self.categories:
                self._ground_truth["categories"] = self.categories
        return self._ground_truth

    def clear(self, output_dir: Path) -> None:
        shutil.rmtree(output_dir / MASKS, ignore_errors=True)

    def encode(self, video: Mapping[str, Any], output: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Write the PNGs of a video.

        Args:
            video: the model's input, with ``video_id``, ``file_names``, ``height``, ``width``.
            output: ``pred_masks`` ``T H W`` of segment ids, 0 = none; ``segments_infos``: per segment ``id``
                and ``category_id`` (class index).

        Returns:
            The video's frames for ``pred.json``.

        Raises:
            ValueError: for a wrong size, an unknown class, or a mask without its segment; names the video.
        """
        where = f"{self.dataset_name}, video {video['video_id']}"
        masks = output["pred_masks"]
        expected = (len(video["file_names"]), video["height"], video["width"])
        if tuple(masks.shape) != expected:
            raise ValueError(f"{where}: masks have the shape {tuple(masks.shape)}, expected {expected}")
        palette = self._palette(str(video["video_id"]), output["segments_infos"], where)
        names = [f"{Path(name).stem}.png" for name in video["file_names"]]

        with replaced_folder(self.output_dir / MASKS / str(video["video_id"])) as folder:

            def write(t: int) -> dict[str, Any]:
                frame = np.asarray(masks[t])
                if frame.size and (frame.max() >= len(palette.known) or not palette.known[frame].all()):
                    raise ValueError(f"{where}, frame {t}: a mask has an id that is not in segments_infos")
                write_png(folder / names[t], palette.colors[frame])
                return {"file_name": names[t], "segments_info": palette.describe(frame)}

            with ThreadPoolExecutor(NUM_WORKERS) as pool:
                return list(pool.map(write, range(len(names))))

    def write(self, results: Mapping[Any, Any], output_dir: Path) -> dict[str, Path]:
        path = output_dir / "pred.json"
        order = [video["video_id"] for video in self.ground_truth["videos"] if video["video_id"] in results]
        content = [{"video_id": name, "annotations": results[name]} for name in order]
        write_json(path, {"annotations": content})
        logger.info("Results of %d videos are in %s and %s", len(order), path, output_dir / MASKS)
        files = [path, *sorted((output_dir / MASKS).glob("*/*.png"))]
        return {file.relative_to(output_dir).as_posix(): file for file in files}

    def score(self, results: Mapping[Any, Any]) -> dict[str, dict[str, float]] | None:
        frames = [frame for video in self.ground_truth["annotations"] for frame in video["annotations"]]
        if not any(frame["segments_info"] for frame in frames):
            return None
        numbers = score_video_panoptic(
            self.gt_json,
            self.gt_masks,
            self.output_dir / "pred.json",
            self.output_dir / MASKS,
            categories=self.categories,
        )
        self.save_numbers(numbers)
        papers, script = numbers["mean_vpq_windows_1_2_4_6"], numbers["mean_vpq_windows_1_2_4_6_8"]
        report = {
            "VPQ": papers["all"],
            "VPQ_th": papers["thing"],
            "VPQ_st": papers["stuff"],
            **{f"VPQ{window}": table["all"]["pq"] for window, table in numbers["vpq"].items()},
            "VPQ_with_8": script["all"],
            "STQ": numbers["stq"]["STQ"],
            "AQ": numbers["stq"]["AQ"],
            "SQ": numbers["stq"]["IoU"],
        }
        return {"vps": {name: float("nan") if v is None else 100 * v for name, v in report.items()}}

    def _palette(self, name: str, segments: Sequence[Mapping[str, Any]], where: str) -> _Palette:
        # The seed depends on the video alone, so that a repeated evaluation writes the same files.
        colors = SegmentColors(self.ground_truth["categories"], seed=zlib.crc32(name.encode()))
        palette = _Palette.empty(1 + max((segment["id"] for segment in segments), default=0))
        for segment in segments:
            label = int(segment["category_id"])
            if label not in self.id_of_class:
                raise ValueError(
                    f"{where}: class {label} is not one of the {len(self.id_of_class)} of the data set"
                )
            palette.add(segment["id"], self.id_of_class[label], colors.take(self.id_of_class[label]))
        return palette


class _Palette:
    """Colours, ids and categories of one video's segments by the number they have in the masks.

    Attributes:
        colors: RGB, ``N 3`` uint8; black for 0.
        known: whether a number stands for a segment (or, 0, for none), ``N``.
    """

    def __init__(self, colors: NDArray[np.uint8], known: NDArray[np.bool_]) -> None:
        self.colors = colors
        self.known = known
        self._categories: dict[int, int] = {}
        self._ids: dict[int, int] = {}

    @classmethod
    def empty(cls, size: int) -> _Palette:
        known = np.zeros(size, bool)
        known[0] = True
        return cls(np.zeros((size, 3), np.uint8), known)

    def add(self, number: int, category_id: int, color: tuple[int, int, int]) -> None:
        self.colors[number] = color
        self.known[number] = True
        self._categories[number] = category_id
        self._ids[number] = color_to_id(color)

    def describe(self, frame: NDArray[Any]) -> list[dict[str, Any]]:
        """The segments of one frame (``H W`` numbers) as the server wants them; boxes are x, y, w, h."""
        areas = np.bincount(frame.ravel())
        entries = []
        for number, place in enumerate(ndimage.find_objects(frame), start=1):
            if place is None:
                continue
            rows, columns = place
            box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
            entries.append(
                {
                    "id": self._ids[number],
                    "category_id": self._categories[number],
                    "area": int(areas[number]),
                    "bbox": box,
                    "iscrowd": 0,
                }
            )
        return entries
