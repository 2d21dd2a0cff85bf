"""What several processes do together in the tests: train, evaluate, fail."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch import nn

import train_net_video
from dvis.data.datasets import get_spec
from dvis.data.rle import decode_rle
from dvis.engine import VideoTrainer
from tests.dvis.engine.training import train


def several(num_processes: int, **values: Any) -> argparse.Namespace:
    """Arguments of ``launch_program`` for so many processes, and what they shall know."""
    return argparse.Namespace(
        num_gpus=num_processes, num_machines=1, machine_rank=0, dist_url="auto", **values
    )


def same_points_for_all_masks() -> None:
    """Let ``torch.rand`` give the same row again and again, however many are asked for.

    Processes draw the points that masks are compared at from generators of their own. Where all masks have
    the same points, what is left is what the losses make of them.
    """

    def rand(*shape: int, device: Any = None) -> torch.Tensor:
        row = torch.empty(shape[1:]).uniform_(generator=torch.Generator().manual_seed(0))
        return row.expand(shape).clone().to(device)

    torch.rand = rand  # type: ignore[assignment]


def train_each(args: argparse.Namespace) -> None:
    """Do all trainings of ``args.runs``, with the same points for all masks."""
    rand = torch.rand
    same_points_for_all_masks()
    try:
        for run in args.runs:
            train(run)
    finally:
        torch.rand = rand  # type: ignore[method-assign]


class RoughModel(nn.Module):
    """Finds most objects of a toy data set, some of them in the wrong place or of the wrong class."""

    def __init__(self, dataset_name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.records = {record["video_id"]: record for record in get_spec(dataset_name).load()}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (video,) = batched_inputs
        record = self.records[video["video_id"]]
        size = (record["height"], record["width"])
        rng = np.random.default_rng(record["video_id"])
        tubes, labels = [], []
        for item in record["annotations"]:
            tube = [decode_rle(m) if m else np.zeros(size, bool) for m in item["segmentations"]]
            tubes.append(np.roll(np.array(tube), int(rng.integers(2)), axis=2))
            labels.append(item["category_id"] if rng.random() < 0.8 else 0)
        result = {
            "image_size": size,
            "pred_scores": rng.random(len(labels)).tolist(),
            "pred_labels": labels,
            "pred_masks": torch.from_numpy(np.array(tubes).reshape(-1, record["length"], *size)),
        }
        return [result]


def evaluate_each(args: argparse.Namespace) -> None:
    """Evaluate on the data sets of ``args.runs``; the main process writes the scores to ``args.file``."""
    scores = {}
    for name, run in args.runs.items():
        scores[name] = VideoTrainer.test(train_net_video.setup(run), RoughModel(name))
        assert bool(scores[name]) == comm.is_main_process()
    if comm.is_main_process():
        Path(args.file).write_text(json.dumps(scores))


def fail_in_one(args: argparse.Namespace) -> None:
    """Process 1 fails while the other one waits for it."""
    if comm.get_rank() == 1:
        raise ZeroDivisionError("the second process is broken")
    comm.synchronize()


def train_and_evaluate(args: argparse.Namespace) -> None:
    """Do both, as starting processes takes longer; ``args.training``, ``args.evaluation``."""
    train_each(args.training)
    evaluate_each(args.evaluation)
