"""Wrappers that turn lists and data sets into other data sets."""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch.utils.data as data
from detectron2.utils.serialize import PicklableWrapper

__all__ = [
    "AspectRatioGroupedDataset",
    "DatasetFromList",
    "MapDataset",
    "NumpySerializedList",
    "ToIterableDataset",
]

logger = logging.getLogger(__name__)

# After this many rejected elements in a row somebody should hear about it.
_RETRIES_BEFORE_WARNING = 3


class MapDataset(data.Dataset):
    """Apply a function to every element of a data set.

    If the function returns None, the element is skipped: another random element takes its place in a
    map-style data set, and the next one follows in an iterable one.

    Args:
        dataset: map-style or iterable; for an iterable one the result is an iterable data set.
        map_func: called with one element; need not be picklable.
    """

    def __new__(cls, dataset: data.Dataset, map_func: Callable[[Any], Any]) -> Any:
        if isinstance(dataset, data.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple:
        return self._dataset, self._map_func

    def __init__(self, dataset: data.Dataset, map_func: Callable[[Any], Any]) -> None:
        self._dataset: Any = dataset
        self._map_func = PicklableWrapper(map_func)  # worker processes need to receive it
        self._rng = random.Random(42)
        self._fallback_candidates = set(range(len(self)))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        retry_count = 0
        current = int(idx)
        while True:
            mapped = self._map_func(self._dataset[current])
            if mapped is not None:
                self._fallback_candidates.add(current)
                return mapped
            retry_count += 1
            self._fallback_candidates.discard(current)
            # sample() raises ValueError when nothing is left that could replace the element
            current = self._rng.sample(tuple(self._fallback_candidates), k=1)[0]
            if retry_count >= _RETRIES_BEFORE_WARNING:
                logger.warning("Failed to apply `_map_func` for idx: %s, retry count: %s", idx, retry_count)


class _MapIterableDataset(data.IterableDataset):
    """The iterable counterpart of :class:`MapDataset`."""

    def __init__(self, dataset: data.IterableDataset, map_func: Callable[[Any], Any]) -> None:
        self._dataset: Any = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        for mapped in map(self._map_func, self._dataset):
            if mapped is not None:
                yield mapped


class NumpySerializedList:
    """A read-only list whose elements are kept pickled in one byte buffer.

    One array has no Python objects to count references of, so forked worker processes share its memory
    instead of copying it page by page.
    """

    def __init__(self, lst: Sequence[Any]) -> None:
        pickled = [np.frombuffer(pickle.dumps(item, protocol=-1), dtype=np.uint8) for item in lst]
        self._addr = np.cumsum([len(item) for item in pickled], dtype=np.int64)  # end of each element
        self._lst = np.concatenate(pickled) if pickled else np.zeros(0, dtype=np.uint8)
        logger.info("Serialized dataset takes %.2f MiB", len(self._lst) / 1024**2)

    def __len__(self) -> int:
        return len(self._addr)

    def __getitem__(self, idx: int) -> Any:
        index = range(len(self))[idx]  # negative and out-of-range indices behave as in a list
        start = 0 if index == 0 else self._addr[index - 1].item()
        return pickle.loads(self._lst[start : self._addr[index].item()].data)


class DatasetFromList(data.Dataset):
    """A list as a map-style data set.

    Args:
        lst: elements to produce.
        copy: whether to deep-copy an element when it is produced, so that it can be changed in place.
        serialize: whether to keep the elements serialised (then every access makes a new object anyway);
            or a callable that turns the list into a sequence with its own way to do so.
    """

    def __init__(
        self, lst: list, copy: bool = True, serialize: bool | Callable[[list], Sequence[Any]] = True
    ) -> None:
        self._copy = copy
        self._serialize = bool(serialize)
        self._lst: Any = lst
        if self._serialize:
            self._lst = serialize(lst) if callable(serialize) else NumpySerializedList(lst)

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        if self._copy and not self._serialize:
            return copy.deepcopy(self._lst[idx])
        return self._lst[idx]


def _shard_over_workers(iterable: Iterable[Any], chunk_size: int = 1) -> Iterator[Any]:
    """Give the calling data-loader worker its share: ``chunk_size`` elements, then those of the others."""
    worker_info = data.get_worker_info()
    if worker_info is None or worker_info.num_workers == 1:
        yield from iterable
        return
    iterator = iter(iterable)
    own, count = worker_info.id, worker_info.num_workers
    while chunks := list(itertools.islice(iterator, chunk_size * count)):
        yield from chunks[own * chunk_size : (own + 1) * chunk_size]


class ToIterableDataset(data.IterableDataset):
    """A map-style data set, read in a sampler's order, as an iterable data set.

    Args:
        dataset: map-style data set.
        sampler: an iterable of indices.
        shard_sampler: whether each worker of a data loader takes only its share of the indices. Set it to
            False only if the sampler already gives every worker different indices.
        shard_chunk_size: how many consecutive indices go to one worker. Workers take turns in producing
            batches, so the batch size of the loader keeps the original order.
    """

    def __init__(
        self,
        dataset: data.Dataset,
        sampler: Iterable[int],
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ) -> None:
        assert not isinstance(dataset, data.IterableDataset), dataset
        assert isinstance(sampler, Iterable), sampler
        self.dataset: Any = dataset
        self.sampler: Any = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        indices = (
            _shard_over_workers(self.sampler, self.shard_chunk_size) if self.shard_sampler else self.sampler
        )
        for index in indices:
            yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)


class AspectRatioGroupedDataset(data.IterableDataset):
    """Batches of elements that are all wider than high, or all not, to save padding.

    Args:
        dataset: iterable of dicts with "width" and "height"; typically a data loader.
        batch_size: number of elements of a batch (a list).
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: list[list[dict]] = [[], []]
        # A bucket that is not full when the iterable ends is dropped. For an infinite stream the only
        # effect of grouping is that elements come in a slightly different order.

    def __iter__(self) -> Iterator[list[dict]]:
        for element in self.dataset:
            bucket = self._buckets[0 if element["width"] > element["height"] else 1]
            bucket.append(element)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                del bucket[:]  # before yielding: the consumer may stop here and iterate again later
                yield batch
