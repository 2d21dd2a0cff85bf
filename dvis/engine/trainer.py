"""detectron2's trainer with this project's data, optimiser, schedule and evaluation."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from torch import nn

from dvis.checkpoint import load_weights
from dvis.data import build_test_loader, build_train_loader
from dvis.engine.optimizer import build_optimizer
from dvis.evaluation import VideoEvaluator, build_evaluator, fingerprint

logger = logging.getLogger(__name__)


class VideoTrainer(DefaultTrainer):
    """Trains any meta-architecture of this project; everything it does is read from the configuration."""

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in ``OUTPUT_DIR``, or start from ``MODEL.WEIGHTS``.

        Args:
            resume: whether to continue if there is a checkpoint.

        Raises:
            FileNotFoundError: if ``MODEL.WEIGHTS`` does not exist.
            ValueError: if the weights do not belong to the model.
        """
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume=True)
            return
        model = self._trainer.model
        load_weights(getattr(model, "module", model), self.cfg.MODEL.WEIGHTS)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        # Knows WarmupPolyLR in addition to detectron2's own schedules.
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
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
