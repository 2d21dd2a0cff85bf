"""From class scores and mask logits of a video to the result of a task: ``vis``, ``vps`` or ``vss``.

Masks are made last: only for the slots that are kept, a few frames at a time, never for all slots at full
size.

Letters: T frames, Q slots, N kept slots, K classes (K+1 with "no object"), h w the mask grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dvis.data.rle import encode_mask

__all__ = [
    "MASK_FORMATS",
    "TASKS",
    "FrameSizes",
    "MaskSource",
    "PostprocessSettings",
    "postprocess",
]

MASK_FORMATS = ("bitmask", "rle")

# Floats that the full-size masks of one step may have: 16 MB, which a processor cache can mostly hold.
STEP_ELEMENTS = 4 * 1024 * 1024


class MaskSource(Protocol):
    """Mask logits on demand, wherever they come from (stored, or made from embeddings and mask features)."""

    @property
    def num_frames(self) -> int: ...

    def read(self, slots: Tensor, start: int, stop: int) -> Tensor:
        """Return mask logits ``N T h w`` of the slots (int64) in frames ``start`` to ``stop`` (exclusive)."""
        ...


@dataclass(frozen=True)
class FrameSizes:
    """The sizes (height, width) that lead from the mask grid to the output.

    Attributes:
        padded: the model's input, padded.
        image: the part of it that is image.
        output: the result.
    """

    padded: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]


@dataclass(frozen=True)
class PostprocessSettings:
    """What is kept of a video.

    Attributes:
        max_num: VIS: number of best (slot, class) pairs.
        min_score: VIS: pairs below this probability are dropped.
        mask_format: VIS: ``bitmask`` or ``rle``.
        object_threshold: VPS: lowest class probability of a slot.
        overlap_threshold: VPS: lowest share of a slot's mask that must stay visible.
        thing_classes: VPS: classes whose segments are objects; all others are stuff.
    """

    max_num: int = 20
    min_score: float = 0.0
    mask_format: str = "bitmask"
    object_threshold: float = 0.0
    overlap_threshold: float = 0.0
    thing_classes: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.mask_format not in MASK_FORMATS:
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.MASK_FORMAT is {self.mask_format!r}; allowed are "
                f"{', '.join(MASK_FORMATS)}"
            )
        if self.max_num < 1:
            raise ValueError(f"MODEL.MASK_FORMER.TEST.MAX_NUM must be at least 1, not {self.max_num}")


def postprocess(
    task: str, probabilities: Tensor, masks: MaskSource, sizes: FrameSizes, settings: PostprocessSettings
) -> dict[str, Any]:
    """Make the result of a video.

    Args:
        task: ``vis``, ``vps`` or ``vss``.
        probabilities: class probabilities of the video, ``Q K+1``, "no object" last.
        masks: where mask logits come from.
        sizes: of padded input, image and output.
        settings: what is kept.

    Returns:
        A dict with ``image_size`` (height, width) and ``task``, and

        * vis: ``pred_scores``, ``pred_labels``, ``pred_ids`` (lists, best first) and ``pred_masks``: bool
          tensor ``N T H W`` on the host, or per object a list with one COCO run-length code per frame.
        * vps: ``pred_masks`` int32 ``T H W`` of segment ids (0: none), ``segments_infos``: per segment
          ``id``, ``isthing``, ``category_id``; ``pred_ids``: per segment its slot.
        * vss: ``pred_masks`` ``T H W`` of classes (uint8, int16 above 256 classes).

    Raises:
        ValueError: for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"MODEL.MASK_FORMER.TEST.TASK is {task!r}; allowed are {', '.join(TASKS)}")
    with torch.no_grad():
        result = TASKS[task](probabilities.float(), masks, sizes, settings)
    return {"image_size": sizes.output, "task": task, **result}


def instances(
    probabilities: Tensor, masks: MaskSource, sizes: FrameSizes, settings: PostprocessSettings
) -> dict[str, Any]:
    """VIS: the best (slot, class) pairs; one slot may appear with several classes. See :func:`postprocess`.

    Source: MinVIS (arXiv:2208.02245) and DVIS (arXiv:2306.03413), inference; reference behaviour 10.
    """
    scores = probabilities[:, :-1]
    num_classes = scores.shape[1]
    best, index = scores.flatten().topk(min(settings.max_num, scores.numel()))
    index = index[best >= settings.min_score]
    best = best[best >= settings.min_score]
    slots, labels = index // num_classes, index % num_classes
    # A slot that appears with several classes has its mask made once.
    unique, position = torch.unique(slots, return_inverse=True)
    position = position.cpu()
    codes: list[list[dict[str, Any]]] = [[] for _ in slots]
    as_codes = settings.mask_format == "rle"
    num_bitmasks = 0 if as_codes else len(slots)
    bitmasks = torch.zeros((num_bitmasks, masks.num_frames, *sizes.output), dtype=torch.bool)
    for start, stop in _time_steps(masks.num_frames if len(unique) else 0, len(unique), sizes):
        logits = _resize(_resize_to_image(masks.read(unique, start, stop), sizes), sizes.output)
        step = (logits > 0).cpu()
        if as_codes:
            encoded = [[encode_mask(mask) for mask in tube.numpy()] for tube in step]
            for code, i in zip(codes, position.tolist(), strict=True):
                code.extend(encoded[i])
        else:
            bitmasks[:, start:stop] = step[position]
    return {
        "pred_scores": best.tolist(),
        "pred_labels": labels.tolist(),
        "pred_ids": slots.tolist(),
        "pred_masks": codes if as_codes else bitmasks,
    }


def panoptic(
    probabilities: Tensor, masks: MaskSource, sizes: FrameSizes, settings: PostprocessSettings
) -> dict[str, Any]:
    """VPS: every pixel goes to one segment; segments in slot order. See :func:`postprocess`.

    Two published habits are kept, because published numbers need them: segments are visited in slot order,
    not by score; and later stuff segments of a class are merged into the first one and report no slot of
    their own.

    Source: Mask2Former (arXiv:2112.01527) panoptic inference, over a video; reference behaviour 9.
    """
    T, num_classes = masks.num_frames, probabilities.shape[1] - 1
    scores, labels = probabilities.max(dim=-1)
    slots = ((labels != num_classes) & (scores > settings.object_threshold)).nonzero()[:, 0]
    scores, labels = scores[slots], labels[slots]
    N = len(slots)
    # Which kept slot (1 .. N) has a pixel, 0 where the best one's own mask does not cover it.
    owner = torch.zeros((T, *sizes.output), dtype=torch.int16)
    areas = torch.zeros((3, N + 1), dtype=torch.int64, device=slots.device)  # own mask, won, both; 0: none
    for start, stop in _time_steps(T if N else 0, N, sizes):
        best: Tensor | None = None
        for chunk in _slot_chunks(N, stop - start, sizes):
            probs = _full_size_probabilities(slots[chunk], masks, start, stop, sizes)
            areas[0, 1:][chunk] += (probs >= 0.5).sum(dim=(1, 2, 3))
            value, index = (scores[chunk, None, None, None] * probs).max(dim=0)
            covers = probs.gather(0, index[None])[0] >= 0.5
            index = index + chunk.start + 1
            if best is None:
                best, winner, covered = value, index, covers
            else:
                better = value > best  # the first of equals wins, as in one argmax over all slots
                best = torch.where(better, value, best)
                winner = torch.where(better, index, winner)
                covered = torch.where(better, covers, covered)
        areas[1] += torch.bincount(winner.flatten(), minlength=N + 1)
        winner = winner * covered
        areas[2] += torch.bincount(winner.flatten(), minlength=N + 1)
        owner[start:stop] = winner.to("cpu", torch.int16)

    segment_of_slot = torch.zeros(N + 1, dtype=torch.int32)
    segments: list[dict[str, Any]] = []
    ids: list[int] = []
    stuff: dict[int, int] = {}
    for n, (own, won, both) in enumerate(areas[:, 1:].T.tolist()):
        if both == 0 or won / own < settings.overlap_threshold:
            continue
        label = int(labels[n])
        is_thing = label in settings.thing_classes
        if not is_thing and label in stuff:
            segment_of_slot[n + 1] = stuff[label]
            continue
        segments.append({"id": len(segments) + 1, "isthing": is_thing, "category_id": label})
        ids.append(int(slots[n]))
        segment_of_slot[n + 1] = len(segments)
        if not is_thing:
            stuff[label] = len(segments)
    pred_masks = torch.zeros(owner.shape, dtype=torch.int32)
    for t in range(T):  # frame by frame: the index of a look-up is eight bytes per pixel
        pred_masks[t] = segment_of_slot[owner[t].long()]
    return {"pred_masks": pred_masks, "segments_infos": segments, "pred_ids": ids}


def semantic(
    probabilities: Tensor, masks: MaskSource, sizes: FrameSizes, settings: PostprocessSettings
) -> dict[str, Any]:
    """VSS: every pixel gets the class with the largest sum over slots of class times mask probability.

    Source: Mask2Former (arXiv:2112.01527) semantic inference, over a video.
    """
    T, (Q, num_classes) = masks.num_frames, probabilities[:, :-1].shape
    slots = torch.arange(Q, device=probabilities.device)
    pred_masks = torch.zeros((T, *sizes.output), dtype=torch.uint8 if num_classes <= 256 else torch.int16)
    for start, stop in _time_steps(T, max(Q, num_classes), sizes):
        votes = torch.zeros((num_classes, stop - start, *sizes.output), device=probabilities.device)
        for chunk in _slot_chunks(Q, stop - start, sizes):
            probs = _full_size_probabilities(slots[chunk], masks, start, stop, sizes)
            votes += torch.einsum("qk,qthw->kthw", probabilities[chunk, :-1], probs)
        pred_masks[start:stop] = votes.argmax(dim=0).to("cpu", pred_masks.dtype)
    return {"pred_masks": pred_masks}


TASKS: Mapping[str, Callable[[Tensor, MaskSource, FrameSizes, PostprocessSettings], dict[str, Any]]] = {
    "vis": instances,
    "vps": panoptic,
    "vss": semantic,
}


def _time_steps(num_frames: int, num_maps: int, sizes: FrameSizes) -> Iterator[tuple[int, int]]:
    """Cut the video so that ``num_maps`` full-size maps of a step stay within STEP_ELEMENTS."""
    length = max(1, STEP_ELEMENTS // max(1, num_maps * _largest_area(sizes)))
    for start in range(0, num_frames, length):
        yield start, min(start + length, num_frames)


def _slot_chunks(num_slots: int, num_frames: int, sizes: FrameSizes) -> Iterator[slice]:
    """Cut the slots so that their full-size masks in ``num_frames`` frames stay within STEP_ELEMENTS."""
    length = max(1, STEP_ELEMENTS // max(1, num_frames * _largest_area(sizes)))
    for start in range(0, num_slots, length):
        yield slice(start, min(start + length, num_slots))


def _largest_area(sizes: FrameSizes) -> int:
    return max(height * width for height, width in (sizes.padded, sizes.image, sizes.output))


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``N t h w`` bilinearly; nothing to do (exactly) if the size is right already."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _resize_to_image(maps: Tensor, sizes: FrameSizes) -> Tensor:
    """Resize the mask grid ``N t h w`` to the padded input and cut the padding off."""
    # A copy of the small maps saves one of the large: resized maps are laid out like what they come from.
    return _resize(maps.float().contiguous(), sizes.padded)[..., : sizes.image[0], : sizes.image[1]]


def _full_size_probabilities(
    slots: Tensor, masks: MaskSource, start: int, stop: int, sizes: FrameSizes
) -> Tensor:
    """Mask probabilities at output size, ``N t H W``; resized after the sigmoid (behaviour 9)."""
    logits = _resize_to_image(masks.read(slots, start, stop), sizes)
    return _resize(logits.sigmoid(), sizes.output)
