"""Samplers: order, sharding over processes, repeat factors."""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from typing import Any

import pytest
import torch
from detectron2.data import DatasetFromList, ToIterableDataset
from detectron2.data.build import worker_init_reset_seed
from detectron2.data.samplers import (
    GroupedBatchSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import DataLoader
from torch.utils.data.sampler import SequentialSampler


def take(sampler: Any, count: int) -> list[int]:
    return list(itertools.islice(sampler, count))


# ------------------------------------------------------------------ groups


@pytest.mark.parametrize("groups", [[1] * 100, [1, 0] * 50])
def test_batches_hold_one_group(groups: list[int]) -> None:
    sampler = GroupedBatchSampler(SequentialSampler(list(range(100))), groups, 2)
    batches = [batch for batch in sampler]  # noqa: C416 - list() would ask for the length, which is undefined
    assert len(batches) == 50
    assert all(len({groups[index] for index in batch}) == 1 for batch in batches)


def test_grouped_sampler_wants_a_sampler() -> None:
    with pytest.raises(ValueError):
        GroupedBatchSampler([1, 2, 3], [0, 0, 0], 2)  # type: ignore[arg-type]


# ------------------------------------------------------------------ training


def test_training_sampler_is_a_stream_of_permutations() -> None:
    stream = take(TrainingSampler(30, seed=7), 90)
    rounds = [stream[i : i + 30] for i in (0, 30, 60)]
    assert all(sorted(r) == list(range(30)) for r in rounds)
    assert rounds[0] != rounds[1]
    assert stream == take(TrainingSampler(30, seed=7), 90)
    assert stream != take(TrainingSampler(30, seed=8), 90)
    assert take(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_training_sampler_uses_the_permutations_of_torch() -> None:
    generator = torch.Generator()
    generator.manual_seed(5)
    expected = (
        torch.randperm(20, generator=generator).tolist() + torch.randperm(20, generator=generator).tolist()
    )
    assert take(TrainingSampler(20, seed=5), 40) == expected


def test_training_sampler_without_a_seed_follows_the_global_one() -> None:
    seed_all_rng(42)
    first = take(TrainingSampler(30), 65)
    seed_all_rng(42)
    assert take(TrainingSampler(30), 65) == first


def test_processes_share_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = take(TrainingSampler(10, seed=3), 40)
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert take(TrainingSampler(10, seed=3), 10) == whole[rank::4]


@pytest.mark.parametrize(
    ("size", "error"), [(1.5, TypeError), ("3", TypeError), (0, ValueError), (-1, ValueError)]
)
def test_training_sampler_wants_a_positive_int(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        TrainingSampler(size)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("chunk", [1, 4])
def test_iterable_data_set_keeps_the_order_of_the_sampler(num_workers: int, chunk: int) -> None:
    expected = take(TrainingSampler(100, seed=10), 96)
    dataset = ToIterableDataset(
        DatasetFromList(list(range(100))), TrainingSampler(100, seed=10), shard_chunk_size=chunk
    )
    loader = DataLoader(
        dataset,
        batch_size=chunk,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=worker_init_reset_seed,
    )
    batches: list[Any] = take(loader, 96 // chunk)
    assert list(itertools.chain(*batches)) == expected


def test_single_elements_of_two_workers_keep_the_order() -> None:
    dataset = ToIterableDataset(DatasetFromList(list(range(100))), TrainingSampler(100, seed=10))
    loader = DataLoader(dataset, num_workers=2, collate_fn=operator.itemgetter(0))
    assert take(loader, 100) == take(TrainingSampler(100, seed=10), 100)


# ------------------------------------------------------------------ subset


def test_random_subset_is_fixed_and_shuffled() -> None:
    sampler = RandomSubsetTrainingSampler(50, 0.3, seed_shuffle=1, seed_subset=2)
    stream = take(sampler, 45)
    rounds = [stream[i : i + 15] for i in (0, 15, 30)]
    assert set(rounds[0]) == set(rounds[1]) == set(rounds[2])
    assert len(set(rounds[0])) == 15
    assert rounds[0] != rounds[1]
    other_order = take(RandomSubsetTrainingSampler(50, 0.3, seed_shuffle=9, seed_subset=2), 15)
    assert set(other_order) == set(rounds[0])
    assert other_order != rounds[0]
    assert set(take(RandomSubsetTrainingSampler(50, 0.3, seed_shuffle=1, seed_subset=3), 15)) != set(
        rounds[0]
    )
    plain = RandomSubsetTrainingSampler(50, 0.3, shuffle=False, seed_shuffle=1, seed_subset=2)
    assert take(plain, 15) == take(plain, 15)


@pytest.mark.parametrize("ratio", [0.0, 1.5, 0.001])
def test_random_subset_must_not_be_empty(ratio: float) -> None:
    with pytest.raises(AssertionError):
        RandomSubsetTrainingSampler(50, ratio)


# ------------------------------------------------------------------ repeat factors


def dicts_of(*categories: list[int]) -> list[dict]:
    return [{"annotations": [{"category_id": c} for c in image]} for image in categories]


def test_repeat_factors() -> None:
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dicts_of([0, 1], [0], []), 0.5
    )
    torch.testing.assert_close(factors, torch.tensor([math.sqrt(3 / 2), 1.0, 1.0]))


def test_a_category_counts_once_per_image() -> None:
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dicts_of([1, 1, 1], [0], [0], [0]), 0.5
    )
    torch.testing.assert_close(factors, torch.tensor([math.sqrt(2), 1.0, 1.0, 1.0]))


def test_elements_appear_as_often_as_their_factor() -> None:
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.0, 1.5, 3.25]), seed=0)
    counts = Counter(take(sampler, 31_000))  # some 4000 rounds
    ratios = [counts[i] / counts[0] for i in range(4)]
    assert ratios[1] == pytest.approx(2.0, abs=0.01)
    assert ratios[2] == pytest.approx(1.5, abs=0.05)
    assert ratios[3] == pytest.approx(3.25, abs=0.05)
    assert take(RepeatFactorTrainingSampler(torch.tensor([1.0, 2.0, 3.0]), shuffle=False), 6) == [
        0,
        1,
        1,
        2,
        2,
        2,
    ]


def test_repeat_factor_sampler_is_reproducible_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = torch.tensor([1.3, 2.6, 1.0])
    whole = take(RepeatFactorTrainingSampler(factors, seed=4), 60)
    assert whole == take(RepeatFactorTrainingSampler(factors, seed=4), 60)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert take(RepeatFactorTrainingSampler(factors, seed=4), 20) == whole[rank::3]


# ------------------------------------------------------------------ inference


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, [range(0)] * 5),
        (16, [range(8), range(8, 16)]),
        (2, [range(1), range(1, 2), range(0)]),
        (42, [range(11), range(11, 22), range(22, 32), range(32, 42)]),
    ],
)
def test_local_indices(size: int, expected: list[range]) -> None:
    local = [InferenceSampler._get_local_indices(size, len(expected), rank) for rank in range(len(expected))]
    assert local == expected


def test_inference_sampler_gives_everything_in_order() -> None:
    sampler = InferenceSampler(7)
    assert list(sampler) == list(range(7))
    assert len(sampler) == 7
    with pytest.raises(AssertionError):
        InferenceSampler(0)
