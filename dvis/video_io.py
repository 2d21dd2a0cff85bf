"""Videos in and out: any file that FFmpeg decodes, folders or globs of frames, cameras; H.264 out.

Frames are ``H W 3`` uint8 arrays in RGB order. A source is read as it is iterated, one frame at a time, so a
video never has to fit into memory; files and folders can be iterated again.
"""

from __future__ import annotations

import glob
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

__all__ = [
    "FrameWriter",
    "VideoError",
    "VideoSource",
    "VideoWriter",
    "open_video",
    "read_ahead",
    "read_image",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Frame = np.ndarray  # H W 3, uint8, RGB

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".avi"}
DEFAULT_FPS = 10.0  # of a folder of frames, which does not say
MIN_FPS, MAX_FPS = 0.01, 1000.0


class VideoError(ValueError):
    """A video, image folder or camera that cannot be read or written; the message names it and the frame."""


class VideoSource:
    """An iterable of RGB frames with what is known about them.

    Attributes:
        name: what to call the source in messages and file names.
        fps: frames per second.
        size: ``(width, height)`` in pixels.
        num_frames: number of frames as far as the container tells, else ``None``; decoding decides.
        is_stored: whether frames wait to be read; those of a camera come when they come.
    """

    name: str
    fps: float
    size: tuple[int, int]
    num_frames: int | None
    is_stored = True

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError


def open_video(source: str | os.PathLike[str] | int, fps: float | None = None) -> VideoSource:
    """Open a video file, a folder or glob pattern of images, a single image, or a camera.

    Args:
        source: path of a video file (anything FFmpeg decodes), path of a folder with frames, glob pattern
            such as ``"frames/*.jpg"``, path of one image, or a camera index (``0`` or ``"0"``).
        fps: frame rate of a folder or glob; default 10. Ignored where the source knows its own.

    Raises:
        VideoError: if there is nothing at ``source``, it is not a video, or it has no frames.
    """
    if isinstance(source, int) or (
        isinstance(source, str) and source.isdecimal() and not Path(source).exists()
    ):
        return _CameraSource(int(source))
    path = Path(source)
    if path.is_dir():
        files = [
            p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
        ]
        if not files:
            raise VideoError(f"{path}: the folder has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return _ImageSource(str(path), files, fps or DEFAULT_FPS)
    if path.is_file():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return _ImageSource(str(path), [path], fps or DEFAULT_FPS)
        return _FileSource(path)
    if glob.has_magic(str(source)):
        files = [Path(p) for p in glob.glob(str(source)) if Path(p).is_file()]
        if not files:
            raise VideoError(f"{source}: no file matches this pattern")
        return _ImageSource(str(source), files, fps or DEFAULT_FPS)
    raise VideoError(f"{source}: no such video file, folder, pattern or camera index")


def read_ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """Iterate in a background thread that is at most ``count`` items ahead; order and errors stay the same.

    The thread ends with the iteration, also when it is left early.

    Args:
        items: iterated once; nothing is taken from it before the first item is asked for.
        count: how many items wait at most; 0: no thread.
    """
    if count < 1:
        yield from items
        return
    waiting: queue.Queue[tuple[Callable[[], T] | None]] = queue.Queue(count)
    left = threading.Event()

    def put(result: Callable[[], T] | None) -> bool:
        while not left.is_set():
            try:
                waiting.put((result,), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for item in items:
                if not put(partial(_return, item)):
                    return
        except BaseException as error:  # whatever it is, it belongs to the one who iterates
            put(partial(_raise, error))
        else:
            put(None)

    reader = threading.Thread(target=read, name="read ahead", daemon=True)
    reader.start()
    try:
        while (result := waiting.get()[0]) is not None:
            yield result()
    finally:
        left.set()
        reader.join()


def _return(item: T) -> T:
    return item


def _raise(error: BaseException) -> Any:
    raise error


def read_image(path: str | os.PathLike[str]) -> Frame:
    """Decode one image as RGB, with its EXIF orientation applied.

    Raises:
        VideoError: if the file is missing, empty, truncated or not an image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError as error:
        raise VideoError(f"{path}: no such image") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: cannot be read as an image ({error})") from error


class _ImageSource(VideoSource):
    """Image files in natural order: ``frame2`` before ``frame10``."""

    def __init__(self, name: str, files: list[Path], fps: float) -> None:
        self.name = name
        self.fps = fps
        self.files = sorted(files, key=_natural_key)
        self.num_frames = len(self.files)
        height, width = read_image(self.files[0]).shape[:2]
        self.size = (width, height)

    def __iter__(self) -> Iterator[Frame]:
        for path in self.files:
            frame = read_image(path)
            height, width = frame.shape[:2]
            if (width, height) != self.size:
                raise VideoError(
                    f"{path}: {width} x {height} pixels, but {self.files[0].name} has "
                    f"{self.size[0]} x {self.size[1]}; all frames of a video must have one size"
                )
            yield frame


def _natural_key(path: Path) -> list[tuple[int, Any]]:
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


class _FileSource(VideoSource):
    """A video file, decoded by FFmpeg (PyAV); the rotation that phones note in the file is applied."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        with self._open() as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            # A damaged header may say anything.
            self.fps = float(rate) if rate and MIN_FPS <= rate <= MAX_FPS else 25.0
            duration = float(stream.duration * stream.time_base) if stream.duration else 0.0
            self.num_frames = stream.frames or round(duration * self.fps) or None
        first = next(iter(self), None)
        if first is None:
            raise VideoError(f"{path}: the video has no frames")
        self.size = (first.shape[1], first.shape[0])

    def _open(self) -> Any:
        import av

        if self.path.stat().st_size == 0:
            raise VideoError(f"{self.path}: the file is empty")
        try:
            container = av.open(str(self.path), metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise VideoError(f"{self.path}: not a video that FFmpeg can open ({error})") from error
        if not container.streams.video:
            container.close()
            raise VideoError(f"{self.path}: the file has no video stream")
        container.streams.video[0].thread_type = "AUTO"
        return container

    def __iter__(self) -> Iterator[Frame]:
        import av

        index = 0
        with self._open() as container:
            frames = container.decode(video=0)
            while True:
                try:
                    frame = next(frames, None)
                    if frame is None:
                        break
                    image = _rotated(frame.to_ndarray(format="rgb24"), getattr(frame, "rotation", 0))
                except av.error.FFmpegError as error:
                    raise VideoError(f"{self.path}: frame {index} cannot be decoded ({error})") from error
                yield image
                index += 1
        if self.num_frames is not None and index < self.num_frames:
            # Containers round their count; a clearly shorter video was cut off.
            log = logger.warning if index < 0.9 * self.num_frames else logger.debug
            log("%s: decoded %d frames, the container announces %d", self.path, index, self.num_frames)


def _rotated(frame: Frame, degrees: int) -> Frame:
    turns = round(degrees / 90) % 4
    return np.ascontiguousarray(np.rot90(frame, turns)) if turns else frame


class _CameraSource(VideoSource):
    """A live camera through OpenCV; iterate once, stop with ``break`` or Ctrl-C."""

    is_stored = False

    def __init__(self, index: int) -> None:
        import cv2

        self.name = f"camera {index}"
        self.num_frames = None
        self._capture = cv2.VideoCapture(index)
        if not self._capture.isOpened():
            raise VideoError(f"{self.name}: cannot be opened")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 30.0
        self.size = (
            int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        )

    def __iter__(self) -> Iterator[Frame]:
        try:
            while True:
                ok, frame = self._capture.read()
                if not ok:
                    return
                yield np.ascontiguousarray(frame[:, :, ::-1])
        finally:
            self._capture.release()


class VideoWriter:
    """Writes RGB frames as an H.264 video that browsers and editors play.

    Use as a context manager. The file appears under its name when the writer closes, complete and playable,
    also when an exception or Ctrl-C ends the ``with`` block: what was written until then is kept.

    Args:
        path: output file; the suffix chooses the container (``.mp4``, ``.mov``, ``.mkv``).
        fps: frames per second.
        crf: quality of x264, 0 (lossless) to 51; 20 is visually good.

    Raises:
        VideoError: if the suffix is unknown, the frame rate is none, or the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float, crf: int = 20) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in VIDEO_SUFFIXES:
            raise VideoError(f"{path}: write a video as one of {', '.join(sorted(VIDEO_SUFFIXES))}")
        if not MIN_FPS <= fps <= MAX_FPS:
            raise VideoError(f"{path}: frames per second must be {MIN_FPS} to {MAX_FPS:.0f}, got {fps}")
        self.num_frames = 0
        self._rate = Fraction(fps).limit_denominator(1001)
        self._crf = crf
        self._partial = self.path.with_name(f".{self.path.stem}.partial{self.path.suffix}")
        self._container: Any = None
        self._stream: Any = None
        self._size = (0, 0)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, frame: Frame) -> None:
        """Append one ``H W 3`` RGB frame; all frames must have the size of the first."""
        import av

        size = (frame.shape[1], frame.shape[0])
        if self._container is None:
            self._open(size)
        elif size != self._size:
            raise VideoError(
                f"{self.path}: frame {self.num_frames} is {size}, the video is {self._size} pixels"
            )
        # 4:2:0 chroma needs even sides: repeat the last row or column.
        padded = np.pad(frame, ((0, size[1] % 2), (0, size[0] % 2), (0, 0)), mode="edge")
        for packet in self._stream.encode(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        ):
            self._container.mux(packet)
        self.num_frames += 1

    def _open(self, size: tuple[int, int]) -> None:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._container = av.open(str(self._partial), "w", options={"movflags": "+faststart"})
            self._stream = self._container.add_stream("libx264", rate=self._rate)
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: cannot be written ({error})") from error
        self._size = size
        self._stream.width, self._stream.height = size[0] + size[0] % 2, size[1] + size[1] % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": str(self._crf), "preset": "veryfast"}

    def close(self) -> None:
        """Finish the file; a writer that got no frame leaves none. Closing twice is harmless."""
        if self._container is None:
            return
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
        self._container = None
        os.replace(self._partial, self.path)


class FrameWriter:
    """Writes frames as ``000000.jpg`` ... into a folder; the same use as `VideoWriter`."""

    def __init__(self, folder: str | os.PathLike[str], quality: int = 95) -> None:
        self.path = Path(folder)
        if self.path.exists() and not self.path.is_dir():
            raise VideoError(f"{folder}: exists and is not a folder")
        self.num_frames = 0
        self._quality = quality

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, frame: Frame) -> None:
        """Write one ``H W 3`` RGB frame."""
        from PIL import Image

        self.path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(self.path / f"{self.num_frames:06d}.jpg", quality=self._quality)
        self.num_frames += 1

    def close(self) -> None:
        """Nothing to finish: every frame is complete when `write` returns."""


def open_writer(path: str | os.PathLike[str], fps: float) -> VideoWriter | FrameWriter:
    """A `VideoWriter` where ``path`` has a video suffix, a `FrameWriter` where it has none.

    Raises:
        VideoError: if the suffix is neither.
    """
    suffix = Path(path).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return VideoWriter(path, fps)
    if not suffix or Path(path).is_dir():
        return FrameWriter(path)
    raise VideoError(f"{path}: give a folder or a file ending in {', '.join(sorted(VIDEO_SUFFIXES))}")
