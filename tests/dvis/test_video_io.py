"""Reading and writing of videos: every kind of source, odd sizes, broken input."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvis.video_io import (
    FrameWriter,
    VideoError,
    VideoWriter,
    open_video,
    open_writer,
    read_ahead,
    read_image,
)


def moving_square(num_frames: int, width: int, height: int) -> list[np.ndarray]:
    frames = []
    for index in range(num_frames):
        frame = np.full((height, width, 3), (30, 60, 90), np.uint8)
        frame[height // 4 : height // 2, 2 + index : 2 + index + width // 4] = (220, 180, 40)
        frames.append(frame)
    return frames


def write_video(path: Path, frames: list[np.ndarray], fps: float = 10.0) -> Path:
    with VideoWriter(path, fps, crf=5) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.mark.parametrize(("width", "height"), [(64, 48), (65, 47), (33, 18)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_video_round_trip(tmp_path: Path, width: int, height: int, suffix: str) -> None:
    frames = moving_square(7, width, height)
    video = open_video(write_video(tmp_path / f"clip{suffix}", frames))
    decoded = list(video)
    assert len(decoded) == 7
    assert video.fps == pytest.approx(10.0)
    assert video.size == (width + width % 2, height + height % 2)
    for frame, expected in zip(decoded, frames, strict=True):
        assert frame.dtype == np.uint8
        assert np.abs(frame[:height, :width].astype(int) - expected).mean() < 6
    assert len(list(video)) == 7, "a file can be read again"


def test_written_video_plays_in_a_browser(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = write_video(tmp_path / "clip.mp4", moving_square(3, 32, 32), fps=29.97)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(29.97, abs=1e-2)
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat"), "the index comes first, so that playing starts at once"


def test_exception_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 10) as writer:  # noqa: PT012
        for frame in moving_square(4, 32, 32):
            writer.write(frame)
        raise KeyboardInterrupt
    assert len(list(open_video(path))) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"], "no partial file stays behind"


def test_writer_without_frames_leaves_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", 10):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folder_glob_and_image(tmp_path: Path) -> None:
    frames = moving_square(12, 20, 16)
    with FrameWriter(tmp_path / "frames", quality=100) as writer:
        for frame in frames:
            writer.write(frame)
    # Natural order: 2 before 10, without leading zeros.
    for index in range(12):
        (tmp_path / "frames" / f"{index:06d}.jpg").rename(tmp_path / "frames" / f"img{index}.jpg")
    (tmp_path / "frames" / "notes.txt").write_text("not an image")
    for source in (tmp_path / "frames", str(tmp_path / "frames" / "*.jpg")):
        video = open_video(source, fps=5)
        assert (video.num_frames, video.size, video.fps) == (12, (20, 16), 5)
        lefts = [int(np.argmax(frame[5, :, 0] > 120)) for frame in video]
        assert lefts == sorted(lefts)
        assert lefts[-1] > lefts[0]
    assert open_video(tmp_path / "frames" / "img3.jpg").num_frames == 1


def test_images_of_any_mode_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "1", "CMYK", "LA", "I;16"):
        path = tmp_path / f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (9, 5)).save(path)
        assert read_image(path).shape == (5, 9, 3)


def test_open_writer_chooses_by_suffix(tmp_path: Path) -> None:
    assert isinstance(open_writer(tmp_path / "out.mp4", 10), VideoWriter)
    assert isinstance(open_writer(tmp_path / "out", 10), FrameWriter)
    with pytest.raises(VideoError, match=r"out\.txt"):
        open_writer(tmp_path / "out.txt", 10)


def test_bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"nothing\.mp4: no such video"):
        open_video(tmp_path / "nothing.mp4")
    with pytest.raises(VideoError, match="no file matches"):
        open_video(str(tmp_path / "*.jpg"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="has no images"):
        open_video(tmp_path / "empty")
    (tmp_path / "zero.mp4").write_bytes(b"")
    with pytest.raises(VideoError, match=r"zero\.mp4: the file is empty"):
        open_video(tmp_path / "zero.mp4")
    (tmp_path / "text.mp4").write_text("this is no video" * 100)
    with pytest.raises(VideoError, match=r"text\.mp4: not a video"):
        open_video(tmp_path / "text.mp4")
    with pytest.raises(VideoError, match="camera 99"):
        open_video(99)


def test_file_without_video_frames(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        audio = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        audio.sample_rate = 8000
        for packet in (*stream.encode(audio), *stream.encode()):
            container.mux(packet)
    with pytest.raises(VideoError, match="no video stream"):
        open_video(path)


def test_truncated_video_gives_frames_then_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(
        tmp_path / "clip.mp4",
        [np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8) for i in range(30)],
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    decoded = 0
    message = ""
    try:
        for _ in open_video(path):
            decoded += 1
    except VideoError as error:
        message = str(error)
    if message:
        assert f"clip.mp4: frame {decoded} cannot be decoded" in message
    else:
        assert "clip.mp4" in caplog.text
    assert 0 < decoded < 30


def test_broken_frame_in_a_folder_is_named(tmp_path: Path) -> None:
    with FrameWriter(tmp_path) as writer:
        for frame in moving_square(3, 32, 24):
            writer.write(frame)
    data = (tmp_path / "000001.jpg").read_bytes()
    (tmp_path / "000001.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match=r"000001\.jpg"):
        list(open_video(tmp_path))


def test_frame_of_another_size_is_named(tmp_path: Path) -> None:
    with FrameWriter(tmp_path) as writer:
        writer.write(np.zeros((8, 8, 3), np.uint8))
        writer.write(np.zeros((8, 10, 3), np.uint8))
    with pytest.raises(VideoError, match=r"000001\.jpg: 10 x 8 pixels"):
        list(open_video(tmp_path))
    with pytest.raises(VideoError, match="frame 1"), VideoWriter(tmp_path / "out.mp4", 10) as video:  # noqa: PT012
        video.write(np.zeros((8, 8, 3), np.uint8))
        video.write(np.zeros((8, 10, 3), np.uint8))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_read_ahead_gives_everything_in_order(count: int) -> None:
    assert list(read_ahead(range(10), count)) == list(range(10))
    assert list(read_ahead([], count)) == []


@pytest.mark.parametrize("count", [0, 2])
def test_read_ahead_passes_errors_on_in_their_place(count: int) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise VideoError("frame 1 is broken")

    items = read_ahead(broken(), count)
    assert next(items) == 1
    with pytest.raises(VideoError, match="frame 1 is broken"):
        next(items)


def test_read_ahead_is_bounded_and_ends_with_the_iteration() -> None:
    taken: list[int] = []
    items = read_ahead((taken.append(i) or i for i in range(1000)), 3)  # type: ignore[func-returns-value]
    assert not taken
    assert next(items) == 0
    time.sleep(0.3)
    assert len(taken) <= 5  # the one that was given, three that wait, one that waits to wait
    threads = [thread for thread in threading.enumerate() if thread.name == "read ahead"]
    assert len(threads) == 1
    items.close()
    assert not threads[0].is_alive()
    count = len(taken)
    time.sleep(0.2)
    assert len(taken) == count
