"""Annotations of one frame, whatever they are stored as.

A *record* is one video (or image) of a loaded data set, see ``dvis.data.datasets``. A reader turns frame t of
it into `FrameObjects`. Letters: N objects of the frame, H W pixels of the frame, L label layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from detectron2.data.transforms import Transform
from numpy.typing import NDArray
from PIL import Image

from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.rle import decode_rle, to_rle

__all__ = [
    "AnnotationReader",
    "FrameObjects",
    "describe",
    "read_frame",
    "read_instances",
    "read_panoptic",
    "semantic_reader",
]

Record = Mapping[str, Any]

EXIF_ORIENTATION = 0x0112  # tag
# Pillow reports broken files by any of these.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class FrameObjects:
    """Objects of one frame; their masks are values in label layers, 0 is nothing.

    Attributes:
        ids: identity of each object within its video, ``N``, not negative.
        classes: class index, ``N``.
        layers: label maps, ``L`` arrays ``H W``; one per object where masks may overlap.
        places: layer and value of each object's mask, ``N`` pairs.
    """

    ids: list[int]
    classes: list[int]
    layers: list[NDArray[Any]]
    places: list[tuple[int, int]]

    def masks(self, transform: Transform, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Masks after a geometric transform, ``N H' W'``.

        Args:
            transform: what was done to the image.
            size: resulting height and width.
        """
        layers = [transform.apply_segmentation(layer) for layer in self.layers]
        masks = [layers[layer] == value for layer, value in self.places]
        return np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)


AnnotationReader = Callable[[Record, int], FrameObjects]


def describe(record: Record, t: int | None = None) -> str:
    """Where something went wrong, for messages: annotation file, video, frame."""
    place = f"video {record['video_id']} of {record['source']}"
    return place if t is None else f"{place}, frame {t} ({record['file_names'][t]})"


def read_frame(
    record: Record, t: int, image_format: str, at_least: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Read frame t, ``H W 3`` uint8 with channels in ``image_format`` (``RGB`` or ``BGR``).

    Args:
        record: of a data set.
        t: number of the frame.
        image_format: order of the channels.
        at_least: height and width that suffice: a JPEG file is then decoded at a half, a quarter or an eighth
            of its size where that is not smaller. None: at its own size.

    Raises:
        MissingDataError: if the file is not there.
        BrokenDataError: if it cannot be decoded, or its size is not that of the annotations.
    """

    def read(path: str) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        if at_least is not None and (reduced := _read_reduced(path, image_format, at_least)) is not None:
            return reduced
        image = detection_utils.read_image(path, image_format)
        return image, (image.shape[0], image.shape[1])

    image, size = _read(record, t, record["file_names"][t], read)
    expected = (record.get("height"), record.get("width"))
    if None not in expected and size != expected:
        raise BrokenDataError(
            f"{describe(record, t)}: the image has {size[0]} x {size[1]} pixels, "
            f"the annotations say {expected[0]} x {expected[1]}"
        )
    return image


def _read_reduced(
    path: str, image_format: str, at_least: tuple[int, int]
) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
    """Decode a JPEG file at the smallest size that suffices; also give its own size.

    None: it is no JPEG file, or one that has to be turned, and is to be read in the usual way.
    """
    with Image.open(path) as image:
        if image.format != "JPEG" or image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            return None
        width, height = image.size
        # The decoder leaves out the frequencies that the smaller picture cannot show.
        image.draft("RGB", at_least[::-1])
        return detection_utils.convert_PIL_to_numpy(image, image_format), (height, width)


def read_instances(record: Record, t: int) -> FrameObjects:
    """Objects of an instance JSON (YouTube-VIS, OVIS, COCO); crowds and hidden objects are left out.

    Raises:
        BrokenDataError: for a mask that is broken or of another size than the frame; names the annotation.
    """
    size = (record["height"], record["width"])
    found = FrameObjects([], [], [], [])
    for identity, annotation in enumerate(record["annotations"]):
        if annotation["iscrowd"] or not annotation["segmentations"][t]:
            continue
        where = f"{describe(record, t)}, annotation {annotation['id']}"
        try:
            rle = to_rle(annotation["segmentations"][t], *size)
            mask = None if rle is None else decode_rle(rle)
        except (ValueError, TypeError, KeyError) as error:
            raise BrokenDataError(f"{where}: broken mask: {error}") from error
        if mask is None:
            continue
        if mask.shape != size:
            raise BrokenDataError(f"{where}: the mask has {mask.shape} pixels, the frame {size}")
        found.ids.append(identity)
        found.classes.append(annotation["category_id"])
        found.places.append((len(found.layers), 1))
        found.layers.append(mask.astype(np.uint8))
    return found


def read_panoptic(record: Record, t: int) -> FrameObjects:
    """Segments of a colour-coded panoptic PNG and its JSON entry; crowds are left out.

    Raises:
        MissingDataError, BrokenDataError: for a file that is missing, broken or of another size than the
            frame.
    """
    path = record["pan_seg_file_names"][t]
    colors = _read_label_map(record, t, path, "RGB").astype(np.int64)
    values = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
    segments = [segment for segment in record["segments_infos"][t] if not segment["iscrowd"]]
    return _pack(values, [(segment["id"], segment["id"], segment["category_id"]) for segment in segments])


def semantic_reader(class_of_value: Mapping[int, int]) -> AnnotationReader:
    """A reader of single-channel label maps; every class in the frame is one object.

    Args:
        class_of_value: class index of each pixel value; other values are void.
    """

    def read(record: Record, t: int) -> FrameObjects:
        values = _read_label_map(record, t, record["sem_seg_file_names"][t], "L").astype(np.int64)
        present = [value for value in np.unique(values).tolist() if value in class_of_value]
        return _pack(values, [(value, class_of_value[value], class_of_value[value]) for value in present])

    return read


def _read(record: Record, t: int, path: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise MissingDataError(f"{describe(record, t)}: {path} is missing") from error
    except UNREADABLE as error:
        raise BrokenDataError(f"{describe(record, t)}: cannot read {path}: {error}") from error


def _read_label_map(record: Record, t: int, path: str, mode: str) -> NDArray[np.uint8]:
    def read(path: str) -> NDArray[np.uint8]:
        with Image.open(path) as image:
            # Palette images hold the labels as they are; converting would give their colours.
            return np.asarray(image if image.mode == "P" and mode == "L" else image.convert(mode))

    labels = _read(record, t, path, read)
    expected = (record.get("height"), record.get("width"))
    if None not in expected and labels.shape[:2] != expected:
        raise BrokenDataError(
            f"{describe(record, t)}: {path} has {labels.shape[0]} x {labels.shape[1]} pixels, "
            f"the frame {expected[0]} x {expected[1]}"
        )
    return labels


def _pack(values: NDArray[np.int64], objects: Sequence[tuple[int, int, int]]) -> FrameObjects:
    """Number the given (value, id, class) triples 1, 2, ... in a compact map; what is left is 0."""
    # Pillow resizes bytes; for more labels floats go through PyTorch and OpenCV, and are exact.
    dtype = np.uint8 if len(objects) < 256 else np.float32
    packed = np.zeros(values.shape, dtype=dtype)
    if objects:
        wanted = np.array([value for value, _, _ in objects])
        order = np.argsort(wanted)
        index = np.searchsorted(wanted[order], values).clip(max=len(order) - 1)
        known = wanted[order][index] == values
        packed[known] = (order[index] + 1)[known]
    return FrameObjects(
        ids=[identity for _, identity, _ in objects],
        classes=[label for _, _, label in objects],
        layers=[packed],
        places=[(0, i + 1) for i in range(len(objects))],
    )
