"""Annotation readers: all formats, and messages that name what is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.readers import read_frame, read_instances, read_panoptic, semantic_reader
from dvis.data.rle import encode_mask, run_lengths

SIZE = (6, 8)


def record(tmp_path: Path, **entries: Any) -> dict[str, Any]:
    return {
        "video_id": 12,
        "source": "train.json",
        "file_names": [str(tmp_path / "0.jpg")],
        "length": 1,
        "height": SIZE[0],
        "width": SIZE[1],
        **entries,
    }


def square() -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[1:4, 2:6] = True
    return mask


def instance(segmentation: Any, number: int = 40, **changes: Any) -> dict[str, Any]:
    return {"id": number, "category_id": 3, "iscrowd": 0, "segmentations": [segmentation], **changes}


def masks_of(found: Any) -> np.ndarray:
    return found.masks(T.NoOpTransform(), SIZE)


def test_all_forms_of_instances(tmp_path: Path) -> None:
    rle = encode_mask(square())
    uncompressed = {**rle, "counts": run_lengths(rle["counts"]).tolist()}
    polygon = [[2, 1, 6, 1, 6, 4, 2, 4]]
    annotations = [
        instance(rle),
        instance(uncompressed),
        instance(polygon),
        instance(rle, iscrowd=1),
        instance(None),
        instance([[1, 1, 2, 2]]),  # no polygon is left
        instance(rle, category_id=5),
    ]
    found = read_instances(record(tmp_path, annotations=annotations), 0)
    assert found.ids == [0, 1, 2, 6]
    assert found.classes == [3, 3, 3, 5]
    for mask in masks_of(found):
        np.testing.assert_array_equal(mask, square())


def test_frame_without_objects(tmp_path: Path) -> None:
    found = read_instances(record(tmp_path, annotations=[instance(None)]), 0)
    assert masks_of(found).shape == (0, *SIZE)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": list(SIZE), "counts": encode_mask(square())["counts"][:-2]},
        {"size": list(SIZE), "counts": [3, 4]},
        {"size": [3, 3], "counts": [9]},
        {"counts": [48]},
        "nonsense",
        [["a", "b", "c", "d", "e", "f"]],
    ],
)
def test_broken_masks_name_file_video_annotation_and_frame(tmp_path: Path, segmentation: Any) -> None:
    broken = record(tmp_path, annotations=[instance(segmentation, number=41)])
    with pytest.raises(BrokenDataError, match=r"video 12 of train\.json, frame 0 .*0\.jpg.*, annotation 41"):
        read_instances(broken, 0)


def save_panoptic(path: Path, ids: np.ndarray) -> None:
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(
        path
    )


def test_panoptic_segments(tmp_path: Path) -> None:
    ids = np.zeros(SIZE, dtype=np.int64)
    ids[:2], ids[2:4], ids[4] = 70000, 300, 5
    save_panoptic(tmp_path / "p.png", ids)
    segments = [
        {"id": 300, "category_id": 1, "iscrowd": 0},
        {"id": 70000, "category_id": 0, "iscrowd": 0},
        {"id": 5, "category_id": 2, "iscrowd": 1},
    ]
    entry = record(tmp_path, pan_seg_file_names=[str(tmp_path / "p.png")], segments_infos=[segments])
    found = read_panoptic(entry, 0)
    assert found.ids == [300, 70000]
    assert found.classes == [1, 0]
    masks = masks_of(found)
    np.testing.assert_array_equal(masks[0], ids == 300)
    np.testing.assert_array_equal(masks[1], ids == 70000)
    flipped = found.masks(T.HFlipTransform(SIZE[1]), SIZE)
    np.testing.assert_array_equal(flipped, masks[..., ::-1])


def test_more_segments_than_a_byte_counts(tmp_path: Path) -> None:
    ids = np.arange(400).reshape(20, 20)
    save_panoptic(tmp_path / "p.png", ids)
    segments = [{"id": i, "category_id": 0, "iscrowd": 0} for i in range(1, 400)]
    entry = record(tmp_path, pan_seg_file_names=[str(tmp_path / "p.png")], segments_infos=[segments])
    found = read_panoptic({**entry, "height": 20, "width": 20}, 0)
    for transform in (T.NoOpTransform(), T.ResizeTransform(20, 20, 40, 40)):
        size = (20, 20) if isinstance(transform, T.NoOpTransform) else (40, 40)
        masks = found.masks(transform, size)
        assert masks.shape == (399, *size)
        assert (masks.sum(axis=(1, 2)) == size[0] * size[1] // 400).all()


def test_semantic_maps(tmp_path: Path) -> None:
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[1], labels[2], labels[3] = 1, 7, 255
    entry = record(tmp_path, sem_seg_file_names=[str(tmp_path / "s.png")])
    read = semantic_reader({1: 10, 7: 0})
    grey = Image.fromarray(labels)
    palette = Image.fromarray(labels, mode="P")
    palette.putpalette([200, 10, 10] * 256)
    for image in (grey, palette):
        image.save(tmp_path / "s.png")
        found = read(entry, 0)
        assert found.ids == found.classes == [10, 0]
        np.testing.assert_array_equal(masks_of(found), np.stack([labels == 1, labels == 7]))


def test_broken_and_missing_images_are_named(tmp_path: Path) -> None:
    entry = record(tmp_path, pan_seg_file_names=[str(tmp_path / "p.png")], segments_infos=[[]])
    with pytest.raises(MissingDataError, match=r"video 12 of train\.json, frame 0 .*0\.jpg is missing"):
        read_frame(entry, 0, "RGB")
    with pytest.raises(MissingDataError, match=r"p\.png is missing"):
        read_panoptic(entry, 0)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "0.jpg")
    assert read_frame(entry, 0, "BGR").shape == (*SIZE, 3)
    whole = (tmp_path / "0.jpg").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        (tmp_path / "0.jpg").write_bytes(content)
        (tmp_path / "p.png").write_bytes(content)
        with pytest.raises(BrokenDataError, match=r"video 12 of train\.json, frame 0 .*cannot read .*0\.jpg"):
            read_frame(entry, 0, "RGB")
        with pytest.raises(BrokenDataError, match=r"cannot read .*p\.png"):
            read_panoptic(entry, 0)


def test_wrong_sizes_are_named(tmp_path: Path) -> None:
    entry = record(tmp_path, pan_seg_file_names=[str(tmp_path / "p.png")], segments_infos=[[]])
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "0.jpg")
    with pytest.raises(BrokenDataError, match="the image has 5 x 5 pixels, the annotations say 6 x 8"):
        read_frame(entry, 0, "RGB")
    save_panoptic(tmp_path / "p.png", np.zeros((5, 5), dtype=np.int64))
    with pytest.raises(BrokenDataError, match=r"p\.png has 5 x 5 pixels, the frame 6 x 8"):
        read_panoptic(entry, 0)
