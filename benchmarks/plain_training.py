"""The slow, plain forms of what makes training fast: the other halves of pairs (``PLAIN=...``).

Each gives the same losses as the fast form (tests/benchmarks/test_plain_training.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor

from dvis.modeling.meta_arch import offline, online
from dvis.modeling.segmenter import segment_frames
from dvis.modeling.structures import SegmenterOutput, predict_masks
from mask2former.modeling import criterion, matcher

__all__ = ["PLAIN", "use_plain"]


def all_masks(model: Any) -> None:
    """Make the masks of all queries at every layer, with their gradient; the losses then use a few."""

    def products(embeds: Tensor, features: Tensor) -> Tensor:
        return predict_masks(embeds, features)

    for module in (online, offline):
        setattr(module, "MaskProducts", products)  # noqa: B010  (a function in the place of a class)


def whole_segmenter(model: Any) -> None:
    """Segment all frames of a clip at once, with the masks of every decoder layer that nobody asks for."""

    def segment(frames: Tensor) -> SegmenterOutput:
        with torch.no_grad():
            return segment_frames(model.backbone, model.sem_seg_head, frames, with_masks=True, with_aux=True)

    model.segment = segment


def own_points(model: Any) -> None:
    """Give every mask its own copy of the points at which all masks are compared."""

    def sample(masks: Tensor, coords: Tensor) -> Tensor:
        stacked = masks.flatten(1, 2)[:, None]
        return point_sample(stacked, coords.expand(len(masks), -1, -1), align_corners=False)[:, 0]

    for module in (criterion, matcher):
        module.sample_points = sample


PLAIN: dict[str, Callable[[Any], None]] = {
    "masks": all_masks,
    "points": own_points,
    "segmenter": whole_segmenter,
}


def use_plain(model: Any, names: str) -> None:
    """Let a model use the plain forms of these names (``masks,points,segmenter``).

    Raises:
        ValueError: for an unknown name.
    """
    for name in names.split(","):
        if name not in PLAIN:
            raise ValueError(f"PLAIN={name}: allowed are {', '.join(PLAIN)}")
        PLAIN[name](model)
