"""Tiny trainings that write every loss down, in this process or in one that can be killed.

    python -m tests.dvis.engine.training --config-file configs/toy/MinVIS_toy.yaml OUTPUT_DIR out ...

Losses go to ``OUTPUT_DIR/losses.txt``: a line per step with its number and the losses, exact to the last bit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detectron2_fallback  # noqa: F401  isort: skip  (first: a program of its own finds detectron2)

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

import train_net_video
from dvis.checkpoint import VideoCheckpointer
from dvis.engine import VideoTrainer, launch_program

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = {
    "minvis": "configs/toy/MinVIS_toy.yaml",
    "online": "configs/toy/DVIS_Online_toy.yaml",
    "offline": "configs/toy/DVIS_Offline_toy.yaml",
}
TINY: dict[str, Any] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 48,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 8,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 32,
    "MODEL.TRACKER.DECODER_LAYERS": 1,
    "MODEL.REFINER.DECODER_LAYERS": 1,
    "INPUT.MIN_SIZE_TRAIN": "(32,)",
    "INPUT.SAMPLING_FRAME_NUM": 2,
    "INPUT.SAMPLING_FRAME_RANGE": 3,
    # Two data sets, in unequal shares.
    "DATASETS.TRAIN": "('toy_vis_val', 'toy_vis_train')",
    "DATASETS.DATASET_TYPE": "['video_instance', 'video_instance']",
    "DATASETS.DATASET_RATIO": "[0.4, 0.6]",
    "DATASETS.DATASET_NEED_MAP": "[False, False]",
    "DATASETS.TEST": "()",
    "DATALOADER.NUM_WORKERS": 2,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.WARMUP_ITERS": 3,
    "SOLVER.CHECKPOINT_PERIOD": 2,
}


def arguments(
    mode: str, output: Path, *options: str, settings: dict[str, Any] | None = None
) -> argparse.Namespace:
    """Command line of a tiny training of a stage into a folder; ``settings`` replace those of ``TINY``."""
    pairs = {**TINY, "OUTPUT_DIR": output, **(settings or {})}
    words = [str(word) for pair in pairs.items() for word in pair]
    return default_argument_parser().parse_args(
        ["--config-file", str(ROOT / CONFIGS[mode]), *options, *words]
    )


class LoggingTrainer(VideoTrainer):
    """Writes the losses of each step down as soon as it is done, before any hook can stop it."""

    after: Callable[[int], None] | None = None  # called with the number of each step that is done

    def run_step(self) -> None:
        super().run_step()
        if comm.is_main_process():
            latest = self.storage.latest().items()
            losses = {name: value.hex() for name, (value, _) in sorted(latest) if "loss" in name}
            with (Path(self.cfg.OUTPUT_DIR) / "losses.txt").open("a") as file:
                file.write(f"{self.iter} {json.dumps(losses)}\n")
        if self.after is not None:
            self.after(self.iter)


def train(args: argparse.Namespace, after: Callable[[int], None] | None = None) -> None:
    """Train in this process."""
    trainer = LoggingTrainer(train_net_video.setup(args))
    trainer.after = after
    trainer.resume_or_load(args.resume)
    trainer.train()


def read_losses(output: Path) -> dict[int, dict[str, str]]:
    """Losses by step. Steps that were done twice must have had the same ones."""
    losses: dict[int, dict[str, str]] = {}
    for line in (output / "losses.txt").read_text().splitlines():
        step, _, values = line.partition(" ")
        assert losses.setdefault(int(step), json.loads(values)) == json.loads(values), f"step {step} differs"
    return losses


def final_state(output: Path) -> dict[str, Any]:
    """All tensors of the last checkpoint, optimiser's included, by name."""
    content = torch.load(output / "model_final.pth", weights_only=True)
    tensors = dict(content["model"])
    for number, state in content["trainer"]["_trainer"]["optimizer"]["state"].items():
        tensors |= {f"optimizer {number} {key}": value for key, value in state.items()}
    return tensors


def _kill_in_save(moment: str, number: int) -> None:
    """Let this process be killed in its save of this number: in the middle of the
    file (``half``) or just after it (``untagged``); or just ``wait`` there."""
    save, tag = torch.save, VideoCheckpointer.tag_last_checkpoint
    count = 0

    def half_save(data: Any, path: Path) -> None:
        nonlocal count
        count += 1
        save(data, path)
        if count == number and moment == "wait":
            time.sleep(60)
        if count == number and moment == "half":
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def no_tag(self: VideoCheckpointer, name: str) -> None:
        if count == number and moment == "untagged":
            os.kill(os.getpid(), signal.SIGKILL)
        tag(self, name)

    torch.save = half_save  # type: ignore[assignment]
    VideoCheckpointer.tag_last_checkpoint = no_tag  # type: ignore[method-assign]


def _in_process(args: argparse.Namespace, kill: tuple[str, int] | None) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of loading processes, as outside of tests
    os.setpgid(0, 0)
    if kill is not None:
        _kill_in_save(*kill)
    train(args)


def start(args: argparse.Namespace, kill: tuple[str, int] | None = None) -> Any:
    """Train in another process, forked from one that has imported everything.

    Args:
        args: command line.
        kill: what happens in which save, see :func:`_kill_in_save`.
    """
    context = multiprocessing.get_context("forkserver")
    # An optimiser imports the second one, seconds long, when it is made.
    context.set_forkserver_preload(["tests.dvis.engine.training", "torch._dynamo"])
    process = context.Process(target=_in_process, args=(args, kill))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # older Pythons do not tell the server their path
        process.start()
    return process


def main(args: argparse.Namespace) -> None:
    train(args)


if __name__ == "__main__":
    launch_program(main, default_argument_parser().parse_args())
