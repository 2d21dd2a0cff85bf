"""Instance masks as bitmaps and as polygons."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch

from .boxes import Boxes

__all__ = ["BitMasks", "PolygonMasks", "polygons_to_bitmask"]


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Return the area of a polygon by the shoelace formula.

    Args:
        x: its vertices' x, in order.
        y: its vertices' y.
    """
    return 0.5 * np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Fill polygons with COCO's rules.

    Args:
        polygons: each ``[x0, y0, x1, y1, ...]`` in pixels; together they are one object.
        height: of the result.
        width: of the result.

    Returns:
        bool, ``height width``.
    """
    if len(polygons) == 0:  # pycocotools cannot merge nothing
        return np.zeros((height, width), dtype=bool)
    rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    return mask_util.decode(rle).astype(bool)


def rasterize_polygons_within_box(
    polygons: list[np.ndarray], box: np.ndarray, mask_size: int
) -> torch.Tensor:
    """Fill the part of an object that lies in a box, scaled to a square.

    Args:
        polygons: each ``[x0, y0, x1, y1, ...]`` in pixels.
        box: ``(x0, y0, x1, y1)`` in pixels.
        mask_size: side of the square.

    Returns:
        bool, ``mask_size mask_size``.
    """
    smallest = 0.1  # pixels; a degenerate box must not divide by zero
    scale = mask_size / np.maximum(box[2:] - box[:2], smallest)
    scaled = [((p.reshape(-1, 2) - box[:2]) * scale).reshape(-1) for p in polygons]
    return torch.from_numpy(polygons_to_bitmask(scaled, mask_size, mask_size))


class BitMasks:
    """Masks of ``N`` objects as bitmaps.

    Attributes:
        tensor: bool, ``N H W``.
        image_size: ``(H, W)``.
    """

    def __init__(self, tensor: torch.Tensor | np.ndarray) -> None:
        """
        Args:
            tensor: ``N H W``, anything that converts to bool.

        Raises:
            AssertionError: for another number of dimensions.
        """
        if isinstance(tensor, torch.Tensor):
            tensor = tensor.to(torch.bool)
        else:
            tensor = torch.as_tensor(tensor, dtype=torch.bool, device=torch.device("cpu"))
        assert tensor.dim() == 3, tensor.size()
        self.image_size = tensor.shape[1:]
        self.tensor = tensor

    @torch.jit.unused
    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        """Return masks whose tensor went through ``to(*args, **kwargs)``."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | list[int] | torch.Tensor) -> BitMasks:
        """Index objects; an int gives one. Storage may be shared.

        Raises:
            AssertionError: if the result is not ``M H W``.
        """
        if isinstance(item, int):
            return BitMasks(self.tensor[item].unsqueeze(0))
        masks = self.tensor[item]
        assert masks.dim() == 3, (
            f"Indexing on BitMasks with {item} returns a tensor with shape {masks.shape}!"
        )
        return BitMasks(masks)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield the mask ``H W`` of each object."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self.tensor)})"

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def nonempty(self) -> torch.Tensor:
        """Return which masks have at least one pixel, ``N`` bool."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: PolygonMasks | list[list[np.ndarray]], height: int, width: int
    ) -> BitMasks:
        """Fill the polygons of each object into a bitmap ``height width``."""
        if isinstance(polygon_masks, PolygonMasks):
            polygon_masks = polygon_masks.polygons
        masks = [polygons_to_bitmask(polygons, height, width) for polygons in polygon_masks]
        if len(masks) == 0:
            return BitMasks(torch.empty(0, height, width, dtype=torch.bool))
        return BitMasks(torch.stack([torch.from_numpy(mask) for mask in masks]))

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Cut each mask along its box and scale it to a square.

        Args:
            boxes: ``N 4``, XYXY in pixels.
            mask_size: side of the square.

        Returns:
            bool, ``N mask_size mask_size``.

        Raises:
            AssertionError: if there is not one box per mask.
            ImportError: if torchvision is missing.
        """
        from detectron2.layers.nms import import_torchvision_ops

        assert len(boxes) == len(self), f"{len(boxes)} != {len(self)}"
        ops = import_torchvision_ops("BitMasks.crop_and_resize")
        indices = torch.arange(len(boxes), device=self.device).to(boxes.dtype)[:, None]
        rois = torch.cat([indices, boxes], dim=1).to(device=self.device, dtype=torch.float32)
        masks = self.tensor[:, None].to(torch.float32)
        output = ops.roi_align(masks, rois, (mask_size, mask_size), 1.0, 0, aligned=True)
        return output.squeeze(1) >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """Return the box around each mask, up to and including its last pixel; zeros for an empty mask."""
        boxes = torch.zeros(self.tensor.shape[0], 4, dtype=torch.float32)
        columns, rows = self.tensor.any(dim=1).cpu(), self.tensor.any(dim=2).cpu()
        for box, column, row in zip(boxes, columns, rows, strict=True):
            x, y = torch.where(column)[0], torch.where(row)[0]
            if len(x) > 0:
                box.copy_(torch.stack([x[0], y[0], x[-1] + 1, y[-1] + 1]))
        return Boxes(boxes)

    @staticmethod
    def cat(bitmasks_list: list[BitMasks]) -> BitMasks:
        """Concatenate masks of one image size.

        Raises:
            AssertionError: if the list is empty or holds anything else.
        """
        assert isinstance(bitmasks_list, (list, tuple))
        assert len(bitmasks_list) > 0
        assert all(isinstance(bitmask, BitMasks) for bitmask in bitmasks_list)
        return type(bitmasks_list[0])(torch.cat([bitmask.tensor for bitmask in bitmasks_list], dim=0))


class PolygonMasks:
    """Masks of ``N`` objects as polygons.

    Attributes:
        polygons: one list per object of float64 arrays ``[x0, y0, x1, y1, ...]`` in pixels.
    """

    def __init__(self, polygons: Sequence[Sequence[torch.Tensor | np.ndarray]]) -> None:
        """
        Args:
            polygons: one list per object, of polygons in the form above.

        Raises:
            ValueError: if these are no lists, or a polygon has an odd number of coordinates or less than 6.
        """
        if not isinstance(polygons, list):
            raise ValueError(
                "Cannot create PolygonMasks: Expect a list of list of polygons per image. "
                f"Got '{type(polygons)}' instead."
            )
        self.polygons: list[list[np.ndarray]] = [_check_polygons(of_one) for of_one in polygons]

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """Return the masks themselves; they are arrays on the host in any case."""
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        """Return the box around each object; ``(inf, inf, 0, 0)`` for one without polygons."""
        boxes = torch.zeros(len(self.polygons), 4, dtype=torch.float32)
        boxes[:, :2] = float("inf")
        for box, polygons in zip(boxes, self.polygons, strict=True):
            for polygon in polygons:
                points = torch.from_numpy(polygon).view(-1, 2).to(torch.float32)
                box[:2] = torch.min(box[:2], points.min(dim=0).values)
                box[2:] = torch.max(box[2:], points.max(dim=0).values)
        return Boxes(boxes)

    def nonempty(self) -> torch.Tensor:
        """Return which objects have a polygon, ``N`` bool."""
        return torch.tensor([len(polygons) > 0 for polygons in self.polygons], dtype=torch.bool)

    def __getitem__(self, item: int | slice | list[int] | torch.Tensor) -> PolygonMasks:
        """Index objects; an int gives one.

        Raises:
            ValueError: for a tensor that is neither bool nor integer.
        """
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, torch.Tensor):
            if item.dtype == torch.bool:
                assert item.dim() == 1, item.shape
                item = item.nonzero().squeeze(1)
            elif item.dtype not in (torch.int32, torch.int64):
                raise ValueError(f"Unsupported tensor dtype={item.dtype} for indexing!")
            item = item.tolist()
        return PolygonMasks([self.polygons[i] for i in item])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yield the list of polygons of each object."""
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self.polygons)})"

    def __len__(self) -> int:
        return len(self.polygons)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Fill the part of each object that lies in its box, scaled to a square.

        Args:
            boxes: ``N 4``, XYXY in pixels.
            mask_size: side of the square.

        Returns:
            bool, ``N mask_size mask_size``, on the device of ``boxes``.

        Raises:
            AssertionError: if there is not one box per object.
        """
        assert len(boxes) == len(self), f"{len(boxes)} != {len(self)}"
        if len(boxes) == 0:
            return torch.empty(0, mask_size, mask_size, dtype=torch.bool, device=boxes.device)
        results = [
            rasterize_polygons_within_box(polygons, box, mask_size)
            for polygons, box in zip(self.polygons, boxes.cpu().numpy(), strict=True)
        ]
        return torch.stack(results).to(device=boxes.device)

    def area(self) -> torch.Tensor:
        """Return the area of each object in pixels: the sum over its polygons, ``N`` float64."""
        areas = [sum(polygon_area(p[0::2], p[1::2]) for p in polygons) for polygons in self.polygons]
        return torch.tensor(areas)

    @staticmethod
    def cat(polymasks_list: list[PolygonMasks]) -> PolygonMasks:
        """Concatenate.

        Raises:
            AssertionError: if the list is empty or holds anything else.
        """
        assert isinstance(polymasks_list, (list, tuple))
        assert len(polymasks_list) > 0
        assert all(isinstance(polymask, PolygonMasks) for polymask in polymasks_list)
        return type(polymasks_list[0])(
            list(itertools.chain.from_iterable(p.polygons for p in polymasks_list))
        )


def _check_polygons(polygons: Sequence[torch.Tensor | np.ndarray]) -> list[np.ndarray]:
    if not isinstance(polygons, list):
        raise ValueError(
            f"Cannot create polygons: Expect a list of polygons per instance. Got '{type(polygons)}' instead."
        )
    arrays = [
        # The copy keeps later changes of the caller's arrays out.
        np.array(p.cpu().numpy() if isinstance(p, torch.Tensor) else p, dtype=np.float64)
        for p in polygons
    ]
    for array in arrays:
        if len(array) % 2 != 0 or len(array) < 6:
            raise ValueError(f"Cannot create a polygon from {len(array)} coordinates.")
    return arrays
