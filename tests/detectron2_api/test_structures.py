"""Boxes, masks, instances and batches of images."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    Keypoints,
    PolygonMasks,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
    polygons_to_bitmask,
)
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection
from detectron2.structures.masks import polygon_area, rasterize_polygons_within_box
from detectron2.utils.testing import assert_instances_allclose, random_boxes, reload_script_model
from hypothesis import given
from hypothesis import strategies as st

SQUARE = [10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]

# ------------------------------------------------------------------ BoxMode


@pytest.mark.parametrize("kind", [list, tuple])
def test_convert_one_box_keeps_its_type(kind: type) -> None:
    box = kind([5.0, 6.0, 10.0, 12.0])
    wh = BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert wh == kind([5.0, 6.0, 5.0, 6.0])
    assert BoxMode.convert(wh, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) == box
    assert BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYXY_ABS) is box


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_convert_arrays_and_tensors(dtype: type) -> None:
    array = np.array([[5, 6, 10, 12], [0, 0, 1, 1]], dtype=dtype)
    expected = np.array([[5, 6, 5, 6], [0, 0, 1, 1]], dtype=dtype)
    result = BoxMode.convert(array, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)
    tensor = torch.from_numpy(array)
    result = BoxMode.convert(tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert result.dtype == tensor.dtype
    np.testing.assert_array_equal(result.numpy(), expected)
    assert array[0, 2] == 10  # the input stays


def test_convert_rotated() -> None:
    rotated = torch.tensor([[50.0, 50, 30, 20, 0], [50, 50, 30, 20, 90], [0, 0, 10, 10, 45]])
    corners = BoxMode.convert(rotated, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    half = 10 / 2 * 2**0.5
    expected = torch.tensor([[35.0, 40, 65, 60], [40, 35, 60, 65], [-half, -half, half, half]])
    torch.testing.assert_close(corners, expected)
    back = BoxMode.convert(torch.tensor([[35.0, 40, 30, 20]]), BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS)
    torch.testing.assert_close(back, rotated[:1])
    assert BoxMode.convert([50, 50, 30, 20, 0], BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS) == [35, 40, 65, 60]


def test_convert_errors() -> None:
    with pytest.raises(AssertionError, match="k == 4 or 5"):
        BoxMode.convert([1, 2, 3], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    with pytest.raises(AssertionError, match="Relative mode"):
        BoxMode.convert([1, 2, 3, 4], BoxMode.XYXY_REL, BoxMode.XYWH_ABS)
    with pytest.raises(AssertionError, match="must be 5"):
        BoxMode.convert(torch.rand(2, 4), BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    with pytest.raises(NotImplementedError):
        BoxMode.convert(torch.rand(2, 4), BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS)


def test_box_mode_is_an_integer() -> None:
    assert [int(mode) for mode in BoxMode] == [0, 1, 2, 3, 4]
    assert json.loads(json.dumps({"bbox_mode": BoxMode.XYWH_ABS})) == {"bbox_mode": 1}
    assert pickle.loads(pickle.dumps(BoxMode.XYWH_ABS)) is BoxMode.XYWH_ABS


# ------------------------------------------------------------------ Boxes


def some_boxes() -> tuple[Boxes, Boxes]:
    return Boxes(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]])), Boxes(
        torch.tensor(
            [
                [0.0, 0, 1, 1],
                [0, 0, 0.5, 1],
                [0, 0, 1, 0.5],
                [0, 0, 0.5, 0.5],
                [0.5, 0.5, 1, 1],
                [0.5, 0.5, 1.5, 1.5],
            ]
        )
    )


def test_pairwise_overlaps() -> None:
    one, many = some_boxes()
    iou = [1.0, 0.5, 0.5, 0.25, 0.25, 0.25 / (2 - 0.25)]
    torch.testing.assert_close(pairwise_iou(one, many), torch.tensor([iou, iou]))
    torch.testing.assert_close(pairwise_ioa(one, many), torch.tensor([[1.0, 1, 1, 1, 1, 0.25]] * 2))
    inter = [1.0, 0.5, 0.5, 0.25, 0.25, 0.25]
    torch.testing.assert_close(pairwise_intersection(one, many), torch.tensor([inter, inter]))
    torch.testing.assert_close(matched_pairwise_iou(many, many), torch.ones(6))
    with pytest.raises(AssertionError, match="same number of entries, got 2, 6"):
        matched_pairwise_iou(one, many)


def test_overlap_of_apart_degenerate_and_no_boxes() -> None:
    boxes = Boxes([[0, 0, 1, 1], [2, 2, 3, 3], [1, 1, 1, 1]])
    assert torch.equal(pairwise_iou(boxes, boxes), torch.diag(torch.tensor([1.0, 1, 0])))
    none = Boxes([])
    assert pairwise_iou(none, boxes).shape == (0, 3)
    assert pairwise_ioa(boxes, none).shape == (3, 0)


def test_point_box_distance() -> None:
    distance = pairwise_point_box_distance(torch.tensor([[1.0, 2.0], [9.0, 9.0]]), Boxes([[0, 0, 4, 8]]))
    assert distance.tolist() == [[[1, 2, 3, 6]], [[9, 9, -5, -1]]]


coordinate = st.floats(-50, 150, width=32)


@given(st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=6))
def test_clip_leaves_boxes_in_the_image(rows: list[tuple[float, ...]]) -> None:
    boxes = Boxes(torch.tensor(rows).reshape(-1, 4))
    boxes.clip((60, 100))
    assert len(boxes) == len(rows)
    assert (boxes.tensor >= 0).all()
    assert (boxes.tensor <= torch.tensor([100, 60, 100, 60])).all()


def test_boxes_operations() -> None:
    boxes = Boxes(np.array([[0, 0, 10, 20], [5, 5, 5, 9], [-3, 2, 30, 40]]))
    assert boxes.tensor.dtype == torch.float32
    assert boxes.area().tolist() == [200, 0, 33 * 38]
    assert boxes.nonempty().tolist() == [True, False, True]
    assert boxes.nonempty(threshold=15).tolist() == [False, False, True]
    assert boxes.inside_box((50, 50)).tolist() == [True, True, False]
    assert boxes.inside_box((50, 50), boundary_threshold=3).tolist() == [True, True, True]
    assert boxes.get_centers().tolist() == [[5, 10], [5, 7], [13.5, 21]]
    copied = boxes.clone()
    copied.scale(2, 0.5)
    assert copied.tensor[0].tolist() == [0, 0, 20, 10]
    assert boxes.tensor[0].tolist() == [0, 0, 10, 20]
    assert [b.tolist() for b in boxes] == boxes.tensor.tolist()
    assert repr(boxes).startswith("Boxes(tensor(")
    assert boxes.to("cpu").device == torch.device("cpu")
    assert torch.equal(pickle.loads(pickle.dumps(boxes)).tensor, boxes.tensor)


def test_boxes_indexing() -> None:
    boxes = Boxes(torch.arange(12.0).reshape(3, 4))
    assert boxes[1].tensor.tolist() == [[4, 5, 6, 7]]
    assert len(boxes[1:]) == 2
    assert boxes[torch.tensor([True, False, True])].tensor[:, 0].tolist() == [0, 8]
    assert boxes[torch.tensor([2, 0])].tensor[:, 0].tolist() == [8, 0]
    with pytest.raises(AssertionError, match="failed to return a matrix"):
        _ = boxes[0, 0]


def test_boxes_cat_and_errors() -> None:
    boxes = Boxes(torch.rand(3, 4))
    assert len(Boxes.cat([boxes, Boxes([]), boxes])) == 6
    assert Boxes.cat([]).tensor.shape == (0, 4)
    assert Boxes(torch.empty(0)).tensor.shape == (0, 4)
    for wrong in (torch.rand(3, 5), torch.rand(4), torch.rand(1, 3, 4)):
        with pytest.raises(AssertionError):
            Boxes(wrong)
    with pytest.raises(AssertionError):
        Boxes.cat([torch.rand(3, 4)])
    with pytest.raises(AssertionError, match="infinite or NaN"):
        Boxes([[0, 0, float("nan"), 1]]).clip((5, 5))


def test_boxes_gradient() -> None:
    tensor = torch.tensor([[0.0, 0, 2, 2]], requires_grad=True)
    pairwise_iou(Boxes(tensor), Boxes([[1, 1, 3, 3]])).sum().backward()
    assert tensor.grad.abs().sum() > 0


# ------------------------------------------------------------------ Instances


def some_instances() -> Instances:
    return Instances(
        (40, 60), gt_boxes=Boxes(torch.rand(4, 4)), gt_classes=torch.arange(4), names=list("abcd")
    )


def test_instances_fields() -> None:
    instances = some_instances()
    assert instances.image_size == (40, 60)
    assert len(instances) == 4
    assert set(instances.get_fields()) == {"gt_boxes", "gt_classes", "names"}
    assert instances.has("names")
    assert instances.get("names") == list("abcd")
    instances.scores = torch.ones(4)
    instances.remove("scores")
    assert not instances.has("scores")
    with pytest.raises(AttributeError, match="Cannot find field 'scores' in the given Instances!"):
        _ = instances.scores
    with pytest.raises(KeyError):
        instances.remove("scores")
    with pytest.raises(AssertionError, match="Adding a field of length 3 to a Instances of length 4"):
        instances.scores = torch.ones(3)


def test_instances_indexing() -> None:
    instances = some_instances()
    for i in range(-4, 4):
        one = instances[i]
        assert len(one) == 1
        assert one.gt_classes.tolist() == [i % 4]
        assert one.names == ["abcd"[i]]
        assert one.image_size == (40, 60)
    for i in (4, -5):
        with pytest.raises(IndexError):
            _ = instances[i]
    assert instances[1:3].names == ["b", "c"]
    instances.remove("names")  # a list cannot be indexed by a tensor
    assert instances[instances.gt_classes > 1].gt_classes.tolist() == [2, 3]
    assert len(instances[torch.zeros(4, dtype=torch.bool)]) == 0


def test_instances_to_cat_and_text() -> None:
    instances = some_instances()
    moved = instances.to("cpu")
    assert moved is not instances
    assert moved.names == list("abcd")
    both = Instances.cat([instances, instances[:1]])
    assert len(both) == 5
    assert both.names == list("abcda")
    assert isinstance(both.gt_boxes, Boxes)
    assert Instances.cat([instances]) is instances
    assert "num_instances=4, image_height=40, image_width=60" in str(instances)
    assert "gt_classes: tensor([0, 1, 2, 3])" in repr(instances)


def test_instances_errors() -> None:
    empty = Instances((4, 4))
    with pytest.raises(NotImplementedError):
        len(empty)
    with pytest.raises(NotImplementedError):
        iter(empty)
    with pytest.raises(AssertionError):
        Instances.cat([])
    with pytest.raises(AssertionError):
        Instances.cat([Instances((4, 4), a=[1]), Instances((4, 5), a=[1])])
    with pytest.raises(ValueError, match="Unsupported type"):
        Instances.cat([Instances((4, 4), a="ab"), Instances((4, 4), a="ab")])


def test_instances_copy_and_pickle() -> None:
    instances = some_instances()
    for other in (pickle.loads(pickle.dumps(instances)), copy.deepcopy(instances)):
        assert other.image_size == (40, 60)
        assert torch.equal(other.gt_boxes.tensor, instances.gt_boxes.tensor)
    assert copy.copy(instances).names is instances.names


def test_instances_comparison() -> None:
    def make(scale: float = 1.0, size: tuple[int, int] = (4, 5), classes: int = 2) -> Instances:
        boxes = Boxes(torch.ones(2, 4) * scale)
        return Instances(size, boxes=boxes, classes=torch.full((2,), classes))

    assert_instances_allclose(make(), make(1 + 1e-7))
    assert_instances_allclose(make(), make(), size_as_tensor=True)
    for other in (make(1.01), make(size=(5, 4)), make(classes=3), Instances((4, 5))):
        with pytest.raises(AssertionError):
            assert_instances_allclose(make(), other)
    with pytest.raises(ValueError, match="names"):
        assert_instances_allclose(Instances((4, 5), names=["a"]), Instances((4, 5), names=["a"]))


def test_random_boxes() -> None:
    boxes = Boxes(random_boxes(20, max_coord=50))
    assert boxes.nonempty().all()
    assert boxes.inside_box((51, 51)).all()


# ------------------------------------------------------------------ masks


def test_bitmasks() -> None:
    tensor = torch.zeros(3, 6, 8)
    tensor[0, 2:4, 1:7] = 2.0
    tensor[2, 5, 7] = 1.0
    masks = BitMasks(tensor)
    assert masks.tensor.dtype == torch.bool
    assert tuple(masks.image_size) == (6, 8)
    assert masks.nonempty().tolist() == [True, False, True]
    assert masks.get_bounding_boxes().tensor.tolist() == [[1, 2, 7, 4], [0, 0, 0, 0], [7, 5, 8, 6]]
    assert masks[0].tensor.shape == (1, 6, 8)
    assert len(masks[torch.tensor([True, False, True])]) == len(masks[1:]) == len(masks[[0, 2]]) == 2
    assert len(BitMasks.cat([masks, masks])) == 6
    assert [m.shape for m in masks] == [(6, 8)] * 3
    assert repr(masks) == "BitMasks(num_instances=3)"
    assert masks.to("cpu").device == torch.device("cpu")
    assert BitMasks(np.zeros((0, 5, 5))).get_bounding_boxes().tensor.shape == (0, 4)
    with pytest.raises(AssertionError):
        BitMasks(torch.zeros(3, 4))
    with pytest.raises(AssertionError):
        _ = masks[0, 0]
    with pytest.raises(AssertionError):
        BitMasks.cat([])


def test_polygons_to_bitmask() -> None:
    mask = polygons_to_bitmask([np.array(SQUARE)], 30, 40)
    assert mask.shape == (30, 40)
    assert mask.dtype == bool
    assert mask.sum() == 100
    assert mask[10:20, 10:20].all()
    both = polygons_to_bitmask([np.array(SQUARE), np.array(SQUARE) + 5], 30, 40)
    assert both.sum() == 175


def test_polygon_masks() -> None:
    square = np.array(SQUARE)
    masks = PolygonMasks([[square], [square, square + 15], []])
    assert len(masks) == 3
    assert masks.area().tolist() == [100, 200, 0]
    assert masks.nonempty().tolist() == [True, True, False]
    boxes = masks.get_bounding_boxes().tensor
    assert boxes[:2].tolist() == [[10, 10, 20, 20], [10, 10, 35, 35]]
    assert boxes[2].tolist() == [float("inf"), float("inf"), 0, 0]
    assert len(masks[0]) == 1
    for index in (slice(0, 2), [0, 1], torch.tensor([0, 1]), torch.tensor([True, True, False])):
        assert [len(p) for p in masks[index].polygons] == [1, 2]
    assert [len(p) for p in masks[torch.tensor([1, 0])]] == [2, 1]
    assert len(masks[torch.zeros(3, dtype=torch.bool)]) == 0
    assert len(PolygonMasks.cat([masks, masks])) == 6
    assert masks.to("cuda") is masks
    assert masks.device == torch.device("cpu")
    assert repr(masks) == "PolygonMasks(num_instances=3)"
    square[0] = 99
    assert masks.polygons[0][0][0] == 10 or masks.polygons[0][0] is not square


def test_polygon_masks_errors() -> None:
    with pytest.raises(ValueError, match="Expect a list of list of polygons per image"):
        PolygonMasks(np.zeros((2, 6)))
    with pytest.raises(ValueError, match="Expect a list of polygons per instance"):
        PolygonMasks([np.zeros(6)])
    for count in (4, 7):
        with pytest.raises(ValueError, match=f"Cannot create a polygon from {count} coordinates"):
            PolygonMasks([[np.zeros(count)]])
    with pytest.raises(ValueError, match="Unsupported tensor dtype"):
        _ = PolygonMasks([[np.array(SQUARE)]])[torch.tensor([0.0])]


def test_polygon_bitmaps() -> None:
    polygons = [[np.array(SQUARE)], [np.array(SQUARE) + 5.0]]
    from_list = BitMasks.from_polygon_masks(polygons, 30, 40)
    from_masks = BitMasks.from_polygon_masks(PolygonMasks(polygons), 30, 40)
    assert torch.equal(from_list.tensor, from_masks.tensor)
    assert from_list.get_bounding_boxes().tensor.tolist() == [[10, 10, 20, 20], [15, 15, 25, 25]]
    assert BitMasks.from_polygon_masks([], 30, 40).tensor.shape == (0, 30, 40)


def test_polygon_crop_and_resize() -> None:
    masks = PolygonMasks([[np.array(SQUARE)], [np.array(SQUARE)]])
    boxes = torch.tensor([[10.0, 10, 20, 20], [10, 10, 30, 50]])
    crops = masks.crop_and_resize(boxes, 8)
    assert crops.shape == (2, 8, 8)
    assert crops[0].all()
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, :4] = True
    assert torch.equal(crops[1], expected)
    assert PolygonMasks([]).crop_and_resize(torch.zeros(0, 4), 8).shape == (0, 8, 8)
    with pytest.raises(AssertionError):
        masks.crop_and_resize(boxes[:1], 8)
    single = rasterize_polygons_within_box([np.array(SQUARE)], np.array([15.0, 15, 15, 15]), 4)
    assert single.shape == (4, 4)


def test_bitmask_crop_and_resize() -> None:
    pytest.importorskip("torchvision")
    masks = BitMasks.from_polygon_masks([[np.array(SQUARE)]], 40, 40)
    crops = masks.crop_and_resize(torch.tensor([[10.0, 10, 20, 20]]), 8)
    assert crops.shape == (1, 8, 8)
    assert crops.all()


def test_polygon_area() -> None:
    square = np.array(SQUARE)
    assert polygon_area(square[0::2], square[1::2]) == 100


def test_keypoints() -> None:
    keypoints = Keypoints(torch.rand(3, 5, 3).tolist())
    assert len(keypoints) == 3
    assert keypoints[0].tensor.shape == (1, 5, 3)
    assert len(keypoints[torch.tensor([True, False, True])]) == 2
    assert keypoints.to("cpu").device == torch.device("cpu")
    assert repr(keypoints) == "Keypoints(num_instances=3)"
    with pytest.raises(AssertionError):
        Keypoints(torch.rand(3, 5, 2))


# ------------------------------------------------------------------ ImageList


def test_image_list_pads_at_the_end() -> None:
    images = [torch.full((3, 5, 7), 1.0), torch.full((3, 8, 4), 2.0)]
    batch = ImageList.from_tensors(images)
    assert batch.tensor.shape == (2, 3, 8, 7)
    assert batch.image_sizes == [(5, 7), (8, 4)]
    assert len(batch) == 2
    for index, image in enumerate(images):
        assert torch.equal(batch[index], image)
    assert batch.tensor[0, :, 5:].abs().sum() == 0
    padded = ImageList.from_tensors(images, size_divisibility=32, pad_value=9.0)
    assert padded.tensor.shape == (2, 3, 32, 32)
    assert (padded.tensor[:, :, 8:] == 9).all()
    assert padded.to(torch.float64).tensor.dtype == torch.float64
    assert padded.device == torch.device("cpu")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("divisibility", [0, 1, 4])
def test_image_list_shapes(count: int, lead: tuple[int, ...], divisibility: int) -> None:
    images = [torch.rand(*lead, 5 + i, 9 - i) for i in range(count)]
    height = 8 if divisibility == 4 else 4 + count
    width = 12 if divisibility == 4 else 9
    assert ImageList.from_tensors(images, divisibility).tensor.shape == (count, *lead, height, width)


def test_image_list_keeps_dtype_and_gradient() -> None:
    assert ImageList.from_tensors([torch.ones(3, 4, 4, dtype=torch.uint8)] * 2, 8).tensor.dtype == torch.uint8
    image = torch.rand(3, 5, 5, requires_grad=True)
    ImageList.from_tensors([image, torch.rand(3, 6, 6)]).tensor.sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image))


def test_image_list_errors() -> None:
    for wrong in (
        [],
        [torch.rand(3, 4, 4), torch.rand(1, 4, 4)],
        [np.zeros((3, 4, 4))],
        torch.rand(2, 3, 4, 4),
    ):
        with pytest.raises(AssertionError):
            ImageList.from_tensors(wrong)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [(10, 10), (12, 12)])
def test_image_list_traces_without_constant_sizes(size: tuple[int, int]) -> None:
    def pad(tensors):
        images = ImageList.from_tensors(tensors, 4)
        return images.tensor, images.image_sizes

    traced = torch.jit.trace(pad, ([torch.ones(3, *size)],))
    tensor, sizes = traced([torch.ones(3, 15, 20)])
    assert tensor.shape == (1, 3, 16, 20)
    assert sizes[0].tolist() == [15, 20]
    traced = torch.jit.trace(pad, ([torch.ones(3, 16, 10), torch.ones(3, 13, 11)],))
    tensor, sizes = traced([torch.ones(3, 25, 20), torch.ones(3, 10, 10)])
    assert tensor.shape == (2, 3, 28, 20)
    assert [s.tolist() for s in sizes] == [[25, 20], [10, 10]]


@pytest.mark.filterwarnings("ignore")
def test_scripting() -> None:
    def areas(x):
        boxes = Boxes(x)
        return boxes.area(), boxes.cat([boxes, boxes]).tensor

    def pad(a, b):
        return ImageList.from_tensors([a, b])

    boxes = torch.rand(3, 4)
    area, twice = reload_script_model(torch.jit.script(areas))(boxes)
    assert torch.equal(area, Boxes(boxes).area())
    assert torch.equal(twice, torch.cat([boxes, boxes]))
    images = torch.jit.script(pad)(torch.rand(10, 20), torch.rand(12, 15))
    assert images.image_sizes == [(10, 20), (12, 15)]
    assert images.tensor.shape == (2, 12, 20)


def test_structures_raise_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        some_instances().to("cpu")
        ImageList.from_tensors([torch.rand(3, 4, 5), torch.rand(3, 5, 4)], 32)
        PolygonMasks([[np.array(SQUARE)]]).get_bounding_boxes()
