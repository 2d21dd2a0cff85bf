"""Augmentation: sizes, agreement of image and masks, and what frames of a clip share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import transforms as T

import dvis
from dvis.data import augmentation as A


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def config(*overrides: Any) -> CfgNode:
    return dvis.load_config(overrides=overrides)


def test_shortest_edge_size_is_detectron2s() -> None:
    for height, width in ((480, 640), (641, 333), (96, 96), (1080, 1920)):
        for short in (32, 360, 601):
            transform = T.ResizeShortestEdge(short, 768).get_transform(np.zeros((height, width, 3), np.uint8))
            image = transform.apply_image(np.zeros((height, width, 3), np.uint8))
            assert A.shortest_edge_size((height, width), short, 768) == image.shape[:2]


STEPS: list[A.AugmentationStep] = [
    A.Resize((20, 40, 77), 90),
    A.Resize((20, 70), 90, between=True),
    A.Flip(),
    A.Flip(horizontal=False),
    A.Crop("relative", (0.5, 0.3)),
    A.Crop("relative_range", (0.5, 0.3)),
    A.Crop("absolute", (20, 500)),
    A.Crop("absolute_range", (10, 30)),
    A.CropThenResize(A.Crop("absolute_range", (384, 600))),
    A.Rotate(),
    A.LargeScaleJitter(0.1, 2.0, 64),
    A.ColorJitter("brightness"),
    A.ColorJitter("contrast"),
    A.ColorJitter("saturation"),
    A.SsdColors("RGB"),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{type(step).__name__}-{getattr(step, 'kind', '')}")
def test_size_is_as_announced_and_masks_follow_the_image(step: A.AugmentationStep) -> None:
    image = np.full((37, 53, 3), 20, dtype=np.uint8)
    image[8:25, 10:40] = 220
    mask = (image[..., 0] > 100).astype(np.uint8)
    for seed in range(25):
        ((transform, size),) = A.ClipAugmentation([(step, True)]).draw(rng(seed), [(37, 53)])
        result = transform.apply_image(image)
        moved = transform.apply_segmentation(mask)
        assert result.shape == (*size, 3)
        assert result.dtype == np.uint8
        assert moved.shape == size
        assert set(np.unique(moved)) <= {0, 1}
        bright = result.astype(int).mean(axis=-1) > 125
        if not isinstance(step, A.LargeScaleJitter):  # padding is grey
            assert (bright == (moved == 1)).mean() > 0.93
        else:
            assert not (moved.astype(bool) & ~(result[..., 0] > 100)).mean() > 0.07


def test_same_seed_same_result() -> None:
    augmentation = A.build_augmentation(
        config("INPUT.COLOR_AUG_SSD", True, "INPUT.AUGMENTATIONS", ["rotation"])
    )
    image = rng(1).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    first, second, other = (
        augmentation.draw(rng(seed), [(60, 80)])[0][0].apply_image(image) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, second)
    assert first.shape != other.shape or (first != other).any()


def test_frames_of_a_video_share_everything() -> None:
    cfg = config(
        "INPUT.MIN_SIZE_TRAIN", (30, 40, 50), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice",
        "INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", [300, 400],
        "INPUT.AUGMENTATIONS", ["rotation", "brightness"], "INPUT.COLOR_AUG_SSD", True,
        "INPUT.RANDOM_FLIP", "flip",
    )  # fmt: skip
    image = rng(1).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    for segments in (False, True):
        augmentation = A.build_augmentation(cfg, segments=segments)
        for seed in range(6):
            results = [t.apply_image(image) for t, _ in augmentation.draw(rng(seed), [(60, 80)] * 3)]
            np.testing.assert_array_equal(results[0], results[1])
            np.testing.assert_array_equal(results[0], results[2])


def test_frames_of_a_pseudo_video_share_what_is_by_clip() -> None:
    pseudo = ["INPUT.PSEUDO.MIN_SIZE_TRAIN", [30, 40, 50, 60], "INPUT.RANDOM_FLIP", "flip_by_clip"]
    image = rng(1).integers(0, 255, (60, 80, 3), dtype=np.uint8)

    def results(*overrides: Any) -> list[list[np.ndarray]]:
        augmentation = A.build_augmentation(config(*pseudo, *overrides), pseudo=True)
        plans = (augmentation.draw(rng(seed), [(60, 80)] * 4) for seed in range(8))
        return [[transform.apply_image(image) for transform, _ in plan] for plan in plans]

    for clip in results():  # rotated frame by frame, resized and flipped alike
        assert len({frame.shape for frame in clip}) == 1
        assert (clip[0] != clip[1]).any()
    for clip in results("INPUT.PSEUDO.AUGMENTATIONS", []):
        np.testing.assert_array_equal(clip[0], clip[3])
    sizes = [
        {frame.shape for frame in clip} for clip in results("INPUT.PSEUDO.MIN_SIZE_TRAIN_SAMPLING", "choice")
    ]
    assert any(len(found) > 1 for found in sizes)


def test_frames_of_different_sizes_share_a_draw() -> None:
    augmentation = A.ClipAugmentation(
        [(A.Resize((30, 60), 100), True), (A.Crop("relative", (0.5, 0.5)), True)]
    )
    (_, first), (_, second) = augmentation.draw(rng(), [(40, 80), (80, 160)])
    assert first == second


def test_large_scale_jitter_replaces_resizing() -> None:
    cfg = config("INPUT.LSJ_AUG.ENABLED", True, "INPUT.LSJ_AUG.IMAGE_SIZE", 64)
    for seed in range(10):
        (_, size), _ = A.build_augmentation(cfg).draw(rng(seed), [(60, 80), (60, 80)])
        assert size == (64, 64)


def test_instances_are_cropped_before_and_segments_after_resizing() -> None:
    cfg = config(
        "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute",
        "INPUT.CROP.SIZE", [40, 40],
    )  # fmt: skip
    sizes = {A.build_augmentation(cfg).draw(rng(seed), [(60, 80)])[0][1] for seed in range(10)}
    assert {min(size) for size in sizes} == {64}
    sizes = {A.build_augmentation(cfg, segments=True).draw(rng(seed), [(60, 80)])[0][1] for seed in range(10)}
    assert sizes == {(40, 40)}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.RANDOM_FLIP", "sideways"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "guess"),
        ("INPUT.AUGMENTATIONS", ["blur"]),
        ("INPUT.CROP.TYPE", "round"),
    ],
)
def test_unknown_values_are_named(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        A.build_augmentation(config("INPUT.CROP.ENABLED", True, key, value))
