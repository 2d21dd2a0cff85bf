"""Outputs of a perfect model on the toy world, and models that give prepared outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from dvis.data.datasets import get_spec
from dvis.data.label_images import read_class_map, read_segment_ids


def panoptic_output(record: dict[str, Any]) -> dict[str, Any]:
    """The ground truth of a panoptic record as a model's output: small ids in order of appearance."""
    numbers: dict[int, int] = {}
    classes: dict[int, int] = {}
    frames = []
    for file, segments in zip(record["pan_seg_file_names"], record["segments_infos"], strict=True):
        ids = read_segment_ids(file)
        frame = np.zeros(ids.shape, np.int32)
        for segment in segments:
            number = numbers.setdefault(segment["id"], len(numbers) + 1)
            classes[number] = segment["category_id"]
            frame[ids == segment["id"]] = number
        frames.append(frame)
    return {
        "task": "vps",
        "pred_masks": torch.from_numpy(np.stack(frames)),
        "segments_infos": [
            {"id": number, "isthing": True, "category_id": label} for number, label in classes.items()
        ],
        "pred_ids": list(range(len(numbers))),
    }


def semantic_output(record: dict[str, Any], class_of_value: dict[int, int]) -> dict[str, Any]:
    """The ground truth of a semantic record as a model's output; void pixels become class 0."""
    table = np.zeros(256, np.uint8)
    for value, label in class_of_value.items():
        table[value] = label
    frames = [table[read_class_map(file)] for file in record["sem_seg_file_names"]]
    return {"task": "vss", "pred_masks": torch.from_numpy(np.stack(frames))}


class Oracle(nn.Module):
    """Knows the ground truth of a toy data set; counts the videos that it is asked for.

    Args:
        dataset_name: ``toy_vps_val`` or ``toy_vss_val``.
        stop_after: raises ``KeyboardInterrupt`` after this many videos.
    """

    def __init__(self, dataset_name: str, stop_after: int | None = None, value: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        spec = get_spec(dataset_name)
        self.records = {record["video_id"]: record for record in spec.load()}
        # VSPW's masks hold the category id plus one.
        self.class_of_value = {category_id + 1: index for category_id, index in spec.class_of_id().items()}
        self.panoptic = spec.kind == "video_panoptic"
        self.stop_after = stop_after
        self.asked: list[str] = []

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        (video,) = batched_inputs
        self.asked.append(video["video_id"])
        record = self.records[video["video_id"]]
        return [panoptic_output(record) if self.panoptic else semantic_output(record, self.class_of_value)]
