"""Where metrics go: a line in the log, JSON, TensorBoard, and Weights & Biases if asked for."""

from __future__ import annotations

import datetime
import logging
import uuid
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import (
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from dvis.data.files import atomic_path

__all__ = ["ProgressPrinter", "WandbWriter", "build_writers"]

logger = logging.getLogger(__name__)

WINDOW = 20  # steps over which the log is smoothed


def build_writers(cfg: CfgNode, max_iter: int) -> list[EventWriter]:
    """The log, ``metrics.json`` and TensorBoard in ``OUTPUT_DIR``; Weights & Biases if ``WANDB.ENABLED``.

    Raises:
        ValueError: if Weights & Biases is asked for, but not installed.
    """
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    writers: list[EventWriter] = [
        ProgressPrinter(max_iter),
        JSONWriter(str(folder / "metrics.json")),
        TensorboardXWriter(str(folder)),
    ]
    if cfg.WANDB.ENABLED:
        writers.append(WandbWriter(cfg))
    return writers


class ProgressPrinter(EventWriter):
    """Logs one line: what is done and left, losses, speed, the share of waiting for data, memory."""

    def __init__(self, max_iter: int) -> None:
        """
        Args:
            max_iter: number of the training's steps.
        """
        self._max_iter = max_iter

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter >= self._max_iter:
            return  # training is over; there is no progress to report
        losses = [
            f"{name}: {history.median(WINDOW):.4g}"
            for name, history in storage.histories().items()
            if "loss" in name
        ]
        rate = _latest(storage, "lr")
        parts = [f"iter: {storage.iter}/{self._max_iter}", *losses, *self._speed(storage)]
        if rate is not None:
            parts.append(f"lr: {rate:.5g}")
        memory = _latest(storage, "peak_memory_mb")
        if memory is not None:
            kind = "GPU" if torch.cuda.is_available() else "host"
            parts.append(f"peak {kind} memory: {memory:.0f} MB")
        for name, title in (("data_faults", "data faults"), ("skipped_batches", "skipped batches")):
            count = _latest(storage, name)
            if count:
                parts.append(f"{title}: {count:.0f}")
        logger.info("  ".join(parts))

    def _speed(self, storage: EventStorage) -> list[str]:
        """Time left, time of a step and the part of it that goes into waiting for data."""
        if _latest(storage, "time") is None:  # the first steps are warm-up
            return []
        step = storage.history("time").avg(WINDOW)
        typical = storage.history("time").median(1000)
        left = datetime.timedelta(seconds=int(typical * (self._max_iter - storage.iter - 1)))
        parts = [f"eta: {left}", f"time: {step:.4f} s"]
        if _latest(storage, "data_time") is not None:
            data = storage.history("data_time").avg(WINDOW)
            parts.append(f"data_time: {data:.4f} s ({data / step:.0%})")
        if _latest(storage, "images_per_second") is not None:
            parts.append(f"images/s: {storage.history('images_per_second').median(WINDOW):.2f}")
        storage.put_scalar("eta_seconds", left.total_seconds(), smoothing_hint=False)
        return parts


class WandbWriter(EventWriter):
    """Sends scalars to Weights & Biases; a continued training continues its run there.

    The run's id is kept in ``OUTPUT_DIR/wandb_run.txt``. ``WANDB_MODE=offline`` in the environment keeps
    everything on this machine, as Weights & Biases documents.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the configuration; it is sent along.

        Raises:
            ValueError: if the package ``wandb`` is not installed.
        """
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                "WANDB.ENABLED is True, but Weights & Biases is not installed: pip install wandb"
            ) from error
        self._run: Any = wandb.init(
            project=cfg.WANDB.PROJECT,
            name=cfg.WANDB.NAME or None,
            dir=cfg.OUTPUT_DIR,
            config=yaml.safe_load(cfg.dump()),
            id=_run_id(Path(cfg.OUTPUT_DIR) / "wandb_run.txt"),
            resume="allow",
        )
        self._last_write = -1

    def write(self) -> None:
        rows: dict[int, dict[str, float]] = {}
        for name, (value, step) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if step > self._last_write:
                rows.setdefault(step, {})[name] = value
        for step in sorted(rows):
            self._run.log(rows[step], step=step)
            self._last_write = step

    def close(self) -> None:
        self._run.finish()


def _run_id(path: Path) -> str:
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    run_id = uuid.uuid4().hex
    with atomic_path(path) as temporary:
        temporary.write_text(run_id, encoding="utf-8")
    return run_id


def _latest(storage: EventStorage, name: str) -> float | None:
    found = storage.latest().get(name)
    return None if found is None else found[0]
