"""Transforms that need Pillow or OpenCV, in addition to those of fvcore.

Images are ``H W`` or ``H W C`` arrays; coordinates are ``N 2`` rows of (x, y) where a pixel is a unit square,
so the image covers [0, W] x [0, H].
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, Transform, TransformList
from PIL import Image

__all__ = ["ColorTransform", "ExtentTransform", "PILColorTransform", "ResizeTransform", "RotationTransform"]

_TORCH_MODE_OF_PIL: dict[int, str] = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


def _cv2() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise ImportError("rotating images needs OpenCV: pip install opencv-python-headless") from error
    return cv2


def _to_pil(img: np.ndarray) -> Image.Image:
    """A uint8 image as a Pillow image; Pillow knows no arrays with a single channel."""
    return Image.fromarray(img[:, :, 0] if img.ndim > 2 and img.shape[2] == 1 else img)


def _from_pil(image: Image.Image, like: np.ndarray) -> np.ndarray:
    """Undo :func:`_to_pil`: give the array the single-channel axis that ``like`` has."""
    result = np.asarray(image)
    return np.expand_dims(result, -1) if like.ndim > 2 and like.shape[2] == 1 else result


class ExtentTransform(Transform):
    """Cut a rectangle out of the image and resize it; what lies outside the image is filled.

    Args:
        src_rect: (x0, y0, x1, y1) in the input.
        output_size: (h, w) of the output.
        interp: Pillow's interpolation constant.
        fill: value for pixels outside the input.
    """

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = Image.Resampling.BILINEAR,
        fill: int = 0,
    ) -> None:
        super().__init__()
        self.src_rect = src_rect
        self.output_size = output_size
        self.interp = interp
        self.fill = fill

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        h, w = self.output_size
        cut = _to_pil(img).transform(
            size=(w, h),
            method=Image.Transform.EXTENT,
            data=self.src_rect,
            resample=self.interp if interp is None else interp,
            fill=self.fill,
        )
        return _from_pil(cut, img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        h, w = self.output_size
        x0, y0, x1, y1 = self.src_rect
        scale = np.array([w / (x1 - x0), h / (y1 - y0)], dtype=np.float32)
        return (coords.astype(np.float32) - np.array([x0, y0], dtype=np.float32)) * scale

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)


class ResizeTransform(Transform):
    """Resize an image: uint8 with Pillow (which smooths when it shrinks), other types with PyTorch.

    Args:
        h, w: size of the input.
        new_h, new_w: size of the output.
        interp: Pillow's interpolation constant; None means bilinear.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        self.h = h
        self.w = w
        self.new_h = new_h
        self.new_w = new_w
        self.interp = Image.Resampling.BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        assert img.shape[:2] == (self.h, self.w), (
            f"Input size mismatch h w {self.h}:{self.w} -> {img.shape[0]}:{img.shape[1]}"
        )
        assert img.ndim <= 4, f"expected at most 4 dimensions, got shape {img.shape}"
        method = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            resized = _to_pil(img).resize((self.new_w, self.new_h), method)
            return _from_pil(resized, img)
        return self._resize_with_torch(img, _TORCH_MODE_OF_PIL[method])

    def _resize_with_torch(self, img: np.ndarray, mode: str) -> np.ndarray:
        # PyTorch resizes floating point only; float64 holds all labels that occur, and "nearest" copies them.
        work = img if np.issubdtype(img.dtype, np.floating) else img.astype(np.float64)
        tensor = torch.from_numpy(np.ascontiguousarray(work))
        extra = tensor.shape[2:]
        planes = tensor.reshape(self.h, self.w, -1).permute(2, 0, 1)[:, None]
        planes = F.interpolate(
            planes, (self.new_h, self.new_w), mode=mode, align_corners=None if mode == "nearest" else False
        )
        result = planes[:, 0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *extra).numpy()
        return result.astype(img.dtype, copy=False)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w * 1.0 / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h * 1.0 / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)

    def inverse(self) -> ResizeTransform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotate the image counter-clockwise about a centre.

    Args:
        h, w: size of the input.
        angle: in degrees.
        expand: whether the output grows to hold the whole rotated image; otherwise it keeps its size.
        center: (x, y) of the centre of rotation; None means the centre of the image. It has no effect with
            ``expand``, where only the shift would differ.
        interp: OpenCV's interpolation constant; None means linear.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ) -> None:
        super().__init__()
        image_center = np.array((w / 2, h / 2))
        abs_cos, abs_sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
        if expand:
            bound_w, bound_h = np.rint([h * abs_sin + w * abs_cos, h * abs_cos + w * abs_sin]).astype(int)
        else:
            bound_w, bound_h = w, h
        self.h = h
        self.w = w
        self.angle = angle
        self.expand = expand
        self.center = image_center if center is None else center
        self.interp = interp
        self.image_center = image_center
        self.bound_w = int(bound_w)
        self.bound_h = int(bound_h)
        self.rm_coords = self.create_rotation_matrix()
        # OpenCV counts pixel centres from 0, coordinates count them from 0.5.
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def _is_identity(self, array: np.ndarray) -> bool:
        return len(array) == 0 or self.angle % 360 == 0

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if self._is_identity(img):
            return img
        assert img.shape[:2] == (self.h, self.w), f"expected {self.h} x {self.w}, got {img.shape}"
        cv2 = _cv2()
        method = self.interp if interp is None else interp
        size = (self.bound_w, self.bound_h)
        return cv2.warpAffine(
            np.ascontiguousarray(img),
            self.rm_image,
            size,
            flags=cv2.INTER_LINEAR if method is None else method,
        )

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, dtype=float)
        if self._is_identity(coords):
            return coords
        return coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=_cv2().INTER_NEAREST)

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """The ``2 3`` matrix from (x, y, 1) of input to output, all coordinates off by ``offset``."""
        cos, sin = np.cos(np.deg2rad(self.angle)), np.sin(np.deg2rad(self.angle))
        # y points down, so counter-clockwise to the eye is this matrix
        rotation = np.array([[cos, sin], [-sin, cos]])
        center = np.asarray(self.center, dtype=float) + offset
        shift = center - rotation @ center
        if self.expand:
            # The centre of the image has to come to the centre of the output.
            moved = rotation @ (self.image_center + offset) + shift
            shift = shift + np.array([self.bound_w / 2, self.bound_h / 2]) + offset - moved
        return np.concatenate([rotation, shift[:, None]], axis=1)

    def inverse(self) -> TransformList:
        """Rotate back and cut the original size out of the middle; only possible with ``expand``."""
        if not self.expand:
            raise NotImplementedError("a rotation that cuts off corners has no inverse")
        rotation = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        crop = CropTransform(
            (rotation.bound_w - self.w) // 2, (rotation.bound_h - self.h) // 2, self.w, self.h
        )
        return TransformList([rotation, crop])


class ColorTransform(Transform):
    """Change colours only: coordinates and segmentations stay.

    Args:
        op: takes an image array, returns one.

    Raises:
        ValueError: if ``op`` cannot be called.
    """

    def __init__(self, op: Callable[[Any], Any]) -> None:
        if not callable(op):
            raise ValueError("op parameter should be callable")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def inverse(self) -> Transform:
        return NoOpTransform()

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


class PILColorTransform(ColorTransform):
    """As :class:`ColorTransform`, with an operation on Pillow images.

    Args:
        op: takes a ``PIL.Image``, returns one.
    """

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.asarray(self.op(Image.fromarray(img)))


def HFlip_rotated_box(transform: HFlipTransform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Flip rotated boxes.

    Args:
        transform: the flip.
        rotated_boxes: ``N 5`` of (x_center, y_center, width, height, angle in degrees); changed in place.
    """
    rotated_boxes[:, 0] = transform.width - rotated_boxes[:, 0]
    rotated_boxes[:, 4] = -rotated_boxes[:, 4]
    return rotated_boxes


def Resize_rotated_box(transform: Any, rotated_boxes: np.ndarray) -> np.ndarray:
    """Resize rotated boxes; with unequal factors the (then slanted) box is approximated by its sides.

    Args:
        transform: a transform with ``h, w, new_h, new_w``.
        rotated_boxes: ``N 5`` of (x_center, y_center, width, height, angle in degrees); changed in place.
    """
    scale_x = transform.new_w * 1.0 / transform.w
    scale_y = transform.new_h * 1.0 / transform.h
    theta = rotated_boxes[:, 4] * np.pi / 180.0
    cos, sin = np.cos(theta), np.sin(theta)
    rotated_boxes[:, 0] *= scale_x
    rotated_boxes[:, 1] *= scale_y
    rotated_boxes[:, 2] *= np.hypot(scale_x * cos, scale_y * sin)
    rotated_boxes[:, 3] *= np.hypot(scale_x * sin, scale_y * cos)
    rotated_boxes[:, 4] = np.arctan2(scale_x * sin, scale_y * cos) * 180 / np.pi
    return rotated_boxes


HFlipTransform.register_type("rotated_box", HFlip_rotated_box)
ResizeTransform.register_type("rotated_box", Resize_rotated_box)
# An image that is not flipped keeps its boxes.
NoOpTransform.register_type("rotated_box", lambda transform, boxes: boxes)
