"""Damaged images and videos: frames come out, or an error that names the file."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from PIL import Image

from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.readers import read_frame, read_panoptic, semantic_reader
from dvis.video_io import VideoError, VideoWriter, open_video, read_image
from tests.fuzz.cases import fuzz, mutated_bytes, sizes

HEIGHT, WIDTH, LENGTH = 16, 24, 5


def picture(t: int = 0) -> np.ndarray:
    rng = np.random.default_rng(t)
    return rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@cache
def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(picture())
    if kind == "PALETTE":
        image, kind = image.convert("P"), "PNG"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(buffer, kind, **({"exif": exif} if kind == "JPEG" else {}))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    with VideoWriter(path, 10) as writer:
        for t in range(LENGTH):
            writer.write(picture(t))
    return path.read_bytes()


def frames_of(path: Any) -> int:
    """Number of frames that come out, or -1 for an error that names the file."""
    count = 0
    try:
        source = open_video(path)
        for frame in source:
            assert frame.dtype == np.uint8
            assert frame.ndim == 3
            assert frame.shape[2] == 3
            count += 1
            if count > 50:  # a damaged header may announce, and repeat, anything
                break
    except VideoError as error:
        assert str(path) in str(error)  # noqa: PT017
        return -1
    return count


def test_the_video_itself_is_right(video: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(video)
    assert frames_of(tmp_path / "a.mp4") == LENGTH


@sizes(150, 4000)
def test_damaged_videos(examples: int, video: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"

    def check(data: DataObject) -> None:
        path.write_bytes(mutated_bytes(data, video))
        frames_of(path)

    fuzz(examples, check, st.data())


@sizes(50, 1000)
def test_anything_under_the_name_of_a_video(examples: int, tmp_path: Path) -> None:
    heads = st.sampled_from(
        [b"", b"\x00\x00\x00\x18ftypmp42", b"RIFF", b"\x1aE\xdf\xa3", b"OggS", b"GIF89a", b"#EXTM3U\n"]
    )

    def check(head: bytes, rest: bytes, suffix: str) -> None:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(head + rest)
        frames_of(path)

    fuzz(
        examples, check, heads, st.binary(max_size=200), st.sampled_from([".mp4", ".avi", ".mkv", ".gif", ""])
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PALETTE", "BMP", "TIFF", "WEBP"])
@sizes(60, 1500)
def test_damaged_images(kind: str, examples: int, tmp_path: Path) -> None:
    path = tmp_path / "0.jpg"
    record = {"video_id": 1, "source": "a.json", "file_names": [str(path)], "height": HEIGHT, "width": WIDTH}
    record |= {
        "pan_seg_file_names": [str(path)],
        "segments_infos": [[{"id": 9, "category_id": 0, "iscrowd": 0}]],
    }
    record |= {"sem_seg_file_names": [str(path)]}

    def check(data: DataObject) -> None:
        path.write_bytes(mutated_bytes(data, encoded(kind)))
        try:
            assert read_image(path).ndim == 3
        except VideoError as error:
            assert str(path) in str(error)  # noqa: PT017
        frames_of(path.parent)
        readers: list[Any] = [
            lambda r, t: read_frame(r, t, "BGR"),
            read_panoptic,
            semantic_reader({1: 0, 9: 1}),
        ]
        for read in readers:
            try:
                read(record, 0)
            except (BrokenDataError, MissingDataError) as error:
                assert "video 1 of a.json, frame 0" in str(error)  # noqa: PT017
                assert str(path) in str(error)  # noqa: PT017

    fuzz(examples, check, st.data())
