"""Common augmentations. All random numbers come from ``numpy.random``, in the documented order."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from .augmentation import Augmentation, _transform_to_aug
from .transform import ExtentTransform, ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop",
    "MinIoURandomCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomCrop_CategoryAreaConstraint",
    "RandomExtent",
    "RandomFlip",
    "RandomLighting",
    "RandomResize",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]


class RandomApply(Augmentation):
    """Apply another augmentation or transform with some probability.

    Args:
        tfm_or_aug: what to apply.
        prob: in [0, 1].
    """

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        super().__init__()
        assert 0.0 <= prob <= 1.0, f"Probablity must be between 0.0 and 1.0 (given: {prob})"
        self.aug = _transform_to_aug(tfm_or_aug)
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class RandomFlip(Augmentation):
    """Flip the image with some probability.

    Args:
        prob: of a flip.
        horizontal, vertical: the direction; exactly one must be True.

    Raises:
        ValueError: if both or none is True.
    """

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        super().__init__()
        if horizontal and vertical:
            raise ValueError("Cannot do both horiz and vert. Please use two Flip instead.")
        if not horizontal and not vertical:
            raise ValueError("At least one of horiz or vert has to be True!")
        self.prob = prob
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(w) if self.horizontal else VFlipTransform(h)


class Resize(Augmentation):
    """Resize to a fixed size.

    Args:
        shape: (h, w), or one int for both.
        interp: Pillow's interpolation constant.
    """

    def __init__(self, shape: int | Sequence[int], interp: int = Image.Resampling.BILINEAR) -> None:
        self.shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        return ResizeTransform(h, w, self.shape[0], self.shape[1], self.interp)


class ResizeShortestEdge(Augmentation):
    """Resize so that the shorter side has a random length, keeping the aspect ratio.

    Args:
        short_edge_length: (min, max) for "range", a list of choices for "choice"; an int for a fixed length.
        max_size: the longer side is never longer than this; the shorter one shrinks along.
        sample_style: "range" (uniform integer, both ends included) or "choice".
        interp: Pillow's interpolation constant.
    """

    @torch.jit.unused
    def __init__(
        self,
        short_edge_length: Any,
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.Resampling.BILINEAR,
    ) -> None:
        super().__init__()
        assert sample_style in ("range", "choice"), sample_style
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        self.is_range = sample_style == "range"
        if self.is_range:
            assert len(short_edge_length) == 2, (
                f"short_edge_length must be two values using 'range' sample style. Got {short_edge_length}!"
            )
        self.short_edge_length = short_edge_length
        self.max_size = max_size
        self.sample_style = sample_style
        self.interp = interp

    # TorchScript resolves all types of signatures, also of what it does not use: hence no annotations.
    @torch.jit.unused
    def get_transform(self, image):
        h, w = image.shape[:2]
        if self.is_range:
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        new_h, new_w = ResizeShortestEdge.get_output_shape(h, w, size, self.max_size)
        return ResizeTransform(h, w, new_h, new_w, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Size of the output, rounded half up; can be compiled by TorchScript."""
        h, w = oldh, oldw
        size = short_edge_length * 1.0
        scale = size / min(h, w)
        if h < w:
            newh, neww = size, scale * w
        else:
            newh, neww = scale * h, size
        longest = max(newh, neww)
        if longest > max_size:
            shrink = max_size * 1.0 / longest
            newh = newh * shrink
            neww = neww * shrink
        return int(newh + 0.5), int(neww + 0.5)


class RandomResize(Augmentation):
    """Resize to one of several sizes.

    Args:
        shape_list: list of (h, w).
        interp: Pillow's interpolation constant.
    """

    def __init__(
        self, shape_list: Sequence[tuple[int, int]], interp: int = Image.Resampling.BILINEAR
    ) -> None:
        self.shape_list = shape_list
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        new_h, new_w = self.shape_list[np.random.randint(len(self.shape_list))]
        return ResizeTransform(h, w, new_h, new_w, self.interp)


class ResizeScale(Augmentation):
    """Resize so that the image just fits into a randomly scaled target size ("large scale jitter").

    Args:
        min_scale, max_scale: range of the factor on the target size, drawn uniformly.
        target_height, target_width: target size.
        interp: Pillow's interpolation constant.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = Image.Resampling.BILINEAR,
    ) -> None:
        super().__init__()
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.target_height = target_height
        self.target_width = target_width
        self.interp = interp

    def _get_resize(self, image: np.ndarray, scale: float) -> Transform:
        h, w = image.shape[:2]
        factor = min(self.target_height * scale / h, self.target_width * scale / w)
        new_h, new_w = np.round(np.multiply((h, w), factor)).astype(int)
        return ResizeTransform(h, w, int(new_h), int(new_w), self.interp)

    def get_transform(self, image: np.ndarray) -> Transform:
        return self._get_resize(image, np.random.uniform(self.min_scale, self.max_scale))


class RandomRotation(Augmentation):
    """Rotate by a random angle about a random centre.

    Args:
        angle: (min, max) in degrees for "range", a list of choices for "choice"; a number for a fixed angle.
        expand: whether the output grows to hold the whole image.
        center: centre of rotation relative to the image: ``[[min x, min y], [max x, max y]]`` for "range", a
            list of (x, y) for "choice"; (0, 0) is the top left, (1, 1) the bottom right corner. None means
            the centre of the image. No effect with ``expand``.
        sample_style: "range" or "choice".
        interp: OpenCV's interpolation constant; None means linear.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Any = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        super().__init__()
        assert sample_style in ("range", "choice"), sample_style
        self.is_range = sample_style == "range"
        if isinstance(angle, (float, int)):
            angle = (angle, angle)
        if center is not None and isinstance(center[0], (float, int)):
            center = (center, center)
        self.angle = angle
        self.expand = expand
        self.center = center
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        center = None
        if self.is_range:
            angle = np.random.uniform(self.angle[0], self.angle[1])
            if self.center is not None:
                center = (
                    np.random.uniform(self.center[0][0], self.center[1][0]),
                    np.random.uniform(self.center[0][1], self.center[1][1]),
                )
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                center = self.center[np.random.choice(len(self.center))]
        if center is not None:
            center = (w * center[0], h * center[1])
        if angle % 360 == 0:
            return NoOpTransform()
        return RotationTransform(h, w, angle, expand=self.expand, center=center, interp=self.interp)


class FixedSizeCrop(Augmentation):
    """Crop at a random place, and pad at the right and at the bottom what is too small, to a fixed size.

    Args:
        crop_size: (h, w) of the output.
        pad: whether to pad; otherwise a smaller image stays smaller.
        pad_value: value of padded image pixels.
        seg_pad_value: label of padded segmentation pixels.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ) -> None:
        super().__init__()
        self.crop_size = crop_size
        self.pad = pad
        self.pad_value = pad_value
        self.seg_pad_value = seg_pad_value

    def _get_crop(self, image: np.ndarray) -> Transform:
        input_size = image.shape[:2]
        max_offset = np.maximum(np.subtract(input_size, self.crop_size), 0)
        # one draw for both directions: the crop lies on the diagonal of the possible places
        offset = np.round(np.multiply(max_offset, np.random.uniform(0.0, 1.0))).astype(int)
        return CropTransform(
            int(offset[1]), int(offset[0]), self.crop_size[1], self.crop_size[0], input_size[1], input_size[0]
        )

    def _get_pad(self, image: np.ndarray) -> Transform:
        input_size = image.shape[:2]
        pad_h, pad_w = np.maximum(np.subtract(self.crop_size, input_size), 0).tolist()
        kept_h, kept_w = np.minimum(input_size, self.crop_size).tolist()
        return PadTransform(0, 0, pad_w, pad_h, kept_w, kept_h, self.pad_value, self.seg_pad_value)

    def get_transform(self, image: np.ndarray) -> TransformList:
        transforms = [self._get_crop(image)]
        if self.pad:
            transforms.append(self._get_pad(image))
        return TransformList(transforms)


class RandomCrop(Augmentation):
    """Crop at a random place.

    Args:
        crop_type: how ``crop_size`` (h, w) is meant:
            "relative": fractions of the image size;
            "relative_range": lower ends of fractions drawn uniformly up to 1;
            "absolute": pixels, at most the image size;
            "absolute_range": (min, max) in pixels from which height and width are drawn separately.
        crop_size: two numbers.
    """

    def __init__(self, crop_type: str, crop_size: Any) -> None:
        super().__init__()
        assert crop_type in ("relative_range", "relative", "absolute", "absolute_range"), crop_type
        self.crop_type = crop_type
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((h, w))
        assert h >= crop_h, f"Shape computation in {self} has bugs."
        assert w >= crop_w, f"Shape computation in {self} has bugs."
        y0 = np.random.randint(h - crop_h + 1)
        x0 = np.random.randint(w - crop_w + 1)
        return CropTransform(x0, y0, crop_w, crop_h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Size (h, w) of the crop for an image of the given size (h, w)."""
        h, w = image_size
        if self.crop_type == "relative":
            crop_h, crop_w = self.crop_size
            return int(h * crop_h + 0.5), int(w * crop_w + 0.5)
        if self.crop_type == "relative_range":
            smallest = np.asarray(self.crop_size, dtype=np.float32)
            crop_h, crop_w = smallest + np.random.rand(2) * (1 - smallest)
            return int(h * crop_h + 0.5), int(w * crop_w + 0.5)
        if self.crop_type == "absolute":
            return min(self.crop_size[0], h), min(self.crop_size[1], w)
        low, high = self.crop_size
        assert low <= high, f"crop_size must be (min, max), got {self.crop_size}"
        crop_h = np.random.randint(min(h, low), min(h, high) + 1)
        crop_w = np.random.randint(min(w, low), min(w, high) + 1)
        return crop_h, crop_w


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """As :class:`RandomCrop`, preferring crops in which no category covers too much.

    Args:
        crop_type, crop_size: as in :class:`RandomCrop`.
        single_category_max_area: largest allowed fraction of a category; 1.0 allows everything.
        ignored_category: label that does not count as a category.
    """

    _ATTEMPTS = 10  # then the last crop is taken as it is

    def __init__(
        self,
        crop_type: str,
        crop_size: Any,
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.crop_type = crop_type
        self.crop_size = crop_size
        self.single_category_max_area = single_category_max_area
        self.ignored_category = ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        h, w = sem_seg.shape
        for _ in range(self._ATTEMPTS):
            crop_h, crop_w = self.crop_aug.get_crop_size((h, w))
            y0 = np.random.randint(h - crop_h + 1)
            x0 = np.random.randint(w - crop_w + 1)
            labels, counts = np.unique(sem_seg[y0 : y0 + crop_h, x0 : x0 + crop_w], return_counts=True)
            if self.ignored_category is not None:
                counts = counts[labels != self.ignored_category]
            if len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area:
                break
        return CropTransform(x0, y0, crop_w, crop_h)


class RandomExtent(Augmentation):
    """Cut out a randomly scaled and shifted rectangle; what lies outside the image is filled.

    Args:
        scale_range: (min, max) of the size of the rectangle relative to the image.
        shift_range: (x, y) largest distance between lowest and highest shift, relative to the image.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        super().__init__()
        self.scale_range = scale_range
        self.shift_range = shift_range

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        rect = np.array([-0.5 * w, -0.5 * h, 0.5 * w, 0.5 * h])
        rect *= np.random.uniform(self.scale_range[0], self.scale_range[1])
        rect[0::2] += self.shift_range[0] * w * (np.random.rand() - 0.5) + 0.5 * w
        rect[1::2] += self.shift_range[1] * h * (np.random.rand() - 0.5) + 0.5 * h
        x0, y0, x1, y1 = rect.tolist()
        return ExtentTransform(src_rect=(x0, y0, x1, y1), output_size=(int(y1 - y0), int(x1 - x0)))


class RandomContrast(Augmentation):
    """Move pixels away from (> 1) or towards (< 1) the mean of the image.

    Args:
        intensity_min, intensity_max: range of the factor; 1 keeps the image.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__()
        self.intensity_min = intensity_min
        self.intensity_max = intensity_max

    def get_transform(self, image: np.ndarray) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=image.mean(), src_weight=1 - weight, dst_weight=weight)


class RandomBrightness(Augmentation):
    """Multiply the image by a random factor.

    Args:
        intensity_min, intensity_max: range of the factor; 1 keeps the image.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__()
        self.intensity_min = intensity_min
        self.intensity_max = intensity_max

    def get_transform(self, image: np.ndarray) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=0, src_weight=1 - weight, dst_weight=weight)


class RandomSaturation(Augmentation):
    """Move an RGB image away from (> 1) or towards (< 1) its grey version.

    Args:
        intensity_min, intensity_max: range of the factor; 1 keeps the image, 0 makes it grey.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__()
        self.intensity_min = intensity_min
        self.intensity_max = intensity_max

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.shape[-1] == 3, "RandomSaturation only works on RGB images"
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        grey = image.dot([0.299, 0.587, 0.114])[:, :, np.newaxis]
        return BlendTransform(src_image=grey, src_weight=1 - weight, dst_weight=weight)


class RandomLighting(Augmentation):
    """Add a random combination of the principal components of ImageNet's colours to an RGB image.

    Source: Krizhevsky et al., ImageNet classification with deep convolutional neural networks, section 4.1.

    Args:
        scale: standard deviation of the weights; the components are for images in [0, 255].
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.eigen_vecs = np.array(
            [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
        )
        self.eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.shape[-1] == 3, "RandomLighting only works on RGB images"
        weights = np.random.normal(scale=self.scale, size=3)
        return BlendTransform(
            src_image=self.eigen_vecs.dot(weights * self.eigen_vals), src_weight=1.0, dst_weight=1.0
        )


class MinIoURandomCrop(Augmentation):
    """Crop so that every box whose centre is inside overlaps the crop by at least a random minimum.

    Source: SSD (arXiv:1512.02325), section 2.2, data augmentation.

    Args:
        min_ious: minimum IoUs to choose from, besides "no crop" and "no minimum".
        min_crop_size: smallest height and width of the crop relative to the image.
        mode_trials: how often a minimum is chosen.
        crop_trials: how many crops are tried for it.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ) -> None:
        self.min_ious = min_ious
        self.sample_mode = (1, *min_ious, 0)
        self.min_crop_size = min_crop_size
        self.mode_trials = mode_trials
        self.crop_trials = crop_trials

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        """``boxes`` is ``N 4`` of (x0, y0, x1, y1), or None, which means no crop."""
        if boxes is None:
            return NoOpTransform()
        for _ in range(self.mode_trials):
            min_iou = np.random.choice(self.sample_mode)
            if min_iou == 1:
                return NoOpTransform()
            for _ in range(self.crop_trials):
                crop = self._draw_crop(image.shape[0], image.shape[1])
                if crop is not None and self._is_good(crop, np.asarray(boxes, dtype=float), min_iou):
                    return crop
        return NoOpTransform()

    def _draw_crop(self, h: int, w: int) -> CropTransform | None:
        new_w = np.random.uniform(self.min_crop_size * w, w)
        new_h = np.random.uniform(self.min_crop_size * h, h)
        if not 0.5 <= new_h / new_w <= 2:
            return None
        left = np.random.uniform(w - new_w)
        top = np.random.uniform(h - new_h)
        crop = CropTransform(int(left), int(top), int(new_w), int(new_h))
        return crop if crop.w > 0 and crop.h > 0 else None

    @staticmethod
    def _is_good(crop: CropTransform, boxes: np.ndarray, min_iou: float) -> bool:
        """Whether all boxes reach the IoU with the crop and one of their centres lies inside."""
        if len(boxes) == 0:
            return True
        low = np.array([crop.x0, crop.y0])
        high = low + np.array([crop.w, crop.h])
        overlap = np.clip(np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low), 0, None).prod(
            axis=1
        )
        union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (high - low).prod() - overlap
        if (overlap / union).min() < min_iou:
            return False
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        return bool(((centers > low) & (centers < high)).all(axis=1).any())
