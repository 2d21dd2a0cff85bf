"""Video semantic segmentation: VSPW."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dvis.data.label_images import replaced_folder, write_png
from dvis.evaluation.evaluator import VideoEvaluator
from dvis.evaluation.scoring import NUM_WORKERS, score_video_semantic

__all__ = ["VSSEvaluator"]

logger = logging.getLogger(__name__)

MASKS = "predictions"


class VSSEvaluator(VideoEvaluator):
    """Writes ``predictions/<video>/<frame>.png`` and scores them where there is ground truth.

    Args:
        dataset_name: for messages.
        video_list: text file with one video per line.
        gt_root: folder with ``<video>/mask/<frame>.png``, coded as VSPW ships it: 0 = void, class + 1.
        id_of_class: dataset category id (0 .. number of categories - 1) of each class index.
        output_dir: folder of the results, one that all processes share.
        zip_results: see `VideoEvaluator`.
    """

    task = "vss"
    output_dir: Path

    def __init__(
        self,
        dataset_name: str,
        video_list: str | Path,
        gt_root: str | Path,
        id_of_class: Mapping[int, int],
        output_dir: str | Path,
        *,
        zip_results: bool = False,
    ) -> None:
        super().__init__(dataset_name, output_dir, zip_results=zip_results)
        self.video_list = Path(video_list)
        self.gt_root = Path(gt_root)
        self._id_of_class = np.full(256, 255, np.uint8)
        for index, category_id in id_of_class.items():
            self._id_of_class[index] = category_id
        self.num_classes = len(id_of_class)

    def clear(self, output_dir: Path) -> None:
        shutil.rmtree(output_dir / MASKS, ignore_errors=True)

    def encode(self, video: Mapping[str, Any], output: Mapping[str, Any]) -> int:
        """Write the PNGs of a video.

        Args:
            video: the model's input, with ``video_id``, ``file_names``, ``height``, ``width``.
            output: ``pred_masks`` ``T H W`` of class indices.

        Returns:
            The number of frames.

        Raises:
            ValueError: for a wrong size or an unknown class; names the video.
        """
        where = f"{self.dataset_name}, video {video['video_id']}"
        masks = output["pred_masks"]
        expected = (len(video["file_names"]), video["height"], video["width"])
        if tuple(masks.shape) != expected:
            raise ValueError(f"{where}: masks have the shape {tuple(masks.shape)}, expected {expected}")

        with replaced_folder(self.output_dir / MASKS / str(video["video_id"])) as folder:

            def write(t: int) -> None:
                frame = np.asarray(masks[t])
                if frame.size and (frame.min() < 0 or frame.max() >= self.num_classes):
                    raise ValueError(
                        f"{where}, frame {t}: class {int(frame.max())} is not one of the {self.num_classes} "
                        "of the data set"
                    )
                write_png(folder / f"{Path(video['file_names'][t]).stem}.png", self._id_of_class[frame])

            with ThreadPoolExecutor(NUM_WORKERS) as pool:
                return len(list(pool.map(write, range(len(masks)))))

    def write(self, results: Mapping[Any, Any], output_dir: Path) -> dict[str, Path]:
        root = output_dir / MASKS
        logger.info("Results of %d videos are in %s", len(results), root)
        return {file.relative_to(root).as_posix(): file for file in sorted(root.glob("*/*.png"))}

    def score(self, results: Mapping[Any, Any]) -> dict[str, dict[str, float]] | None:
        videos = self.video_list.read_text(encoding="utf-8").split()
        if not any((self.gt_root / video / "mask").is_dir() for video in videos):
            return None
        numbers = score_video_semantic(
            self.gt_root, videos, self.output_dir / MASKS, raw_masks=True, num_classes=self.num_classes
        )
        self.save_numbers(numbers)
        names = ("mIoU", "fwIoU", "Acc", "Acc_class", "VC8", "VC16")
        values = {name: numbers[name] for name in names}
        return {"vss": {name: math.nan if v is None else 100 * v for name, v in values.items()}}
