"""What is watched while a model trains: numbers that are not finite, broken data, speed and memory."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from dvis.modeling.matching import NonFiniteError

__all__ = ["DataFaultReport", "NonFiniteMonitor", "Throughput", "monitoring_hooks", "peak_memory_mb"]

logger = logging.getLogger(__name__)

MIB = 2**20


def monitoring_hooks(cfg: CfgNode) -> list[HookBase]:
    """The hooks of this module, to come right after the timer.

    Raises:
        ValueError: for a budget below 0; names the key.
    """
    images = cfg.SOLVER.IMS_PER_BATCH * cfg.INPUT.SAMPLING_FRAME_NUM
    monitor = NonFiniteMonitor(Path(cfg.OUTPUT_DIR), cfg.SOLVER.MAX_NON_FINITE)
    return [Throughput(images), DataFaultReport(), monitor]


class NonFiniteMonitor(HookBase):
    """Notes every batch whose matching costs or losses are not finite, and stops when there are too many.

    Each one is a line of JSON in ``non_finite.jsonl``: iteration, process, what was not finite, and of each
    clip the video and its frames. Whether such a batch is skipped at all is the model's setting
    (``SOLVER.NON_FINITE``).
    """

    def __init__(self, folder: Path, budget: int) -> None:
        """
        Args:
            folder: where to write.
            budget: so many batches may be skipped, in this process and start of the program.

        Raises:
            ValueError: if the budget is negative.
        """
        if budget < 0:
            raise ValueError(f"SOLVER.MAX_NON_FINITE must not be negative, got {budget}")
        self._path = folder / "non_finite.jsonl"
        self._budget = budget
        self._notes: list[str] = []

    def before_train(self) -> None:
        """Let the model report here."""
        _model_of(self.trainer).on_non_finite = self._note

    def after_train(self) -> None:
        """Let the model go; say how many batches were skipped."""
        _model_of(self.trainer).on_non_finite = None
        if self._notes:
            logger.warning(
                "%d batches with numbers that are not finite, see %s", len(self._notes), self._path
            )

    def _note(self, clips: Sequence[Mapping[str, Any]], error: FloatingPointError, skipped: bool) -> None:
        """Write one batch down.

        Args:
            clips: the batch.
            error: names what is not finite.
            skipped: whether training would go on.

        Raises:
            NonFiniteError: if it would, but the budget is used up.
        """
        self._notes.append(f"iteration {self.trainer.iter}: {error}")
        entry = {
            "iteration": self.trainer.iter,
            "rank": comm.get_rank(),
            "error": str(error),
            "clips": [
                {key: clip[key] for key in ("video_id", "frame_indices", "file_names") if key in clip}
                for clip in clips
            ],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # All processes append to one file: one short write each.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, default=str) + "\n")
        if skipped and len(self._notes) > self._budget:
            raise NonFiniteError(
                f"more than {self._budget} batches (SOLVER.MAX_NON_FINITE) were not finite, see "
                f"{self._path}:\n" + "\n".join(f"  {note}" for note in self._notes[-10:])
            )
        if skipped:
            self.trainer.storage.put_scalar("skipped_batches", len(self._notes), smoothing_hint=False)


class DataFaultReport(HookBase):
    """Logs the number of faults in the training data with the metrics, and a summary at the end."""

    def after_step(self) -> None:
        """Log the number, once there is a fault."""
        faults = getattr(self._loader(), "faults", None)
        if faults:
            self.trainer.storage.put_scalar("data_faults", len(faults), smoothing_hint=False)

    def after_train(self) -> None:
        """Log what was wrong."""
        summary = getattr(self._loader(), "summary", str)()
        if summary:
            logger.warning("%s", summary)

    def _loader(self) -> Any:
        return getattr(self.trainer, "data_loader", None)


class Throughput(HookBase):
    """Logs images per second, over all processes, and the largest memory so far."""

    def __init__(self, images_per_step: int) -> None:
        """
        Args:
            images_per_step: frames of a batch, over all processes.
        """
        self._images = images_per_step

    def after_step(self) -> None:
        """Log both; the speed from where the timer has measured a step."""
        storage = self.trainer.storage
        latest = storage.latest().get("time")
        if latest is not None and latest[1] == storage.iter and latest[0] > 0:
            storage.put_scalar("images_per_second", self._images / latest[0])
        storage.put_scalar("peak_memory_mb", peak_memory_mb(), smoothing_hint=False)


def peak_memory_mb() -> float:
    """Largest memory that tensors on the GPU had so far, or without CUDA that of the process, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


def _model_of(trainer: Any) -> Any:
    """The model without the wrapper of several processes."""
    return getattr(trainer.model, "module", trainer.model)
