"""Class and mask logits of an image's queries to semantic, panoptic and instance results.

Shapes: ``Q`` queries, ``K`` classes, ``h w`` grid of the mask logits, ``H W`` pixels of the output. Masks are
resized last and, where scores decide which queries survive, only for those.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, Instances
from detectron2.utils.memory import retry_if_cuda_oom
from torch import Tensor

__all__ = ["MaskResizer", "instance_inference", "panoptic_inference", "semantic_inference"]


@dataclass(frozen=True)
class MaskResizer:
    """From the mask grid to the output image, bilinear in two steps as published.

    Attributes:
        padded_size: ``(H, W)`` of the padded network input.
        image_size: ``(H, W)`` of the image in it.
        output_size: ``(H, W)`` asked for.
    """

    padded_size: tuple[int, int]
    image_size: tuple[int, int]
    output_size: tuple[int, int]

    def to_padded(self, masks: Tensor) -> Tensor:
        """Resize ``Q h w`` to the padded input."""
        if not len(masks):
            return masks.new_zeros((0, *self.padded_size))
        return F.interpolate(masks[None], size=self.padded_size, mode="bilinear", align_corners=False)[0]

    def to_output(self, masks: Tensor) -> Tensor:
        """Cut the padding off ``Q H W`` and resize to the output."""
        if not len(masks):
            return masks.new_zeros((0, *self.output_size))
        return retry_if_cuda_oom(sem_seg_postprocess)(masks, self.image_size, *self.output_size)

    def __call__(self, masks: Tensor) -> Tensor:
        """Resize ``Q h w`` to the output."""
        return self.to_output(self.to_padded(masks))


def semantic_inference(
    logits: Tensor, masks: Tensor, resizer: MaskResizer, resize_logits: bool = False
) -> Tensor:
    """Score every class at every pixel: sum over queries of class times mask probability.

    Args:
        logits: class logits, ``Q K+1``.
        masks: mask logits, ``Q h w``.
        resizer: to the output size.
        resize_logits: resize mask logits (True) or class scores (False) to the output.

    Returns:
        ``K H W``, not normalised.

    Source: MaskFormer (arXiv:2107.06278), section 3.4.
    """
    classes = logits.softmax(-1)[:, :-1]
    masks = resizer(masks) if resize_logits else resizer.to_padded(masks)
    scores = torch.einsum("qk,qhw->khw", classes, masks.sigmoid())
    return scores if resize_logits else resizer.to_output(scores)


def panoptic_inference(
    logits: Tensor,
    masks: Tensor,
    resizer: MaskResizer,
    things: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give every pixel to at most one segment.

    Args:
        logits: class logits, ``Q K+1``.
        masks: mask logits, ``Q h w``.
        resizer: to the output size.
        things: class indices that are countable; segments of another (stuff) class are merged.
        object_mask_threshold: lowest class probability of a query.
        overlap_threshold: lowest share of its mask that a segment must keep.

    Returns:
        ids ``H W`` int32 (0 = nothing) and, in the order of ids, ``{"id", "isthing", "category_id"}`` with
        the class index as category.

    Source: MaskFormer (arXiv:2107.06278), section 3.4.
    """
    scores, labels = logits.softmax(-1).max(-1)
    keep = (labels != logits.shape[1] - 1) & (scores > object_mask_threshold)
    segments: list[dict[str, Any]] = []
    if not keep.any():
        return torch.zeros(resizer.output_size, dtype=torch.int32, device=masks.device), segments
    probabilities = resizer(masks[keep]).sigmoid()
    count = len(probabilities)
    inside = probabilities >= 0.5
    owner = (scores[keep, None, None] * probabilities).argmax(0)
    visible = inside.gather(0, owner[None])[0]  # the pixel's owner also has it inside its own mask
    areas = torch.stack(
        [
            owner.flatten().bincount(minlength=count),
            inside.flatten(1).sum(1),
            owner[visible].bincount(minlength=count),
        ],
        dim=1,
    ).tolist()
    segment_ids = [0] * count
    stuff: dict[int, int] = {}
    for k, (label, (owned_area, mask_area, visible_area)) in enumerate(
        zip(labels[keep].tolist(), areas, strict=True)
    ):
        if not visible_area or owned_area / mask_area < overlap_threshold:
            continue
        if label in stuff:
            segment_ids[k] = stuff[label]
            continue
        segment_ids[k] = len(segments) + 1
        if label not in things:
            stuff[label] = segment_ids[k]
        segments.append({"id": segment_ids[k], "isthing": label in things, "category_id": label})
    table = torch.tensor(segment_ids, dtype=torch.int32, device=masks.device)
    return table[owner] * visible, segments


def instance_inference(
    logits: Tensor,
    masks: Tensor,
    resizer: MaskResizer,
    max_instances: int,
    things: Collection[int] | None = None,
) -> Instances:
    """The best (query, class) pairs; a query may appear with several classes.

    Args:
        logits: class logits, ``Q K+1``.
        masks: mask logits, ``Q h w``.
        resizer: to the output size.
        max_instances: how many pairs are taken.
        things: class indices to keep; None: all.

    Returns:
        Instances with ``pred_masks`` (``N H W`` bool), ``pred_boxes`` (around the masks), ``scores`` (class
        times mean mask probability inside the mask, descending) and ``pred_classes``.

    Source: Mask2Former (arXiv:2112.01527), appendix (instance inference).
    """
    num_classes = logits.shape[1] - 1
    probabilities = logits.softmax(-1)[:, :-1].flatten()
    scores, pairs = probabilities.topk(min(max_instances, len(probabilities)))
    queries, labels = pairs // num_classes, pairs % num_classes
    if things is not None:
        kept = torch.isin(labels, torch.tensor(sorted(things), dtype=labels.dtype, device=labels.device))
        scores, queries, labels = scores[kept], queries[kept], labels[kept]
    # Each query is resized once, however many classes it appears with.
    unique, position = queries.unique(return_inverse=True)
    resized = resizer(masks[unique])
    inside = resized > 0
    mask_scores = (resized.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    scores, order = (scores * mask_scores[position]).sort(descending=True, stable=True)
    position = position[order]

    instances = Instances(resizer.output_size)
    instances.pred_masks = inside[position]
    instances.pred_boxes = BitMasks(inside).get_bounding_boxes()[position]
    instances.scores = scores
    instances.pred_classes = labels[order]
    return instances
