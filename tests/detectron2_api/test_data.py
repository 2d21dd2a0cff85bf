"""Catalogs, data-set wrappers, loaders, reading of images and annotations, the default mapper."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    Metadata,
    MetadataCatalog,
    ToIterableDataset,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    detection_utils,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from detectron2.data import transforms as T
from detectron2.data.build import filter_images_with_few_keypoints, filter_images_with_only_crowd_annotations
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.structures import BitMasks, BoxMode, Instances, PolygonMasks
from iopath.common.file_io import LazyPath
from PIL import Image, UnidentifiedImageError


@pytest.fixture
def names() -> Iterator[list[str]]:
    """Names that a test may register; they are removed afterwards."""
    chosen = ["test_data_a", "test_data_b"]
    yield chosen
    for name in chosen:
        DatasetCatalog.data.pop(name, None)
        MetadataCatalog.data.pop(name, None)


# ------------------------------------------------------------------ catalogs


def test_data_set_catalog(names: list[str]) -> None:
    DatasetCatalog.register(names[0], lambda: [{"x": 1}])
    assert DatasetCatalog.get(names[0]) == [{"x": 1}]
    assert names[0] in DatasetCatalog
    assert names[0] in DatasetCatalog.list()
    with pytest.raises(AssertionError):
        DatasetCatalog.register(names[0], list)
    with pytest.raises(AssertionError):
        DatasetCatalog.register(names[1], [{"x": 1}])  # type: ignore[arg-type]
    with pytest.raises(KeyError, match=r"test_data_b.*coco_2017_train"):
        DatasetCatalog.get(names[1])
    DatasetCatalog.remove(names[0])
    assert names[0] not in DatasetCatalog


def test_metadata_cannot_change_silently(names: list[str]) -> None:
    metadata = MetadataCatalog.get(names[0])
    assert metadata is MetadataCatalog.get(names[0])
    assert metadata.name == names[0]
    assert metadata.set(thing_classes=["a"], answer=42) is metadata
    metadata.thing_classes = ["a"]
    with pytest.raises(AssertionError):
        metadata.thing_classes = ["b"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = metadata.nothing
    with pytest.raises(AttributeError):
        _ = Metadata(name="empty").nothing
    assert metadata.get("answer") == 42
    assert metadata.get("nothing", 3) == 3
    assert metadata.as_dict() == {"name": names[0], "thing_classes": ["a"], "answer": 42}
    assert metadata.class_names == ["a"]  # the name of older versions
    assert pickle.loads(pickle.dumps(metadata)).answer == 42
    assert copy.deepcopy(metadata).thing_classes == ["a"]
    MetadataCatalog.remove(names[0])
    assert names[0] not in MetadataCatalog.list()
    with pytest.raises(AssertionError):
        MetadataCatalog.get("")


# ------------------------------------------------------------------ lists and maps


def slow_path(x: int) -> str:
    return f"path/{x}"


def test_list_with_lazy_paths() -> None:
    dataset = DatasetFromList([{"file_name": LazyPath(partial(slow_path, i))} for i in range(10)])
    for i in range(10):
        path = dataset[i]["file_name"]
        assert isinstance(path, LazyPath)
        assert os.fspath(path) == slow_path(i)


@pytest.mark.parametrize("serialize", [True, False])
def test_list_gives_copies(serialize: bool) -> None:
    source = [{"a": [i] * i} for i in range(5)]
    dataset = DatasetFromList(source, serialize=serialize)
    assert len(dataset) == 5
    dataset[3]["a"].append(7)
    assert [dataset[i] for i in range(5)] == source
    assert pickle.loads(pickle.dumps(dataset))[4] == source[4]


def test_list_can_share() -> None:
    source = [{"a": 1}]
    assert DatasetFromList(source, copy=False, serialize=False)[0] is source[0]


def test_serialised_list_is_compact() -> None:
    source = [{"file_name": f"{i}.jpg", "ids": list(range(20))} for i in range(300)]
    assert len(pickle.dumps(DatasetFromList(source))) < 300 * (len(pickle.dumps(source[0])) + 8) + 1000


def double_all_but_two(x: int) -> int | None:
    return None if x == 2 else x * 2


def test_map_replaces_what_cannot_be_mapped() -> None:
    dataset = MapDataset(DatasetFromList([1, 2, 3]), double_all_but_two)
    assert len(dataset) == 3
    assert dataset[0] == 2
    assert dataset[2] == 6
    assert {dataset[1] for _ in range(20)} <= {2, 6}


def test_map_of_an_iterable_skips() -> None:
    class Numbers(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[int]:
            yield from [1, 2, 3]

    dataset = MapDataset(Numbers(), double_all_but_two)
    assert isinstance(dataset, torch.utils.data.IterableDataset)
    assert list(dataset) == [2, 6]


def test_map_can_be_pickled_with_a_lambda() -> None:
    dataset = MapDataset(DatasetFromList([1, 2, 3]), lambda x: x * 2)
    assert pickle.loads(pickle.dumps(dataset))[0] == 2


def test_iterable_data_set_has_the_length_of_its_sampler() -> None:
    dataset = ToIterableDataset(DatasetFromList(list("abc")), [2, 0])
    assert list(dataset) == ["c", "a"]
    assert len(dataset) == 2
    with pytest.raises(AssertionError):
        ToIterableDataset(dataset, [0])


def test_aspect_ratio_groups_survive_a_break() -> None:
    elements = [{"width": a, "height": b} for a, b in ((1, 0), (0, 1), (1, 0), (0, 1))]
    dataset = AspectRatioGroupedDataset(elements, 2)
    for _ in range(5):
        for index, batch in enumerate(dataset):
            assert len({e["width"] > e["height"] for e in batch}) == 1
            if index == 1:
                break
        assert all(len(bucket) < 2 for bucket in dataset._buckets)


# ------------------------------------------------------------------ loaders


def assert_is_range(loader: Any, size: int) -> None:
    seen = list(itertools.chain(*loader))
    assert sorted(seen) == list(range(size))


def test_batch_loader_can_be_used_for_inference() -> None:
    dataset = DatasetFromList(list(range(96)))
    loader = build_batch_data_loader(dataset, InferenceSampler(len(dataset)), 8, num_workers=3)
    assert_is_range(loader, 96)


@pytest.mark.parametrize(("num_workers", "batch_size"), [(2, 1), (0, 4)])
def test_test_loader_gives_everything(num_workers: int, batch_size: int) -> None:
    dataset = DatasetFromList(list(range(50)))
    loader = build_detection_test_loader(
        dataset=dataset,
        sampler=InferenceSampler(len(dataset)),
        mapper=lambda x: x,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    assert_is_range(loader, 50)


def test_test_loader_takes_an_iterable() -> None:
    dataset = ToIterableDataset(DatasetFromList(list(range(50))), InferenceSampler(50))
    assert_is_range(build_detection_test_loader(dataset=dataset, mapper=lambda x: x, num_workers=2), 50)
    with pytest.raises(AssertionError):
        build_detection_test_loader(dataset=dataset, mapper=None, sampler=InferenceSampler(50))


@pytest.mark.parametrize("iterable", [False, True])
@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("collate", [None, len])
def test_train_loader(iterable: bool, grouping: bool, collate: Any) -> None:
    dataset: Any = DatasetFromList([{"width": 1 + i % 2, "height": 1, "i": i} for i in range(10)])
    if iterable:
        dataset = ToIterableDataset(dataset, TrainingSampler(10))
    loader = build_detection_train_loader(
        dataset,
        mapper=lambda d: {**d, "mapped": True},
        total_batch_size=3,
        aspect_ratio_grouping=grouping,
        collate_fn=collate,
    )
    for batch in itertools.islice(iter(loader), 6):
        if collate is len:
            assert batch == 3
        else:
            assert all(element["mapped"] for element in batch)
            assert not grouping or len({element["width"] for element in batch}) == 1


def test_train_loader_checks_its_arguments() -> None:
    with pytest.raises(AssertionError):
        build_detection_train_loader([1, 2], mapper=None, sampler=[0, 1], total_batch_size=1)
    with pytest.raises(AssertionError):
        build_detection_train_loader([1, 2], mapper=None, total_batch_size=0)


def write_images(folder: Path, count: int, with_masks: bool = True) -> list[dict]:
    dicts = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.fromarray(np.random.randint(0, 255, (20, 30 - 20 * (i % 2), 3), dtype=np.uint8)).save(path)
        annotation: dict[str, Any] = {
            "bbox": [1, 2, 6, 8],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": i % 2,
        }
        if with_masks:
            annotation["segmentation"] = [[1, 2, 7, 2, 7, 10, 1, 10]]
        dicts.append(
            {
                "file_name": str(path),
                "image_id": i,
                "height": 20,
                "width": 30 - 20 * (i % 2),
                "annotations": [annotation, {**annotation, "iscrowd": 1}],
            }
        )
    return dicts


@pytest.mark.parametrize(
    "sampler", ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"]
)
def test_loaders_from_a_config(names: list[str], tmp_path: Path, sampler: str) -> None:
    dicts = write_images(tmp_path, 6)
    DatasetCatalog.register(names[0], lambda: dicts)
    MetadataCatalog.get(names[0]).set(thing_classes=["a", "b"])
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (names[0],)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.3
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (20,)
    batch = next(iter(build_detection_train_loader(cfg)))
    assert len(batch) == 2
    assert all(len(entry["instances"]) == 1 for entry in batch)
    test = [entry for batch in build_detection_test_loader(cfg, names[0]) for entry in batch]
    assert [entry["image_id"] for entry in test] == list(range(6))
    assert all("annotations" not in entry for entry in test)
    mapped = next(iter(build_detection_test_loader(cfg, [names[0]], mapper=lambda d: d["image_id"])))
    assert mapped == [0]


def test_unknown_sampler(names: list[str], tmp_path: Path) -> None:
    dicts = write_images(tmp_path, 1)
    DatasetCatalog.register(names[0], lambda: dicts)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (names[0],)
    cfg.DATALOADER.SAMPLER_TRAIN = "NoSuchSampler"
    with pytest.raises(ValueError, match="NoSuchSampler"):
        build_detection_train_loader(cfg)


# ------------------------------------------------------------------ data-set dicts


def annotated(*annotations: dict) -> dict:
    return {"annotations": list(annotations)}


def test_images_without_annotations_are_filtered() -> None:
    dicts = [annotated(), annotated({"iscrowd": 1}), annotated({"iscrowd": 1}, {"iscrowd": 0}), annotated({})]
    assert filter_images_with_only_crowd_annotations(dicts) == dicts[2:]


def test_images_with_few_keypoints_are_filtered() -> None:
    dicts = [
        annotated({"keypoints": [1, 1, 2, 0, 0, 0]}),
        annotated({"keypoints": [1, 1, 2, 1, 1, 1]}),
        annotated({}),
    ]
    assert filter_images_with_few_keypoints(dicts, 2) == dicts[1:2]


def test_data_sets_are_joined_and_checked(names: list[str]) -> None:
    a, b = [annotated({"category_id": 0})], [annotated(), annotated({"category_id": 1})]
    DatasetCatalog.register(names[0], lambda: a)
    DatasetCatalog.register(names[1], lambda: b)
    for name in names:
        MetadataCatalog.get(name).thing_classes = ["x", "y"]
    assert get_detection_dataset_dicts(names) == [a[0], b[1]]
    assert get_detection_dataset_dicts(names[1], filter_empty=False) == b
    with pytest.raises(AssertionError):
        get_detection_dataset_dicts([])
    with pytest.raises(KeyError):
        get_detection_dataset_dicts([names[0], "test_data_missing"])


def test_data_sets_of_different_classes_cannot_be_joined(names: list[str]) -> None:
    for name in names:
        DatasetCatalog.register(name, lambda: [annotated({"category_id": 0})])
        MetadataCatalog.get(name).thing_classes = [name]
    with pytest.raises(ValueError, match="thing_classes"):
        get_detection_dataset_dicts(names)
    assert len(get_detection_dataset_dicts(names, check_consistency=False)) == 2


def test_an_empty_data_set_is_named(names: list[str]) -> None:
    DatasetCatalog.register(names[0], list)
    with pytest.raises(AssertionError, match=names[0]):
        get_detection_dataset_dicts(names[0])


def test_torch_data_sets_are_concatenated(names: list[str]) -> None:
    for name in names:
        DatasetCatalog.register(name, lambda: DatasetFromList([1, 2]))
    assert len(get_detection_dataset_dicts(names)) == 4


def test_histogram_checks_categories() -> None:
    print_instances_class_histogram([annotated({"category_id": 1})], ["a", "a very long class name", "c"])
    print_instances_class_histogram([annotated()], ["a"])
    for wrong in (3, -1):
        with pytest.raises(AssertionError):
            print_instances_class_histogram([annotated({"category_id": wrong})], ["a", "b", "c"])


# ------------------------------------------------------------------ reading images


def test_formats(tmp_path: Path) -> None:
    rgb = np.random.randint(0, 255, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(rgb).save(path)
    np.testing.assert_array_equal(detection_utils.read_image(str(path)), rgb)
    np.testing.assert_array_equal(detection_utils.read_image(str(path), "RGB"), rgb)
    np.testing.assert_array_equal(detection_utils.read_image(str(path), "BGR"), rgb[:, :, ::-1])
    grey = detection_utils.read_image(str(path), "L")
    assert grey.shape == (5, 7, 1)
    np.testing.assert_array_equal(grey[:, :, 0], np.asarray(Image.fromarray(rgb).convert("L")))
    yuv = detection_utils.read_image(str(path), "YUV-BT.601")
    np.testing.assert_allclose(yuv[..., 0], rgb @ [0.299, 0.587, 0.114] / 255)
    np.testing.assert_allclose(detection_utils.convert_image_to_rgb(yuv, "YUV-BT.601"), rgb, atol=0.01)
    np.testing.assert_array_equal(detection_utils.convert_image_to_rgb(rgb[:, :, ::-1], "BGR"), rgb)
    np.testing.assert_array_equal(detection_utils.convert_image_to_rgb(torch.from_numpy(rgb), "RGB"), rgb)
    np.testing.assert_array_equal(detection_utils.convert_image_to_rgb(grey, "L"), np.repeat(grey, 3, axis=2))


def test_label_maps_keep_their_values(tmp_path: Path) -> None:
    labels = np.random.randint(0, 255, (5, 7), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    np.testing.assert_array_equal(detection_utils.read_image(str(tmp_path / "labels.png")), labels)
    palette = Image.fromarray(labels).convert("L")
    palette.putpalette(np.random.randint(0, 255, 768).tolist())
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(detection_utils.read_image(str(tmp_path / "palette.png")), labels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    upright = np.random.randint(0, 255, (4, 6, 3), dtype=np.uint8)
    flips = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(flips[orientation](upright)))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "photo.png"
    stored.save(path, exif=exif)
    np.testing.assert_array_equal(detection_utils.read_image(str(path), "RGB"), upright)


def test_unreadable_images_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        detection_utils.read_image(str(tmp_path / "missing.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is no image")
    with pytest.raises(UnidentifiedImageError, match="broken"):
        detection_utils.read_image(str(broken))
    Image.fromarray(np.random.randint(0, 255, (90, 90, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with pytest.raises(OSError):
        detection_utils.read_image(str(cut))


def test_image_size_is_checked_and_filled_in() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    entry: dict[str, Any] = {"file_name": "some.jpg"}
    detection_utils.check_image_size(entry, image)
    assert (entry["width"], entry["height"]) == (6, 4)
    with pytest.raises(detection_utils.SizeMismatchError, match=r"some\.jpg"):
        detection_utils.check_image_size({"file_name": "some.jpg", "width": 4, "height": 6}, image)
    assert issubclass(detection_utils.SizeMismatchError, ValueError)


# ------------------------------------------------------------------ annotations

TRIANGLES = [[10, 10, 100, 100, 100, 10], [150, 150, 200, 150, 200, 200]]


def box(**extra: Any) -> dict[str, Any]:
    return {"bbox": np.asarray([10, 10, 200, 300]), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 3, **extra}


def test_polygons_are_flipped() -> None:
    annotation = box(segmentation=copy.deepcopy(TRIANGLES))
    out = detection_utils.transform_instance_annotations(
        annotation, T.TransformList([T.HFlipTransform(400)]), (400, 400)
    )
    np.testing.assert_allclose(out["bbox"], [200, 10, 390, 300])
    assert len(out["segmentation"]) == 2
    np.testing.assert_allclose(out["segmentation"][0], [390, 10, 300, 100, 300, 10])
    instances = detection_utils.annotations_to_instances([out, out], (400, 400))
    assert isinstance(instances.gt_masks, PolygonMasks)
    assert instances.gt_classes.tolist() == [3, 3]


def test_a_list_of_transforms_is_enough() -> None:
    out = detection_utils.transform_instance_annotations(box(), [T.HFlipTransform(400)], (400, 400))
    np.testing.assert_allclose(out["bbox"], [200, 10, 390, 300])


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_no_annotations(mask_format: str) -> None:
    instances = detection_utils.annotations_to_instances([], (400, 400), mask_format)
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)


def test_keypoints_are_flipped() -> None:
    keypoints = np.random.rand(17, 3) * 50 + 15
    out = detection_utils.transform_instance_annotations(
        box(keypoints=keypoints.copy()),
        T.TransformList([T.HFlipTransform(400)]),
        (400, 400),
        keypoint_hflip_indices=detection_utils.create_keypoint_hflip_indices(["keypoints_coco_2017_train"]),
    )["keypoints"]
    assert out[0, 0] == pytest.approx(400 - keypoints[0, 0])  # the nose
    pairs = keypoints[1:].reshape(8, 2, 3)[:, ::-1]  # left and right of eight parts
    np.testing.assert_allclose(out[1:, 0].reshape(8, 2), 400 - pairs[..., 0])
    np.testing.assert_allclose(out[1:, 1:].reshape(8, 2, 2), pairs[..., 1:])


def test_keypoints_cannot_be_flipped_without_knowing_how() -> None:
    for indices in (None, [0, 1]):
        with pytest.raises(ValueError):
            detection_utils.transform_instance_annotations(
                box(keypoints=np.ones((17, 3))),
                [T.HFlipTransform(400)],
                (400, 400),
                keypoint_hflip_indices=indices,
            )


def test_what_is_cropped_away_is_not_visible() -> None:
    keypoints = np.random.rand(17, 3) * 50 + 15
    keypoints[:, 2] = 2
    annotation = {
        "bbox": np.asarray([10, 10, 200, 400]),
        "bbox_mode": BoxMode.XYXY_ABS,
        "keypoints": keypoints,
    }
    out = detection_utils.transform_instance_annotations(
        annotation, [T.CropTransform(300, 300, 10, 10)], (10, 10)
    )
    np.testing.assert_array_equal(out["bbox"], [0, 0, 0, 10])
    assert (out["keypoints"] == 0).all()


@pytest.mark.parametrize("resize", [False, True])
def test_run_length_codes_become_masks(resize: bool) -> None:
    mask = np.zeros((300, 400), dtype=np.uint8, order="F")
    mask[:, :200] = 1
    annotation = box(segmentation=mask_util.encode(mask[:, :, None])[0])
    transforms: list[T.Transform] = [T.HFlipTransform(400)]
    if resize:
        transforms.append(T.ScaleTransform(300, 400, 400, 400, "bilinear"))
    size = (400 if resize else 300, 400)
    out = detection_utils.transform_instance_annotations(copy.deepcopy(annotation), transforms, size)
    assert (out["segmentation"][:, 200:] == 1).all()
    assert (out["segmentation"][:, :200] == 0).all()
    instances = detection_utils.annotations_to_instances([out, out], size, mask_format="bitmask")
    assert isinstance(instances.gt_masks, BitMasks)
    assert instances.gt_masks.tensor[0].sum() == size[0] * 200
    with pytest.raises(ValueError):
        detection_utils.annotations_to_instances([out], size, mask_format="polygon")


def test_all_kinds_of_segmentation_become_bit_masks() -> None:
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:6, 1:5] = 1
    segmentations = [mask, mask_util.encode(np.asfortranarray(mask)), [[1, 2, 5, 2, 5, 6, 1, 6]]]
    annotations = [box(segmentation=segmentation) for segmentation in segmentations]
    masks = detection_utils.annotations_to_instances(
        annotations, (8, 8), mask_format="bitmask"
    ).gt_masks.tensor
    for converted in masks.numpy():
        np.testing.assert_array_equal(converted, mask)
    with pytest.raises(ValueError):
        detection_utils.annotations_to_instances([box(segmentation="?")], (8, 8), mask_format="bitmask")
    with pytest.raises(ValueError):
        detection_utils.transform_instance_annotations(box(segmentation="?"), [T.NoOpTransform()], (8, 8))


def test_empty_instances_are_filtered() -> None:
    instances = Instances((10, 10))
    annotations = [
        {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0},
        {"bbox": [1, 1, 1, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
        {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 2},
    ]
    instances = detection_utils.annotations_to_instances(annotations, (10, 10))
    assert detection_utils.filter_empty_instances(instances).gt_classes.tolist() == [0, 2]
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[:2, 1:5, 1:5] = True
    instances.gt_masks = BitMasks(masks)
    kept, which = detection_utils.filter_empty_instances(instances, return_mask=True)
    assert kept.gt_classes.tolist() == [0]
    assert which.tolist() == [True, False, False]
    assert detection_utils.filter_empty_instances(instances, by_box=False).gt_classes.tolist() == [0, 1]
    assert detection_utils.filter_empty_instances(instances, by_mask=False).gt_classes.tolist() == [0, 2]


def test_crop_around_an_instance() -> None:
    instance = {"bbox": [10, 10, 100, 100], "bbox_mode": BoxMode.XYXY_ABS}
    for _ in range(20):
        crop = detection_utils.gen_crop_transform_with_instance((10, 10), (150, 150), instance)
        assert crop.x0 <= 55 <= crop.x0 + crop.w
        assert crop.y0 <= 55 <= crop.y0 + crop.h
    with pytest.raises(AssertionError):
        detection_utils.gen_crop_transform_with_instance((10, 10), (15, 15), instance)
    with pytest.raises(AssertionError):
        detection_utils.gen_crop_transform_with_instance((200, 10), (150, 150), instance)


def test_metadata_has_to_exist_to_be_consistent(names: list[str]) -> None:
    with pytest.raises(AttributeError):
        detection_utils.check_metadata_consistency("test_key", names)
    detection_utils.check_metadata_consistency("test_key", [])


def test_proposals_are_transformed() -> None:
    entry = {
        "proposal_boxes": np.array([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 9.0], [90.0, 0.0, 100.0, 5.0]]),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
        "proposal_objectness_logits": np.array([3.0, 2.0, 1.0]),
    }
    detection_utils.transform_proposals(entry, (50, 100), T.HFlipTransform(100), proposal_topk=2)
    assert set(entry) == {"proposals"}
    proposals: Any = entry["proposals"]
    assert proposals.proposal_boxes.tensor.tolist() == [[90, 0, 100, 10], [0, 0, 10, 5]]
    assert proposals.objectness_logits.tolist() == [3.0, 1.0]


def test_augmentations_of_a_config() -> None:
    cfg = get_cfg()
    assert [type(a) for a in detection_utils.build_augmentation(cfg, True)] == [
        T.ResizeShortestEdge,
        T.RandomFlip,
    ]
    assert [type(a) for a in detection_utils.build_augmentation(cfg, False)] == [T.ResizeShortestEdge]
    cfg.INPUT.RANDOM_FLIP = "none"
    assert len(detection_utils.build_augmentation(cfg, True)) == 1
    cfg.INPUT.RANDOM_FLIP = "vertical"
    flip: Any = detection_utils.build_augmentation(cfg, True)[1]
    assert flip.vertical


# ------------------------------------------------------------------ the default mapper


def test_mapper_in_training(tmp_path: Path) -> None:
    (entry, *_) = write_images(tmp_path, 1)
    labels = np.random.randint(0, 9, (20, 30), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    entry["sem_seg_file_name"] = str(tmp_path / "labels.png")
    before = copy.deepcopy(entry)
    mapper = DatasetMapper(
        True,
        augmentations=[T.HFlipTransform(30)],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        recompute_boxes=True,
    )
    out = mapper(entry)
    assert entry == before
    assert out["image"].shape == (3, 20, 30)
    assert out["image"].dtype == torch.uint8
    expected = np.asarray(Image.open(entry["file_name"]))[:, ::-1]
    np.testing.assert_array_equal(out["image"].permute(1, 2, 0).numpy(), expected)
    np.testing.assert_array_equal(out["sem_seg"].numpy(), labels[:, ::-1])
    assert out["sem_seg"].dtype == torch.int64
    assert "annotations" not in out
    assert len(out["instances"]) == 1  # without the crowd
    assert out["instances"].gt_boxes.tensor.tolist() == [[23, 2, 29, 10]]


def test_mapper_at_inference(tmp_path: Path) -> None:
    (entry, *_) = write_images(tmp_path, 1)
    cfg = get_cfg()
    out = DatasetMapper(cfg, False)(entry)
    assert out["image"].shape == (3, 800, 1200)
    assert (out["height"], out["width"]) == (20, 30)
    assert "annotations" not in out
    assert "instances" not in out


def test_mapper_crops_first(tmp_path: Path) -> None:
    entries = write_images(tmp_path, 4)
    cfg = get_cfg()
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = (6, 6)
    cfg.INPUT.MIN_SIZE_TRAIN = (12,)
    cfg.MODEL.MASK_ON = True
    mapper = DatasetMapper(cfg, True)
    for _ in range(5):
        for entry in entries:
            out = mapper(entry)
            assert out["image"].shape == (3, 12, 12)
            assert (out["instances"].gt_boxes.tensor <= 12).all()


def test_mapper_refuses_an_image_of_another_size(tmp_path: Path) -> None:
    (entry, *_) = write_images(tmp_path, 1)
    entry["width"] = 31
    with pytest.raises(detection_utils.SizeMismatchError):
        DatasetMapper(get_cfg(), True)(entry)
