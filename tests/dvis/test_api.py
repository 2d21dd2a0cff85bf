from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import dvis
from dvis.api import VideoSegmenter
from dvis.data.mapper import VideoMapper
from dvis.data.rle import decode_rle
from tests.dvis.tiny import shared_tiny_model, tiny_config, tiny_model, tiny_video

SIZE = (46, 70)


def frames_of(num_frames: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    video = torch.stack(tiny_video(num_frames, size)).clamp(0, 255).byte()
    return list(video.permute(0, 2, 3, 1).numpy())


@pytest.fixture(scope="module")
def segmenter() -> VideoSegmenter:
    return VideoSegmenter(shared_tiny_model("online"), min_size=32, max_size=64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "online.pth"
    torch.save({"model": shared_tiny_model("online").state_dict()}, path)
    return path


def test_from_config_and_weights(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny_config("online", "INPUT.MIN_SIZE_TEST", 32, "INPUT.MAX_SIZE_TEST", 64).dump())
    built = VideoSegmenter.from_config(file, weights, ["MODEL.MASK_FORMER.TEST.MAX_NUM", 5])
    given = VideoSegmenter.from_config(
        dvis.load_config(file), overrides=["MODEL.WEIGHTS", str(weights), "MODEL.MASK_FORMER.TEST.MAX_NUM", 5]
    )
    result, other = (s.segment_video(frames_of(3)) for s in (built, given))
    assert len(result.scores) == 5
    assert result == other
    assert not built.model.training


def test_device_is_the_cpu_where_there_is_no_gpu() -> None:
    cfg = tiny_config("online", "MODEL.DEVICE", "cuda")
    segmenter = VideoSegmenter.from_config(cfg)
    assert segmenter.model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert cfg.MODEL.DEVICE == "cuda"


def test_stream_and_video_agree_at_the_end(segmenter: VideoSegmenter) -> None:
    frames = frames_of(5)
    video = segmenter.segment_video(frames, mask_format="bitmask")
    results = list(segmenter.stream(frames))
    assert [r.index for r in results] == [0, 1, 2, 3, 4]
    assert results[-1].scores == pytest.approx(video.scores, abs=1e-5)
    assert (results[-1].labels, results[-1].ids) == (video.labels, video.ids)
    assert (video.task, video.size, video.num_frames) == ("vis", SIZE, 5)
    assert video.masks.shape == (len(video.scores), 5, *SIZE)
    assert results[-1].masks.shape == (len(video.scores), *SIZE)
    assert (results[-1].masks != video.masks[:, 4]).float().mean() < 1e-3


def test_codes(segmenter: VideoSegmenter) -> None:
    frames = frames_of(2)
    bits = segmenter.segment_video(frames, mask_format="bitmask").masks
    codes = segmenter.segment_video(frames).masks
    for tube, expected in zip(codes, bits, strict=True):
        assert np.array_equal([decode_rle(code) for code in tube], expected.numpy())
    for result in segmenter.stream(frames, mask_format="rle"):
        assert [code["size"] for code in result.masks] == [list(SIZE)] * len(result.scores)


def test_min_score(segmenter: VideoSegmenter) -> None:
    everything = segmenter.segment_video(frames_of(2))
    bar = everything.scores[3]
    some = segmenter.segment_video(frames_of(2), min_score=bar)
    assert some.scores == everything.scores[: len(some.scores)]
    assert min(some.scores) >= bar
    nothing = segmenter.segment_video(frames_of(2), min_score=1.1)
    assert (nothing.scores, nothing.ids, nothing.masks) == ([], [], [])
    frame = next(iter(segmenter.stream(frames_of(1), min_score=1.1)))
    assert frame.masks.shape == (0, *SIZE)


def test_continued_stream(segmenter: VideoSegmenter) -> None:
    frames = frames_of(5)
    whole = list(segmenter.stream(frames))
    first = list(segmenter.stream(frames[:2]))
    second = list(segmenter.stream(frames[2:], state=first[-1].state))
    assert [r.index for r in second] == [2, 3, 4]
    assert second[-1].scores == pytest.approx(whole[-1].scores, abs=1e-5)


def test_folder_of_frames(segmenter: VideoSegmenter, tmp_path: Path) -> None:
    frames = frames_of(3)
    for t, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"{t}.png"), frame[:, :, ::-1])
    assert segmenter.segment_video(tmp_path) == segmenter.segment_video(frames)


def test_frames_are_read_once_and_not_kept(segmenter: VideoSegmenter) -> None:
    read: list[int] = []

    def source() -> Iterator[np.ndarray]:
        for t, frame in enumerate(frames_of(7)):
            read.append(t)
            yield frame

    stream = segmenter.stream(source())
    next(stream)
    assert len(read) == segmenter.model.inference.window_size
    assert len(list(stream)) == 6
    assert segmenter.segment_video(iter(frames_of(4))).num_frames == 4


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (32, 64)])
def test_any_shape_of_frame(segmenter: VideoSegmenter, size: tuple[int, int]) -> None:
    video = segmenter.segment_video(frames_of(2, size), mask_format="bitmask")
    assert video.masks.shape[2:] == size


def test_frames_are_resized_as_in_evaluation(segmenter: VideoSegmenter, tmp_path: Path) -> None:
    frames = frames_of(2)
    names = [f"{t}.png" for t in range(2)]
    for name, frame in zip(names, frames, strict=True):
        cv2.imwrite(str(tmp_path / name), frame[:, :, ::-1])
    files = [str(tmp_path / name) for name in names]
    record = {"video_id": 1, "source": str(tmp_path), "file_names": files, "length": 2}
    mapped = VideoMapper(32, 64, "RGB")({**record, "height": SIZE[0], "width": SIZE[1]})
    expected = segmenter.model([mapped])[0]
    result = segmenter.segment_video(frames)
    assert result.scores == expected["pred_scores"]
    assert result.masks == expected["pred_masks"]


def test_channel_order() -> None:
    model = shared_tiny_model("minvis")
    rgb = VideoSegmenter(model, channel_order="RGB")
    bgr = VideoSegmenter(model, channel_order="BGR")
    frames = frames_of(2)
    flipped = [frame[:, :, ::-1] for frame in frames]
    assert rgb.segment_video(frames) == bgr.segment_video(flipped)
    assert rgb.segment_video(frames) != bgr.segment_video(frames)


def test_offline_model() -> None:
    segmenter = VideoSegmenter(shared_tiny_model("offline"))
    assert segmenter.segment_video(frames_of(4)).num_frames == 4
    with pytest.raises(ValueError, match="offline model refines over the whole video and cannot stream"):
        next(segmenter.stream(frames_of(4)))


@pytest.fixture(scope="module")
def panoptic() -> VideoSegmenter:
    model = tiny_model(
        "online",
        "MODEL.MASK_FORMER.TEST.TASK",
        "vps",
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD",
        0.1,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD",
        0.0,
    )
    model.metadata = SimpleNamespace(
        thing_dataset_id_to_contiguous_id={1: 0, 2: 1}, stuff_classes=["cat", "dog", "sky", "sea"]
    )
    return VideoSegmenter(model)


def test_panoptic_identities_hold_for_the_stream(panoptic: VideoSegmenter) -> None:
    video = panoptic.segment_video(frames_of(4))
    assert video.masks.shape == (4, *SIZE)
    assert video.masks.dtype == torch.int32
    assert set(video.masks.unique().tolist()) - {0} == {i + 1 for i in video.ids}
    assert len(video.labels) == len(video.ids) > 0
    assert video.scores == []
    assert video.class_names == ["cat", "dog", "sky", "sea"]
    for frame in panoptic.stream(frames_of(4)):
        assert frame.masks.shape == SIZE
        assert set(frame.masks.unique().tolist()) - {0} == {i + 1 for i in frame.ids}


def test_semantic() -> None:
    segmenter = VideoSegmenter(tiny_model("online", "MODEL.MASK_FORMER.TEST.TASK", "vss"))
    video = segmenter.segment_video(frames_of(3))
    assert video.masks.shape == (3, *SIZE)
    assert (video.scores, video.labels, video.ids) == ([], [], [])
    frames = list(segmenter.stream(frames_of(3)))
    assert (frames[-1].masks != video.masks[-1]).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "stream: the video has no frames"),
        ([np.zeros((4, 5), np.uint8)], r"frame 0 must be `H W 3` uint8, got uint8 of shape \(4, 5\)"),
        ([np.zeros((4, 5, 3), np.float32)], "frame 0 must be `H W 3` uint8, got float32"),
        (frames_of(2) + frames_of(1, (46, 71)), "frame 2 has 46 x 71 pixels, the frames before 46 x 70"),
    ],
)
def test_bad_frames(segmenter: VideoSegmenter, frames: list[np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(segmenter.stream(frames))
    with pytest.raises(ValueError, match=message):
        segmenter.segment_video(frames)


def test_missing_video(segmenter: VideoSegmenter) -> None:
    with pytest.raises(dvis.VideoError, match=r"no/such\.mp4"):
        segmenter.segment_video("no/such.mp4")
    with pytest.raises(dvis.VideoError, match=r"no/such\.mp4"):
        next(segmenter.stream("no/such.mp4"))


def test_bad_models() -> None:
    with pytest.raises(ValueError, match="Linear is no video model"):
        VideoSegmenter(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT is 'L'; allowed are RGB and BGR"):
        VideoSegmenter(shared_tiny_model("minvis"), channel_order="L")


def test_inference_needs_all_weights(tmp_path: Path) -> None:
    path = tmp_path / "minvis.pth"
    torch.save({"model": shared_tiny_model("minvis").state_dict()}, path)
    with pytest.raises(ValueError, match=r"tensors of DVIS_online are missing .*tracker"):
        VideoSegmenter.from_config(tiny_config("online"), path)


def test_unknown_argument_of_the_example_fails_early() -> None:
    with pytest.raises(KeyError, match="did you mean"):
        VideoSegmenter.from_config("configs/ovis/DVIS_Online_R50.yaml", overrides=["MODEL.WEIGHT", "x"])


def test_results_compare_and_print_shortly(segmenter: VideoSegmenter) -> None:
    result: Any = segmenter.segment_video(frames_of(1), min_score=1.1)
    assert repr(result) == (
        "VideoResult(task='vis', size=(46, 70), num_frames=1, scores=[], labels=[], ids=[], masks=[])"
    )
