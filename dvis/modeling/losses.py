"""What is done with the losses of single clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.utils import comm
from torch import Tensor

__all__ = ["masks_per_clip", "mean_losses"]


def masks_per_clip(counts: Sequence[int], device: torch.device, *, alone: bool = False) -> list[float]:
    """Normalisers of the mask losses: each clip's number of masks, averaged over processes, at least one.

    All processes call this together, before anything in the step can fail in one of them, and with equally
    many clips.

    Args:
        counts: number of masks of each clip of this process.
        device: where processes exchange them.
        alone: take no average; the losses of a batch then do not depend on how processes share it.

    Source: Mask2Former (arXiv:2112.01527) normalises by the mean number over processes.
    """
    means = [float(count) for count in counts]
    if comm.get_world_size() > 1 and not alone:
        totals = torch.tensor(means, device=device)
        torch.distributed.all_reduce(totals)
        means = (totals / comm.get_world_size()).tolist()
    return [max(mean, 1.0) for mean in means]


def mean_losses(per_clip: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average each loss over clips: a batch then gives what its clips give one after the other.

    Losses that are normalised over a whole batch would instead weigh a clip by its number of objects.

    Args:
        per_clip: losses of each clip, all with the same names; at least one clip.

    Source: project choice; with one clip per process, as published, it changes nothing.
    """
    return {name: torch.stack([losses[name] for losses in per_clip]).mean() for name in per_clip[0]}
