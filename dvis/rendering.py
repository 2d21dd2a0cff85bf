"""Results of a segmenter as pictures: what the demo programs share.

Frames are RGB ``H W 3`` uint8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dvis.api import VideoResult
from dvis.data.rle import decode_rle
from dvis.visualization import draw_instances, draw_panoptic, draw_semantic

__all__ = ["best_label_per_object", "class_name", "draw_result", "enlarged", "frame_masks"]


def draw_result(
    frame: np.ndarray,
    result: VideoResult,
    masks: Any,
    threshold: float,
    scale: int = 1,
    color_ids: Mapping[int, int] | None = None,
) -> np.ndarray:
    """One frame with its result.

    Args:
        frame: the picture.
        result: of the video, or of this frame.
        masks: those of this frame, see :func:`frame_masks`.
        threshold: instances below this score are not drawn.
        scale: how many times the picture is enlarged.
        color_ids: the id whose colour an object gets, by its own id; None: each its own.
    """
    names = result.class_names
    frame = enlarged(frame, scale)
    if result.task == "vss":
        return draw_semantic(frame, enlarged(masks, scale), names or _numbered(256))
    if result.task == "vps":
        segments = [
            {"id": track + 1, "category_id": label, "isthing": True}
            for track, label in zip(result.ids, result.labels, strict=True)
        ]
        names = names or _numbered(1 + max(result.labels, default=0))
        return draw_panoptic(frame, enlarged(masks, scale), segments, names)
    kept = best_label_per_object(result, threshold)
    colors = {} if color_ids is None else color_ids
    return draw_instances(
        frame,
        [enlarged(decode_rle(masks[i]), scale) for i in kept],
        [colors.get(result.ids[i], result.ids[i]) for i in kept],
        [f"{class_name(result, i)} {result.ids[i]} {result.scores[i]:.0%}" for i in kept],
    )


def enlarged(image: Any, scale: int) -> np.ndarray:
    """``H W ...`` with every pixel repeated ``scale`` times in both directions."""
    return np.asarray(image).repeat(scale, axis=0).repeat(scale, axis=1)


def best_label_per_object(result: VideoResult, threshold: float) -> list[int]:
    """Positions of the results to draw: above the threshold, each object under its best label, best first."""
    best: dict[int, int] = {}
    for position in np.argsort(result.scores)[::-1].tolist():
        if result.scores[position] >= threshold:
            best.setdefault(result.ids[position], position)
    return list(best.values())


def class_name(result: VideoResult, position: int) -> str:
    label = result.labels[position]
    return result.class_names[label] if label < len(result.class_names) else f"class {label}"


def frame_masks(result: VideoResult, index: int) -> Any:
    """The masks of one frame of a whole video's result."""
    return [codes[index] for codes in result.masks] if result.task == "vis" else result.masks[index]


def _numbered(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]
