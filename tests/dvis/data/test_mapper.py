"""Training clips and whole videos."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

import dvis
from dvis.data.augmentation import ClipAugmentation, Crop, Flip, Resize
from dvis.data.datasets import get_spec
from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.frames import LazyFrames
from dvis.data.mapper import ABSENT, ClipMapper, VideoMapper, clip_mapper_from_config
from dvis.data.readers import read_frame, read_instances
from dvis.data.rle import decode_rle, encode_mask
from dvis.data.samplers import NearbyFrames
from dvis.modeling.targets import clip_targets


def fixed(*frames: int) -> Any:
    return lambda length, rng: list(frames)


PLAIN = ClipAugmentation([])


def clip(
    name: str, frames: Sequence[int], video: int = 0, augmentation: ClipAugmentation = PLAIN
) -> dict[str, Any]:
    spec = get_spec(name)
    mapper = ClipMapper(fixed(*frames), spec.reader(), augmentation, "RGB")
    return mapper(spec.load()[video], np.random.default_rng(0))


def test_clip_is_what_the_files_say(toy_data: Path) -> None:
    content = json.loads((toy_data / "toy/train.json").read_text())
    result = clip("toy_vis_train", [1, 4, 6])
    annotations = [a for a in content["annotations"] if a["video_id"] == 1]
    assert result["video_id"] == 1
    assert (result["height"], result["width"], result["frame_indices"]) == (40, 56, [1, 4, 6])
    shown = [i for i, a in enumerate(annotations) if any(a["segmentations"][t] for t in (1, 4, 6))]
    for image, instances, t, name in zip(
        result["image"], result["instances"], (1, 4, 6), result["file_names"], strict=True
    ):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(name)))
        assert image.dtype == torch.uint8
        assert instances.gt_ids.dtype == instances.gt_classes.dtype == torch.int64
        assert len(instances) == len(shown)
        by_id = {i: row for row, i in enumerate(instances.gt_ids.tolist()) if i != ABSENT}
        for i in shown:
            segmentation = annotations[i]["segmentations"][t]
            assert (i in by_id) == bool(segmentation)
            if segmentation:
                row = by_id[i]
                assert instances.gt_classes[row] == annotations[i]["category_id"] - 1
                np.testing.assert_array_equal(
                    instances.gt_masks.tensor[row].numpy(), decode_rle(segmentation)
                )


def leaving_record(tmp_path: Path) -> dict[str, Any]:
    """Object 0 is in frames 0 and 2, object 1 in frame 1, object 2 in none, frame 3 is empty."""
    left, right = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    left[:, :3], right[:, 5:] = True, True
    for t in range(4):
        Image.fromarray(np.full((6, 8, 3), 60 * t, np.uint8)).save(tmp_path / f"{t}.png")
    codes = [encode_mask(left), encode_mask(right)]
    tracks = [[codes[0], None, codes[0], None], [None, codes[1], None, None], [None] * 4]
    return {
        "video_id": "a",
        "source": "a.json",
        "file_names": [str(tmp_path / f"{t}.png") for t in range(4)],
        "length": 4,
        "height": 6,
        "width": 8,
        "annotations": [
            {"id": 10 + i, "category_id": 2 + i, "iscrowd": 0, "segmentations": track}
            for i, track in enumerate(tracks)
        ],
    }


def leaving_clip(tmp_path: Path, frames: Sequence[int], **changes: Any) -> list[Any]:
    settings = {"augmentation": PLAIN, "class_map": None, **changes}
    mapper = ClipMapper(fixed(*frames), read_instances, image_format="RGB", **settings)
    return mapper(leaving_record(tmp_path), np.random.default_rng(0))["instances"]


def test_objects_that_leave_and_return_keep_their_row(tmp_path: Path) -> None:
    instances = leaving_clip(tmp_path, [0, 1, 2, 3])
    assert [frame.gt_ids.tolist() for frame in instances] == [[0, -1], [-1, 1], [0, -1], [-1, -1]]
    assert [frame.gt_classes.tolist() for frame in instances] == [[2, -1], [-1, 3], [2, -1], [-1, -1]]
    assert [frame.gt_masks.tensor.sum().item() for frame in instances] == [18, 18, 18, 0]
    targets = clip_targets(instances, (8, 8), num_classes=5)
    assert targets["labels"].tolist() == [2, 3]
    assert targets["ids"].tolist() == [[0, -1, 0, -1], [-1, 1, -1, -1]]


def test_clip_without_objects(tmp_path: Path) -> None:
    (frame,) = leaving_clip(tmp_path, [3])
    assert len(frame) == 0
    assert frame.gt_masks.tensor.shape == (0, 6, 8)
    assert clip_targets([frame], (8, 8), num_classes=5)["masks"].shape == (0, 1, 8, 8)


def test_objects_that_a_crop_cuts_away_are_absent(tmp_path: Path) -> None:
    half = ClipAugmentation([(Crop("absolute", (6, 1)), True)])
    instances = leaving_clip(tmp_path, [0, 1], augmentation=half)
    for frame in instances:
        assert frame.gt_masks.tensor.shape[1:] == (6, 1)
        visible = frame.gt_masks.tensor.any(dim=(1, 2))
        assert (visible == (frame.gt_ids != ABSENT)).all()


def test_class_map_renames_and_drops(tmp_path: Path) -> None:
    instances = leaving_clip(tmp_path, [0, 1], class_map={3: 0})
    assert [frame.gt_ids.tolist() for frame in instances] == [[-1], [1]]
    assert [frame.gt_classes.tolist() for frame in instances] == [[-1], [0]]


def test_panoptic_and_semantic_clips_follow_their_segments(toy_data: Path) -> None:
    vis, vps, vss = (clip(f"toy_{task}_train", [0, 3, 7], video=1) for task in ("vis", "vps", "vss"))
    for t in range(3):
        labels = vss["instances"][t]
        assert (labels.gt_ids == labels.gt_classes).all()
        segments = vps["instances"][t]
        things = segments.gt_masks.tensor[(segments.gt_classes >= 0) & (segments.gt_classes < 6)]
        objects = vis["instances"][t]
        objects = objects.gt_masks.tensor[objects.gt_ids != ABSENT]
        assert {m.numpy().tobytes() for m in things} == {m.numpy().tobytes() for m in objects}
        merged = torch.full((40, 56), -1)
        for mask, label in zip(segments.gt_masks.tensor, segments.gt_classes, strict=True):
            merged[mask] = label
        for mask, label in zip(labels.gt_masks.tensor, labels.gt_classes, strict=True):
            assert (merged[mask] == label).all()
    assert vps["instances"][0].gt_ids.shape == vps["instances"][2].gt_ids.shape


def test_same_seed_same_clip(toy_data: Path) -> None:
    cfg = dvis.load_config(overrides=["INPUT.SAMPLING_FRAME_NUM", 3, "INPUT.MIN_SIZE_TRAIN", (32, 48)])
    spec = get_spec("toy_vis_train")
    mapper, record = clip_mapper_from_config(cfg, spec.kind, spec.reader()), spec.load()[0]
    first, second = (mapper(record, np.random.default_rng(4)) for _ in range(2))
    assert first["frame_indices"] == second["frame_indices"]
    assert all(torch.equal(a, b) for a, b in zip(first["image"], second["image"], strict=True))
    others = [mapper(record, np.random.default_rng(seed))["frame_indices"] for seed in range(20)]
    assert len({tuple(frames) for frames in others}) > 5


def test_image_and_masks_move_together(toy_data: Path) -> None:
    moves = ClipAugmentation([(Flip(), True), (Resize((80,), 200), True)])
    plain = clip("toy_vis_train", [2, 5])
    moved = clip("toy_vis_train", [2, 5], augmentation=moves)
    assert [tuple(image.shape) for image in moved["image"]] == [(3, 80, 112)] * 2
    for before, after in zip(plain["instances"], moved["instances"], strict=True):
        assert after.image_size == (80, 112)
        area = before.gt_masks.tensor.flatten(1).sum(1), after.gt_masks.tensor.flatten(1).sum(1)
        assert torch.equal(area[0] * 4, area[1])


def test_pseudo_video_from_one_image(tmp_path: Path) -> None:
    record = leaving_record(tmp_path)
    for annotation in record["annotations"]:
        annotation["segmentations"] = annotation["segmentations"][:1]
    record.update(length=1, file_names=record["file_names"][:1])
    cfg = dvis.load_config(overrides=["INPUT.SAMPLING_FRAME_NUM", 4, "INPUT.PSEUDO.MIN_SIZE_TRAIN", [60]])
    result = clip_mapper_from_config(cfg, "image_instance", read_instances)(record, np.random.default_rng(1))
    assert result["frame_indices"] == [0, 0, 0, 0]
    assert len({image.shape for image in result["image"]}) == 1
    assert all(frame.gt_ids.tolist() == [0] for frame in result["instances"])
    masks = [frame.gt_masks.tensor for frame in result["instances"]]
    assert not torch.equal(masks[0], masks[1])


def test_broken_frame_in_a_clip_is_named(tmp_path: Path) -> None:
    record = leaving_record(tmp_path)
    (tmp_path / "1.png").write_bytes(b"not an image")
    mapper = ClipMapper(fixed(0, 1), read_instances, PLAIN, "RGB")
    with pytest.raises(BrokenDataError, match=r"video a of a\.json, frame 1 .*1\.png"):
        mapper(record, np.random.default_rng(0))
    (tmp_path / "1.png").unlink()
    with pytest.raises(MissingDataError, match=r"1\.png is missing"):
        mapper(record, np.random.default_rng(0))


# ---- whole videos


def test_lazy_frames_are_a_sequence(toy_data: Path) -> None:
    record = DatasetCatalog.get("toy_vis_val")[0]
    for read_ahead in (0, 3):
        frames = LazyFrames(record, "RGB", 20, 100, read_ahead)
        assert len(frames) == 8
        assert frames[0].shape == (3, 20, 28)
        assert torch.equal(frames[-1], frames[7])
        assert [f.shape for f in frames[6:20]] == [(3, 20, 28)] * 2
        assert len(list(frames)) == 8
        reloaded = pickle.loads(pickle.dumps(frames))
        assert all(torch.equal(a, b) for a, b in zip(reloaded, frames, strict=True))
        assert torch.equal(frames[5], LazyFrames(record, "RGB", 20, 100)[5])
        with pytest.raises(IndexError):
            frames[8]
    whole = LazyFrames(record, "BGR", 0, 100)[2]
    image = np.asarray(Image.open(record["file_names"][2]))
    np.testing.assert_array_equal(whole.permute(1, 2, 0).numpy()[..., ::-1], image)


def test_lazy_frames_need_no_memory_for_length(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((120, 160, 3), np.uint8)).save(tmp_path / "a.jpg")
    record = {
        "video_id": 1,
        "source": "a.json",
        "file_names": [str(tmp_path / "a.jpg")] * 300,
        "height": 120,
        "width": 160,
    }
    frames = LazyFrames(record, "RGB", 0, 0, read_ahead=2)
    tracemalloc.start()
    for frame in frames:
        assert frame.shape == (3, 120, 160)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 3 * 120 * 160


def test_video_mapper(toy_data: Path) -> None:
    mapper = VideoMapper(80, 200, "RGB")
    video = mapper(DatasetCatalog.get("toy_vis_val")[1])
    assert (video["video_id"], video["height"], video["width"], video["length"]) == (2, 40, 56, 8)
    assert video["image"][0].shape == (3, 80, 112)
    assert len(video["file_names"]) == len(video["image"]) == 8
    semantic = mapper(DatasetCatalog.get("toy_vss_val")[0])  # whose records have no size
    assert (semantic["height"], semantic["width"]) == (40, 56)


def test_broken_frame_of_a_video_is_named_when_it_is_read(tmp_path: Path) -> None:
    record = leaving_record(tmp_path)
    (tmp_path / "2.png").write_bytes(b"")
    for read_ahead in (0, 3):
        frames = VideoMapper(0, 0, "RGB", read_ahead)(record)["image"]
        assert frames[0].shape == (3, 6, 8)
        with pytest.raises(BrokenDataError, match=r"frame 2 .*2\.png"):
            frames[2]


def test_nearby_frames_work_on_a_one_frame_video(tmp_path: Path) -> None:
    record = {**leaving_record(tmp_path), "length": 1}
    mapper = ClipMapper(NearbyFrames(3, 5), read_instances, PLAIN, "RGB")
    assert mapper(record, np.random.default_rng(0))["frame_indices"] == [0, 0, 0]


def jpeg_record(tmp_path: Path) -> dict[str, Any]:
    """Two JPEG frames of 96 x 160 pixels with one object, and where it is."""
    y, x = np.mgrid[:96, :160]
    for t in range(2):
        image = np.stack([x, y, (x + y + 20 * t) // 2], axis=-1).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{t}.jpg", quality=95)
    mask = np.zeros((96, 160), bool)
    mask[20:60, 30:90] = True
    return {
        "video_id": "jpeg",
        "source": "none",
        "file_names": [str(tmp_path / f"{t}.jpg") for t in range(2)],
        "height": 96,
        "width": 160,
        "length": 2,
        "annotations": [
            {"id": 1, "category_id": 0, "iscrowd": 0, "segmentations": [encode_mask(mask)] * 2},
        ],
    }


@pytest.mark.parametrize(
    ("short", "decoded"), [(24, (24, 40)), (30, (48, 80)), (48, (48, 80)), (60, (96, 160))]
)
def test_reduced_decoding_changes_pixels_a_little(
    tmp_path: Path, short: int, decoded: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = jpeg_record(tmp_path)
    augmentation = ClipAugmentation([(Resize((short,), 1000.0, False), True), (Flip(), True)])
    full, reduced = (
        ClipMapper(fixed(0, 1), read_instances, augmentation, "RGB", reduced_decoding=flag)
        for flag in (False, True)
    )
    sizes: list[tuple[int, ...]] = []

    def noting(*args: Any) -> Any:
        image = read_frame(*args)
        sizes.append(image.shape[:2])
        return image

    monkeypatch.setattr("dvis.data.mapper.read_frame", noting)
    expected, found = (mapper(record, np.random.default_rng(3)) for mapper in (full, reduced))
    assert sizes == [(96, 160)] * 2 + [decoded] * 2
    assert (found["height"], found["width"]) == (96, 160)
    for key in ("image", "instances"):
        assert len(found[key]) == len(expected[key]) == 2
    for image, wanted in zip(found["image"], expected["image"], strict=True):
        assert image.shape == wanted.shape
        assert (image.float() - wanted.float()).abs().mean() < 3
    for instances, wanted in zip(found["instances"], expected["instances"], strict=True):
        assert torch.equal(instances.gt_masks.tensor, wanted.gt_masks.tensor)


def test_reduced_decoding_of_what_cannot_be_reduced(tmp_path: Path) -> None:
    """A PNG file, an image that has to be turned, a clip that is cropped first, and a broken size."""
    record = jpeg_record(tmp_path)
    turned = Image.open(record["file_names"][0])
    exif = turned.getexif()
    exif[0x0112] = 3
    turned.save(tmp_path / "turned.jpg", exif=exif)
    turned.save(tmp_path / "0.png")
    for name in ("turned.jpg", "0.png"):
        found = read_frame({**record, "file_names": [str(tmp_path / name)]}, 0, "RGB", (24, 40))
        assert found.shape == (96, 160, 3)
    with pytest.raises(BrokenDataError, match="the image has 96 x 160 pixels, the annotations say 90 x 160"):
        read_frame({**record, "height": 90}, 0, "RGB", (24, 40))
    augmentation = ClipAugmentation([(Crop("relative", (0.5, 0.5)), True)])
    clips = [
        ClipMapper(fixed(0), read_instances, augmentation, "RGB", reduced_decoding=flag)(
            record, np.random.default_rng(0)
        )
        for flag in (False, True)
    ]
    assert torch.equal(clips[0]["image"][0], clips[1]["image"][0])
