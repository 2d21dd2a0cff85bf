"""What is done with the losses of single clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["mean_losses"]


def mean_losses(per_clip: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average each loss over clips: a batch then gives what its clips give one after the other.

    Losses that are normalised over a whole batch would instead weigh a clip by its number of objects.

    Args:
        per_clip: losses of each clip, all with the same names; at least one clip.

    Source: project choice; with one clip per process, as published, it changes nothing.
    """
    return {name: torch.stack([losses[name] for losses in per_clip]).mean() for name in per_clip[0]}
