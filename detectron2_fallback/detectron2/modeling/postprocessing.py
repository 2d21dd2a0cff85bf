"""From the resolution of the network's input to that of the output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.structures import Instances

__all__ = ["detector_postprocess", "sem_seg_postprocess"]


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Resize detections to the output resolution.

    Args:
        results: detections in the resolution ``results.image_size``, with ``pred_boxes`` or
            ``proposal_boxes``, and optionally ``pred_masks`` (probabilities inside the boxes, ``N 1 M M``)
            and ``pred_keypoints`` (``N K 3``).
        output_height: rows of the output.
        output_width: columns of the output.
        mask_threshold: probability from which a pixel belongs to a mask.

    Returns:
        Detections whose boxes are clipped and not empty, with ``pred_masks`` as bool ``N H W``.
    """
    scale_x = output_width / results.image_size[1]
    scale_y = output_height / results.image_size[0]
    results = Instances((output_height, output_width), **results.get_fields())
    if results.has("pred_boxes"):
        boxes = results.pred_boxes
    elif results.has("proposal_boxes"):
        boxes = results.proposal_boxes
    else:
        raise AssertionError("Predictions must contain boxes!")
    boxes.scale(scale_x, scale_y)
    boxes.clip(results.image_size)
    results = results[boxes.nonempty()]

    if results.has("pred_masks"):
        results.pred_masks = _paste_masks(
            results.pred_masks[:, 0], results.pred_boxes.tensor, (output_height, output_width), mask_threshold
        )
    if results.has("pred_keypoints"):
        results.pred_keypoints[:, :, 0] *= scale_x
        results.pred_keypoints[:, :, 1] *= scale_y
    return results


def _paste_masks(
    masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], threshold: float
) -> torch.Tensor:
    """Paste probabilities ``N M M`` of box contents into images of ``size`` (H W): bool, ``N H W``."""
    height, width = size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    rows = torch.arange(height, device=masks.device, dtype=torch.float32) + 0.5
    columns = torch.arange(width, device=masks.device, dtype=torch.float32) + 0.5
    # One at a time: a grid for all would need N x H x W x 2 floats.
    for mask, (x0, y0, x1, y1), output in zip(masks, boxes, pasted, strict=True):
        grid_y, grid_x = torch.meshgrid(
            (rows - y0) / (y1 - y0) * 2 - 1, (columns - x0) / (x1 - x0) * 2 - 1, indexing="ij"
        )
        grid = torch.stack([grid_x, grid_y], dim=-1)
        values = F.grid_sample(mask[None, None].float(), grid[None], align_corners=False)
        output.copy_(values[0, 0] >= threshold)
    return pasted


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Cut the padding off per-pixel predictions and resize them to the output.

    Args:
        result: logits or probabilities of one padded image, ``C H W``.
        img_size: height and width of the image without padding.
        output_height: rows of the output.
        output_width: columns of the output.

    Returns:
        ``C output_height output_width``, interpolated bilinearly.
    """
    result = result[:, : img_size[0], : img_size[1]].expand(1, -1, -1, -1)
    return F.interpolate(result, size=(output_height, output_width), mode="bilinear", align_corners=False)[0]
