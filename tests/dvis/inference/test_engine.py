from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dvis.inference.engine import InferenceEngine, Prediction, PreparedFrames
from dvis.inference.store import StoreSettings
from dvis.modeling.meta_arch import VideoModel
from dvis.modeling.structures import LinkedOutput, RefinedOutput, SegmenterOutput
from tests.dvis.tiny import NUM_QUERIES, shared_tiny_model, tiny_model, tiny_video

MODES = ["minvis", "online", "offline"]
ALL = torch.arange(NUM_QUERIES)


def with_settings(model: VideoModel, **changes: Any) -> InferenceEngine:
    """The model's engine with other inference settings."""
    engine = model.engine()
    settings = {
        "prepare": engine.prepare,
        "segment": engine.segment,
        "link": engine.link,
        "refine": engine.refine,
        "refine_over": "window" if engine.refines_windows else "video",
        "window_size": engine.window_size,
        "store": engine.store_settings,
    }
    return InferenceEngine(**{**settings, **changes})


def read_all(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Class probabilities ``Q K+1`` and mask logits ``Q T h w`` of a prediction, which is closed."""
    with prediction:
        slots = torch.arange(len(prediction.probabilities))
        masks = prediction.masks.read(slots, 0, prediction.masks.num_frames)
        return prediction.probabilities, masks


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    # Other batch sizes may choose other kernels, so results are equal up to rounding.
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_window_size_does_not_change_results(mode: str) -> None:
    model, video = shared_tiny_model(mode), tiny_video(7)
    expected = read_all(with_settings(model, window_size=3).run(video))
    for window_size in (1, 2, 7, 50):
        assert_same(read_all(with_settings(model, window_size=window_size).run(video)), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gigabytes", [0.0, 40_000 / 1024**3])
def test_budget_does_not_change_results(mode: str, gigabytes: float, tmp_path: Path) -> None:
    model, video = shared_tiny_model(mode), tiny_video(5)
    expected = read_all(model.engine().run(video))
    settings = StoreSettings(max_host_gb=gigabytes, spill_dir=str(tmp_path))
    prediction = with_settings(model, store=settings).run(video)
    assert prediction.store is not None
    assert prediction.store.bytes_used["disk"] > 0
    actual = read_all(prediction)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("mode", ["minvis", "online"])
def test_a_frame_does_not_depend_on_later_ones(mode: str) -> None:
    model = shared_tiny_model(mode)
    video = tiny_video(6)
    changed = [*video[:3], *tiny_video(3, seed=5)]
    first = [read_all(p) for p in model.engine().stream(video)]
    second = [read_all(p) for p in model.engine().stream(changed)]
    for t in range(3):
        assert torch.equal(first[t][0], second[t][0])
        assert torch.equal(first[t][1], second[t][1])
    assert not torch.equal(first[3][1], second[3][1])


@pytest.mark.parametrize("mode", ["minvis", "online"])
@pytest.mark.parametrize("window_size", [1, 3])
def test_stream_ends_where_the_whole_video_does(mode: str, window_size: int) -> None:
    model, video = shared_tiny_model(mode), tiny_video(7)
    probabilities, masks = read_all(model.engine().run(video))
    frames = [read_all(p) for p in with_settings(model, window_size=window_size).stream(video)]
    assert_same((frames[-1][0], torch.cat([m for _, m in frames], dim=1)), (probabilities, masks))


@pytest.mark.parametrize("mode", ["minvis", "online"])
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_continued_stream_equals_one_pass(mode: str, cut: int) -> None:
    model, video = shared_tiny_model(mode), tiny_video(7)
    whole = [read_all(p) for p in model.engine().stream(video)]
    first = list(model.engine().stream(video[:cut]))
    second = list(model.engine().stream(video[cut:], first[-1].state))
    for actual, expected in zip([*first, *second], whole, strict=True):
        assert_same(read_all(actual), expected)


@pytest.mark.parametrize("mode", ["minvis", "online"])
def test_continued_run_has_the_scores_of_one_pass(mode: str) -> None:
    model, video = shared_tiny_model(mode), tiny_video(7)
    probabilities, masks = read_all(model.engine().run(video))
    first = model.engine().run(video[:4])
    _, first_masks = read_all(first)
    second_probabilities, second_masks = read_all(model.engine().run(video[4:], first.state))
    assert_same((second_probabilities, torch.cat([first_masks, second_masks], dim=1)), (probabilities, masks))


@pytest.mark.parametrize("mode", MODES)
def test_shuffled_queries_give_shuffled_results(mode: str) -> None:
    model, video = tiny_model(mode), tiny_video(4)
    probabilities, masks = read_all(model.engine().run(video))
    shuffle = torch.randperm(NUM_QUERIES, generator=torch.Generator().manual_seed(0))
    predictor: Any = model.get_submodule("sem_seg_head.predictor")
    for table in (predictor.query_feat, predictor.query_embed):
        table.weight.data = table.weight.data[shuffle]
    assert_same(read_all(model.engine().run(video)), (probabilities[shuffle], masks[shuffle]))


def test_states_are_never_changed() -> None:
    model, video = shared_tiny_model("online"), tiny_video(6)
    state = model.engine().run(video[:3]).state
    assert state is not None
    once = read_all(model.engine().run(video[3:], state))
    again = read_all(model.engine().run(video[3:], state))
    assert torch.equal(once[1], again[1])
    assert state.num_frames == state.linked.num_frames == 3


# An engine of plain parts, to see what passes between them.

Q, C, K = 32, 16, 3


@dataclass(frozen=True)
class Counted:
    """State of the plain linker: how many frames it has linked."""

    num_frames: int = 0


def prepare(frames: Sequence[Tensor]) -> PreparedFrames:
    return PreparedFrames(torch.stack(list(frames))[None].float(), (frames[0].shape[1], frames[0].shape[2]))


def segment(frames: Tensor) -> SegmenterOutput:
    """Queries that say what the frame's mean is; mask features of the frame's size."""
    T = frames.shape[1]
    mean = frames.mean(dim=(2, 3, 4))[0]
    queries = mean.view(1, T, 1, 1) + torch.arange(Q * C).view(1, 1, Q, C) / (Q * C)
    features = frames[:, :, :1].expand(-1, -1, C, -1, -1)
    return SegmenterOutput(queries[..., : K + 1], None, queries, features, mask_embeds=queries)


def link(segmented: SegmenterOutput, state: Counted | None) -> tuple[LinkedOutput, Counted]:
    num_frames = segmented.num_frames + (0 if state is None else state.num_frames)
    queries = segmented.queries
    linked = LinkedOutput(segmented.logits, queries, queries, frame_queries=queries + 1)
    return linked, Counted(num_frames)


class Refiner:
    """Adds one to what it gets; remembers how many frames it was given."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, queries: Tensor, frame_queries: Tensor) -> RefinedOutput:
        assert torch.equal(frame_queries, queries + 1)
        self.lengths.append(queries.shape[1])
        return RefinedOutput(queries.mean(1)[..., : K + 1].flip(-1), queries + 1, queries + 1)


def plain_engine(**changes: Any) -> InferenceEngine:
    return InferenceEngine(**{"prepare": prepare, "segment": segment, "link": link, **changes})


def plain_frames(num_frames: int, size: int = 4) -> Iterator[Tensor]:
    return (torch.full((3, size, size), float(t)) for t in range(num_frames))


def test_parts_of_a_run_without_refiner() -> None:
    with plain_engine(window_size=2).run(plain_frames(5)) as prediction:
        assert prediction.state is not None
        assert prediction.state.link == Counted(5)
        mean_logits = 2 + torch.arange(Q * C).view(Q, C)[:, : K + 1] / (Q * C)
        torch.testing.assert_close(prediction.linked_logits, mean_logits)
        assert prediction.refined_logits is None
        torch.testing.assert_close(prediction.probabilities, mean_logits.softmax(-1))
        masks = prediction.masks.read(torch.tensor([3, 0]), 1, 3)
        embeds = torch.arange(Q * C).view(Q, C)[[3, 0]] / (Q * C)
        for i, t in enumerate((1, 2)):
            expected = ((embeds + t).sum(1) * t)[:, None, None].expand(-1, 4, 4)
            torch.testing.assert_close(masks[:, i], expected)


def test_offline_refines_once_over_all_frames() -> None:
    refiner = Refiner()
    with plain_engine(window_size=2, refine=refiner).run(plain_frames(5)) as prediction:
        assert refiner.lengths == [5]
        assert prediction.refined_logits is not None
        expected = torch.maximum(prediction.linked_logits.softmax(-1), prediction.refined_logits.softmax(-1))
        torch.testing.assert_close(prediction.probabilities, expected)
        masks = prediction.masks.read(torch.tensor([0]), 4, 5)
        torch.testing.assert_close(masks[0, 0, 0, 0], (torch.arange(C) / (Q * C) + 5).sum() * 4)


def test_semi_online_refines_each_window() -> None:
    refiner = Refiner()
    engine = plain_engine(window_size=2, refine=refiner, refine_over="window")
    with engine.run(plain_frames(5)) as prediction:
        assert refiner.lengths == [2, 2, 1]
        # Each window's class logits count once per frame: the mean over windows of 2, 2 and 1 frames.
        base = torch.arange(Q * C).view(Q, C)[:, : K + 1].flip(-1) / (Q * C)
        torch.testing.assert_close(prediction.refined_logits, base + (0.5 * 2 + 2.5 * 2 + 4) / 5)
        masks = prediction.masks.read(torch.tensor([0]), 4, 5)
        torch.testing.assert_close(masks[0, 0, 0, 0], (torch.arange(C) / (Q * C) + 5).sum() * 4)
    frames = list(engine.stream(plain_frames(5)))
    torch.testing.assert_close(frames[-1].probabilities, prediction.probabilities)
    assert [p.state is not None for p in frames] == [False, True, False, True, True]


def test_frames_are_read_one_window_ahead_at_most() -> None:
    read: list[int] = []

    def frames() -> Iterator[Tensor]:
        for t, frame in enumerate(plain_frames(100)):
            read.append(t)
            yield frame

    stream = plain_engine(window_size=3).stream(frames())
    for t in range(7):
        next(stream)
        assert len(read) == 3 * (t // 3 + 1)


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1024**2


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


@needs_proc
def test_a_long_stream_takes_constant_memory() -> None:
    # Mask features of a frame take 1 MB, its masks 2 MB: 300 frames kept would be seen at once.
    stream = plain_engine().stream(plain_frames(400, size=128))
    peak_of_start = peak = 0.0
    for t, prediction in enumerate(stream):
        prediction.masks.read(torch.arange(Q), 0, 1)
        peak = max(peak, resident_megabytes())
        if t < 100:
            peak_of_start = peak
    assert peak - peak_of_start < 30


@needs_proc
@pytest.mark.parametrize("refiner", [None, Refiner()], ids=["masks", "mask features"])
def test_a_long_video_stays_within_its_budget(refiner: Refiner | None, tmp_path: Path) -> None:
    settings = StoreSettings(max_host_gb=20 / 1024, spill_dir=str(tmp_path))
    engine = plain_engine(store=settings, refine=refiner)
    with engine.run(plain_frames(20, size=128)):
        before = resident_megabytes()
    with engine.run(plain_frames(250, size=128)) as prediction:
        assert prediction.store is not None
        assert prediction.store.bytes_used["disk"] > 200 * 1024**2
        for t in range(250):
            prediction.masks.read(torch.arange(2), t, t + 1)
        assert resident_megabytes() - before < 90


def test_nothing_stays_behind_after_an_error(tmp_path: Path) -> None:
    def frames() -> Iterator[Tensor]:
        yield from plain_frames(7)
        raise OSError("broken frame")

    settings = StoreSettings(max_host_gb=0, spill_dir=str(tmp_path))
    with pytest.raises(OSError, match="broken frame"):
        plain_engine(store=settings).run(frames())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "the video has no frames"),
        ([torch.zeros(3, 4, 4)] * 4 + [torch.zeros(3, 4, 6)], r"frame 4 has 4 x 6 pixels, .* before 4 x 4"),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 6, 4)], "frame 1 has 6 x 4 pixels"),
        ([torch.zeros(4, 4, 3)], r"frame 0 must be `3 height width`, got shape \(4, 4, 3\)"),
        ([torch.zeros(3, 0, 4)], "frame 0 must be"),
    ],
)
def test_bad_frames(frames: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain_engine().run(frames)


def test_numbers_that_are_not_finite_name_the_frames() -> None:
    video = tiny_video(5)
    video[4] = torch.full_like(video[4], torch.nan)
    for mode in MODES:
        with pytest.raises(FloatingPointError, match=r"frames 3 to 4: .*frame 1 of the window"):
            shared_tiny_model(mode).engine().run(video)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="REFINE_OVER is 'clip'; allowed are window, video"):
        plain_engine(refine_over="clip")
    with pytest.raises(ValueError, match="WINDOW_SIZE must be at least 1, not 0"):
        plain_engine(window_size=0)
    with pytest.raises(ValueError, match="offline model refines over the whole video and cannot stream"):
        next(plain_engine(refine=Refiner()).stream(plain_frames(2)))


def test_refiner_without_frame_queries() -> None:
    def poor_link(segmented: SegmenterOutput, state: Any) -> tuple[LinkedOutput, Any]:
        linked, state = link(segmented, state)
        return replace(linked, frame_queries=None), state

    for refine_over in ("window", "video"):
        with pytest.raises(ValueError, match="the linker gave no frame_queries"):
            plain_engine(link=poor_link, refine=Refiner(), refine_over=refine_over).run(plain_frames(2))
