"""Drawing predictions on the frames of a video, with colours that stay with their object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch

from .colormap import random_color, random_colors
from .visualizer import ColorMode, VisImage, Visualizer, _create_text_labels, _PanopticPrediction

__all__ = ["VideoVisualizer"]

_FRAMES_TO_REMEMBER = 8  # an object that is not seen for longer starts with a new colour
_BOX_IOU = 0.6
_MASK_IOU = 0.7  # masks of one object agree better than boxes


@dataclass
class _DetectedInstance:
    """An object in one frame, with what is needed to find it in the next."""

    label: int
    bbox: Any = None  # (x0, y0, x1, y1)
    mask_rle: Any = None
    color: Any = None
    ttl: int = _FRAMES_TO_REMEMBER


class VideoVisualizer:
    """Draws frame after frame of one video.

    Predictions of neighbouring frames are linked by their class and overlap, for the colours only. If they
    have an attribute "ID" it is taken instead, and "COLOR" gives the colours themselves.

    Args:
        metadata: of the data set.
        instance_mode: IMAGE or IMAGE_BW.
    """

    def __init__(self, metadata: Any, instance_mode: ColorMode = ColorMode.IMAGE) -> None:
        self.metadata = metadata
        self._instance_mode = instance_mode
        assert instance_mode in (ColorMode.IMAGE, ColorMode.IMAGE_BW), "Other mode not supported yet."
        self._old_instances: list[_DetectedInstance] = []
        self._assigned_colors: dict[int, Any] = {}
        self._max_num_instances = self.metadata.get("max_num_instances", 72)
        self._free_colors = random_colors(self._max_num_instances, rgb=True, maximum=1)

    def draw_instance_predictions(self, frame: np.ndarray, predictions: Any) -> VisImage:
        """Draw the predictions of an instance segmenter or detector.

        Args:
            frame: ``H W 3`` RGB in [0, 255].
            predictions: Instances with "pred_classes" and any of "pred_boxes", "scores", "pred_masks", "ID",
                "COLOR" and "pred_keypoints".
        """
        visualizer = Visualizer(frame, self.metadata)
        num_instances = len(predictions)
        if num_instances == 0:
            return visualizer.output
        boxes = predictions.pred_boxes.tensor.numpy() if predictions.has("pred_boxes") else None
        scores = predictions.scores if predictions.has("scores") else None
        classes = predictions.pred_classes.numpy() if predictions.has("pred_classes") else None
        keypoints = predictions.pred_keypoints if predictions.has("pred_keypoints") else None
        masks = predictions.pred_masks if predictions.has("pred_masks") else None

        if predictions.has("COLOR"):
            colors = list(predictions.COLOR)
        elif predictions.has("ID"):
            colors = self._assign_colors_by_id(predictions)
        else:
            rles = [None] * num_instances if boxes is not None or masks is None else _encode(masks)
            colors = self._assign_colors(
                [
                    _DetectedInstance(
                        -1 if classes is None else int(classes[i]),
                        None if boxes is None else boxes[i],
                        rles[i],
                    )
                    for i in range(num_instances)
                ]
            )
        labels = _create_text_labels(
            None if classes is None else classes.tolist(), scores, self.metadata.get("thing_classes")
        )
        alpha = 0.5
        if self._instance_mode == ColorMode.IMAGE_BW:
            drawn = None if masks is None else np.asarray(torch.as_tensor(masks).any(dim=0))
            visualizer.output.reset_image(visualizer._create_grayscale_image(drawn))
            alpha = 0.3
        return visualizer.overlay_instances(
            boxes=None if masks is not None else boxes,  # boxes around masks distract
            masks=masks,
            labels=labels,
            keypoints=keypoints,
            assigned_colors=colors,
            alpha=alpha,
        )

    def draw_sem_seg(self, frame: np.ndarray, sem_seg: Any, area_threshold: int | None = None) -> VisImage:
        """Draw a semantic map.

        Args:
            frame: ``H W 3`` RGB in [0, 255].
            sem_seg: ``H W`` classes.
            area_threshold: smaller parts (pixels) are not drawn.
        """
        # colours of classes come from the metadata, so they do not flicker
        return Visualizer(frame, self.metadata).draw_sem_seg(sem_seg, area_threshold=area_threshold)

    def draw_panoptic_seg_predictions(
        self,
        frame: np.ndarray,
        panoptic_seg: torch.Tensor,
        segments_info: list[dict] | None,
        area_threshold: int | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw a panoptic map.

        Args:
            frame: ``H W 3`` RGB in [0, 255].
            panoptic_seg: ``H W`` segment ids, on the CPU.
            segments_info: see :meth:`Visualizer.draw_panoptic_seg`.
            area_threshold: smaller parts (pixels) of stuff are not drawn.
            alpha: opacity.
        """
        visualizer = Visualizer(frame, self.metadata)
        pred = _PanopticPrediction(panoptic_seg, segments_info, self.metadata)
        if self._instance_mode == ColorMode.IMAGE_BW:
            visualizer.output.reset_image(visualizer._create_grayscale_image(pred.non_empty_mask()))
        for mask, segment in pred.semantic_masks():
            category = segment["category_id"]
            visualizer.draw_binary_mask(
                mask,
                color=visualizer._stuff_color(category),
                text=self.metadata.stuff_classes[category],
                alpha=alpha,
                area_threshold=area_threshold,
            )
        instances = list(pred.instance_masks())
        if not instances:
            return visualizer.output
        masks = [mask for mask, _ in instances]
        segments = [segment for _, segment in instances]
        categories = [segment["category_id"] for segment in segments]
        colors = self._assign_colors(
            [
                _DetectedInstance(category, mask_rle=rle)
                for category, rle in zip(categories, _encode(masks), strict=True)
            ]
        )
        scores = [s["score"] for s in segments] if all("score" in s for s in segments) else None
        return visualizer.overlay_instances(
            masks=masks,
            labels=_create_text_labels(categories, scores, self.metadata.thing_classes),
            assigned_colors=colors,
            alpha=alpha,
        )

    def _assign_colors(self, instances: list[_DetectedInstance]) -> list[Any]:
        """Give every instance the colour of the remembered one it continues, or a new colour.

        Args:
            instances: of this frame, without colours; they become the remembered ones.

        Returns:
            One colour per instance.
        """
        iou = _overlaps(self._old_instances, instances)
        continued = set()
        for i, old in enumerate(self._old_instances):
            if iou.shape[1] and iou[i].max() > 0:
                new = instances[int(iou[i].argmax())]
                if new.color is None:
                    new.color = old.color
                    continued.add(i)
        for instance in instances:
            if instance.color is None:
                instance.color = random_color(rgb=True, maximum=1)
        waiting = [old for i, old in enumerate(self._old_instances) if i not in continued]
        for old in waiting:
            old.ttl -= 1
        self._old_instances = [old for old in waiting if old.ttl > 0] + instances
        return [instance.color for instance in instances]

    def _assign_colors_by_id(self, instances: Any) -> list[Any]:
        """Give every "ID" a colour of its own while it is visible; colours of others can be used again."""
        ids = [int(i) for i in instances.ID]
        for gone in set(self._assigned_colors) - set(ids):
            self._free_colors.append(self._assigned_colors.pop(gone))
        for object_id in ids:
            if object_id not in self._assigned_colors:
                self._assigned_colors[object_id] = (
                    self._free_colors.pop() if self._free_colors else random_color(rgb=True, maximum=1)
                )
        return [self._assigned_colors[object_id] for object_id in ids]


def _encode(masks: Any) -> list[dict]:
    return [mask_util.encode(np.asfortranarray(np.asarray(mask), dtype=np.uint8)) for mask in masks]


def _overlaps(old: Sequence[_DetectedInstance], new: Sequence[_DetectedInstance]) -> np.ndarray:
    """IoU of all pairs, 0 where it is below the threshold or the classes differ: ``len(old) len(new)``."""
    if not old or not new:
        return np.zeros((len(old), len(new)))
    by_mask = all(instance.mask_rle is not None for instance in (*old, *new))
    if not by_mask and any(instance.bbox is None for instance in (*old, *new)):
        return np.zeros((len(old), len(new)))  # frames of different kinds cannot be compared

    def shapes(instances: Sequence[_DetectedInstance]) -> Any:
        if by_mask:
            return [instance.mask_rle for instance in instances]
        boxes = np.array([instance.bbox for instance in instances], dtype=float)
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)

    iou = np.asarray(mask_util.iou(shapes(old), shapes(new), [0] * len(new)))
    same_class = np.array([[a.label == b.label for b in new] for a in old])
    return np.where(same_class & (iou >= (_MASK_IOU if by_mask else _BOX_IOU)), iou, 0.0)
