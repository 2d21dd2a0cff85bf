"""One inference loop for every mode: segment a window, link it, maybe refine it, store it; make masks last.

============  ==================  ==================  ==================  ==================
mode          MinVIS              online              semi-online         offline
============  ==================  ==================  ==================  ==================
link by       embedding matching  referring tracker   referring tracker   referring tracker
refine over   nothing             nothing             each window         the whole video
============  ==================  ==================  ==================  ==================

Letters: T frames, Q slots, C channels, K classes (K+1 with "no object"), h w the mask grid, H W pixels.
One engine call serves one video, so the axis B is 1 where modules ask for it and absent elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from dvis.inference.postprocess import MaskSource
from dvis.inference.store import FrameStore, StoreSettings
from dvis.modeling.structures import LinkedOutput, RefinedOutput, SegmenterOutput, predict_masks

__all__ = [
    "REFINE_OVER",
    "InferenceEngine",
    "Linker",
    "Prediction",
    "PreparedFrames",
    "Refiner",
    "StreamState",
]

REFINE_OVER = ("window", "video")


class Linker(Protocol):
    """Links the frames of a window to each other and to the frames seen before.

    ``state`` is None at the start of a video; afterwards it is what the previous call returned (MinVIS:
    the last frame's queries; tracker: a ``TrackerState``). It is a frozen dataclass and is never modified
    in place. Calling once with T frames or T times with one frame gives the same result.
    """

    def __call__(self, segmented: SegmenterOutput, state: Any | None) -> tuple[LinkedOutput, Any]: ...


class Refiner(Protocol):
    """Corrects linked objects with all frames it is given.

    Args:
        queries: linked instance queries, ``B T Q C`` (``LinkedOutput.queries``).
        frame_queries: what the cross-attention looks at, ``B T Q C`` (``LinkedOutput.frame_queries``).
    """

    def __call__(self, queries: Tensor, frame_queries: Tensor) -> RefinedOutput: ...


@dataclass(frozen=True)
class PreparedFrames:
    """A window as the segmenter takes it.

    Attributes:
        frames: normalised and padded, ``1 T 3 H W``.
        image_size: (height, width) of the part that is image.
    """

    frames: Tensor
    image_size: tuple[int, int]

    @property
    def padded_size(self) -> tuple[int, int]:
        return self.frames.shape[-2], self.frames.shape[-1]


@dataclass(frozen=True)
class ScoreSum:
    """Class logits summed over the frames seen so far: enough for their mean, however long a stream is.

    Attributes:
        total: ``Q K+1`` float64, so that the order of summation does not show.
        num_frames: how many frames are in it.
    """

    total: Tensor
    num_frames: int

    @property
    def mean(self) -> Tensor:
        return (self.total / self.num_frames).float()


@dataclass(frozen=True)
class StreamState:
    """All that is remembered of a stream between two calls; its size does not depend on the stream's length.

    Attributes:
        link: the linker's own state.
        linked: sum of the linked class logits.
        refined: sum of the refined class logits, each window's counted once per frame; None if nothing
            refines.
        num_frames: frames seen so far.
    """

    link: Any
    linked: ScoreSum
    refined: ScoreSum | None
    num_frames: int


@dataclass(frozen=True)
class Prediction:
    """What is known of a video, or of one frame of a stream: what :func:`postprocess` needs.

    Attributes:
        probabilities: class probabilities over all frames seen so far, ``Q K+1``.
        linked_logits: mean of the linked class logits, ``Q K+1``.
        refined_logits: class logits of the refiner, ``Q K+1``; None if nothing refines.
        masks: mask logits on demand; they may live in a store, see :meth:`close`.
        image_size: (height, width) of the model's input without padding.
        padded_size: (H, W) of the model's input.
        state: what continues the stream after these frames; None for a frame inside a window.
    """

    probabilities: Tensor
    linked_logits: Tensor
    refined_logits: Tensor | None
    masks: MaskSource
    image_size: tuple[int, int]
    padded_size: tuple[int, int]
    state: StreamState | None
    store: FrameStore | None = None

    def __enter__(self) -> Prediction:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory of the masks back; they cannot be read any more."""
        if self.store is not None:
            self.store.close()


@dataclass(frozen=True)
class _Window:
    """A linked (and maybe refined) window; see :class:`LinkedOutput` for the fields, here without B."""

    linked: LinkedOutput
    refined: RefinedOutput | None
    mask_features: Tensor
    image_size: tuple[int, int]
    padded_size: tuple[int, int]

    @property
    def mask_embeds(self) -> Tensor:
        return (self.refined or self.linked).mask_embeds


class StoredMasks:
    """Mask logits that were made when their window was seen; ``masks`` in the store, ``T Q h w``."""

    def __init__(self, store: FrameStore) -> None:
        self.store = store

    @property
    def num_frames(self) -> int:
        return self.store.num_frames("masks")

    def read(self, slots: Tensor, start: int, stop: int) -> Tensor:
        return self.store.read("masks", start, stop, slots).transpose(0, 1)


class EmbeddedMasks:
    """Mask logits made on demand from embeddings ``T Q C`` and the mask features of a frame range."""

    def __init__(self, mask_embeds: Tensor, read_features: Callable[[int, int], Tensor]) -> None:
        """
        Args:
            mask_embeds: ``T Q C``.
            read_features: (start, stop) to mask features ``T C h w``.
        """
        self.mask_embeds = mask_embeds
        self.read_features = read_features

    @property
    def num_frames(self) -> int:
        return self.mask_embeds.shape[0]

    def read(self, slots: Tensor, start: int, stop: int) -> Tensor:
        # Frame by frame, because the mask features of a frame are larger than the masks of many slots.
        masks = [
            predict_masks(self.mask_embeds[None, t : t + 1, slots], self.read_features(t, t + 1)[None])[0]
            for t in range(start, stop)
        ]
        return torch.cat(masks, dim=1)


class InferenceEngine:
    """Runs one video, or an endless stream, through segmenter, linker and refiner.

    It holds no state: two videos can never mix, and what continues a stream is a :class:`StreamState` of
    the caller.
    """

    def __init__(
        self,
        *,
        prepare: Callable[[Sequence[Tensor]], PreparedFrames],
        segment: Callable[[Tensor], SegmenterOutput],
        link: Linker,
        refine: Refiner | None = None,
        refine_over: str = "video",
        window_size: int = 3,
        store: StoreSettings | None = None,
    ) -> None:
        """
        Args:
            prepare: frames of one size, ``3 height width`` each, to the segmenter's input.
            segment: frames ``1 T 3 H W`` to what is in each of them.
            link: see :class:`Linker`.
            refine: see :class:`Refiner`; None: linked objects are the result.
            refine_over: ``video`` (offline) or ``window`` (semi-online); of no meaning without ``refine``.
            window_size: frames that are segmented together. It changes memory and speed, not results, except
                that it is what the refiner sees if it refines windows.
            store: budgets for what is kept of a video.

        Raises:
            ValueError: for an unknown ``refine_over`` or a window of no frame.
        """
        if refine_over not in REFINE_OVER:
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.REFINE_OVER is {refine_over!r}; allowed are {', '.join(REFINE_OVER)}"
            )
        if window_size < 1:
            raise ValueError(f"MODEL.MASK_FORMER.TEST.WINDOW_SIZE must be at least 1, not {window_size}")
        self.prepare = prepare
        self.segment = segment
        self.link = link
        self.refine = refine
        self.refines_windows = refine is not None and refine_over == "window"
        self.refines_video = refine is not None and refine_over == "video"
        self.window_size = window_size
        self.store_settings = store or StoreSettings()

    def run(self, frames: Iterable[Tensor], state: StreamState | None = None) -> Prediction:
        """Process a whole video (or the next part of a longer one).

        Args:
            frames: ``3 height width`` each, all of one size; consumed once, window by window.
            state: what an earlier call on the same stream returned; its scores then count on. A refiner
                over the video sees only the frames of this call.

        Returns:
            The prediction, whose masks can be read until it is closed; use it in a ``with`` statement.

        Raises:
            ValueError: if there is no frame, or frames differ in size.
        """
        with ExitStack() as on_error:
            store = on_error.enter_context(FrameStore(self.store_settings))
            last: tuple[_Window, StreamState] | None = None
            for last in self._windows(frames, state):
                self._keep(store, last[0])
            if last is None:
                raise ValueError("the video has no frames")
            prediction = self._finish(store, *last)
            on_error.pop_all()
        return prediction

    def stream(self, frames: Iterable[Tensor], state: StreamState | None = None) -> Iterator[Prediction]:
        """Process an endless stream in constant memory; the result of a frame depends on no later window.

        Args:
            frames: as for :meth:`run`.
            state: continues an earlier stream.

        Yields:
            One prediction per frame, with the class probabilities of all frames so far. With windows of
            more than one frame, the frames of a window come together; without a refiner, results do not
            depend on that.

        Raises:
            ValueError: if the refiner needs the whole video.
        """
        if self.refines_video:
            raise ValueError(
                "an offline model refines over the whole video and cannot stream; use an online model or set "
                "MODEL.MASK_FORMER.TEST.REFINE_OVER to 'window'"
            )
        before = state
        for window, after in self._windows(frames, state):
            yield from self._frames_of(window, before, after)
            before = after

    def _windows(
        self, frames: Iterable[Tensor], state: StreamState | None
    ) -> Iterator[tuple[_Window, StreamState]]:
        iterator = iter(frames)
        image_size = None
        while window_frames := list(islice(iterator, self.window_size)):
            first_frame = 0 if state is None else state.num_frames
            _check_sizes(window_frames, image_size, first_frame)
            try:
                window, state = self._step(window_frames, state)
            except FloatingPointError as error:
                last_frame = first_frame + len(window_frames) - 1
                raise type(error)(f"frames {first_frame} to {last_frame}: {error}") from error
            image_size = window.image_size
            yield window, state

    @torch.no_grad()
    def _step(self, frames: Sequence[Tensor], state: StreamState | None) -> tuple[_Window, StreamState]:
        """Segment, link and maybe refine one window; every frame goes through here."""
        prepared = self.prepare(frames)
        segmented = self.segment(prepared.frames)
        linked, link_state = self.link(segmented, None if state is None else state.link)
        refined, refined_scores = None, None
        if self.refine is not None and self.refines_windows:
            refined = self.refine(linked.queries, _needed(linked.frame_queries))
            # One set of logits for the window stands for each of its frames.
            repeated = refined.logits[0].expand(len(frames), -1, -1)
            refined_scores = _add_scores(None if state is None else state.refined, repeated)
        new_state = StreamState(
            link=link_state,
            linked=_add_scores(None if state is None else state.linked, linked.logits[0]),
            refined=refined_scores,
            num_frames=len(frames) + (0 if state is None else state.num_frames),
        )
        window = _Window(linked, refined, segmented.mask_features, prepared.image_size, prepared.padded_size)
        return window, new_state

    def _keep(self, store: FrameStore, window: _Window) -> None:
        """Store what the masks of a window will be made from; mask logits are smaller than mask features."""
        if self.refines_video:
            store.append("queries", window.linked.queries[0])
            store.append("frame_queries", _needed(window.linked.frame_queries)[0])
            store.append("mask_features", window.mask_features[0])
        else:
            # With frames in the place of videos the frame axis comes first, as it is stored.
            masks = predict_masks(window.mask_embeds[0][:, None], window.mask_features[0][:, None])
            store.append("masks", masks[:, :, 0])

    @torch.no_grad()
    def _finish(self, store: FrameStore, window: _Window, state: StreamState) -> Prediction:
        masks: MaskSource = StoredMasks(store)
        refined_logits = None if state.refined is None else state.refined.mean
        if self.refines_video:
            assert self.refine is not None
            refined = self.refine(store.read("queries")[None], store.read("frame_queries")[None])
            refined_logits = refined.logits[0]
            masks = EmbeddedMasks(
                refined.mask_embeds[0], lambda start, stop: store.read("mask_features", start, stop)
            )
        return Prediction(
            probabilities=_class_probabilities(state.linked.mean, refined_logits),
            linked_logits=state.linked.mean,
            refined_logits=refined_logits,
            masks=masks,
            image_size=window.image_size,
            padded_size=window.padded_size,
            state=state,
            store=store,
        )

    @torch.no_grad()
    def _frames_of(
        self, window: _Window, before: StreamState | None, after: StreamState
    ) -> Iterator[Prediction]:
        """One prediction per frame of a window, each with the scores that were known by then."""
        logits = window.linked.logits[0]
        scores = None if before is None else before.linked
        num_frames = len(logits)
        for t in range(num_frames):
            scores = _add_scores(scores, logits[t : t + 1])
            # The refiner has seen the whole window, so its scores hold for each frame of it.
            linked_mean = scores.mean if after.refined is None else after.linked.mean
            refined_mean = None if after.refined is None else after.refined.mean
            features = window.mask_features[0, t : t + 1]
            yield Prediction(
                probabilities=_class_probabilities(linked_mean, refined_mean),
                linked_logits=linked_mean,
                refined_logits=refined_mean,
                masks=EmbeddedMasks(window.mask_embeds[0, t : t + 1], _reader(features)),
                image_size=window.image_size,
                padded_size=window.padded_size,
                state=after if t == num_frames - 1 else None,
            )


def _needed(frame_queries: Tensor | None) -> Tensor:
    if frame_queries is None:
        raise ValueError("the linker gave no frame_queries, which the refiner needs")
    return frame_queries


def _reader(features: Tensor) -> Callable[[int, int], Tensor]:
    return lambda start, stop: features[start:stop]


def _add_scores(scores: ScoreSum | None, logits: Tensor) -> ScoreSum:
    """Add the class logits of some frames, ``T Q K+1``."""
    total = logits.double().sum(dim=0)
    if scores is None:
        return ScoreSum(total, len(logits))
    return replace(scores, total=scores.total + total, num_frames=scores.num_frames + len(logits))


def _class_probabilities(linked_logits: Tensor, refined_logits: Tensor | None) -> Tensor:
    """Class probabilities of a video, ``Q K+1``.

    The mean is one of logits, not of probabilities; with a refiner it is the larger of both opinions,
    class by class.

    Source: DVIS inference; reference behaviour 8.
    """
    linked = linked_logits.softmax(dim=-1)
    return linked if refined_logits is None else torch.maximum(refined_logits.softmax(dim=-1), linked)


def _check_sizes(frames: Sequence[Tensor], size: tuple[int, int] | None, first_frame: int) -> None:
    """Raise ``ValueError`` unless all frames are ``3 height width`` of one size."""
    for t, frame in enumerate(frames, start=first_frame):
        if frame.dim() != 3 or frame.shape[0] != 3 or 0 in frame.shape:
            raise ValueError(f"frame {t} must be `3 height width`, got shape {tuple(frame.shape)}")
        size = size or (frame.shape[1], frame.shape[2])
        if tuple(frame.shape[1:]) != size:
            raise ValueError(
                f"frame {t} has {frame.shape[1]} x {frame.shape[2]} pixels, the frames before "
                f"{size[0]} x {size[1]}; all frames of a video must have one size"
            )
