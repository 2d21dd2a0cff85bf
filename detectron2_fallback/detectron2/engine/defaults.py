"""A usual run: command line, set-up, trainer and predictor."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import (
    DatasetEvaluator,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.modeling import build_model
from detectron2.solver import LRScheduler, build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from . import hooks
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap ``model`` in :class:`DistributedDataParallel` if there are several processes.

    Args:
        model: on the device of this process.
        fp16_compression: whether gradients travel in half precision.
        kwargs: further arguments of :class:`DistributedDataParallel`.
    """
    if comm.get_world_size() == 1:
        return model
    on_cuda = any(parameter.is_cuda for parameter in model.parameters())
    if "device_ids" not in kwargs and on_cuda:
        kwargs["device_ids"] = [comm.get_local_rank()]
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default as comm_hooks

        ddp.register_comm_hook(state=None, hook=comm_hooks.fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Parser with the options that detectron2's programs share.

    Args:
        epilog: shown below the options in the help text; examples by default.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog
        or f"""
Examples:

Run on single machine:
    $ {sys.argv[0]} --num-gpus 8 --config-file cfg.yaml

Change some config options:
    $ {sys.argv[0]} --config-file cfg.yaml MODEL.WEIGHTS /path/to/weight.pth SOLVER.BASE_LR 0.001

Run on multiple machines:
    (machine0)$ {sys.argv[0]} --machine-rank 0 --num-machines 2 --dist-url <URL> [--other-flags]
    (machine1)$ {sys.argv[0]} --machine-rank 1 --num-machines 2 --dist-url <URL> [--other-flags]
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in the output folder, if there is one",
    )
    parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help="number of processes *per machine*, one per GPU (without CUDA, on the CPU)",
    )
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="the rank of this machine (unique per machine)"
    )
    # A port that differs between users, so that they do not meet by accident.
    port = 2**15 + 2**14 + hash(os.getuid() if sys.platform != "win32" else 1) % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where processes meet: tcp://host:port, file:///path, or auto; see torch.distributed",
    )
    parser.add_argument(
        "opts",
        help="Modify config options at the end of the command, as space-separated 'PATH.KEY VALUE' pairs.",
        default=None,
        nargs=argparse.REMAINDER,
    )
    return parser


def _try_get_key(cfg: Any, *keys: str, default: Any = None) -> Any:
    """Value of the first of the dotted ``keys`` that a config (nested mappings) has."""
    missing = object()
    for key in keys:
        node = cfg
        for part in key.split("."):
            node = node.get(part, missing) if isinstance(node, Mapping) else missing
        if node is not missing:
            return node
    return default


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set up what every run needs: loggers, output folder with the config in it, random seeds, backend flags.

    Logs the environment, the command line and the config. Works without CUDA.

    Args:
        cfg: the full config.
        args: the command line; ``config_file`` and ``eval_only`` are used if there.
    """
    output_dir = _try_get_key(cfg, "OUTPUT_DIR", "output_dir", "train.output_dir")
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)

    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)
    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info("Environment info:\n" + collect_env_info())
    logger.info("Command line arguments: " + str(args))
    if config_file := getattr(args, "config_file", ""):
        with PathManager.open(config_file, "r") as file:
            content = file.read()
        logger.info(f"Contents of args.config_file={config_file}:\n{content}")

    if comm.is_main_process() and output_dir:
        # The other processes have the same config.
        path = os.path.join(output_dir, "config.yaml")
        dumped = cfg.dump()
        logger.info(f"Running with full config:\n{dumped}")
        with PathManager.open(path, "w") as file:
            file.write(dumped)
        logger.info(f"Full config saved to {path}")

    # A seed given is a different one in each process, but the same in each run.
    seed = _try_get_key(cfg, "SEED", "train.seed", default=-1)
    seed_all_rng(None if seed < 0 else seed + rank)

    # cuDNN's benchmark costs much for the varying sizes of a typical validation set.
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = _try_get_key(
            cfg, "CUDNN_BENCHMARK", "train.cudnn_benchmark", default=False
        )
    precision = _try_get_key(cfg, "FLOAT32_PRECISION", "train.float32_precision", default="")
    if precision:
        logger.info(f"Set fp32 precision to {precision}")
        torch.set_float32_matmul_precision(precision)
        logger.info(f"{torch.backends.cuda.matmul.allow_tf32=}")


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the terminal, to ``metrics.json`` and for TensorBoard.

    Args:
        output_dir: folder of the files.
        max_iter: iterations in all, for the expected time of the end.
    """
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]


class DefaultPredictor:
    """A model with its weights, for one image at a time.

    Resizes as ``cfg.INPUT`` says for testing. For benchmarks and batches, write the few lines yourself.

    Attributes:
        metadata: of the first data set in ``cfg.DATASETS.TEST``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the full config; the model in ``cfg.MODEL.WEIGHTS`` is loaded.
        """
        self.cfg = cfg.clone()  # cfg may be changed by the caller
        self.model = build_model(self.cfg)
        self.model.eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.aug = T.ResizeShortestEdge(
            [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST
        )
        self.input_format = cfg.INPUT.FORMAT
        assert self.input_format in ["RGB", "BGR"], self.input_format

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """
        Args:
            original_image: ``H W 3`` uint8 in the order BGR.

        Returns:
            What the model gives for this image.
        """
        with torch.no_grad():
            if self.input_format == "RGB":
                original_image = original_image[:, :, ::-1]
            height, width = original_image.shape[:2]
            image = self.aug.get_transform(original_image).apply_image(original_image)
            tensor = torch.as_tensor(np.ascontiguousarray(image.astype("float32").transpose(2, 0, 1)))
            inputs = {"image": tensor.to(self.cfg.MODEL.DEVICE), "height": height, "width": width}
            return self.model([inputs])[0]


class DefaultTrainer(TrainerBase):
    """A trainer made from a config, with the usual hooks; override class methods to exchange parts.

    Attributes:
        scheduler: the learning-rate schedule.
        checkpointer: saves model, optimiser, schedule and iteration.
        cfg: the config.

    Example::

        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load()  # the last checkpoint, or MODEL.WEIGHTS
        trainer.train()
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the full config.
        """
        super().__init__()
        logger = logging.getLogger("detectron2")
        if not logger.isEnabledFor(logging.INFO):  # setup_logger was not called
            setup_logger()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())

        # In this order: optimisers hold the parameters of the model on its device.
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)

        model = create_ddp_model(model, broadcast_buffers=False)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_class(model, data_loader, optimizer)

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            # Not the wrapper: names in checkpoints are those of the model itself.
            model,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in the output folder, or load ``cfg.MODEL.WEIGHTS``.

        Args:
            resume: if False, or if there is no checkpoint, only the weights of the model are loaded and
                training starts at iteration 0.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            # The checkpoint has the last finished iteration.
            self.start_iter = self.iter + 1

    def build_hooks(self) -> list[HookBase | None]:
        """Timer, schedule, checkpoints, evaluation, writers; to be extended or overridden."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # saves memory and time for PreciseBN
        ret: list[HookBase | None] = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            # Before the checkpointer, so that what is saved has the new statistics.
            hooks.PreciseBN(
                cfg.TEST.EVAL_PERIOD,
                self.model,
                self.build_train_loader(cfg),
                cfg.TEST.PRECISE_BN.NUM_ITER,
            )
            if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model)
            else None,
        ]
        # Checkpoints before evaluation: if that fails, nothing is lost.
        if comm.is_main_process():
            ret.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))

        def test_and_save_results() -> dict[str, Any]:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        ret.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test_and_save_results))
        if comm.is_main_process():
            # Writers last, so that they see what the other hooks have logged.
            ret.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return ret

    def build_writers(self) -> list[EventWriter]:
        """The event writers, see :func:`default_writers`."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> OrderedDict[str, Any] | None:  # type: ignore[override]
        """Run the training.

        Returns:
            On the main process, if ``cfg.TEST.EXPECTED_RESULTS`` is set, the evaluation's results; else None.
        """
        super().train(self.start_iter, self.max_iter)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            assert hasattr(self, "_last_eval_results"), "No evaluation results obtained during training!"
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None

    def run_step(self) -> None:
        """One iteration of the :class:`SimpleTrainer` inside."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks, and the optimiser of the trainer inside."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @property
    def model(self) -> nn.Module:
        """The model, inside its wrapper if there are several processes."""
        return self._trainer.model

    @model.setter
    def model(self, value: nn.Module) -> None:
        self._trainer.model = value

    @property
    def data_loader(self) -> Iterable[Any]:
        """The source of training data."""
        return self._trainer.data_loader

    @data_loader.setter
    def data_loader(self, value: Iterable[Any]) -> None:
        self._trainer.data_loader = value

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser."""
        return self._trainer.optimizer

    @optimizer.setter
    def optimizer(self, value: torch.optim.Optimizer) -> None:
        self._trainer.optimizer = value

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model, see :func:`detectron2.modeling.build_model`."""
        model = build_model(cfg)
        logging.getLogger(__name__).info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser, see :func:`detectron2.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """The schedule, see :func:`detectron2.solver.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        """The training data, see :func:`detectron2.data.build_detection_train_loader`."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """The data to test on, see :func:`detectron2.data.build_detection_test_loader`."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of a data set; to be overridden where there is something to evaluate.

        Raises:
            NotImplementedError: unless overridden.
        """
        raise NotImplementedError(
            "If you want DefaultTrainer to automatically run evaluation, please implement "
            "`build_evaluator()` in subclasses. Alternatively, you can call evaluation functions yourself."
        )

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> OrderedDict[str, Any]:
        """Evaluate ``model`` on the data sets in ``cfg.DATASETS.TEST``.

        Args:
            cfg: the full config.
            model: put into evaluation mode for the time.
            evaluators: one per data set; by default those of :meth:`build_evaluator`.

        Returns:
            The results of each data set; of a single data set, its results directly.
        """
        logger = logging.getLogger(__name__)
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None:
            assert len(cfg.DATASETS.TEST) == len(evaluators), f"{len(cfg.DATASETS.TEST)} != {len(evaluators)}"
        results: OrderedDict[str, Any] = OrderedDict()
        for index, dataset_name in enumerate(cfg.DATASETS.TEST):
            data_loader = cls.build_test_loader(cfg, dataset_name)
            # Evaluators may need to know the loader's data set, so they are built after it.
            if evaluators is not None:
                evaluator = evaluators[index]
            else:
                try:
                    evaluator = cls.build_evaluator(cfg, dataset_name)
                except NotImplementedError:
                    logger.warning(
                        "No evaluator found. Use `DefaultTrainer.test(evaluators=)`, or implement its "
                        "`build_evaluator` method."
                    )
                    results[dataset_name] = {}
                    continue
            results_i = inference_on_dataset(model, data_loader, evaluator)
            results[dataset_name] = results_i
            if comm.is_main_process():
                assert isinstance(results_i, dict), (
                    f"Evaluator must return a dict on the main process. Got {results_i} instead."
                )
                logger.info(f"Evaluation results for {dataset_name} in csv format:")
                print_csv_format(results_i)
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Adapt the settings from ``cfg.SOLVER.REFERENCE_WORLD_SIZE`` processes to another number of them.

        The batch size and the learning rate grow in proportion, the numbers of iterations shrink.

        Args:
            cfg: the config; with reference size 0 it is returned as it is.
            num_workers: the number of processes.

        Returns:
            A new config, frozen if ``cfg`` was, whose reference size is ``num_workers``.

        Source: Goyal et al., "Accurate, Large Minibatch SGD" (arXiv:1706.02677), section 2.1.
        """
        old_world_size = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if old_world_size == 0 or old_world_size == num_workers:
            return cfg
        cfg = cfg.clone()
        frozen = cfg.is_frozen()
        cfg.defrost()

        solver = cfg.SOLVER
        assert solver.IMS_PER_BATCH % old_world_size == 0, "Invalid REFERENCE_WORLD_SIZE in config!"
        scale = num_workers / old_world_size
        batch = solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
        rate = solver.BASE_LR = solver.BASE_LR * scale
        max_iter = solver.MAX_ITER = round(solver.MAX_ITER / scale)
        warmup = solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / scale)
        solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
        solver.CHECKPOINT_PERIOD = round(solver.CHECKPOINT_PERIOD / scale)
        solver.REFERENCE_WORLD_SIZE = num_workers  # the config is now one for so many processes
        logging.getLogger(__name__).info(
            f"Auto-scaling the config to batch_size={batch}, learning_rate={rate}, max_iter={max_iter}, "
            f"warmup={warmup}."
        )
        if frozen:
            cfg.freeze()
        return cfg
