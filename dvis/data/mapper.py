"""From a record of a data set to what a model takes: training clips and whole videos.

Letters: T frames, N objects, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Instances
from numpy.typing import NDArray
from torch import Tensor

from dvis.data.augmentation import ClipAugmentation, build_augmentation, size_after_resize, starting_from
from dvis.data.frames import LazyFrames
from dvis.data.readers import AnnotationReader, FrameObjects, read_frame
from dvis.data.samplers import FrameSampler, RepeatedFrame, build_frame_sampler

__all__ = ["ABSENT", "ClipMapper", "VideoMapper", "clip_mapper_from_config"]

ABSENT = -1  # id and class of an object in a frame where it is not visible

Record = Mapping[str, Any]


class ClipMapper:
    """Samples, reads and augments one training clip.

    The result has, in addition to what names the clip (``video_id``, ``file_names``, ``frame_indices``):

    * ``image``: T tensors ``3 H W`` uint8,
    * ``instances``: T ``Instances`` that list the same N objects in the same order: ``gt_ids`` and
      ``gt_classes`` ``N`` int64 (-1 where the object is not visible) and ``gt_masks`` (``BitMasks``). Objects
      that no frame of the clip shows are left out; N may be 0,
    * ``height``, ``width``: of the original frames.

    Args:
        sampler: chooses the frames.
        reader: reads the annotations of a frame.
        augmentation: what is done to the clip.
        image_format: channel order, ``RGB`` or ``BGR``.
        class_map: new class index of each class; objects of other classes are left out. None keeps all.
        reduced_decoding: decode JPEG frames at a fraction of their size where the augmentation makes them
            smaller anyway; see ``INPUT.REDUCED_DECODING``.
    """

    def __init__(
        self,
        sampler: FrameSampler,
        reader: AnnotationReader,
        augmentation: ClipAugmentation,
        image_format: str,
        class_map: Mapping[int, int] | None = None,
        reduced_decoding: bool = False,
    ) -> None:
        self.sampler = sampler
        self.reader = reader
        self.augmentation = augmentation
        self.image_format = image_format
        self.class_map = class_map
        self.reduced_decoding = reduced_decoding

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        """Make one clip; ``rng`` is the only source of randomness.

        Raises:
            MissingDataError, BrokenDataError: if a file is missing or broken; names file, video and
                annotation.
        """
        indices = self.sampler(record["length"], rng)
        height, width = record.get("height"), record.get("width")
        # Pseudo videos repeat a frame: read it once.
        if self.reduced_decoding and height is not None and width is not None:
            stored = (height, width)
            plans = self.augmentation.draw(rng, [stored] * len(indices))
            needed = _largest(indices, [size_after_resize(transform, stored) for transform, _ in plans])
            images = {t: read_frame(record, t, self.image_format, needed[t]) for t in needed}
        else:
            images = {t: read_frame(record, t, self.image_format) for t in dict.fromkeys(indices)}
            height, width = images[indices[0]].shape[:2]
            plans = self.augmentation.draw(rng, [(images[t].shape[0], images[t].shape[1]) for t in indices])
        objects = {t: self._remap(self.reader(record, t)) for t in images}

        frames: list[Tensor] = []
        found: list[tuple[FrameObjects, NDArray[np.bool_]]] = []
        for t, (transform, size) in zip(indices, plans, strict=True):
            image = images[t]
            # A frame that was decoded at a fraction of its size has less far to go.
            on_image = starting_from(transform, image.shape[:2]) if self.reduced_decoding else transform
            frames.append(_to_tensor(on_image.apply_image(image)))
            found.append((objects[t], objects[t].masks(transform, size)))
        return {
            "video_id": record["video_id"],
            "file_names": [record["file_names"][t] for t in indices],
            "frame_indices": indices,
            "height": height,
            "width": width,
            "image": frames,
            "instances": _align(found),
        }

    def _remap(self, found: FrameObjects) -> FrameObjects:
        if self.class_map is None:
            return found
        kept = [i for i, label in enumerate(found.classes) if label in self.class_map]
        return FrameObjects(
            ids=[found.ids[i] for i in kept],
            classes=[self.class_map[found.classes[i]] for i in kept],
            layers=found.layers,
            places=[found.places[i] for i in kept],
        )


class VideoMapper:
    """Makes a whole video ready for inference; frames are read when they are used.

    The result has ``image`` (`LazyFrames`), ``height``, ``width``, ``file_names``, ``video_id``, ``length``
    and ``mask_format``.

    Args:
        short: length of the shorter side in pixels; 0 keeps the size.
        longest: largest length of the longer side in pixels.
        image_format: channel order, ``RGB`` or ``BGR``.
        read_ahead: frames that are decoded in the background.
    """

    def __init__(self, short: int, longest: float, image_format: str, read_ahead: int = 0) -> None:
        self.short = short
        self.longest = longest
        self.image_format = image_format
        self.read_ahead = read_ahead

    def __call__(self, record: Record) -> dict[str, Any]:
        frames = LazyFrames(record, self.image_format, self.short, self.longest, self.read_ahead)
        height, width = frames.original_size
        return {
            "video_id": record["video_id"],
            "file_names": record["file_names"],
            "length": record["length"],
            "height": height,
            "width": width,
            "image": frames,
            # Full-size masks of a long video would take gigabytes; evaluation wants codes anyway.
            "mask_format": "rle",
        }


def clip_mapper_from_config(
    cfg: CfgNode, kind: str, reader: AnnotationReader, class_map: Mapping[int, int] | None = None
) -> ClipMapper:
    """The mapper that ``INPUT.*`` describes.

    Args:
        cfg: the configuration.
        kind: of the data set, one of ``dvis.data.datasets.KINDS``.
        reader: of the data set's annotations.
        class_map: see `ClipMapper`.
    """
    pseudo = kind.startswith("image")
    num_frames = cfg.INPUT.SAMPLING_FRAME_NUM
    # Built for images as well, so that a wrong key is found with every kind of data.
    sampler = build_frame_sampler(
        num_frames,
        cfg.INPUT.SAMPLING_FRAME_RANGE,
        ratio=cfg.INPUT.SAMPLING_FRAME_RATIO,
        shuffle=cfg.INPUT.SAMPLING_FRAME_SHUFFLE,
        reverse=cfg.INPUT.REVERSE_AGU,
        as_published=cfg.INPUT.SAMPLING_AS_PUBLISHED,
    )
    return ClipMapper(
        sampler=RepeatedFrame(num_frames) if pseudo else sampler,
        reader=reader,
        augmentation=build_augmentation(cfg, pseudo=pseudo, segments=not kind.endswith("instance")),
        image_format=cfg.INPUT.FORMAT,
        class_map=class_map,
        reduced_decoding=cfg.INPUT.REDUCED_DECODING,
    )


def _largest(indices: Sequence[int], sizes: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """The largest of the sizes (height, width) at which each frame is needed."""
    needed: dict[int, tuple[int, int]] = {}
    for t, (height, width) in zip(indices, sizes, strict=True):
        before = needed.get(t, (0, 0))
        needed[t] = (max(height, before[0]), max(width, before[1]))
    return needed


def _to_tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _align(found: Sequence[tuple[FrameObjects, NDArray[np.bool_]]]) -> list[Instances]:
    """List in every frame all objects that the clip shows, in order of first appearance."""
    visible = [
        {identity: row for row, identity in enumerate(objects.ids) if masks[row].any()}
        for objects, masks in found
    ]
    identities = list(dict.fromkeys(identity for rows in visible for identity in rows))
    instances = []
    for rows, (objects, masks) in zip(visible, found, strict=True):
        size = (masks.shape[1], masks.shape[2])
        aligned = np.zeros((len(identities), *size), dtype=bool)
        ids = np.full(len(identities), ABSENT, dtype=np.int64)
        classes = ids.copy()
        for n, identity in enumerate(identities):
            if identity in rows:
                row = rows[identity]
                aligned[n] = masks[row]
                ids[n] = identity
                classes[n] = objects.classes[row]
        frame = Instances(size)
        frame.gt_ids = torch.from_numpy(ids)
        frame.gt_classes = torch.from_numpy(classes)
        frame.gt_masks = BitMasks(torch.from_numpy(aligned))
        instances.append(frame)
    return instances
