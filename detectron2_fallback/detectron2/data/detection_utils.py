"""What data-set mappers are made of: reading images, transforming annotations, building Instances."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from . import transforms as T
from .catalog import MetadataCatalog

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "build_augmentation",
    "build_transform_gen",
    "check_image_size",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "create_keypoint_hflip_indices",
    "filter_empty_instances",
    "read_image",
    "transform_instance_annotations",
    "transform_proposals",
]

logger = logging.getLogger(__name__)

# ITU-R BT.601, https://en.wikipedia.org/wiki/YUV#SDTV_with_BT.601
_M_RGB2YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
_M_YUV2RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])
_YUV = "YUV-BT.601"

_EXIF_ORIENTATION = 274
_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SizeMismatchError(ValueError):
    """A loaded image does not have the size that its annotation says."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Convert a Pillow image to an array in the given format.

    Args:
        image: any Pillow image.
        format: a mode of Pillow, "BGR" or "YUV-BT.601"; None keeps the mode of the image.

    Returns:
        ``H W C`` uint8 (``C`` = 1 for "L"), ``H W`` for a single-channel image and format None, and ``H W 3``
        floating point with Y in [0, 1] for YUV.
    """
    if format is not None:
        image = image.convert("RGB" if format in ("BGR", _YUV) else format)
    array = np.asarray(image)
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "L":
        return np.expand_dims(array, -1)
    if format == _YUV:
        return np.dot(array / 255.0, _M_RGB2YUV.T)
    return array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Convert an image in the given format to RGB.

    Args:
        image: ``H W C``, as :func:`convert_PIL_to_numpy` gives it.
        format: a mode of Pillow, "BGR" or "YUV-BT.601".

    Returns:
        ``H W 3`` RGB in [0, 255]; uint8, except for BGR, which keeps the type, and YUV (floating point).
    """
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, [2, 1, 0]]
    if format == _YUV:
        return np.dot(image, _M_YUV2RGB.T) * 255.0
    if format == "L":
        image = image[:, :, 0]
    image = np.ascontiguousarray(image.astype(np.uint8))
    height, width = image.shape[:2]
    return np.asarray(Image.frombytes(format, (width, height), image.tobytes()).convert("RGB"))


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Turn a photo the way its camera was held (the file holds the pixels and a note about it)."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Pillow raises many types for damaged EXIF data; without it the image is used as it is
        logger.debug("unreadable EXIF data", exc_info=True)
        return image
    method = _TRANSPOSE_OF_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)


def read_image(file_name: str | os.PathLike, format: str | None = None) -> np.ndarray:
    """Read an image file, turned according to its EXIF orientation.

    Args:
        file_name: path of the image.
        format: a mode of Pillow, "BGR" or "YUV-BT.601"; None keeps the mode of the file.

    Returns:
        See :func:`convert_PIL_to_numpy`.

    Raises:
        OSError: if the file is missing or no readable image; the message names the file.
    """
    with PathManager.open(os.fspath(file_name), "rb") as file:
        try:
            return convert_PIL_to_numpy(_apply_exif_orientation(Image.open(file)), format)
        except (OSError, SyntaxError) as error:
            kind = UnidentifiedImageError if isinstance(error, UnidentifiedImageError) else OSError
            raise kind(f"cannot read image {os.fspath(file_name)}: {error}") from error


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compare an image with the "width" and "height" of its dict; fill them in where they are missing.

    Raises:
        SizeMismatchError: if they differ.
    """
    height, width = image.shape[:2]
    if "width" in dataset_dict or "height" in dataset_dict:
        expected = (dataset_dict["width"], dataset_dict["height"])
        if (width, height) != expected:
            of_image = f" for image {dataset_dict['file_name']}" if "file_name" in dataset_dict else ""
            raise SizeMismatchError(
                f"Mismatched image shape{of_image}, got {(width, height)}, expect {expected}. "
                "Please check the width/height in your annotation."
            )
    dataset_dict.setdefault("width", width)
    dataset_dict.setdefault("height", height)


def transform_proposals(
    dataset_dict: dict,
    image_shape: tuple[int, int],
    transforms: T.Transform,
    *,
    proposal_topk: int,
    min_box_size: float = 0,
) -> None:
    """Replace the precomputed proposals of a dict, in place, by transformed ones.

    Args:
        dataset_dict: with "proposal_boxes" ``N 4``, "proposal_bbox_mode", "proposal_objectness_logits" ``N``
            (nothing happens without them); gets "proposals", an Instances.
        image_shape: (h, w) after the transforms.
        transforms: what was done to the image.
        proposal_topk: how many to keep.
        min_box_size: smaller boxes are dropped.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    boxes_xyxy = BoxMode.convert(
        dataset_dict.pop("proposal_boxes"), dataset_dict.pop("proposal_bbox_mode"), BoxMode.XYXY_ABS
    )
    logits = torch.as_tensor(dataset_dict.pop("proposal_objectness_logits").astype("float32"))
    boxes = Boxes(torch.as_tensor(transforms.apply_box(boxes_xyxy)))
    boxes.clip(image_shape)
    keep = boxes.nonempty(threshold=min_box_size)
    proposals = Instances(image_shape)
    proposals.proposal_boxes = boxes[keep][:proposal_topk]
    proposals.objectness_logits = logits[keep][:proposal_topk]
    dataset_dict["proposals"] = proposals


def get_bbox(annotation: dict) -> np.ndarray:
    """The box of an annotation as (x0, y0, x1, y1)."""
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _decode_rle(segmentation: dict) -> np.ndarray:
    """Run-length code, compressed or not, to an ``H W`` uint8 mask."""
    if isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
    return mask_util.decode(segmentation)


def transform_instance_annotations(
    annotation: dict,
    transforms: T.Transform | Sequence[T.Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: Sequence[int] | np.ndarray | None = None,
) -> dict:
    """Apply transforms to box, segmentation and keypoints of one instance.

    Args:
        annotation: with "bbox", "bbox_mode" and optionally "segmentation" (polygons or RLE) and "keypoints";
            changed in place.
        transforms: a transform or a list of them.
        image_size: (h, w) after the transforms; boxes are clipped to it.
        keypoint_hflip_indices: see :func:`create_keypoint_hflip_indices`.

    Returns:
        ``annotation``. Its "bbox" is in XYXY_ABS; an RLE has become an ``H W`` mask.

    Raises:
        ValueError: if the segmentation is neither a list of polygons nor an RLE.
    """
    if isinstance(transforms, (tuple, list)):
        transforms = T.TransformList(transforms)
    assert isinstance(transforms, T.Transform)
    height, width = image_size
    box = transforms.apply_box(np.array([get_bbox(annotation)]))[0].clip(min=0)
    annotation["bbox"] = np.minimum(box, [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS

    if "segmentation" in annotation:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            polygons = [np.asarray(polygon).reshape(-1, 2) for polygon in segmentation]
            annotation["segmentation"] = [p.reshape(-1) for p in transforms.apply_polygons(polygons)]
        elif isinstance(segmentation, dict):
            mask = transforms.apply_segmentation(_decode_rle(segmentation))
            assert tuple(mask.shape[:2]) == tuple(image_size), (mask.shape, image_size)
            annotation["segmentation"] = mask
        else:
            raise ValueError(
                f"Cannot transform segmentation of type '{type(segmentation)}'! Supported types are: "
                "polygons as list[list[float] or ndarray], COCO-style RLE as a dict."
            )

    if "keypoints" in annotation:
        annotation["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transforms, image_size, keypoint_hflip_indices
        )
    return annotation


def transform_keypoint_annotations(
    keypoints: Any,
    transforms: T.Transform,
    image_size: tuple[int, int],
    keypoint_hflip_indices: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Transform the keypoints of one instance.

    Args:
        keypoints: ``N*3`` numbers of (x, y, visibility) in COCO's convention (0 = not labelled).
        transforms: what was done to the image.
        image_size: (h, w) after the transforms; points outside become "not labelled".
        keypoint_hflip_indices: see :func:`create_keypoint_hflip_indices`.

    Returns:
        ``N 3`` float64.

    Raises:
        ValueError: if the image was flipped and the indices are missing or of another length.
    """
    points = np.asarray(keypoints, dtype="float64").reshape(-1, 3)
    xy = transforms.apply_coords(points[:, :2])
    inside = ((xy >= 0) & (xy <= np.array(image_size[::-1]))).all(axis=1)
    points[:, :2] = xy
    points[~inside, 2] = 0

    parts = transforms.transforms if isinstance(transforms, T.TransformList) else [transforms]
    if sum(isinstance(part, T.HFlipTransform) for part in parts) % 2 == 1:
        if keypoint_hflip_indices is None:
            raise ValueError("Cannot flip keypoints without providing flip indices!")
        if len(points) != len(keypoint_hflip_indices):
            raise ValueError(
                f"Keypoint data has {len(points)} points, but metadata contains "
                f"{len(keypoint_hflip_indices)} points!"
            )
        points = points[np.asarray(keypoint_hflip_indices, dtype=np.int32), :]

    points[points[:, 2] == 0] = 0  # COCO: an unlabelled point is at (0, 0)
    return points


def _segmentation_to_mask(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    if isinstance(segmentation, dict):
        return _decode_rle(segmentation)
    if isinstance(segmentation, np.ndarray):
        assert segmentation.ndim == 2, f"Expect segmentation of 2 dimensions, got {segmentation.ndim}."
        return segmentation
    raise ValueError(
        f"Cannot convert segmentation of type '{type(segmentation)}' to BitMasks! Supported types are: "
        "polygons as list[list[float] or ndarray], COCO-style RLE as a dict, or a binary segmentation mask "
        "in a 2D numpy array of shape HxW."
    )


def annotations_to_instances(
    annos: list[dict], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Make the Instances that models train on from the (transformed) annotations of one image.

    Args:
        annos: annotations; all or none have "segmentation", all or none have "keypoints".
        image_size: (h, w).
        mask_format: "polygon" or "bitmask".

    Returns:
        With "gt_boxes", "gt_classes" and, where annotated, "gt_masks" and "gt_keypoints".

    Raises:
        ValueError: if a segmentation cannot be brought into ``mask_format``.
    """
    boxes = np.stack([get_bbox(anno) for anno in annos]) if annos else np.zeros((0, 4))
    target = Instances(image_size)
    target.gt_boxes = Boxes(torch.as_tensor(boxes))
    target.gt_classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)

    if annos and "segmentation" in annos[0]:
        segmentations = [anno["segmentation"] for anno in annos]
        if mask_format == "polygon":
            try:
                target.gt_masks = PolygonMasks(segmentations)
            except ValueError as error:
                raise ValueError(
                    "Failed to use mask_format=='polygon' from the given annotations!"
                ) from error
        else:
            assert mask_format == "bitmask", mask_format
            masks = [_segmentation_to_mask(segmentation, image_size) for segmentation in segmentations]
            target.gt_masks = BitMasks(
                torch.stack([torch.from_numpy(np.ascontiguousarray(mask)) for mask in masks])
            )

    if annos and "keypoints" in annos[0]:
        from detectron2.structures import Keypoints

        target.gt_keypoints = Keypoints([anno.get("keypoints", []) for anno in annos])
    return target


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Any:
    """Drop instances that the transforms left nothing of.

    Args:
        instances: with "gt_boxes" and perhaps "gt_masks".
        by_box: drop instances with an empty box.
        by_mask: drop instances with an empty mask.
        box_threshold: a side not longer than this is empty.
        return_mask: whether to return the ``N`` bool mask of the kept ones too.

    Returns:
        The remaining instances, or a tuple with the mask.
    """
    assert by_box or by_mask, "nothing to filter by"
    criteria = []
    if by_box:
        criteria.append(instances.gt_boxes.nonempty(threshold=box_threshold))
    if by_mask and instances.has("gt_masks"):
        criteria.append(instances.gt_masks.nonempty())
    if not criteria:
        # only without boxes, where masks were asked for and do not exist
        keep: Any = torch.ones(len(instances), dtype=torch.bool)
    else:
        keep = torch.stack(criteria).all(dim=0)
    return (instances[keep], keep) if return_mask else instances[keep]


def create_keypoint_hflip_indices(dataset_names: str | Sequence[str]) -> list[int]:
    """For every keypoint the index of the one that takes its place in a mirrored image.

    Args:
        dataset_names: data sets with the metadata "keypoint_names" and "keypoint_flip_map" (pairs of names).
    """
    if isinstance(dataset_names, str):
        dataset_names = [dataset_names]
    check_metadata_consistency("keypoint_names", dataset_names)
    check_metadata_consistency("keypoint_flip_map", dataset_names)
    metadata = MetadataCatalog.get(dataset_names[0])
    partner = dict(metadata.keypoint_flip_map)
    partner.update({right: left for left, right in partner.items()})
    names = list(metadata.keypoint_names)
    return [names.index(partner.get(name, name)) for name in names]


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict
) -> T.CropTransform:
    """A random crop that contains the centre of an instance.

    Args:
        crop_size: (h, w) of the crop, at most the image size.
        image_size: (h, w).
        instance: annotation with "bbox" and "bbox_mode".

    Raises:
        AssertionError: if the crop is larger than the image or the box lies outside it.
    """
    size = np.asarray(crop_size, dtype=np.int32)
    image = np.asarray(image_size, dtype=np.int32)
    x0, y0, x1, y1 = get_bbox(instance)
    center = np.array([(y0 + y1) * 0.5, (x0 + x1) * 0.5])
    assert (image >= center).all(), "The annotation bounding box is outside of the image!"
    assert (image >= size).all(), "Crop size is larger than image size!"
    lowest = np.maximum(np.floor(center).astype(np.int32) - size, 0)
    highest = np.minimum(np.maximum(image - size, 0), np.ceil(center).astype(np.int32))
    top = np.random.randint(lowest[0], highest[0] + 1)
    left = np.random.randint(lowest[1], highest[1] + 1)
    return T.CropTransform(left, top, int(size[1]), int(size[0]))


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Check that data sets that are used together agree about a metadata.

    Args:
        key: name of the metadata.
        dataset_names: registered names.

    Raises:
        AttributeError: if a data set does not have it.
        ValueError: if two data sets differ.
    """
    if len(dataset_names) == 0:
        return
    entries = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, entry in zip(dataset_names, entries, strict=True):
        if entry != entries[0]:
            logger.error("Metadata '%s' for dataset '%s' is '%s'", key, name, entry)
            logger.error("Metadata '%s' for dataset '%s' is '%s'", key, dataset_names[0], entries[0])
            raise ValueError(f"Datasets have different metadata '{key}'!")


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation | T.Transform]:
    """The default augmentations of a config: a resize, and in training a random flip.

    Args:
        cfg: reads INPUT.MIN_SIZE_{TRAIN,TEST}, INPUT.MAX_SIZE_{TRAIN,TEST}, INPUT.MIN_SIZE_TRAIN_SAMPLING and
            INPUT.RANDOM_FLIP.
        is_train: training or inference.
    """
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    augmentations: list[T.Augmentation | T.Transform] = [
        T.ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        )
    ]
    if cfg.INPUT.RANDOM_FLIP != "none":
        augmentations.append(
            T.RandomFlip(
                horizontal=cfg.INPUT.RANDOM_FLIP == "horizontal",
                vertical=cfg.INPUT.RANDOM_FLIP == "vertical",
            )
        )
    return augmentations


# Name of older versions.
build_transform_gen = build_augmentation
