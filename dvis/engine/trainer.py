"""detectron2's trainer with this project's data, optimiser, schedule and evaluation."""

from __future__ import annotations

import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from dvis.checkpoint import VideoCheckpointer, load_weights
from dvis.config import flatten
from dvis.data import build_test_loader, build_train_loader
from dvis.data.build import TrainLoader
from dvis.engine.accumulation import AccumulatingTrainer
from dvis.engine.hooks import CheckpointHook
from dvis.engine.monitoring import monitoring_hooks
from dvis.engine.optimizer import build_optimizer
from dvis.engine.random_state import get_random_state, preserved_random_state, set_random_state
from dvis.engine.stopping import StopRequest
from dvis.engine.writers import build_writers
from dvis.evaluation import VideoEvaluator, build_evaluator, fingerprint
from dvis.provenance import code_version, environment

logger = logging.getLogger(__name__)


class VideoTrainer(DefaultTrainer):
    """Trains any meta-architecture of this project; everything it does is read from the configuration.

    A run that is stopped, in whatever way, and resumed has the losses of one that never was: checkpoints also
    hold the place in the stream of clips and the state of the random generators of every process.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the full configuration.

        Raises:
            ValueError: if a process has fewer clips per batch than ``SOLVER.ACCUMULATION_STEPS``.
        """
        num_parts, clips = cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        if not 1 <= num_parts <= max(clips, 1):
            raise ValueError(
                f"SOLVER.ACCUMULATION_STEPS is {num_parts}; a process has {clips} clips per batch, so 1 to "
                f"{max(clips, 1)} parts are possible"
            )
        self._stop = StopRequest()
        self._random_state: Mapping[str, Any] | None = None
        super().__init__(cfg)
        self.train_loader.is_stopping = lambda: self._stop.number > 0
        if num_parts > 1:
            self._trainer = AccumulatingTrainer(
                self.model,
                self.data_loader,
                self.optimizer,
                num_parts=num_parts,
                mixed_precision=cfg.SOLVER.AMP.ENABLED,
            )

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last intact checkpoint in ``OUTPUT_DIR``, or start from ``MODEL.WEIGHTS``.

        Args:
            resume: whether to continue if there is a checkpoint. Programs that torchrun has started again
                continue in any case.

        Raises:
            FileNotFoundError: if ``MODEL.WEIGHTS`` does not exist.
            ValueError: if the weights do not belong to the model.
            RuntimeError: if all checkpoints are damaged.
        """
        again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        checkpoint = self.checkpointer.resume() if resume or again else None
        if checkpoint is None:
            model = self._trainer.model
            load_weights(getattr(model, "module", model), self.cfg.MODEL.WEIGHTS)
            return
        if self.cfg.MODEL.WEIGHTS:
            logger.info(
                "Resuming: the checkpoint in %s counts, MODEL.WEIGHTS (%s) is not read",
                self.cfg.OUTPUT_DIR,
                self.cfg.MODEL.WEIGHTS,
            )
        self._continue(checkpoint)

    def _continue(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on after the last step of a checkpoint that has just been loaded, with its clips and numbers."""
        self.start_iter = self.iter + 1
        _report_changes(checkpoint, self.cfg)
        # Where the stream of clips has come to is counted in clips, as the batch may be another one now.
        loader, data = self.train_loader, checkpoint.get("data") or {}
        first_clip = data.get("next_clip", self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH)
        loader.start_at(first_clip, data.get("seed", loader.seed))
        states = checkpoint.get("random") or []
        if len(states) == comm.get_world_size():
            self._random_state = states[comm.get_rank()]
        else:
            logger.warning(
                "The checkpoint is from %s: random numbers are not those of an uninterrupted run.",
                f"{len(states)} processes" if states else "another program",
            )

    @property
    def train_loader(self) -> TrainLoader:
        """The training data.

        Raises:
            TypeError: if a subclass uses a loader that cannot begin anywhere.
        """
        if not isinstance(self.data_loader, TrainLoader):
            raise TypeError(
                f"build_train_loader must give a TrainLoader, not a {type(self.data_loader).__name__}"
            )
        return self.data_loader

    def _collect(self) -> dict[str, Any]:
        """What a checkpoint holds besides the model and the trainer; to be called in all processes."""
        done = self.iter + 1 - self.start_iter
        return {
            "random": comm.gather(get_random_state()),
            "data": {
                "seed": self.train_loader.seed,
                "next_clip": self.train_loader.first_clip + done * self.cfg.SOLVER.IMS_PER_BATCH,
            },
            "config": self.cfg.dump(),
            "code": code_version(),
            "environment": environment(),
        }

    def before_train(self) -> None:
        """Call the hooks' ``before_train``; from here on random numbers are those of the run continued."""
        super().before_train()
        if self._random_state is not None:
            set_random_state(self._random_state)

    def build_hooks(self) -> list[HookBase | None]:
        """detectron2's hooks, but with checkpoints by all processes and evaluation that changes nothing."""
        # The host's checkpointer is replaced here, as it is made just before the hooks are.
        self.checkpointer = VideoCheckpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        own: list[HookBase] = [
            CheckpointHook(
                self.checkpointer,
                self._collect,
                period=self.cfg.SOLVER.CHECKPOINT_PERIOD,
                keep=self.cfg.SOLVER.CHECKPOINT_KEEP,
                stop=self._stop,
                on_end=self.train_loader.close,
            ),
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate),
        ]
        result: list[HookBase | None] = []
        for hook in super().build_hooks():
            if isinstance(hook, hooks.EvalHook):
                result += own  # in the middle: the writers come last
            elif not isinstance(hook, hooks.PeriodicCheckpointer):
                result.append(hook)
        return [result[0], *monitoring_hooks(self.cfg), *result[1:]]  # the timer is first

    def build_writers(self) -> list[EventWriter]:
        """A line in the log, JSON, TensorBoard and, if configured, Weights & Biases."""
        return build_writers(self.cfg, self.max_iter)

    def _evaluate(self) -> dict[str, Any]:
        """Evaluate without a trace in the random numbers of training."""
        with preserved_random_state(), self._stop.immediate():
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        # Knows WarmupPolyLR in addition to detectron2's own schedules.
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> OrderedDict[str, Any]:
        """As upstream, but with ``TEST.RESUME`` goes on where an interrupted evaluation has stopped."""
        if evaluators is not None:
            return super().test(cfg, model, evaluators)
        results: OrderedDict[str, Any] = OrderedDict()
        run = fingerprint(cfg, model)
        for name in cfg.DATASETS.TEST:
            evaluator = cls.build_evaluator(cfg, name)
            finished = (
                evaluator.begin(run, cfg.TEST.RESUME)
                if isinstance(evaluator, VideoEvaluator)
                else frozenset()
            )
            loader = (
                build_test_loader(cfg, name, skip=finished) if finished else cls.build_test_loader(cfg, name)
            )
            results[name] = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results


def _report_changes(checkpoint: Mapping[str, Any], cfg: CfgNode) -> None:
    """Log which settings and versions are not those that the checkpoint was saved with."""
    before = dict(flatten(yaml.safe_load(checkpoint.get("config") or "{}")))
    now = dict(flatten(yaml.safe_load(cfg.dump())))
    for key in sorted(before.keys() & now.keys() - {"MODEL.WEIGHTS", "OUTPUT_DIR"}):
        if before[key] != now[key]:
            logger.warning("Resuming with another %s: %s instead of %s", key, now[key], before[key])
    versions = {"code": code_version(), **environment()}
    for name, value in {"code": checkpoint.get("code"), **checkpoint.get("environment", {})}.items():
        if value is not None and value != versions.get(name):
            logger.info(
                "Resuming with another version of %s: %s instead of %s", name, versions.get(name), value
            )
