"""The segmenter on video: frames in, per-frame queries, classes and mask embeddings out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dvis.modeling.structures import SegmenterOutput

__all__ = ["segment_frames"]

# Pixels that pass through the segmenter together on a CPU, if not less than a frame: their float32 tensors
# are just small enough to stay in the allocator's hands; larger ones come fresh from the system, zeroed page
# by page.
CPU_PIXELS = 360 * 640


def segment_frames(
    backbone: Callable[[Tensor], dict[str, Tensor]],
    sem_seg_head: nn.Module,
    frames: Tensor,
    *,
    with_masks: bool = False,
    with_aux: bool = False,
    autocast_dtype: torch.dtype | None = None,
    window_size: int | None = None,
) -> SegmenterOutput:
    """Segment every frame by itself.

    A function, not a module, because published weights have both parts at the top of the model.

    Args:
        backbone: detectron2 backbone, or what runs one.
        sem_seg_head: ``MaskFormerHead``.
        frames: normalised and padded, ``B T 3 H W``.
        with_masks: also compute the mask logits of all queries.
        with_aux: also give the predictions of the earlier decoder layers, for their losses.
        autocast_dtype: do large products in this precision, in all parts, and give float32 as always; see
            ``dvis.inference.precision``. None: as autocast around the call says, the pixel decoder exempt.
        window_size: frames of a clip that pass through the parts together at most: fewer need less memory,
            and the other clips of a batch do not show, not even in the last bits. None: all frames of all
            clips.

    Source: Mask2Former (arXiv:2112.01527); DVIS (arXiv:2306.03413), section 3.1.
    """
    B = frames.shape[0]
    half = autocast_dtype is not None
    clips = frames.flatten(0, 1)[None] if window_size is None else frames
    together = clips.shape[1] if window_size is None else window_size
    # In half precision it is better to convert the weights once per window.
    if frames.device.type == "cpu" and not half and not torch.is_grad_enabled():
        together = min(together, max(1, CPU_PIXELS // frames[0, 0, 0].numel()))
    parts = []
    with torch.autocast(frames.device.type, autocast_dtype) if half else nullcontext():
        for images in (window for clip in clips for window in clip.split(together)):
            parts.append(
                sem_seg_head(backbone(images), with_masks=with_masks, with_aux=with_aux, allow_half=half)
            )
    outputs = parts[0] if len(parts) == 1 else _concatenate(parts)

    def per_video(values: Tensor) -> Tensor:
        return (values.float() if half else values).unflatten(0, (B, -1))

    def masks_per_video(masks: Tensor) -> Tensor:
        return rearrange(per_video(masks), "b t q h w -> b q t h w")

    return SegmenterOutput(
        logits=per_video(outputs["pred_logits"]),
        masks=masks_per_video(outputs["pred_masks"]) if with_masks else None,
        queries=per_video(outputs["pred_embeds"]),
        mask_features=per_video(outputs["mask_features"]),
        mask_embeds=per_video(outputs["pred_mask_embeds"]),
        aux=tuple(
            (per_video(layer["pred_logits"]), masks_per_video(layer["pred_masks"]))
            for layer in outputs["aux_outputs"]
        ),
    )


def _concatenate(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the head's outputs for some frames each to those for all of them."""
    joined: dict[str, Any] = {}
    for key, first in parts[0].items():
        values = [part[key] for part in parts]
        if isinstance(first, Tensor):
            joined[key] = torch.cat(values)
        elif isinstance(first, list):
            joined[key] = [_concatenate(list(layer)) for layer in zip(*values, strict=True)]
        else:
            joined[key] = first
    return joined
