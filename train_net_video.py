#!/usr/bin/env python
"""Train or evaluate a video segmentation model.

    python train_net_video.py --config-file configs/toy/MinVIS_toy.yaml
    python train_net_video.py --config-file configs/ovis/DVIS_Online_R50.yaml --num-gpus 8 --resume
    python train_net_video.py --config-file configs/ovis/DVIS_Online_R50.yaml --eval-only \\
        MODEL.WEIGHTS model.pth
    torchrun --nproc-per-node 2 train_net_video.py --config-file ...

The options are detectron2's; everything after them is ``KEY value`` pairs that override the configuration.
"""

from __future__ import annotations

import argparse
from typing import Any

import dvis  # isort: skip  (first: it provides detectron2 where upstream is absent)

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

import detectron2_fallback
from dvis.checkpoint import load_weights
from dvis.cli import clear_errors
from dvis.data import BrokenDataError, MissingDataError, check_datasets, use_custom_datasets
from dvis.engine import VideoTrainer, launch_program
from dvis.engine.launch import use_available_device


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen configuration of this run; loggers, output folder and seed are set up on the way."""
    cfg = dvis.load_config(args.config_file or None, args.opts)
    for name in ("mask2former", "dvis"):
        logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    use_available_device(cfg)
    logger.info("detectron2: %s", detectron2_fallback.which())
    use_custom_datasets(cfg)
    check_datasets(cfg, training=not args.eval_only)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


@clear_errors(BrokenDataError, MissingDataError)  # also found in the midst of training and scoring
def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run in every process: evaluate once (``--eval-only``) or train."""
    with clear_errors():
        cfg = setup(args)
    if args.eval_only:
        with clear_errors():
            model = build_model(cfg)
            load_weights(model, cfg.MODEL.WEIGHTS, complete=True)
        results = VideoTrainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    with clear_errors():
        trainer = VideoTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    launch_program(main, default_argument_parser(epilog=__doc__).parse_args())
