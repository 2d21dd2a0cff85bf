"""Assignments: this frame's queries to the previous frame's, and a clip's objects to slots in training.

Letters: B videos, T frames, Q queries, C channels, N ground-truth objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dvis.modeling.targets import ABSENT
from mask2former.modeling.matcher import Indices, MatchingWeights, assign, matching_cost

__all__ = ["FirstAppearanceMatcher", "NonFiniteError", "gather_queries", "match_frames", "match_queries"]


class NonFiniteError(FloatingPointError):
    """A matching cost or a loss is not a finite number; the message names the tensor and the place."""


def _assign(cost: np.ndarray, inverse: bool) -> np.ndarray:
    """Solve one assignment: ``cost`` is ``Q Q`` (current, previous), the result as in match_queries."""
    # Rows are the current queries in one reading and the previous slots in the other, so that the column
    # found for row i is the index of the permutation and of its inverse, respectively.
    return linear_sum_assignment(cost if inverse else cost.T)[1]


@torch.no_grad()
def match_frames(queries: Tensor, previous: Tensor | None = None, *, inverse: bool = False) -> Tensor:
    """Order the queries of consecutive frames so that slot i stays the same object.

    Every frame is matched to the frame before it by the assignment of least cosine distance. The cosine of
    two queries does not depend on how they are ordered, so the similarities of the whole window are one
    product and one transfer to the host; only the assignments follow each other.

    Args:
        queries: the segmenter's queries, ``B T Q C``; only their directions count.
        previous: queries of the frame before the window in slot order, ``B Q C``; None at the start of a
            video, whose first frame then keeps its order: it defines the slots.
        inverse: index with the inverse permutation, as the published DVIS does: slot i takes the query at
            position ``a[i]`` where ``a`` maps current queries to previous slots. Released DVIS weights
            were trained so.

    Returns:
        ``B T Q`` int64 on the device of ``queries``: slot i of a frame starts from query ``order[i]``.

    Raises:
        ValueError: if the shapes do not fit.
        NonFiniteError: if a query holds an infinity or a NaN; names the clip and the frame of the call.

    Source: DVIS (arXiv:2306.03413), section 3.2, equation 1; MinVIS (arXiv:2208.02245), section 3.2.
    """
    if queries.dim() != 4:
        raise ValueError(f"queries must be `B T Q C`, got shape {tuple(queries.shape)}")
    B, T, Q, C = queries.shape
    if previous is not None and previous.shape != (B, Q, C):
        raise ValueError(f"previous must be `B Q C` = {(B, Q, C)}, got shape {tuple(previous.shape)}")
    with torch.autocast(queries.device.type, enabled=False):
        dtype = torch.promote_types(queries.dtype, torch.float32)  # half precision is too coarse to compare
        current = F.normalize(queries.to(dtype), dim=-1)
        first = current[:, :1] if previous is None else F.normalize(previous.to(dtype), dim=-1)[:, None]
        cost = 1 - current @ torch.cat([first, current[:, :-1]], dim=1).transpose(-1, -2)
    cost_btqq = cost.cpu().numpy()
    if not np.isfinite(cost_btqq).all():
        b, t = np.argwhere(~np.isfinite(cost_btqq))[0, :2]
        raise NonFiniteError(f"frame queries are not finite: clip {b} of the batch, frame {t} of the window")

    order = np.empty((B, T, Q), dtype=np.int64)
    for b in range(B):
        slots = np.arange(Q)
        for t in range(T):
            if t > 0 or previous is not None:
                # `previous` already is in slot order; frames of the window are still in the segmenter's.
                slots = _assign(cost_btqq[b, t][:, slots], inverse)
            order[b, t] = slots
    return torch.from_numpy(order).to(queries.device)


def match_queries(reference: Tensor, current: Tensor, *, inverse: bool = False) -> Tensor:
    """Order this frame's queries so that query i continues reference query i.

    Args:
        reference: queries of the previous frame, ``Q C``; only their directions count.
        current: queries of this frame, ``Q C``.
        inverse: see :func:`match_frames`.

    Returns:
        ``Q`` int64 indices into ``current``, a permutation.

    Raises:
        ValueError: if the shapes differ.
        NonFiniteError: if a query holds an infinity or a NaN.

    Source: MinVIS (arXiv:2208.02245), section 3.2.
    """
    if reference.shape != current.shape:
        raise ValueError(f"shapes differ: reference {tuple(reference.shape)}, current {tuple(current.shape)}")
    return match_frames(current[None, None], reference[None], inverse=inverse)[0, 0]


def gather_queries(values: Tensor, order: Tensor) -> Tensor:
    """Reorder the queries of ``values`` (``B T Q ...``): slot i gets query ``order[i]`` (``B T Q`` int64)."""
    index = order.reshape(*order.shape, *[1] * (values.dim() - 3))
    return torch.take_along_dim(values, index, dim=2)


@dataclass(frozen=True)
class FirstAppearanceMatcher:
    """Match each object of a clip to a slot in the frame where it appears first; the slot then is its own.

    It takes the frames of one clip where an image matcher takes a batch of images.

    Attributes:
        weights: of the class, mask and dice costs.
        num_points: points at which masks are compared.
        shared: let objects that appear in different frames have the same slot, as the published DVIS does
            (it means to prevent that, but never notes which slots are taken).
    """

    weights: MatchingWeights
    num_points: int
    shared: bool = False

    @torch.no_grad()
    def __call__(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[Indices]:
        """Match.

        Args:
            outputs: of the T frames of a clip, in slot order: ``pred_logits`` ``T Q K+1``, ``pred_masks``
                ``T Q 1 h w``.
            targets: T frames that each list all N objects: ``labels`` ``N``, ``ids`` ``N 1`` (-1: not
                visible), ``masks`` ``N 1 H W``.

        Returns:
            The matched (slot, object) indices, the same for each of the T frames. Objects are left out
            where slots do not suffice.

        Raises:
            NonFiniteError: if a cost is not finite; names the frame and the tensor at fault.

        Source: DVIS (arXiv:2306.03413), section 3.2, equations 3 and 4.
        """
        visible = torch.cat([target["ids"] for target in targets], dim=1).cpu() != ABSENT  # N T
        first = visible.int().argmax(dim=1)
        frames = torch.unique(first).tolist()
        objects = [torch.nonzero(first == t)[:, 0] for t in frames]
        if not frames:
            none = torch.zeros(0, dtype=torch.int64)
            return [(none, none)] * len(targets)
        costs = [
            self._cost(outputs, targets[t], t, appearing)
            for t, appearing in zip(frames, objects, strict=True)
        ]
        # One transfer for all frames: each would wait for the device.
        parts = torch.cat([cost.flatten() for cost in costs]).cpu().split([cost.numel() for cost in costs])
        slots, found = [], []
        free = np.arange(outputs["pred_logits"].shape[1])
        for t, appearing, cost, part in zip(frames, objects, costs, parts, strict=True):
            if not part.isfinite().all():
                raise NonFiniteError(_blame(outputs, t))
            rows, columns = assign(part.view(cost.shape).numpy()[free])
            slots.append(torch.from_numpy(free)[rows])
            found.append(appearing[columns])
            if not self.shared:
                free = np.setdiff1d(free, slots[-1].numpy())
        return [(torch.cat(slots), torch.cat(found))] * len(targets)

    def _cost(
        self, outputs: Mapping[str, Tensor], target: Mapping[str, Tensor], t: int, objects: Tensor
    ) -> Tensor:
        """Cost ``Q n`` of the given objects in frame ``t``."""
        objects = objects.to(target["labels"].device)
        return matching_cost(
            outputs["pred_logits"][t],
            outputs["pred_masks"][t],
            target["labels"][objects],
            target["masks"][objects],
            num_points=self.num_points,
            weights=self.weights,
        )


def _blame(outputs: Mapping[str, Tensor], t: int) -> str:
    """Say which prediction of frame ``t`` makes a matching cost infinite or not a number."""
    broken = [name for name in ("pred_logits", "pred_masks") if not outputs[name][t].isfinite().all()]
    cause = (
        f"not finite: {', '.join(broken)}" if broken else "the predictions are finite, the cost overflowed"
    )
    return f"the matching cost in frame {t} of the clip is not finite ({cause})"
