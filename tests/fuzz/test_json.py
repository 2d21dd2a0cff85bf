"""Annotation files with mistakes: every loader either reads them or names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from PIL import Image

from dvis.data.datasets import (
    load_image_instances,
    load_panoptic_images,
    load_panoptic_videos,
    load_video_instances,
)
from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.files import read_json
from dvis.data.mapper import ClipMapper
from dvis.data.readers import AnnotationReader, read_instances, read_panoptic
from dvis.data.rle import encode_mask
from tests.fuzz.cases import fuzz, json_values, mutated, mutated_bytes, sizes

HEIGHT, WIDTH = 6, 8
MASK = encode_mask(np.eye(HEIGHT, WIDTH) > 0)
RUNS = {"size": [HEIGHT, WIDTH], "counts": [3, 7, 38]}
POLYGON = [[1, 1, 6, 1, 6, 4, 1, 4]]
BOX = [1, 1, 3, 3]
CLASSES = {1: 0, 5: 1}
SEGMENTS = [
    {"id": 9, "category_id": 1, "iscrowd": 0, "area": 24, "bbox": BOX},
    {"id": 700, "category_id": 5, "iscrowd": 1, "area": 24, "bbox": BOX},
]


def video(number: int) -> dict[str, Any]:
    names = [f"v{number}/0.jpg", f"v{number}/1.jpg"]
    return {"id": number, "height": HEIGHT, "width": WIDTH, "length": 2, "file_names": names}


def image(name: str) -> dict[str, Any]:
    return {"id": name, "file_name": name, "height": HEIGHT, "width": WIDTH}


FILES: dict[str, Any] = {
    "video_instances": {
        "categories": [{"id": 1, "name": "a"}, {"id": 5, "name": "b"}],
        "videos": [video(1), video(2)],
        "annotations": [
            {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": [MASK, None],
             "bboxes": [BOX, None], "areas": [6, None]},
            {"id": 2, "video_id": 2, "category_id": 5, "iscrowd": 1, "segmentations": [RUNS, POLYGON]},
        ],
    },
    "image_instances": {
        "images": [{**image("v1/0.jpg"), "id": 1}, {**image("v1/1.jpg"), "id": 2}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": POLYGON},
            {"id": 2, "image_id": 2, "category_id": 5, "segmentation": MASK},
        ],
    },
    "panoptic_videos": {
        "videos": [{"video_id": "v1", "images": [image("0.png"), image("1.png")]}],
        "annotations": [
            {"video_id": "v1", "annotations": [
                {"file_name": "0.png", "image_id": "0", "segments_info": SEGMENTS},
                {"file_name": "1.png", "image_id": "1", "segments_info": SEGMENTS[:1]},
            ]}
        ],
    },
    "panoptic_images": {
        "images": [],
        "annotations": [
            {"image_id": 1, "file_name": "v1/0.png", "segments_info": SEGMENTS},
            {"image_id": 2, "file_name": "v1/1.png", "segments_info": []},
        ],
    },
}  # fmt: skip
LOADERS: dict[str, tuple[Callable[..., list[dict[str, Any]]], AnnotationReader]] = {
    "video_instances": (load_video_instances, read_instances),
    "image_instances": (load_image_instances, read_instances),
    "panoptic_videos": (load_panoptic_videos, read_panoptic),
    "panoptic_images": (load_panoptic_images, read_panoptic),
}


class Untouched:
    """An augmentation that does nothing."""

    def draw(self, rng: np.random.Generator, shapes: list[tuple[int, int]]) -> list[Any]:
        from detectron2.data.transforms import NoOpTransform

        return [(NoOpTransform(), shape) for shape in shapes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and masks that the files name."""
    root = tmp_path_factory.mktemp("data")
    ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    ids[:3] = (9, 0, 0)
    ids[3:] = (700 % 256, 700 // 256, 0)
    for number in (1, 2):
        (root / f"v{number}").mkdir()
        for t in (0, 1):
            Image.fromarray(ids).save(root / f"v{number}" / f"{t}.png")
            Image.fromarray(ids).save(root / f"v{number}" / f"{t}.jpg")
    return root


def use(kind: str, path: Path, tolerant: bool) -> int:
    """Load a file and make a clip of every video; only errors that name the file may come out."""
    load, reader = LOADERS[kind]
    folders = [path.parent] * (2 if kind.startswith("panoptic") else 1)
    try:
        records = load(path, *folders, CLASSES, tolerant=tolerant)
    except BrokenDataError as error:
        assert str(path) in str(error)  # noqa: PT017 - whatever is raised has to name the file
        return 0
    made = 0
    for record in records:
        if "fault" in record:
            assert tolerant
            assert str(path) in record["fault"]
            continue
        if not record["length"] or ("annotations" not in record and "segments_infos" not in record):
            continue
        mapper = ClipMapper(lambda length, rng: [0, length - 1], reader, Untouched(), "RGB")  # type: ignore[arg-type]
        try:
            clip = mapper(record, np.random.default_rng(0))
        except (BrokenDataError, MissingDataError) as error:
            assert str(path) in str(error)  # noqa: PT017
            continue
        assert len(clip["instances"][0]) == len(clip["instances"][1])
        made += 1
    return made


@pytest.mark.parametrize("kind", FILES)
def test_the_files_themselves_are_right(kind: str, folder: Path) -> None:
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(FILES[kind]))
    assert use(kind, path, tolerant=False) == len(
        LOADERS[kind][0](path, *[folder] * (1 + ("panoptic" in kind)), CLASSES)
    )


@pytest.mark.parametrize("kind", FILES)
@sizes(120, 2500)
def test_wrong_values(kind: str, examples: int, folder: Path) -> None:
    path = folder / f"{kind}_wrong.json"

    def check(data: DataObject, tolerant: bool) -> None:
        path.write_text(json.dumps(mutated(data, FILES[kind])))
        use(kind, path, tolerant)

    fuzz(examples, check, st.data(), st.booleans())


@pytest.mark.parametrize("kind", FILES)
@sizes(60, 1000)
def test_any_json(kind: str, examples: int, folder: Path) -> None:
    path = folder / f"{kind}_any.json"

    def check(content: Any, under: str | None) -> None:
        path.write_text(json.dumps(content if under is None else {**FILES[kind], under: content}))
        use(kind, path, tolerant=False)

    keys = st.sampled_from([None, *FILES[kind]])
    fuzz(examples, check, json_values(12), keys)


@sizes(200, 4000)
def test_damaged_files(examples: int, folder: Path) -> None:
    path = folder / "damaged.json"
    text = json.dumps(FILES["video_instances"]).encode()

    def check(data: DataObject) -> None:
        path.write_bytes(mutated_bytes(data, text))
        try:
            read_json(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            with pytest.raises(BrokenDataError):
                load_video_instances(path, folder, CLASSES)
        else:
            use("video_instances", path, tolerant=False)

    fuzz(examples, check, st.data())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 50_000, "1" * 5000, "", "\x00", "NaN", '"\\ud800"']
)
def test_texts_that_break_parsers(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(BrokenDataError, match=r"a\.json"):
        load_video_instances(path, tmp_path, CLASSES)
