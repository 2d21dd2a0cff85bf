"""A batch sampler that never mixes groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data.sampler import BatchSampler, Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Collect the indices of a sampler into batches whose elements belong to one group.

    The order of the sampler is kept as far as possible. Batches that never fill up are dropped.

    Args:
        sampler: gives the indices.
        group_ids: the group of every index, any integer.
        batch_size: number of indices of a batch.

    Raises:
        ValueError: if ``sampler`` is no ``torch.utils.data.Sampler``.
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int) -> None:
        if not isinstance(sampler, Sampler):
            raise ValueError(
                f"sampler should be an instance of torch.utils.data.Sampler, but got sampler={sampler}"
            )
        self.sampler = sampler
        self.group_ids = np.asarray(group_ids)
        assert self.group_ids.ndim == 1, f"group_ids must be one-dimensional, got {self.group_ids.shape}"
        self.batch_size = batch_size
        self.buffer_per_group: dict[int, list[int]] = {int(group): [] for group in np.unique(self.group_ids)}

    def __iter__(self) -> Iterator[list[int]]:
        for index in self.sampler:
            buffer = self.buffer_per_group[int(self.group_ids[index])]
            buffer.append(index)
            if len(buffer) == self.batch_size:
                batch = buffer[:]
                del buffer[:]
                yield batch

    def __len__(self) -> int:
        raise NotImplementedError("len() of GroupedBatchSampler is not well-defined.")
