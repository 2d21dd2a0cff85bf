"""Drawing: what is drawn where, not how it looks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks
from detectron2.utils.colormap import colormap, random_color, random_colors
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode, GenericMask, VisImage, Visualizer, _create_text_labels
from PIL import Image

import detectron2_fallback

bundled_only = pytest.mark.skipif(not detectron2_fallback.is_bundled(), reason="upstream cannot do this")

N = 10


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(3)


@pytest.fixture
def img() -> np.ndarray:
    return np.random.rand(100, 100, 3) * 255


@pytest.fixture
def boxes() -> np.ndarray:
    corner = np.random.rand(N, 2) * 50
    return np.concatenate((corner, corner + 50), axis=1)


@pytest.fixture
def masks() -> list[np.ndarray]:
    mask = np.zeros((100, 100), dtype=bool)
    mask[:40, 10:20] = True
    return [mask] * N


LABELS = [str(i) for i in range(N)]


def coco() -> Any:
    return MetadataCatalog.get("coco_2017_train")


def polygons() -> list[list[np.ndarray]]:
    return [[np.random.rand(3, 2).flatten() * 100 for _ in range(1 + i % 4)] for i in range(N)]


def instances_of(boxes: np.ndarray, masks: Any) -> Instances:
    instances = Instances((100, 100))
    instances.pred_classes = torch.randint(0, 80, size=(len(boxes),))
    instances.scores = torch.rand(len(boxes))
    instances.pred_boxes = Boxes(torch.from_numpy(boxes))
    instances.pred_masks = torch.from_numpy(np.asarray(masks))
    return instances


# ------------------------------------------------------------------ whole annotations


def test_picture_has_the_size_of_the_image(img: np.ndarray) -> None:
    large = np.random.rand(928, 928, 3) * 255
    assert Visualizer(large, coco()).output.get_image().shape == large.shape
    for scale in (0.5, 1.0, 1.37, 2.0):
        image = Visualizer(img[:71, :53], scale=scale).get_output().get_image()
        assert image.shape == (int(71 * scale), int(53 * scale), 3)
        assert image.dtype == np.uint8


def test_nothing_drawn_is_the_image(img: np.ndarray) -> None:
    np.testing.assert_array_equal(VisImage(img).get_image(), img.astype(np.uint8))


@pytest.mark.parametrize("mode", list(ColorMode))
@pytest.mark.parametrize("known", [True, False])
def test_dataset_dict(mode: ColorMode, known: bool) -> None:
    image = np.random.rand(512, 512, 3) * 255
    annotation = {
        "bbox": [368.9, 330.89, 22.6, 81.4],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": 1,
        "segmentation": {"counts": "_jh52m?2N2N2N2O100O10O001N1O2MceP2", "size": [512, 512]},
    }
    dic = {"annotations": [annotation], "height": 512, "image_id": 1, "width": 512}
    visualizer = Visualizer(image, coco() if known else None, instance_mode=mode)
    assert visualizer.draw_dataset_dict(dic).get_image().shape == image.shape


def test_rotated_dataset_dict() -> None:
    image = np.random.rand(512, 512, 3) * 255
    annotation = {"bbox": [368.9, 330.89, 22.6, 81.4, 45], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 0}
    visualizer = Visualizer(image, coco())
    visualizer.draw_dataset_dict({"annotations": [annotation], "height": 512, "image_id": 1, "width": 512})
    assert (visualizer.output.get_image() != image.astype(np.uint8)).any()


def test_dataset_dict_with_maps(img: np.ndarray, tmp_path: Path) -> None:
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    labels = np.repeat([[90, 91]], 50, axis=1).repeat(100, axis=0).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "sem.png")
    drawn = Visualizer(img, metadata).draw_dataset_dict({"sem_seg_file_name": str(tmp_path / "sem.png")})
    assert (drawn.get_image() != img.astype(np.uint8)).any()
    if not detectron2_fallback.is_bundled():
        pytest.importorskip("panopticapi")
    ids = np.stack([labels, np.zeros_like(labels), np.zeros_like(labels)], axis=-1)
    Image.fromarray(ids).save(tmp_path / "pan.png")
    segments = [
        {"id": 90, "category_id": 100, "isthing": False},
        {"id": 91, "category_id": 2, "isthing": True},
    ]
    dic = {"pan_seg_file_name": str(tmp_path / "pan.png"), "segments_info": segments}
    drawn = Visualizer(img, metadata).draw_dataset_dict(dic)
    assert (drawn.get_image() != img.astype(np.uint8)).mean() > 0.5


@pytest.mark.parametrize("mode", list(ColorMode))
@pytest.mark.parametrize("name", [None, "coco_2017_train", "test_visualizer_unknown"])
def test_instance_predictions(
    img: np.ndarray, boxes: np.ndarray, masks: list[np.ndarray], mode: ColorMode, name: str | None
) -> None:
    metadata = None if name is None else MetadataCatalog.get(name)
    visualizer = Visualizer(img, metadata, instance_mode=mode)
    out = visualizer.draw_instance_predictions(instances_of(boxes, masks)).get_image()
    assert out.shape == img.shape


def test_black_and_white_without_instances(
    img: np.ndarray, boxes: np.ndarray, masks: list[np.ndarray]
) -> None:
    instances = instances_of(boxes, masks)[:0]
    visualizer = Visualizer(img, coco(), instance_mode=ColorMode.IMAGE_BW)
    out = visualizer.draw_instance_predictions(instances).get_image()
    np.testing.assert_array_equal(out[:, :, 0], out[:, :, 1])
    np.testing.assert_array_equal(out[:, :, 0], out[:, :, 2])


def test_masks_that_are_empty(img: np.ndarray, boxes: np.ndarray, masks: list[np.ndarray]) -> None:
    instances = instances_of(boxes, np.zeros_like(np.asarray(masks)))
    for mode in ColorMode:
        Visualizer(img, coco(), instance_mode=mode).draw_instance_predictions(instances)
    instances.remove("pred_boxes")
    Visualizer(img, coco()).draw_instance_predictions(instances)


def test_overlay_of_everything(img: np.ndarray, boxes: np.ndarray, masks: list[np.ndarray]) -> None:
    tensor = torch.from_numpy(np.asarray(masks))
    for shapes in (polygons(), masks, tensor, BitMasks(tensor), PolygonMasks(polygons())):
        for scale in (1, 2):
            visualizer = Visualizer(img, coco(), scale=scale)
            out = visualizer.overlay_instances(masks=shapes, boxes=boxes, labels=LABELS).get_image()
            assert out.shape == (100 * scale, 100 * scale, 3)
    Visualizer(img, coco()).overlay_instances(masks=polygons(), boxes=None, labels=LABELS)
    red = ["red"] * N
    Visualizer(img, coco()).overlay_instances(boxes=Boxes(torch.from_numpy(boxes)), assigned_colors=red)


def test_keypoints(img: np.ndarray) -> None:
    keypoints = Keypoints(torch.rand(2, 17, 3) * 100)
    visualizer = Visualizer(img, MetadataCatalog.get("keypoints_coco_2017_train"))
    out = visualizer.overlay_instances(keypoints=keypoints).get_image()
    x, y = keypoints.tensor[0, 0, :2].long().tolist()
    assert out[y, x].tolist() == [255, 0, 0]


def test_overlay_of_nothing(img: np.ndarray) -> None:
    out = Visualizer(img).overlay_instances(boxes=np.zeros((0, 4)), labels=[]).get_image()
    np.testing.assert_array_equal(out, img.astype(np.uint8))


def test_overlay_wants_one_label_per_box(img: np.ndarray, boxes: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        Visualizer(img).overlay_instances(boxes=boxes, labels=["one"])


def test_rotated_boxes(img: np.ndarray) -> None:
    boxes = np.random.rand(50, 5) * [120, 120, 50, 50, 360] - [10, 10, 0, 0, 180]
    drawn = Visualizer(img, coco()).overlay_rotated_instances(boxes=boxes, labels=[str(i) for i in range(50)])
    assert drawn.get_image().shape == img.shape


def test_semantic_map(img: np.ndarray) -> None:
    metadata = MetadataCatalog.get("coco_2017_val_panoptic_separated")
    labels = torch.zeros(100, 100, dtype=torch.int64)
    labels[:50] = 21
    labels[80:] = 255  # has no name, is not drawn
    out = Visualizer(img, metadata).draw_sem_seg(labels).get_image()
    np.testing.assert_array_equal(out[85:], img[85:].astype(np.uint8))
    assert (out[:80] != img[:80].astype(np.uint8)).any(axis=-1).mean() > 0.9


@pytest.mark.parametrize("mode", list(ColorMode))
def test_panoptic_map(img: np.ndarray, mode: ColorMode) -> None:
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    ids = torch.zeros(100, 100, dtype=torch.int64)
    ids[:50], ids[50:, :40] = 1, 2
    segments: list[dict[str, Any]] = [
        {"id": 1, "category_id": 120, "isthing": False},
        {"id": 2, "category_id": 3, "isthing": True, "score": 0.5},
    ]
    out = Visualizer(img, metadata, instance_mode=mode).draw_panoptic_seg(ids, segments).get_image()
    assert (out[:50] != img[:50].astype(np.uint8)).any(axis=-1).mean() > 0.9
    void = out[90:, 60:]  # below the text
    if mode == ColorMode.IMAGE_BW:
        np.testing.assert_array_equal(void[..., 0], void[..., 1])
    else:
        np.testing.assert_array_equal(void, img[90:, 60:].astype(np.uint8))


# ------------------------------------------------------------------ masks


def disc(hole: bool) -> np.ndarray:
    y, x = np.mgrid[:100, :100]
    distance = np.hypot(x - 50, y - 50)
    return ((distance < 30) & (distance > (15 if hole else -1))).astype(np.uint8)


@pytest.mark.parametrize("hole", [False, True])
@pytest.mark.parametrize("save", [False, True])
def test_binary_mask(img: np.ndarray, hole: bool, save: bool, tmp_path: Path) -> None:
    img[:, :, 0] = 0  # no red
    drawn = Visualizer(img).draw_binary_mask(disc(hole), color="red", text="test")
    out = drawn.get_image()
    if save:
        drawn.save(str(tmp_path / "out.png"))
        out = np.asarray(Image.open(tmp_path / "out.png").convert("RGB"))
    assert out.shape == img.shape
    ring = disc(True).astype(bool) & (np.arange(100) < 40)[:, None]  # above the text
    assert (out[ring][:, 0] > 100).all()
    assert (out[:15, :, 0] == 0).all()


def test_holes_are_not_filled(img: np.ndarray) -> None:
    out = Visualizer(img).draw_binary_mask(disc(True), color="red", text=None).get_image()
    np.testing.assert_array_equal(out[45:55, 45:55], img[45:55, 45:55].astype(np.uint8))


@bundled_only
def test_holes_of_instances_are_not_filled(img: np.ndarray) -> None:
    out = Visualizer(img).overlay_instances(masks=[disc(True)], assigned_colors=["red"]).get_image()
    np.testing.assert_array_equal(out[45:55, 45:55], img[45:55, 45:55].astype(np.uint8))
    assert (out[50, 24:32, 0] > 100).all()


@pytest.mark.parametrize("hole", [False, True])
def test_masks_at_the_border(hole: bool) -> None:
    """The first and the last row of the enlarged picture show mask and background."""
    red = np.zeros((200, 200, 3))
    red[:, :, 0] = 255
    mask = np.zeros((200, 200))
    mask[:, 100:150] = 1
    if hole:
        mask[110:130, 110:130] = 0
    out = Visualizer(red, scale=3).draw_binary_mask(mask, color="blue").get_image()
    for row in (out[0], out[-1]):
        colors = {tuple(color.tolist()) for color in row}
        assert (255, 0, 0) in colors
        assert len(colors) == 2 if hole else len(colors) >= 2


def test_soft_mask(img: np.ndarray) -> None:
    img[:, :, 0] = 0
    soft = np.zeros((100, 100), dtype=np.float32)
    soft[30:50, 40:50] = 1.0
    soft[50:60, 40:50] = 0.4
    out = Visualizer(img).draw_soft_mask(soft, color="red", text="test").get_image().astype(int)
    assert out[31, 41, 0] == pytest.approx(128, abs=2)
    assert out[55, 45, 0] == pytest.approx(51, abs=2)
    out = Visualizer(img).draw_soft_mask(np.zeros_like(soft), color="red", text="test").get_image()
    assert (out[:, :, 0] == 0).all()


def test_small_parts_can_be_left_out(img: np.ndarray) -> None:
    dot = np.zeros((100, 100), dtype=np.uint8)
    dot[50:53, 50:53] = 1
    out = Visualizer(img).draw_binary_mask(dot, color="red", text="dot", area_threshold=20).get_image()
    np.testing.assert_array_equal(out, img.astype(np.uint8))


def test_generic_mask_converts() -> None:
    mask = disc(False)
    generic = GenericMask(mask, 100, 100)
    assert not generic.has_holes
    assert GenericMask(disc(True), 100, 100).has_holes
    again = GenericMask(generic.polygons, 100, 100)
    assert not again.has_holes
    assert np.abs(again.mask.astype(int) - mask).mean() < 0.03  # the outline runs through pixel centres
    np.testing.assert_allclose(again.bbox(), generic.bbox(), atol=1)
    assert again.area() == again.mask.sum()
    counts = {"counts": [0, 5, 9995], "size": [100, 100]}
    assert GenericMask(counts, 100, 100).mask[:5, 0].all()
    with pytest.raises(ValueError):
        GenericMask("mask", 100, 100)
    with pytest.raises(AssertionError):
        GenericMask(mask, 100, 99)


# ------------------------------------------------------------------ text and colours


def test_text_labels() -> None:
    names = ["cat", "dog"]
    assert _create_text_labels([1, 0], None, names) == ["dog", "cat"]
    assert _create_text_labels([1, 0], [0.987, 0.5], names) == ["dog 99%", "cat 50%"]
    assert _create_text_labels([1], [0.5], None) == ["1 50%"]
    assert _create_text_labels(None, [0.5], names) == ["50%"]
    assert _create_text_labels([1, 0], None, names, [1, 0]) == ["dog|crowd", "cat"]
    assert _create_text_labels(None, None, names) is None


def test_palette() -> None:
    palette = colormap(rgb=True)
    assert palette.shape[1] == 3
    assert palette.dtype == np.float32
    np.testing.assert_array_equal(colormap(rgb=False), palette[:, ::-1])
    np.testing.assert_allclose(colormap(rgb=True, maximum=1) * 255, palette, rtol=1e-5)
    assert 0 <= palette.min() <= palette.max() <= 255
    assert len(np.unique(palette.round(), axis=0)) == len(palette)
    assert len({tuple(color) for color in random_colors(10, rgb=True)}) == 10
    assert (palette == random_color(rgb=True)).all(axis=1).any()
    with pytest.raises(AssertionError):
        colormap(maximum=2)


@bundled_only
def test_matplotlib_is_imported_late() -> None:
    code = (
        "import sys, detectron2_fallback, detectron2.utils.visualizer, detectron2.utils.video_visualizer;"
        "assert not {'matplotlib', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# ------------------------------------------------------------------ video


def moving(step: int, with_masks: bool) -> Instances:
    """Two boxes of one class that move a little, in changing order."""
    boxes = np.array([[5.0 + step, 5, 35 + step, 35], [60, 50 - step, 90, 90 - step]])
    masks = np.zeros((2, 100, 100), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    order = [0, 1] if step % 2 == 0 else [1, 0]
    instances = instances_of(boxes[order], masks[order])
    instances.pred_classes = torch.tensor([7, 7])
    if not with_masks:
        instances.remove("pred_masks")
    return instances


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("mode", [ColorMode.IMAGE, ColorMode.IMAGE_BW])
def test_video_of_instances(img: np.ndarray, with_masks: bool, mode: ColorMode) -> None:
    visualizer = VideoVisualizer(coco(), mode)
    for step in range(3):
        out = visualizer.draw_instance_predictions(img, moving(step, with_masks)).get_image()
        assert out.shape == img.shape
    out = visualizer.draw_instance_predictions(img, moving(0, with_masks)[:0]).get_image()
    np.testing.assert_array_equal(out, img.astype(np.uint8))


@bundled_only  # colours are remembered in private attributes
@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("with_boxes", [True, False])
def test_colours_stay_with_their_object(img: np.ndarray, with_masks: bool, with_boxes: bool) -> None:
    if not (with_masks or with_boxes):
        return
    visualizer = VideoVisualizer(coco())
    colors = []
    for step in range(4):
        instances = moving(step, with_masks)
        if not with_boxes:
            instances.remove("pred_boxes")
        visualizer.draw_instance_predictions(img, instances)
        found = [tuple(old.color) for old in visualizer._old_instances]
        colors.append(found if step % 2 == 0 else found[::-1])
    assert colors == [colors[0]] * 4


@bundled_only
def test_colours_by_id(img: np.ndarray) -> None:
    visualizer = VideoVisualizer(coco())
    instances = moving(0, True)
    instances.ID = [4, 9]
    visualizer.draw_instance_predictions(img, instances)
    first = {k: tuple(v) for k, v in visualizer._assigned_colors.items()}
    instances.ID = [9, 11]
    visualizer.draw_instance_predictions(img, instances)
    assert set(visualizer._assigned_colors) == {9, 11}
    assert tuple(visualizer._assigned_colors[9]) == first[9]


def test_video_of_maps(img: np.ndarray) -> None:
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    visualizer = VideoVisualizer(metadata)
    ids = torch.zeros(100, 100, dtype=torch.int64)
    ids[:50], ids[50:, :40] = 1, 2
    segments: list[dict[str, Any]] = [
        {"id": 1, "category_id": 120, "isthing": False},
        {"id": 2, "category_id": 3, "isthing": True, "score": 0.5},
    ]
    for _ in range(2):
        out = visualizer.draw_panoptic_seg_predictions(img, ids, segments).get_image()
        assert (out[:50] != img[:50].astype(np.uint8)).any(axis=-1).mean() > 0.9
    np.testing.assert_array_equal(out[90:, 60:], img[90:, 60:].astype(np.uint8))
    assert visualizer.draw_sem_seg(img, ids.numpy()).get_image().shape == img.shape


def test_video_mode_is_checked() -> None:
    with pytest.raises(AssertionError):
        VideoVisualizer(coco(), ColorMode.SEGMENTATION)
