"""What the evaluators of all tasks share: one result per video, gathered from all processes, written once.

An evaluator leaves a record of every finished video in its output folder, so that an interrupted evaluation
can go on; the records go once everything is written and scored.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from dvis.data.files import atomic_path, read_json, write_json

__all__ = ["VideoEvaluator", "fingerprint"]

logger = logging.getLogger(__name__)

RECORDS = "finished_videos"


class VideoEvaluator(DatasetEvaluator):
    """Base of the evaluators; a subclass says how a video's output is kept, written and scored.

    Args:
        dataset_name: for messages.
        output_dir: folder of the files to write, one that all processes share; None writes nothing.
        zip_results: also pack them as the benchmark's server takes them, into ``submission.zip``.
    """

    task: str  # of the model's outputs

    def __init__(
        self, dataset_name: str, output_dir: str | Path | None = None, *, zip_results: bool = False
    ) -> None:
        self.dataset_name = dataset_name
        self.output_dir = Path(output_dir) if output_dir else None
        self.zip_results = zip_results
        self._run = ""
        self._resumed = False
        self._finished: dict[Any, Any] = {}
        self._results: dict[Any, Any] = {}

    # What a subclass provides.

    def encode(self, video: Mapping[str, Any], output: Mapping[str, Any]) -> Any:
        """Turn the model's output for one video into what is kept of it: small, and JSON."""
        raise NotImplementedError

    def clear(self, output_dir: Path) -> None:
        """Remove what `encode` has written in an earlier evaluation."""

    def write(self, results: Mapping[Any, Any], output_dir: Path) -> dict[str, Path]:
        """Write the results of all videos, by video id, in the form that the benchmark's server takes.

        Returns:
            the files that make up a submission, by their names in it.
        """
        raise NotImplementedError

    def score(self, results: Mapping[Any, Any]) -> dict[str, dict[str, float]] | None:
        """Compare the results of all videos with the ground truth; None if there is none."""
        raise NotImplementedError

    # Interrupted evaluations.

    def begin(self, run: str, resume: bool) -> frozenset[Any]:
        """Name the evaluation that comes next; all processes call it.

        Args:
            run: the same text for evaluations that give the same results, see `fingerprint`.
            resume: whether to keep what an interrupted evaluation of the same name has finished.

        Returns:
            Ids of the finished videos, which need not be processed again.
        """
        self._run = run
        self._finished = {}
        if resume and self.output_dir is not None and comm.is_main_process():
            for path in sorted((self.output_dir / RECORDS).glob("*.json")):
                record = read_json(path)
                if record["run"] == run:
                    self._finished[record["video_id"]] = record["result"]
            if self._finished:
                logger.info("%s: going on after %d finished videos.", self.dataset_name, len(self._finished))
        # The main process decides, so that all share out the same videos.
        finished = frozenset(comm.all_gather(frozenset(self._finished))[0])
        self._resumed = bool(finished)
        return finished

    # detectron2's protocol.

    def reset(self) -> None:
        self._results = dict(self._finished)
        if self.output_dir is None:
            return
        if comm.is_main_process() and not self._resumed:
            shutil.rmtree(self.output_dir / RECORDS, ignore_errors=True)
            self.clear(self.output_dir)
        comm.synchronize()  # nobody writes before the old files are gone

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]] | Mapping[str, Any]
    ) -> None:
        """Keep what the model says about the given videos.

        Args:
            inputs: one dict per video, with ``video_id``.
            outputs: one dict per video; or the dict of the only one.

        Raises:
            ValueError: if the outputs are of another task.
        """
        if isinstance(outputs, Mapping):
            outputs = [outputs]
        for video, output in zip(inputs, outputs, strict=True):
            if output.get("task", self.task) != self.task:
                raise ValueError(
                    f"{self.dataset_name} is evaluated on outputs of the task {self.task!r}, the model's are "
                    f"of {output['task']!r}: set MODEL.MASK_FORMER.TEST.TASK"
                )
            video_id = video["video_id"]
            result = self.encode(video, output)
            self._results[video_id] = result
            if self.output_dir is not None:
                path = self.output_dir / RECORDS / f"{quote(str(video_id), safe='')}.json"
                write_json(path, {"run": self._run, "video_id": video_id, "result": result})

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Gather, write and score; other processes than the first return None."""
        gathered = comm.gather(self._results, dst=0)
        if not comm.is_main_process():
            return None
        results = {video: result for part in gathered for video, result in part.items()}
        if self.output_dir is not None:
            files = self.write(results, self.output_dir)
            if self.zip_results:
                _pack(self.output_dir / "submission.zip", files)
        scores = self.score(results)
        if self.output_dir is not None:
            shutil.rmtree(self.output_dir / RECORDS, ignore_errors=True)
        self._resumed, self._finished = False, {}
        if scores is None:
            where = (
                f"; the files for the benchmark's server are in {self.output_dir}" if self.output_dir else ""
            )
            logger.info("%s has no public ground truth: nothing is scored here%s.", self.dataset_name, where)
            return {}
        return scores

    def save_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Write all numbers of the official programs to ``scores.json``."""
        if self.output_dir is not None:
            write_json(self.output_dir / "scores.json", numbers, indent=1)


def fingerprint(cfg: CfgNode, model: nn.Module) -> str:
    """A text that is the same for models with the same weights, settings and input sizes."""
    digest = hashlib.sha256()
    settings = cfg.clone()
    settings.defrost()
    settings.MODEL.WEIGHTS = ""  # what counts is what was loaded
    digest.update(f"{settings.MODEL}\n{settings.INPUT}".encode())
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    for name, value in inner.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _pack(path: Path, files: Mapping[str, Path]) -> None:
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, file in files.items():
            # Pictures are compressed already.
            method = zipfile.ZIP_STORED if file.suffix == ".png" else zipfile.ZIP_DEFLATED
            archive.write(file, name, method)
    logger.info("The submission is packed in %s", path)
