"""Transforms and augmentations."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.data.transforms.augmentation import _TransformToAug
from PIL import Image, ImageOps


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(125)


def image_of(*shape: int) -> np.ndarray:
    return np.random.randint(0, 256, size=shape, dtype=np.uint8)


# ------------------------------------------------------------------ rotated boxes


def test_default_augmentation_resizes_and_flips_rotated_boxes() -> None:
    image, transforms = T.apply_augmentations(
        detection_utils.build_augmentation(get_cfg(), True), np.random.rand(200, 300)
    )
    assert image.shape[:2] == (800, 1200)
    boxes = transforms.apply_rotated_box(np.array([[179, 97, 62, 40, -56]], dtype=np.float64))
    np.testing.assert_allclose(boxes, [[484, 388, 248, 160, 56]])


def test_rotated_boxes_under_unequal_factors() -> None:
    image, transforms = T.apply_augmentations([T.Resize(shape=(800, 800))], np.random.rand(400, 200))
    assert image.shape[:2] == (800, 800)
    angles = [0, 30, 90, -90]
    boxes = transforms.apply_rotated_box(np.array([[150, 100, 40, 20, a] for a in angles], dtype=np.float64))
    expected: Any = [
        [600, 200, 160, 40, 0],
        [600, 200, 144.22205102, 52.91502622, 49.10660535],
        [600, 200, 80, 80, 90],
        [600, 200, 80, 80, -90],
    ]
    np.testing.assert_allclose(boxes, expected)


# ------------------------------------------------------------------ augmentations


def test_resize_scale_crop_and_flip_draw_in_this_order() -> None:
    """Three numbers are drawn: scale, place of the crop, flip; the result is that of doing it by hand."""
    draws = np.random.RandomState(125)
    scale, place, flip = draws.uniform(0.2, 2.0), draws.uniform(0.0, 1.0), draws.uniform(0, 1.0)
    augs = [T.ResizeScale(0.2, 2.0, 1100, 1000), T.FixedSizeCrop((1100, 1000)), T.RandomFlip()]
    image, transforms = T.apply_augmentations(augs, np.random.RandomState(0).rand(900, 800))
    assert image.shape[:2] == (1100, 1000)

    factor = min(1100 * scale / 900, 1000 * scale / 800)
    new_h, new_w = np.round(900 * factor), np.round(800 * factor)
    top, left = (np.round(max(new - size, 0) * place) for new, size in ((new_h, 1100), (new_w, 1000)))
    x0, x1 = (x * new_w / 800 - left for x in (91, 144))
    y0, y1 = (y * new_h / 900 - top for y in (46, 111))
    if flip < 0.5:
        x0, x1 = 1000 - x1, 1000 - x0
    boxes = transforms.apply_box(np.array([[91, 46, 144, 111]], dtype=np.float64))
    np.testing.assert_allclose(boxes, [[x0, y0, x1, y1]])


def test_polygons_follow_crops() -> None:
    transforms = T.TransformList([T.CropTransform(10, 10, 20, 20), T.HFlipTransform(20)])
    outside = np.array([[0, 0], [5, 0], [5, 5]], dtype=float)
    cut = np.array([[20, 20], [40, 20], [40, 40], [20, 40]], dtype=float)
    polygons = transforms.apply_polygons([outside, cut])
    assert len(polygons) == 1
    assert {tuple(point) for point in polygons[0].tolist()} == {(0, 10), (10, 10), (0, 20), (10, 20)}


@pytest.mark.parametrize(
    ("augmentation", "text"),
    [
        (T.RandomCrop("relative", (100, 100)), "RandomCrop(crop_type='relative', crop_size=(100, 100))"),
        (T.RandomFlip(prob=0.25), "RandomFlip(prob=0.25)"),
        (T.RandomFlip(), "RandomFlip()"),
        (
            T.AugmentationList([T.RandomFlip(), T.Resize(20)]),
            "AugmentationList[RandomFlip(), Resize(shape=(20, 20))]",
        ),
    ],
)
def test_text_of_an_augmentation(augmentation: T.Augmentation, text: str) -> None:
    assert str(augmentation) == text
    assert repr(augmentation) == text


@pytest.mark.parametrize(
    ("prob", "valid"), [(0.0, True), (0.5, True), (1.0, True), (-0.01, False), (1.01, False)]
)
def test_random_apply_wants_a_probability(prob: float, valid: bool) -> None:
    if valid:
        T.RandomApply(T.NoOpTransform(), prob=prob)
    else:
        with pytest.raises(AssertionError):
            T.RandomApply(None, prob=prob)


@pytest.mark.parametrize("kind", [T.Augmentation, T.Transform])
def test_random_apply_applies_what_it_wraps(kind: type) -> None:
    wrapped = mock.MagicMock(name="wrapped", spec=kind)
    image = mock.MagicMock(name="image")
    random_apply = T.RandomApply(wrapped, prob=0.001)
    with mock.patch.object(random_apply, "_rand_range", return_value=0.0001):
        transform = random_apply.get_transform(image)
    if kind is T.Transform:
        assert transform is wrapped
    else:
        wrapped.get_transform.assert_called_once_with(image)
        assert transform is not wrapped


def test_random_apply_can_do_nothing() -> None:
    wrapped = mock.MagicMock(name="wrapped", spec=T.Augmentation)
    random_apply = T.RandomApply(wrapped, prob=0.001)
    with mock.patch.object(random_apply, "_rand_range", return_value=0.9):
        transform = random_apply.get_transform(mock.MagicMock(name="image"))
    wrapped.get_transform.assert_not_called()
    assert isinstance(transform, T.NoOpTransform)


def test_augmentations_ask_for_what_they_name() -> None:
    class ResizeBoth(T.Augmentation):
        def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
            assert image.shape == sem_seg.shape
            return T.ResizeTransform(100, 100, 50, 50)

    class FlipImage(T.Augmentation):
        def get_transform(self, image: np.ndarray) -> T.Transform:
            assert image.shape[:2] == (50, 50)  # the first one was applied already
            return T.HFlipTransform(50)

    class Unknown(T.Augmentation):
        def get_transform(self, image: np.ndarray, nonexist: Any) -> T.Transform:
            return T.NoOpTransform()

    inputs = T.AugInput(
        np.random.rand(100, 100).astype("float32"), sem_seg=(np.random.rand(100, 100) < 0.5).astype("uint8")
    )
    transforms = inputs.apply_augmentations([ResizeBoth(), FlipImage()])
    assert isinstance(transforms[0], T.ResizeTransform)
    assert isinstance(transforms[1], T.HFlipTransform)
    assert inputs.image.shape == (50, 50)
    assert inputs.sem_seg is not None
    assert inputs.sem_seg.shape == (50, 50)
    with pytest.raises(AttributeError, match="nonexist"):
        inputs.apply_augmentations([Unknown()])


def test_arguments_without_a_name_are_an_error() -> None:
    class Variadic(T.Augmentation):
        def get_transform(self, image: np.ndarray, *rest: Any) -> T.Transform:
            return T.NoOpTransform()

    with pytest.raises(TypeError):
        Variadic()(T.AugInput(image_of(4, 4, 3)))


def test_a_transform_can_stand_in_a_list_of_augmentations() -> None:
    inputs = T.AugInput(image_of(6, 4, 3), boxes=np.array([[0.0, 0.0, 1.0, 2.0]]))
    transforms = inputs.apply_augmentations(
        [T.HFlipTransform(4), T.AugmentationList([T.Resize(12), T.Resize((6, 8))])]
    )
    assert inputs.image.shape == (6, 8, 3)
    assert inputs.boxes is not None
    np.testing.assert_allclose(inputs.boxes, [[6, 0, 8, 2]])
    assert isinstance(transforms, T.TransformList)
    assert isinstance(_TransformToAug(T.NoOpTransform())(inputs), T.NoOpTransform)


def test_images_of_wide_integers_are_refused() -> None:
    with pytest.raises(AssertionError):
        T.AugInput(np.zeros((4, 4), dtype=np.int64))
    with pytest.raises(AssertionError):
        T.AugInput([[1, 2], [3, 4]])  # type: ignore[arg-type]


def test_flip_wants_one_direction() -> None:
    with pytest.raises(ValueError):
        T.RandomFlip(horizontal=True, vertical=True)
    with pytest.raises(ValueError):
        T.RandomFlip(horizontal=False, vertical=False)
    image = image_of(5, 4, 3)
    flipped = T.RandomFlip(prob=1.0, horizontal=False, vertical=True).get_transform(image).apply_image(image)
    np.testing.assert_array_equal(flipped, image[::-1])
    assert isinstance(T.RandomFlip(prob=0.0).get_transform(image), T.NoOpTransform)


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((100, 1000), 800, 1333, (133, 1333)),
        ((375, 500), 360, 10**9, (360, 480)),
        ((7, 7), 3, 1333, (3, 3)),
        ((333, 500), 480, 1333, (480, 721)),
    ],
)
def test_shortest_edge(size: tuple[int, int], short: int, longest: int, expected: tuple[int, int]) -> None:
    assert T.ResizeShortestEdge.get_output_shape(*size, short, longest) == expected
    transform = T.ResizeShortestEdge(short, longest).get_transform(image_of(*size, 3))
    assert (transform.new_h, transform.new_w) == expected


def test_shortest_edge_styles() -> None:
    image = image_of(20, 30, 3)
    chosen = {
        T.ResizeShortestEdge([8, 16], sample_style="choice").get_transform(image).new_h for _ in range(50)
    }
    assert chosen == {8, 16}
    ranged = {
        T.ResizeShortestEdge([8, 10], sample_style="range").get_transform(image).new_h for _ in range(80)
    }
    assert ranged == {8, 9, 10}
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)
    with pytest.raises(AssertionError):
        T.ResizeShortestEdge([8, 9, 10], sample_style="range")
    with pytest.raises(AssertionError):
        T.ResizeShortestEdge(8, sample_style="sometimes")


def test_shortest_edge_can_be_scripted() -> None:
    def resize(image: torch.Tensor) -> torch.Tensor:
        newh, neww = T.ResizeShortestEdge.get_output_shape(image.shape[-2], image.shape[-1], 80, 133)
        return F.interpolate(image.unsqueeze(0), size=(newh, neww))

    try:
        scripted = torch.jit.script(resize)
    except (OSError, NotImplementedError) as error:  # newer versions of PyTorch or Python may have none
        pytest.skip(f"TorchScript is not available: {error}")
    for shape in ((3, 10, 10), (3, 8, 100)):
        image = torch.randn(shape)
        assert torch.equal(resize(image), scripted(image))


@pytest.mark.parametrize("size", [(10, 10), (40, 10), (10, 40), (40, 40), (30, 20)])
@pytest.mark.parametrize("pad", [True, False])
def test_fixed_size_crop(size: tuple[int, int], pad: bool) -> None:
    image, labels = image_of(*size, 3), image_of(*size)
    transform = T.FixedSizeCrop((30, 20), pad=pad, pad_value=7.0, seg_pad_value=254).get_transform(image)
    out, out_labels = transform.apply_image(image), transform.apply_segmentation(labels)
    kept = (min(size[0], 30), min(size[1], 20))
    assert out.shape == ((30, 20, 3) if pad else (*kept, 3))
    assert out_labels.shape == out.shape[:2]
    if pad:
        assert (out[kept[0] :] == 7).all()
        assert (out[:, kept[1] :] == 7).all()
        assert (out_labels[kept[0] :] == 254).all()


@pytest.mark.parametrize(
    ("crop_type", "crop_size", "low", "high"),
    [
        ("absolute", (30, 200), (30, 80), (30, 80)),
        ("absolute_range", (20, 200), (20, 20), (50, 80)),
        ("relative", (0.5, 0.25), (25, 20), (25, 20)),
        ("relative_range", (0.5, 0.25), (25, 20), (50, 80)),
    ],
)
def test_random_crop(crop_type: str, crop_size: Any, low: tuple[int, int], high: tuple[int, int]) -> None:
    image = image_of(50, 80, 3)
    for _ in range(20):
        out = T.RandomCrop(crop_type, crop_size).get_transform(image).apply_image(image)
        assert low[0] <= out.shape[0] <= high[0]
        assert low[1] <= out.shape[1] <= high[1]


def test_random_crop_avoids_a_single_category() -> None:
    image, labels = image_of(40, 40, 3), np.zeros((40, 40), dtype=np.uint8)
    labels[:, 20:] = 1
    labels[:4] = 255

    def crops_with_both(*constraint: Any) -> int:
        crop = T.RandomCrop_CategoryAreaConstraint("absolute", (10, 10), *constraint)
        cuts = [crop.get_transform(image, labels).apply_segmentation(labels) for _ in range(100)]
        return sum({0, 1} <= set(np.unique(cut)) for cut in cuts)

    assert crops_with_both(0.9, 255) > 90 > crops_with_both()


def test_random_rotation_extent_and_resize_have_the_announced_sizes() -> None:
    image = image_of(20, 30, 3)
    assert T.RandomRotation(90).get_transform(image).apply_image(image).shape == (30, 20, 3)
    kept = T.RandomRotation([-30, 30], expand=False, center=[[0.4, 0.4], [0.6, 0.6]]).get_transform(image)
    assert kept.apply_image(image).shape == image.shape
    assert isinstance(T.RandomRotation([360.0], sample_style="choice").get_transform(image), T.NoOpTransform)
    assert T.RandomExtent((0.5, 0.5), (0.2, 0.2)).get_transform(image).output_size in (
        (10, 15),
        (9, 15),
        (10, 14),
    )
    assert T.RandomResize([(4, 6)]).get_transform(image).apply_image(image).shape == (4, 6, 3)


def test_min_iou_crop_keeps_boxes() -> None:
    boxes = np.array([[30.0, 30.0, 60.0, 60.0]])
    seen = set()
    for _ in range(40):
        transform = T.MinIoURandomCrop().get_transform(image_of(100, 100, 3), boxes)
        seen.add(type(transform))
        if isinstance(transform, T.CropTransform):
            box = np.clip(transform.apply_box(boxes.copy())[0], 0, [transform.w, transform.h] * 2)
            assert ((box[2:] - box[:2]) > 0).all()
    assert seen == {T.CropTransform, T.NoOpTransform}
    assert isinstance(T.MinIoURandomCrop().get_transform(image_of(9, 9, 3), None), T.NoOpTransform)


# ------------------------------------------------------------------ colours


def test_colour_transforms_call_their_operation() -> None:
    image = image_of(10, 10, 3)
    np.testing.assert_array_equal(T.ColorTransform(lambda img: img).apply_image(image), image)
    solarize = T.PILColorTransform(lambda img: ImageOps.solarize(img, 100))
    np.testing.assert_array_equal(solarize.apply_image(image), ImageOps.solarize(Image.fromarray(image), 100))
    assert solarize.apply_segmentation(image) is image
    assert isinstance(solarize.inverse(), T.NoOpTransform)
    for kind in (T.ColorTransform, T.PILColorTransform):
        with pytest.raises(ValueError):
            kind(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [T.RandomBrightness, T.RandomContrast, T.RandomSaturation])
def test_intensity_one_keeps_the_image(kind: type) -> None:
    image = image_of(10, 12, 3)
    kept = kind(1.0, 1.0).get_transform(image).apply_image(image)
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, image)


def test_colour_augmentations() -> None:
    image = image_of(10, 12, 3)
    assert (T.RandomBrightness(0.0, 0.0).get_transform(image).apply_image(image) == 0).all()
    grey = T.RandomSaturation(0.0, 0.0).get_transform(image).apply_image(image)
    assert (grey == grey[:, :, :1]).all()
    mean = T.RandomContrast(0.0, 0.0).get_transform(image).apply_image(image)
    assert (mean == int(image.mean())).all()
    np.testing.assert_array_equal(T.RandomLighting(0.0).get_transform(image).apply_image(image), image)
    shifted = (
        T.RandomLighting(100.0).get_transform(image.astype(float)).apply_image(image.astype(float)) - image
    )
    np.testing.assert_allclose(shifted, np.broadcast_to(shifted[0, 0], shifted.shape), atol=1e-9)


# ------------------------------------------------------------------ resize and extent


@pytest.mark.parametrize("shape", [(100, 100), (100, 100, 1), (100, 100, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_resize_keeps_dimensions_and_type(shape: tuple[int, ...], dtype: type) -> None:
    image: np.ndarray = image_of(*shape).astype(dtype)
    out = T.ResizeTransform(100, 100, 200, 150).apply_image(image)
    assert out.shape == (200, 150, *shape[2:])
    assert out.dtype == dtype


def test_resize_is_that_of_pillow_and_of_torch() -> None:
    image = image_of(37, 53, 3)
    expected = np.asarray(Image.fromarray(image).resize((20, 30), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(T.ResizeTransform(37, 53, 30, 20).apply_image(image), expected)
    tensor = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    interpolated = F.interpolate(tensor, (30, 20), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    np.testing.assert_allclose(
        T.ResizeTransform(37, 53, 30, 20).apply_image(image.astype(np.float32)),
        interpolated.numpy(),
        rtol=1e-6,
    )


def test_resize_of_labels_invents_none() -> None:
    labels = np.random.choice([0, 7, 200], size=(20, 30))
    for dtype in (np.uint8, np.float64):
        out = T.ResizeTransform(20, 30, 13, 47).apply_segmentation(labels.astype(dtype))
        assert out.shape == (13, 47)
        assert out.dtype == dtype
        assert set(np.unique(out)) <= {0, 7, 200}


def test_resize_wants_the_announced_size() -> None:
    with pytest.raises(AssertionError):
        T.ResizeTransform(10, 20, 5, 5).apply_image(image_of(20, 10, 3))


def test_resize_inverse_of_coordinates() -> None:
    transform = T.ResizeTransform(20, 30, 13, 47)
    coords = np.random.rand(5, 2) * 20
    np.testing.assert_allclose(
        transform.inverse().apply_coords(transform.apply_coords(coords.copy())), coords
    )


@pytest.mark.parametrize("shape", [(100, 100), (100, 100, 1), (100, 100, 3)])
def test_extent_keeps_dimensions(shape: tuple[int, ...]) -> None:
    out = T.ExtentTransform((20, 20, 80, 80), (200, 180)).apply_image(image_of(*shape))
    assert out.shape == (200, 180, *shape[2:])


def test_extent_is_a_crop_where_nothing_is_scaled() -> None:
    image = image_of(30, 40, 3)
    transform = T.ExtentTransform((10, 5, 30, 25), (20, 20))
    np.testing.assert_array_equal(transform.apply_image(image), image[5:25, 10:30])
    np.testing.assert_array_equal(transform.apply_segmentation(image[:, :, 0]), image[5:25, 10:30, 0])
    np.testing.assert_allclose(
        transform.apply_coords(np.array([[10.0, 5.0], [20.0, 25.0]])), [[0, 0], [10, 20]]
    )


# ------------------------------------------------------------------ rotation


def grid(h: int, w: int) -> np.ndarray:
    return np.array([[x, y] for y in range(h + 1) for x in range(w + 1)], dtype=float)


def test_rotation_by_180() -> None:
    image, coords = np.random.rand(6, 6), grid(6, 6)
    rotation = T.RotationTransform(6, 6, 180, expand=False, center=None)
    np.testing.assert_allclose(rotation.apply_image(image), image[::-1, ::-1], rtol=1e-5)
    np.testing.assert_allclose(rotation.apply_coords(coords), [6, 6] - coords, atol=1e-9)


def test_rotation_by_45() -> None:
    h, w = 4, 6
    coords = grid(h, w)
    x, y = coords.T
    expected = np.stack(
        [(x + y - (h + w) / 2) / 2**0.5 + w / 2, h / 2 + (y + (w - h) / 2 - x) / 2**0.5], axis=1
    )
    np.testing.assert_allclose(
        T.RotationTransform(h, w, 45, expand=False).apply_coords(coords), expected, atol=1e-9
    )


@pytest.mark.parametrize(("h", "w", "expand"), [(5, 5, False), (5, 8, True)])
def test_rotation_by_90(h: int, w: int, expand: bool) -> None:
    image, coords = np.random.rand(h, w), grid(h, w)
    rotation = T.RotationTransform(h, w, 90, expand=expand, center=None)
    np.testing.assert_allclose(rotation.apply_image(image), image.T[::-1], rtol=1e-5)
    np.testing.assert_allclose(
        rotation.apply_coords(coords), np.stack([coords[:, 1], w - coords[:, 0]], 1), atol=1e-9
    )


@pytest.mark.parametrize("angle", [13, 77, 200, 341])
def test_expansion_makes_the_centre_irrelevant(angle: int) -> None:
    image, coords = np.random.rand(5, 8), grid(5, 8)
    rotations = [
        T.RotationTransform(5, 8, angle, expand=True, center=c) for c in (None, (0, 0), (5, 8), (2, 5))
    ]
    for rotation in rotations[1:]:
        np.testing.assert_allclose(rotation.apply_image(image), rotations[0].apply_image(image), atol=1e-6)
        np.testing.assert_allclose(
            rotation.apply_coords(coords), rotations[0].apply_coords(coords), atol=1e-9
        )


def test_rotation_inverse() -> None:
    image, coords = np.random.rand(5, 8), grid(5, 8)
    quarter = T.RotationTransform(5, 8, 90, expand=True, center=None)
    np.testing.assert_allclose(quarter.inverse().apply_image(quarter.apply_image(image)), image, rtol=1e-5)
    slanted = T.RotationTransform(5, 8, 65, expand=True, center=None)
    np.testing.assert_allclose(
        slanted.inverse().apply_coords(slanted.apply_coords(coords)), coords, atol=1e-9
    )
    with pytest.raises(NotImplementedError):
        T.RotationTransform(5, 8, 65, expand=False).inverse()


def test_rotation_of_labels_invents_none() -> None:
    labels = np.random.choice([3, 250], size=(20, 20)).astype(np.uint8)
    rotated = T.RotationTransform(20, 20, 30, expand=False).apply_segmentation(labels)
    assert set(np.unique(rotated)) <= {0, 3, 250}
    empty = np.zeros((0, 2))
    assert T.RotationTransform(20, 20, 30).apply_coords(empty).shape == (0, 2)
