"""Position in the training schedule, for matching that is guided in the first part of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

__all__ = ["GuidanceSchedule"]


class GuidanceSchedule(nn.Module):
    """Says at each training step whether matching still is guided by the module that is trained already.

    The position is the trainer's iteration (detectron2's event storage, which a resumed run restores), or the
    number of own steps where no trainer runs. It is saved with the model; but published checkpoints have no
    such tensor, and a model's keys are those of published checkpoints. So it travels where module versions
    do, in the state dict's metadata, which ``torch.save`` keeps. It only counts for the stage
    that saved it: the tracker's final weights start the refiner's schedule at zero.

    Source: DVIS (arXiv:2306.03413), sections 3.2 and 3.3: guided during the first half of the iterations.
    """

    def __init__(self, *, stage: str, guided_fraction: float, max_iter: int) -> None:
        """
        Args:
            stage: name of what is trained, e.g. ``tracker``.
            guided_fraction: share of the schedule that is guided, 0 (never) to 1 (always).
            max_iter: length of the schedule in iterations.

        Raises:
            ValueError: if the share is not between 0 and 1.
        """
        super().__init__()
        if not 0 <= guided_fraction <= 1:
            raise ValueError(
                f"MODEL.{stage.upper()}.GUIDED_FRACTION is {guided_fraction}; allowed are 0 (matching is "
                "never guided) to 1 (always)"
            )
        self.stage = stage
        self.guided_steps = int(guided_fraction * max_iter)
        self.step = 0

    def advance(self) -> bool:
        """Count one training step and return whether it is guided."""
        iteration = _trainer_iteration()
        step = self.step if iteration is None else iteration
        self.step = step + 1
        return step < self.guided_steps

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            metadata[prefix[:-1]].update(step=self.step, stage=self.stage)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)
        if local_metadata.get("stage") == self.stage:
            self.step = int(local_metadata["step"])


def _trainer_iteration() -> int | None:
    try:
        return get_event_storage().iter
    except AssertionError:  # detectron2 0.6 has no other way to say that no trainer is running
        return None
