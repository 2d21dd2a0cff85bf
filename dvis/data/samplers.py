"""Which frames make a clip, and which clips make a training run.

A *frame sampler* is a pure function of a video's length and a generator. The *clip stream* is the endless
order in which clips are drawn from one or several data sets; every clip carries its own seed, so its content
depends neither on the number of workers nor on where a run was stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from detectron2.utils import comm
from torch.utils.data import Sampler

__all__ = [
    "ClipKey",
    "ClipStream",
    "ContiguousFrames",
    "FrameSampler",
    "NearbyFrames",
    "RepeatedFrame",
    "SparseFrame",
    "build_frame_sampler",
]


class FrameSampler(Protocol):
    """Chooses the frames of a clip; the order of the result is the order in the clip."""

    def __call__(self, length: int, rng: np.random.Generator) -> list[int]: ...


@dataclass(frozen=True)
class NearbyFrames:
    """A random frame and others near it, in temporal order.

    Attributes:
        num_frames: frames of a clip.
        max_distance: largest distance of another frame to the first one, in frames.
        shuffle: give the frames in random order.
        reverse: play the clip backwards half of the time.
        as_published: draw the other frames with replacement also where there are enough, as DVIS does.

    Source: MinVIS and DVIS, training clips; reference behaviour 4.
    """

    num_frames: int
    max_distance: int
    shuffle: bool = False
    reverse: bool = False
    as_published: bool = False

    def __call__(self, length: int, rng: np.random.Generator) -> list[int]:
        key = int(rng.integers(length))
        first, last = max(0, key - self.max_distance), min(length - 1, key + self.max_distance)
        others = [t for t in range(first, last + 1) if t != key] or [key]
        missing = self.num_frames - 1
        repeat = self.as_published or missing > len(others)
        frames = sorted([key, *rng.choice(others, size=missing, replace=repeat).tolist()])
        if self.shuffle:
            frames = [frames[i] for i in rng.permutation(len(frames))]
        return _maybe_reversed(frames, self.reverse, rng)


@dataclass(frozen=True)
class ContiguousFrames:
    """Neighbouring frames; a video that is too short is filled up with frames drawn again, in temporal order.

    Attributes:
        num_frames: frames of a clip.
        reverse: play the clip backwards half of the time.
        as_published: never start at the last possible frame, and append the frames that fill a short video
            instead of sorting them in, as DVIS does.

    Source: DVIS, training clips; reference behaviour 4.
    """

    num_frames: int
    reverse: bool = False
    as_published: bool = False

    def __call__(self, length: int, rng: np.random.Generator) -> list[int]:
        spare = length - self.num_frames
        if spare < 0:
            fill = rng.integers(length, size=-spare).tolist()
            frames = [*range(length), *fill]
            frames = frames if self.as_published else sorted(frames)
        else:
            starts = max(spare, 1) if self.as_published else spare + 1
            start = int(rng.integers(starts))
            frames = list(range(start, start + self.num_frames))
        return _maybe_reversed(frames, self.reverse, rng)


@dataclass(frozen=True)
class SparseFrame:
    """One of an evenly spaced subset of a video's frames: training with few annotated frames.

    Attributes:
        ratio: share of the frames in the subset; at least one frame is in it.

    Source: MinVIS (arXiv:2208.02245), section 4, sub-sampled annotation.
    """

    ratio: float

    def __call__(self, length: int, rng: np.random.Generator) -> list[int]:
        count = max(round(length * self.ratio), 1)
        if count == 1:
            return [length // 2]
        subset = np.linspace(0, length, num=count, endpoint=False, dtype=int)
        return [int(subset[rng.integers(count)])]


@dataclass(frozen=True)
class RepeatedFrame:
    """The same random frame again and again: a pseudo video, once it is augmented frame by frame.

    Attributes:
        num_frames: frames of a clip.

    Source: SeqFormer and VITA, pseudo videos from images.
    """

    num_frames: int

    def __call__(self, length: int, rng: np.random.Generator) -> list[int]:
        return [int(rng.integers(length))] * self.num_frames


def build_frame_sampler(
    num_frames: int,
    frame_range: int,
    *,
    ratio: float = 1.0,
    shuffle: bool = False,
    reverse: bool = False,
    as_published: bool = False,
) -> FrameSampler:
    """The sampler that the published configuration keys ``INPUT.SAMPLING_FRAME_*`` describe.

    Args:
        num_frames: frames of a clip.
        frame_range: largest distance to the key frame; if the whole range makes a clip (``2 range + 1 ==
            num_frames``) its frames are contiguous.
        ratio: share of a video's frames to train on; below 1 only for clips of one frame.
        shuffle: see `NearbyFrames`.
        reverse: see `NearbyFrames`.
        as_published: see `NearbyFrames` and `ContiguousFrames`.

    Raises:
        ValueError: for settings that exclude each other or are out of range; names the key.
    """
    if num_frames < 1:
        raise ValueError(f"INPUT.SAMPLING_FRAME_NUM must be at least 1, got {num_frames}")
    if frame_range < 0:
        raise ValueError(f"INPUT.SAMPLING_FRAME_RANGE must not be negative, got {frame_range}")
    if not 0 < ratio <= 1:
        raise ValueError(f"INPUT.SAMPLING_FRAME_RATIO must be above 0 and at most 1, got {ratio}")
    if ratio < 1:
        if num_frames != 1:
            raise ValueError(
                f"INPUT.SAMPLING_FRAME_RATIO below 1 needs INPUT.SAMPLING_FRAME_NUM 1, got {num_frames}"
            )
        return SparseFrame(ratio)
    if num_frames > 1 and 2 * frame_range + 1 == num_frames and not shuffle:
        return ContiguousFrames(num_frames, reverse, as_published)
    return NearbyFrames(num_frames, frame_range, shuffle, reverse, as_published)


def _maybe_reversed(frames: list[int], reverse: bool, rng: np.random.Generator) -> list[int]:
    return frames[::-1] if reverse and rng.random() < 0.5 else frames


class ClipKey(NamedTuple):
    """Names one training clip: which data set, which video of it, and the seed of everything random in it."""

    dataset: int
    video: int
    seed: tuple[int, int]


class ClipStream(Sampler[ClipKey]):
    """The endless stream of training clips of this process.

    Every data set has its own queue: a permutation of its videos that is drawn anew when it is used up. For
    each clip a data set is drawn by ratio and the next video is taken from its queue. All processes walk
    through the same global stream; process r of n takes the clips r, r + n, r + 2n, ...

    Args:
        sizes: number of videos of each data set.
        ratios: share of each data set in the stream; any positive scale.
        seed: seed of the stream, equal in all processes.
        start: number of clips of the global stream to leave out, to continue a stopped run.
        rank: number of this process; None: as detectron2 knows it.
        world_size: number of processes; None: as detectron2 knows it.

    Raises:
        ValueError: if there is nothing to draw from, or a ratio is negative.

    Source: project choice.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        ratios: Sequence[float],
        seed: int,
        *,
        start: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if len(sizes) != len(ratios):
            raise ValueError(f"{len(sizes)} data sets need as many ratios, got {len(ratios)}")
        if min(ratios, default=0) < 0 or not sum(ratios) > 0:
            raise ValueError(
                f"DATASETS.DATASET_RATIO must not be negative, nor 0 everywhere, got {list(ratios)}"
            )
        empty = [
            k for k, (size, ratio) in enumerate(zip(sizes, ratios, strict=True)) if ratio > 0 and size < 1
        ]
        if empty:
            raise ValueError(f"training data sets number {empty} have no videos to draw from")
        self.sizes = list(sizes)
        self.probabilities = np.asarray(ratios, dtype=np.float64) / sum(ratios)
        self.seed = seed
        self.start = start
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size

    def __iter__(self) -> Iterator[ClipKey]:
        yield from itertools.islice(self._global_stream(), self.start + self.rank, None, self.world_size)

    def _global_stream(self) -> Iterator[ClipKey]:
        queues = [self._queue(k) for k in range(len(self.sizes))]
        chooser = np.random.default_rng([self.seed, len(self.sizes)])
        for position in itertools.count():
            k = int(chooser.choice(len(self.sizes), p=self.probabilities)) if len(self.sizes) > 1 else 0
            yield ClipKey(k, next(queues[k]), (self.seed, position))

    def _queue(self, k: int) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, k])
        while True:
            yield from rng.permutation(self.sizes[k]).tolist()
