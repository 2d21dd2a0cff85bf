"""Samplers that know about the other processes."""

from __future__ import annotations

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from detectron2.utils import comm
from torch.utils.data.sampler import Sampler

__all__ = [
    "InferenceSampler",
    "RandomSubsetTrainingSampler",
    "RepeatFactorTrainingSampler",
    "TrainingSampler",
]

logger = logging.getLogger(__name__)


class TrainingSampler(Sampler):
    """An infinite stream of indices, of which every process takes its share.

    All processes walk over the same stream (a concatenation of permutations of all indices, from a shared
    seed) and process r of n takes elements r, r + n, r + 2n, ... An epoch therefore has no boundary.

    Args:
        size: number of elements of the data set.
        shuffle: whether to permute the indices, anew in every round.
        seed: of the permutations, the same on all processes; None draws one and shares it.

    Raises:
        TypeError: if ``size`` is no int.
        ValueError: if ``size`` is not positive.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler(size=) expects an int. Got type {type(size)}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler(size=) expects a positive int. Got {size}.")
        self._size = size
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """As :class:`TrainingSampler`, but over a random subset of the indices.

    Args:
        size: number of elements of the data set.
        subset_ratio: size of the subset, in (0, 1].
        shuffle: whether to permute the subset in every round.
        seed_shuffle: of the permutations.
        seed_subset: of the choice of the subset.

    Both seeds must be the same on all processes; None draws one and shares it.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        super().__init__(size=size, shuffle=shuffle, seed=seed_shuffle)
        assert 0.0 < subset_ratio <= 1.0, f"subset_ratio must be in (0, 1], got {subset_ratio}"
        self._size_subset = int(size * subset_ratio)
        assert self._size_subset > 0, f"no element is left of {size} with subset_ratio {subset_ratio}"
        generator = torch.Generator()
        generator.manual_seed(int(comm.shared_random_seed() if seed_subset is None else seed_subset))
        self._indexes_subset = torch.randperm(self._size, generator=generator)[: self._size_subset]
        logger.info("Using RandomSubsetTrainingSampler......")
        logger.info("Randomly sample %d data from the original %d data", self._size_subset, self._size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            if self._shuffle:
                order = torch.randperm(self._size_subset, generator=generator)
                yield from self._indexes_subset[order].tolist()
            else:
                yield from self._indexes_subset.tolist()


class RepeatFactorTrainingSampler(Sampler):
    """An infinite stream in which an element appears as often as its repeat factor says.

    Source: repeat factor sampling of LVIS (arXiv:1908.03195), appendix B.2.

    Args:
        repeat_factors: one factor per element. 1.3 means: once in every round, and a second time with
            probability 0.3.
        shuffle: whether to permute the indices of a round.
        seed: of permutations and fractional repeats, the same on all processes; None draws one and shares it.
    """

    def __init__(
        self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None
    ) -> None:
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._int_part = torch.trunc(repeat_factors)
        self._frac_part = repeat_factors - self._int_part

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Repeat factors from how rare the categories of an image are.

        With f(c) the fraction of images that hold category c, r(c) = max(1, sqrt(repeat_thresh / f(c))), and
        the factor of an image is the largest r of its categories (1 without annotations).

        Args:
            dataset_dicts: images with "annotations", each with "category_id".
            repeat_thresh: frequency below which a category is repeated.
            sqrt: whether to take the square root.

        Returns:
            One float32 factor per image.
        """
        categories_of_images = [
            {annotation["category_id"] for annotation in dataset_dict["annotations"]}
            for dataset_dict in dataset_dicts
        ]
        images_with: dict[int, int] = defaultdict(int)
        for category in itertools.chain.from_iterable(categories_of_images):
            images_with[category] += 1
        num_images = len(dataset_dicts)

        def category_factor(count: int) -> float:
            ratio = repeat_thresh / (count / num_images)
            return max(1.0, math.sqrt(ratio) if sqrt else ratio)

        factor_of = {category: category_factor(count) for category, count in images_with.items()}
        return torch.tensor(
            [max((factor_of[c] for c in categories), default=1.0) for categories in categories_of_images],
            dtype=torch.float32,
        )

    def _get_epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        """Indices of one round in order, repeated; a fractional part is rounded up or down at random."""
        draws = torch.rand(len(self._frac_part), generator=generator)
        repeats = self._int_part + (draws < self._frac_part).float()
        # numpy, because repeat_interleave waits for threads on a busy machine
        return torch.from_numpy(np.repeat(np.arange(len(repeats)), repeats.long().numpy()))

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            indices = self._get_epoch_indices(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()


class InferenceSampler(Sampler):
    """Every index exactly once, in order; process r gets the r-th contiguous part.

    Args:
        size: number of elements of the data set.
    """

    def __init__(self, size: int) -> None:
        assert size > 0, f"InferenceSampler(size=) expects a positive int. Got {size}."
        self._size = size
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._local_indices = self._get_local_indices(size, self._world_size, self._rank)

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, left = divmod(total_size, world_size)  # the first `left` processes get one more
        begin = share * rank + min(rank, left)
        return range(begin, begin + share + int(rank < left))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
