"""What the evaluators of all tasks share: one result per video, gathered from all processes, written once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

__all__ = ["VideoEvaluator"]

logger = logging.getLogger(__name__)


class VideoEvaluator(DatasetEvaluator):
    """Base of the evaluators; a subclass says how a video's output is kept, written and scored.

    Args:
        dataset_name: for messages.
        output_dir: folder of the files to write; None writes nothing.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path | None = None) -> None:
        self.dataset_name = dataset_name
        self.output_dir = Path(output_dir) if output_dir else None
        self._results: dict[Any, Any] = {}

    # What a subclass provides.

    def encode(self, video: Mapping[str, Any], output: Mapping[str, Any]) -> Any:
        """Turn the model's output for one video into what is kept of it; must be picklable and small."""
        raise NotImplementedError

    def write(self, results: Mapping[Any, Any], output_dir: Path) -> None:
        """Write the results of all videos, by video id, in the form that the benchmark's server takes."""
        raise NotImplementedError

    def score(self, results: Mapping[Any, Any]) -> dict[str, dict[str, float]] | None:
        """Compare the results of all videos with the ground truth; None if there is none."""
        raise NotImplementedError

    # detectron2's protocol.

    def reset(self) -> None:
        self._results = {}

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]] | Mapping[str, Any]
    ) -> None:
        """Keep what the model says about the given videos.

        Args:
            inputs: one dict per video, with ``video_id``.
            outputs: one dict per video; or the dict of the only one.
        """
        if isinstance(outputs, Mapping):
            outputs = [outputs]
        for video, output in zip(inputs, outputs, strict=True):
            self._results[video["video_id"]] = self.encode(video, output)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Gather, write and score; other processes than the first return None."""
        gathered = comm.gather(self._results, dst=0)
        if not comm.is_main_process():
            return None
        results = {video: result for part in gathered for video, result in part.items()}
        if self.output_dir is not None:
            self.write(results, self.output_dir)
        scores = self.score(results)
        if scores is None:
            where = (
                f"; the files for the benchmark's server are in {self.output_dir}" if self.output_dir else ""
            )
            logger.info("%s has no public ground truth: nothing is scored here%s.", self.dataset_name, where)
            return {}
        return scores
