"""Ground truth of a clip as the losses want it, from detectron2 ``Instances`` per frame.

Letters: T frames, N objects of the clip, H W pixels of the padded input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["ABSENT", "clip_targets", "frame_targets"]

ABSENT = -1  # id of an object in a frame where it is not visible


def clip_targets(
    frames: Sequence[Instances],
    padded_size: tuple[int, int],
    num_classes: int,
    *,
    device: torch.device | str = "cpu",
    label_from_last_frame: bool = False,
) -> dict[str, Tensor]:
    """Collect the objects of a clip.

    Rows with the same id belong together, whether frames list all objects (with id -1 where one is not
    visible) or only the visible ones. Objects that no frame shows are dropped.

    Args:
        frames: per frame ``gt_ids`` (int; may be missing in clips of one frame), ``gt_classes`` (int) and
            ``gt_masks`` (``BitMasks`` or ``n H' W'`` tensor, not larger than the padded size).
        padded_size: (H, W), the size of the padded model input in pixels.
        num_classes: K; also the label of an object that counts as "no object".
        device: where the result lives.
        label_from_last_frame: take the label from the last frame, as the published DVIS does: an object
            that is not visible there becomes "no object". Otherwise it is the class in the frames that
            show the object.

    Returns:
        ``labels`` ``N`` int64, ``ids`` ``N T`` int64 (-1: not visible), ``masks`` ``N T H W`` bool.

    Raises:
        ValueError: if a clip of several frames has no ``gt_ids``, a mask is larger than the input, two
            rows of a frame have the same id, or a class is not in ``0 .. K-1``; names the frame.

    Source: project choice; the published rule for labels is in the DVIS code.
    """
    ids_per_frame = [_ids(frame, t, len(frames)) for t, frame in enumerate(frames)]
    rows = _rows_of_objects(ids_per_frame)
    N, T = len(rows), len(frames)
    ids = torch.full((N, T), ABSENT, dtype=torch.int64)
    classes = torch.full((N, T), num_classes, dtype=torch.int64)
    masks = torch.zeros((N, T, *padded_size), dtype=torch.bool, device=device)
    for t, frame in enumerate(frames):
        objects = [n for n in range(N) if t in rows[n]]
        if not objects:
            continue
        picked = torch.tensor([rows[n][t] for n in objects])
        ids[objects, t] = ids_per_frame[t][picked]
        classes[objects, t] = _classes(frame, picked, t, num_classes)
        content = _masks(frame, t, padded_size)
        height, width = content.shape[-2:]
        masks[objects, t, :height, :width] = content[picked.to(content.device)].to(device)
    if label_from_last_frame:
        labels = classes[:, -1]
    else:
        # Absent frames hold K, larger than every class.
        labels = classes.amin(dim=1) if N else classes.new_zeros(0)
    return {"labels": labels.to(device), "ids": ids.to(device), "masks": masks}


def frame_targets(clip: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Split a clip's targets into those of T single frames, each with the objects that it shows.

    Args:
        clip: what :func:`clip_targets` returns.

    Returns:
        T dicts of ``labels`` ``n``, ``ids`` ``n 1`` and ``masks`` ``n 1 H W``.

    Source: MinVIS (arXiv:2208.02245), section 3.1: frames are trained as independent images.
    """
    frames = []
    for t in range(clip["ids"].shape[1]):
        visible = clip["ids"][:, t] != ABSENT
        frames.append(
            {
                "labels": clip["labels"][visible],
                "ids": clip["ids"][visible, t : t + 1],
                "masks": clip["masks"][visible, t : t + 1],
            }
        )
    return frames


def _ids(frame: Instances, t: int, num_frames: int) -> Tensor:
    """Ids of a frame's rows on the host; a single image numbers its rows."""
    if not frame.get_fields() or len(frame) == 0:
        return torch.zeros(0, dtype=torch.int64)
    if not frame.has("gt_ids"):
        if num_frames > 1:
            raise ValueError(f"frame {t} of the clip has no gt_ids; objects cannot be followed without them")
        return torch.arange(len(frame))
    return torch.as_tensor(frame.gt_ids).to("cpu", torch.int64)


def _rows_of_objects(ids_per_frame: Sequence[Tensor]) -> list[dict[int, int]]:
    """Return ``{frame: row}`` of each object that some frame shows, ordered by first row, then frame."""
    rows: dict[int, dict[int, int]] = {}
    for t, frame_ids in enumerate(ids_per_frame):
        for row, object_id in enumerate(frame_ids.tolist()):
            if object_id == ABSENT:
                continue
            if t in rows.setdefault(object_id, {}):
                raise ValueError(f"frame {t} of the clip has two objects with id {object_id}")
            rows[object_id][t] = row
    return sorted(rows.values(), key=lambda frames: min((row, t) for t, row in frames.items()))


def _classes(frame: Instances, rows: Tensor, t: int, num_classes: int) -> Tensor:
    classes = torch.as_tensor(frame.gt_classes).to("cpu", torch.int64)[rows]
    wrong = classes[(classes < 0) | (classes >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"frame {t} of the clip has an object of class {int(wrong[0])}, but the model knows classes 0 to "
            f"{num_classes - 1}; check MODEL.SEM_SEG_HEAD.NUM_CLASSES against the data set"
        )
    return classes


def _masks(frame: Instances, t: int, padded_size: tuple[int, int]) -> Tensor:
    """Masks of a frame's rows, ``n H' W'`` bool."""
    masks = getattr(frame.gt_masks, "tensor", frame.gt_masks)
    if not isinstance(masks, Tensor) or masks.dim() != 3:
        raise ValueError(
            f"frame {t} of the clip: gt_masks must be BitMasks or a `n H W` tensor, got "
            f"{type(frame.gt_masks).__name__}"
        )
    if masks.shape[-2] > padded_size[0] or masks.shape[-1] > padded_size[1]:
        raise ValueError(
            f"frame {t} of the clip: masks of {masks.shape[-2]} x {masks.shape[-1]} pixels do not fit into "
            f"the input of {padded_size[0]} x {padded_size[1]} pixels"
        )
    return masks.bool()
