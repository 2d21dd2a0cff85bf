"""Weights into models: says what was loaded, and refuses what cannot be right."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

__all__ = ["VideoCheckpointer", "load_weights"]

logger = logging.getLogger(__name__)

# Which model a checkpoint belongs to, by the last part that is in it; each stage starts from the one before.
STAGE_OF_PART = {
    "backbone": "MinVIS",
    "sem_seg_head": "MinVIS",
    "tracker": "DVIS_online",
    "refiner": "DVIS_offline",
}


class VideoCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer that refuses weights which do not belong to the model.

    Refused are weights of which nothing fits; weights of a later stage; and weights that leave a frozen
    part of the model, which no training would repair, at its random start. Tensors of another number of
    classes are skipped with a warning elsewhere, and parts that the weights do not have are named.
    """

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        num_given = len(checkpoint["model"])
        report = super()._load_model(checkpoint)
        check_report(
            self.model,
            num_given=num_given,
            missing=report.missing_keys,
            unexpected=report.unexpected_keys,
            mismatched={key: (given, expected) for key, given, expected in report.incorrect_shapes},
        )
        return report


def load_weights(model: nn.Module, path: str | os.PathLike[str], *, complete: bool = False) -> None:
    """Load a checkpoint (``.pth`` or ``.pkl``, also the model zoo's) for training or inference.

    Args:
        model: what ``build_model`` returned.
        path: a file, or a URL that detectron2 knows; empty: the model stays as it is.
        complete: refuse also weights that lack any tensor of the model, as is right for inference.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the weights do not belong to the model; names the right kind.
    """
    name = os.fspath(path)
    if not name:
        logger.warning("MODEL.WEIGHTS is empty: the model stays as it was initialised.")
        return
    if "://" not in name and not os.path.isfile(name.partition("?")[0]):
        raise FileNotFoundError(f"MODEL.WEIGHTS: no such file: {name}")
    checkpointer = _ReportingCheckpointer(model)
    try:
        checkpointer.load(name)
    except ValueError as error:
        raise ValueError(f"weights {name}: {error}") from error
    lacking = sorted(key for key in checkpointer.missing if not _is_computed(key))
    if complete and lacking:
        raise ValueError(
            f"weights {name}: {len(lacking)} tensors of {type(model).__name__} are missing or have another "
            f"shape: {_shortened(lacking)}"
        )


class _ReportingCheckpointer(VideoCheckpointer):
    """Remembers which tensors the checkpoint did not fill."""

    missing: tuple[str, ...] = ()

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        report = super()._load_model(checkpoint)
        self.missing = tuple(report.missing_keys)
        return report


def check_report(
    model: nn.Module,
    *,
    num_given: int,
    missing: Sequence[str],
    unexpected: Sequence[str],
    mismatched: dict[str, tuple[Any, Any]],
) -> None:
    """Log what a checkpoint filled, and refuse it where that cannot be right.

    Args:
        model: the model, already filled.
        num_given: number of tensors in the checkpoint.
        missing: the model's tensors that were not filled, those of a wrong shape included.
        unexpected: tensors of the checkpoint that the model does not have.
        mismatched: tensors of a wrong shape, with (given, expected) shapes.

    Raises:
        ValueError: see :class:`VideoCheckpointer`.
    """
    kind = type(model).__name__
    lacking = [key for key in missing if not _is_computed(key)]
    total = sum(not _is_computed(key) for key in model.state_dict())
    # Not from what is missing: some modules make up statistics that old files do not have.
    if num_given <= len(unexpected) + len(mismatched):
        shapes = "; ".join(f"{k}: {g} instead of {e}" for k, (g, e) in list(mismatched.items())[:3])
        raise ValueError(
            f"nothing fits {kind}: "
            + (shapes or f"its tensors are named {_shortened(lacking)}, those given {_shortened(unexpected)}")
        )
    later = [part for part in _parts(unexpected) if part in STAGE_OF_PART and not hasattr(model, part)]
    if later:
        right = STAGE_OF_PART[max(later, key=list(STAGE_OF_PART).index)]
        raise ValueError(
            f"these are weights of {right} (they have {', '.join(later)}), but the model is {kind}; "
            f"set MODEL.META_ARCHITECTURE to {right}, or give weights of {kind}"
        )
    for part in getattr(model, "frozen_parts", ()):
        broken = [key for key in lacking if key.startswith(f"{part}.")]
        if not broken:
            continue
        wrong = [
            f"{key} is {mismatched[key][0]}, not {mismatched[key][1]}" for key in broken if key in mismatched
        ]
        reason = wrong[0] if wrong else f"{len(broken)} tensors are missing, such as {broken[0]}"
        raise ValueError(
            f"{kind} does not train its {part}, which these weights do not fill ({reason}); "
            f"start from weights of {STAGE_OF_PART.get(part, 'the stage before')} for the same data set"
        )
    for key, (given, expected) in mismatched.items():
        logger.warning("%s is skipped: its shape is %s, the model's is %s", key, given, expected)
    fresh = ", ".join(f"{part} ({count} tensors)" for part, count in _parts(lacking).items())
    logger.info(
        "Loaded %d of %d tensors; freshly initialised: %s", total - len(lacking), total, fresh or "nothing"
    )


def _is_computed(key: str) -> bool:
    """Whether a tensor follows from the configuration; a checkpoint need not have it."""
    return key.endswith(
        ("empty_weight", "relative_position_index", "num_batches_tracked", "pixel_mean", "pixel_std")
    )


def _parts(keys: Iterable[str]) -> Counter[str]:
    """Number of tensors per top-level module."""
    return Counter(key.partition(".")[0] for key in keys)


def _shortened(keys: Iterable[str]) -> str:
    names = list(keys)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
