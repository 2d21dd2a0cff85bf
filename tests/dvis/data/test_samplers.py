"""Frame samplers and the stream of clips."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from dvis.data.samplers import (
    ClipStream,
    ContiguousFrames,
    NearbyFrames,
    RepeatedFrame,
    SparseFrame,
    build_frame_sampler,
)


def draws(sampler: object, length: int, count: int = 300, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [sampler(length, rng) for _ in range(count)]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("length", "num", "distance"), [(30, 5, 4), (30, 1, 20), (3, 5, 20), (1, 4, 3), (7, 3, 0)]
)
def test_nearby_frames_are_near_sorted_and_distinct_where_possible(
    length: int, num: int, distance: int
) -> None:
    for frames in draws(NearbyFrames(num, distance), length):
        assert len(frames) == num
        assert frames == sorted(frames)
        assert 0 <= frames[0] <= frames[-1] < length
        assert frames[-1] - frames[0] <= 2 * distance
        assert any(all(abs(t - key) <= distance for t in frames) for key in frames)
        if distance >= num - 1 and length >= num + distance:
            assert len(set(frames)) == num


def test_nearby_frames_as_published_repeat() -> None:
    assert all(len(set(frames)) == 5 for frames in draws(NearbyFrames(5, 4), 30))
    assert any(len(set(frames)) < 5 for frames in draws(NearbyFrames(5, 4, as_published=True), 30))


def test_every_frame_is_reached() -> None:
    assert {t for frames in draws(NearbyFrames(3, 2), 9) for t in frames} == set(range(9))
    assert {frames[-1] for frames in draws(ContiguousFrames(3), 9)} == set(range(2, 9))
    # The published rule never draws the last start.
    assert {frames[-1] for frames in draws(ContiguousFrames(3, as_published=True), 9)} == set(range(2, 8))


def test_contiguous_frames_of_exact_and_short_videos() -> None:
    for as_published in (False, True):
        assert set(map(tuple, draws(ContiguousFrames(4, as_published=as_published), 4))) == {(0, 1, 2, 3)}
    for frames in draws(ContiguousFrames(7), 3):
        assert len(frames) == 7
        assert frames == sorted(frames)
        assert set(frames) == {0, 1, 2}
    published = draws(ContiguousFrames(7, as_published=True), 3)
    assert all(frames[:3] == [0, 1, 2] for frames in published)
    assert any(frames != sorted(frames) for frames in published)


def test_reversal_and_shuffling() -> None:
    for sampler in (ContiguousFrames(4, reverse=True), NearbyFrames(4, 5, reverse=True)):
        forward = sum(frames == sorted(frames) for frames in draws(sampler, 20))
        backward = sum(frames == sorted(frames, reverse=True) for frames in draws(sampler, 20))
        assert forward + backward == 300
        assert 100 < forward < 200
    orders = {tuple(np.argsort(frames)) for frames in draws(NearbyFrames(3, 5, shuffle=True), 20)}
    assert len(orders) == 6


def test_sparse_frames_follow_minvis() -> None:
    assert {tuple(frames) for frames in draws(SparseFrame(0.1), 40)} == {(0,), (10,), (20,), (30,)}
    assert {tuple(frames) for frames in draws(SparseFrame(0.01), 41)} == {(20,)}


def test_repeated_frame() -> None:
    assert draws(RepeatedFrame(3), 1, 2) == [[0, 0, 0], [0, 0, 0]]


def test_published_settings_choose_the_sampler() -> None:
    assert build_frame_sampler(1, 20) == NearbyFrames(1, 20)
    assert build_frame_sampler(2, 20) == NearbyFrames(2, 20)
    assert build_frame_sampler(21, 10, reverse=True) == ContiguousFrames(21, reverse=True)
    assert build_frame_sampler(1, 20, ratio=0.05) == SparseFrame(0.05)
    for arguments, message in (
        ((0, 3), "SAMPLING_FRAME_NUM"),
        ((2, -1), "SAMPLING_FRAME_RANGE"),
        ((2, 3, 0.5), "needs INPUT.SAMPLING_FRAME_NUM 1"),
        ((1, 3, 0.0), "SAMPLING_FRAME_RATIO"),
    ):
        with pytest.raises(ValueError, match=message):
            build_frame_sampler(*arguments[:2], ratio=arguments[2] if len(arguments) > 2 else 1.0)


def take(stream: ClipStream, count: int) -> list[tuple]:
    return list(itertools.islice(stream, count))


def test_every_video_comes_once_before_any_comes_again() -> None:
    keys = take(ClipStream([5, 3], [1.0, 1.0], seed=0), 400)
    for k, size in enumerate([5, 3]):
        videos = [key.video for key in keys if key.dataset == k]
        for start in range(0, len(videos) - size, size):
            assert sorted(videos[start : start + size]) == list(range(size))


def test_ratios_are_kept_and_need_not_add_up() -> None:
    share = Counter(key.dataset for key in take(ClipStream([10, 10, 10], [1.0, 0.75, 0.0], seed=3), 7000))
    assert share[0] / 7000 == pytest.approx(1 / 1.75, abs=0.02)
    assert share[2] == 0


def test_stream_depends_on_the_seed_only() -> None:
    make = lambda **kw: ClipStream([50, 20], [1.0, 0.75], **{"seed": 7, **kw})  # noqa: E731
    whole = take(make(), 60)
    assert take(make(), 60) == whole
    assert take(make(seed=8), 60) != whole
    assert take(make(start=24), 36) == whole[24:]
    parts = [take(make(start=12, rank=rank, world_size=3), 16) for rank in range(3)]
    assert [parts[i % 3][i // 3] for i in range(48)] == whole[12:]
    assert len({key.seed for key in whole}) == 60


def test_nothing_to_draw_from() -> None:
    with pytest.raises(ValueError, match="DATASET_RATIO"):
        ClipStream([3], [0.0], seed=0)
    with pytest.raises(ValueError, match="DATASET_RATIO"):
        ClipStream([3, 4], [1.0, -1.0], seed=0)
    with pytest.raises(ValueError, match="no videos"):
        ClipStream([3, 0], [1.0, 1.0], seed=0)
    with pytest.raises(ValueError, match="as many ratios"):
        ClipStream([3], [1.0, 1.0], seed=0)
