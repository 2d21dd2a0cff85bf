"""Checkpoints at the right time, by all processes together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from dvis.checkpoint import VideoCheckpointer
from dvis.engine.stopping import StopRequest, TrainingStopped, exit_code

__all__ = ["CheckpointHook"]

logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Saves every ``period`` steps, at the end, and when a signal asks the run to stop.

    In place of detectron2's ``PeriodicCheckpointer``, which runs in the main process only: what is saved here
    comes from all processes.
    """

    def __init__(
        self,
        checkpointer: VideoCheckpointer,
        collect: Callable[[], dict[str, Any]],
        *,
        period: int,
        keep: int,
        stop: StopRequest,
        on_end: Callable[[], None],
    ) -> None:
        """
        Args:
            checkpointer: writes the files.
            collect: what to save besides the model and the trainer; called in all processes.
            period: steps between two checkpoints.
            keep: how many of these are kept, the newest; 0 for all. ``model_final`` stays in any case.
            stop: tells that the run shall stop.
            on_end: called when training ends in whatever way.

        Raises:
            ValueError: for a period below 1 or a negative number to keep; names the key.
        """
        if period < 1:
            raise ValueError(f"SOLVER.CHECKPOINT_PERIOD must be at least 1, got {period}")
        if keep < 0:
            raise ValueError(f"SOLVER.CHECKPOINT_KEEP must not be negative, got {keep}")
        self._checkpointer = checkpointer
        self._collect = collect
        self._period = period
        self._keep = keep
        self._stop = stop
        self._on_end = on_end
        self._written: list[str] = []

    def before_train(self) -> None:
        """Find the checkpoints that this run continues; from now on signals ask it to stop."""
        if self.trainer.start_iter > 0:
            # Only these: others in the folder may be all that is left of another run.
            steps = self._checkpointer.steps()
            self._written = [steps[step] for step in sorted(steps) if step < self.trainer.start_iter]
        self._stop.install()

    def after_step(self) -> None:
        """Save if it is time; end the program if it shall stop."""
        iteration = self.trainer.iter
        number = self._stop.agreed()
        last = iteration + 1 >= self.trainer.max_iter
        if last:
            # First: a run that is killed after the periodic one has no step left in which to save this one.
            self._save("model_final", iteration)
        if (iteration + 1) % self._period == 0 or (number and not last):
            self._save(f"model_{iteration:07d}", iteration)
            self._prune()
            if last and comm.is_main_process():  # the periodic one has taken the tag
                self._checkpointer.tag_last_checkpoint("model_final.pth")
        if number and not last:
            logger.warning("Stopped by a signal after step %d; --resume continues from there.", iteration)
            raise TrainingStopped(exit_code(number))

    def after_train(self) -> None:
        """Let go of signals and loading processes; a stop that came in the last step skips what follows."""
        self._stop.uninstall()
        self._on_end()
        if self._stop.number and self.trainer.iter >= self.trainer.max_iter:
            raise TrainingStopped(exit_code(self._stop.number))

    def _save(self, name: str, iteration: int) -> None:
        self._checkpointer.save(name, iteration=iteration, **self._collect())
        # Nobody goes on, and maybe ends the others, before the file is there.
        comm.synchronize()

    def _prune(self) -> None:
        """Delete the oldest checkpoints of this run beyond the number to keep."""
        if not comm.is_main_process():
            return
        newest = self._checkpointer.get_checkpoint_file()
        self._written = [*(file for file in self._written if file != newest), newest]
        while self._keep and len(self._written) > self._keep:
            Path(self._written.pop(0)).unlink(missing_ok=True)
