"""Axis-aligned boxes, their formats and their overlaps.

Annotations are written for TorchScript, which reads neither ``X | Y`` nor postponed ones reliably.
"""

import math
from enum import IntEnum, unique
from typing import List, Tuple, TypeVar  # noqa: UP035  (TorchScript)

import numpy as np
import torch
from torch import device

# ruff: noqa: UP006  (TorchScript)

_RawBoxType = TypeVar("_RawBoxType", List[float], Tuple[float, ...], torch.Tensor, np.ndarray)


@unique
class BoxMode(IntEnum):
    """Formats of a box."""

    XYXY_ABS = 0
    """``(x0, y0, x1, y1)`` in pixels, each coordinate in ``[0, width or height]``."""
    XYWH_ABS = 1
    """``(x0, y0, w, h)`` in pixels."""
    XYXY_REL = 2
    """``(x0, y0, x1, y1)`` relative to the image size; no conversion knows it."""
    XYWH_REL = 3
    """``(x0, y0, w, h)`` relative to the image size; no conversion knows it."""
    XYWHA_ABS = 4
    """``(xc, yc, w, h, a)``: centre, size and counter-clockwise angle in degrees of a rotated box."""

    @staticmethod
    def convert(box: _RawBoxType, from_mode: "BoxMode", to_mode: "BoxMode") -> _RawBoxType:
        """Convert one box or ``N k`` boxes (k is 4 or 5) between formats.

        Args:
            box: list or tuple of k numbers, or array or tensor ``N k``; it is left as it is.
            from_mode: its format.
            to_mode: the format wanted.

        Returns:
            The converted boxes in the type of ``box``.

        Raises:
            AssertionError: for another number of coordinates, or a relative format.
            NotImplementedError: if there is no such conversion.
        """
        if from_mode == to_mode:
            return box
        single, is_numpy = isinstance(box, (list, tuple)), isinstance(box, np.ndarray)
        if single:
            assert len(box) in (4, 5), (
                "BoxMode.convert takes either a k-tuple/list or an Nxk array/tensor, where k == 4 or 5"
            )
            boxes = torch.tensor(box)[None, :]
        else:
            boxes = torch.as_tensor(box).clone()
        relative = (BoxMode.XYXY_REL, BoxMode.XYWH_REL)
        assert to_mode not in relative and from_mode not in relative, "Relative mode not yet supported!"  # noqa: PT018

        boxes = _convert(boxes, from_mode, to_mode)
        if single:
            return type(box)(boxes.flatten().tolist())
        return boxes.numpy() if is_numpy else boxes  # type: ignore[return-value]


def _convert(boxes: torch.Tensor, from_mode: BoxMode, to_mode: BoxMode) -> torch.Tensor:
    """Convert ``N k`` absolute boxes, which may be changed in place."""
    modes = (from_mode, to_mode)
    if modes == (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        boxes[:, 2:4] -= boxes[:, 0:2]
        return boxes
    if modes == (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        boxes[:, 2:4] += boxes[:, 0:2]
        return boxes
    if modes == (BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS):
        assert boxes.shape[-1] == 5, "The last dimension of input shape must be 5 for XYWHA format"
        center, size, angle = boxes.double().split([2, 2, 1], dim=1)
        cos, sin = (angle * (math.pi / 180.0)).cos().abs(), (angle * (math.pi / 180.0)).sin().abs()
        # The box around a rotated box: w' = c w + s h and h' = c h + s w.
        half = (cos * size + sin * size.flip(1)) / 2
        return torch.cat((center - half, center + half), dim=1).to(boxes.dtype)
    if modes == (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS):
        corner, size = boxes.double().split([2, 2], dim=1)
        return torch.cat((corner + size / 2, size, torch.zeros_like(size[:, :1])), dim=1).to(boxes.dtype)
    raise NotImplementedError(f"Conversion from BoxMode {from_mode} to {to_mode} is not supported yet")


class Boxes:
    """``N`` boxes as a float32 tensor ``N 4`` in :attr:`BoxMode.XYXY_ABS`, with indexing and ``to``.

    Attributes:
        tensor: float32, ``N 4``.
    """

    def __init__(self, tensor: torch.Tensor):
        """
        Args:
            tensor: ``N 4``, or anything that numpy makes an array of; nothing at all means no boxes.

        Raises:
            AssertionError: for another shape.
        """
        if not isinstance(tensor, torch.Tensor):
            tensor = torch.as_tensor(tensor, dtype=torch.float32, device=torch.device("cpu"))
        else:
            tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape((-1, 4))  # keeps the dependence on the input for tracing
        assert tensor.dim() == 2, tensor.size()
        assert tensor.size(-1) == 4, tensor.size()
        self.tensor = tensor

    def clone(self) -> "Boxes":
        """Return boxes with a copy of the tensor."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device) -> "Boxes":
        """Return the boxes on ``device``."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> torch.Tensor:
        """Return the areas, ``N``."""
        box = self.tensor
        return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])

    def clip(self, box_size: Tuple[int, int]) -> None:
        """Limit x to ``[0, width]`` and y to ``[0, height]`` in place.

        Args:
            box_size: ``(height, width)``.

        Raises:
            AssertionError: if a coordinate is not finite.
        """
        assert torch.isfinite(self.tensor).all(), "Box tensor contains infinite or NaN!"
        h, w = box_size
        x1 = self.tensor[:, 0].clamp(min=0, max=w)
        y1 = self.tensor[:, 1].clamp(min=0, max=h)
        x2 = self.tensor[:, 2].clamp(min=0, max=w)
        y2 = self.tensor[:, 3].clamp(min=0, max=h)
        self.tensor = torch.stack((x1, y1, x2, y2), dim=-1)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """Return which boxes are wider and higher than ``threshold``, ``N`` bool."""
        box = self.tensor
        widths = box[:, 2] - box[:, 0]
        heights = box[:, 3] - box[:, 1]
        return (widths > threshold) & (heights > threshold)

    def __getitem__(self, item) -> "Boxes":
        """Index with an int (one box), a slice, or a tensor of indices or of bool; storage may be shared.

        Raises:
            AssertionError: if the result is not ``M 4``.
        """
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, -1))
        b = self.tensor[item]
        assert b.dim() == 2, f"Indexing on Boxes with {item} failed to return a matrix!"
        return Boxes(b)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return "Boxes(" + str(self.tensor) + ")"

    def inside_box(self, box_size: Tuple[int, int], boundary_threshold: int = 0) -> torch.Tensor:
        """Return which boxes lie inside an image enlarged by a margin, ``N`` bool.

        Args:
            box_size: ``(height, width)`` of the image.
            boundary_threshold: width of the margin.
        """
        height, width = box_size
        return (
            (self.tensor[..., 0] >= -boundary_threshold)
            & (self.tensor[..., 1] >= -boundary_threshold)
            & (self.tensor[..., 2] < width + boundary_threshold)
            & (self.tensor[..., 3] < height + boundary_threshold)
        )

    def get_centers(self) -> torch.Tensor:
        """Return the centres ``(x, y)``, ``N 2``."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: List["Boxes"]) -> "Boxes":
        """Concatenate; an empty list gives no boxes.

        Raises:
            AssertionError: if the argument is not a list of boxes.
        """
        assert isinstance(boxes_list, (list, tuple))
        if len(boxes_list) == 0:
            return cls(torch.empty(0))
        assert all([isinstance(box, Boxes) for box in boxes_list])  # noqa: C419  (TorchScript)
        return cls(torch.cat([b.tensor for b in boxes_list], dim=0))

    @property
    def device(self) -> device:
        return self.tensor.device

    @torch.jit.unused
    def __iter__(self):  # TorchScript knows no iterator type, hence no annotation
        """Yield the boxes one by one, each a tensor of 4."""
        yield from self.tensor


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return the areas that each pair of boxes has in common, ``N M``."""
    a, b = boxes1.tensor, boxes2.tensor
    width_height = torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])
    return width_height.clamp(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return intersection over union of each pair of boxes, ``N M``; 0 where they do not overlap."""
    inter = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - inter
    return torch.where(inter > 0, inter / union, torch.zeros(1, dtype=inter.dtype, device=inter.device))


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return intersection over the area of the second box for each pair, ``N M``."""
    inter = pairwise_intersection(boxes1, boxes2)
    zero = torch.zeros(1, dtype=inter.dtype, device=inter.device)
    return torch.where(inter > 0, inter / boxes2.area(), zero)


def pairwise_point_box_distance(points: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """Return the signed distances of points to the sides of boxes.

    Args:
        points: ``N 2``, each ``(x, y)``.
        boxes: ``M`` boxes.

    Returns:
        ``N M 4``: to the left, top, right and bottom side, all positive inside the box.
    """
    start, end = boxes.tensor[None, :, :2], boxes.tensor[None, :, 2:]
    points = points[:, None]
    return torch.cat([points - start, end - points], dim=2)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return intersection over union of the first with the first box, the second with the second, ..., ``N``.

    Raises:
        AssertionError: if the numbers of boxes differ.
    """
    assert len(boxes1) == len(boxes2), (
        f"boxlists should have the same number of entries, got {len(boxes1)}, {len(boxes2)}"
    )
    a, b = boxes1.tensor, boxes2.tensor
    inter = (torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    return inter / (boxes1.area() + boxes2.area() - inter)
