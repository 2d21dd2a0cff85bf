"""Augmentation of clips: what is random is drawn from a given generator, once per clip or once per frame.

A *step* separates drawing from applying. ``draw`` takes random numbers that do not depend on the image;
``build`` turns them into a deterministic transform for an image of a given size. So frames of different sizes
can share a draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from numpy.typing import NDArray

__all__ = [
    "AugmentationStep",
    "ClipAugmentation",
    "ColorJitter",
    "Crop",
    "CropThenResize",
    "Flip",
    "LargeScaleJitter",
    "Resize",
    "Rotate",
    "SsdColors",
    "build_augmentation",
    "shortest_edge_size",
]

Size = tuple[int, int]  # height, width in pixels
Rng = np.random.Generator
Image = NDArray[np.uint8]

# Sides to which the shorter side is resized before an instance clip is cropped, as DETR does with images.
_SIZES_BEFORE_CROP = (400, 500, 600)
_LONGEST_BEFORE_CROP = 1333
_CROP_TYPES = ("relative", "relative_range", "absolute", "absolute_range")
_COLOR_STEPS = ("brightness", "contrast", "saturation")


class AugmentationStep(Protocol):
    """One kind of random change."""

    def draw(self, rng: Rng) -> Any:
        """Draw all random numbers of one application."""

    def build(self, drawn: Any, size: Size) -> list[tuple[T.Transform, Size]]:
        """Transforms for an image of the given size, each with the size of its result."""


@dataclass(frozen=True)
class ClipAugmentation:
    """A sequence of steps.

    Attributes:
        steps: each with whether the frames of a clip share its draw.
    """

    steps: Sequence[tuple[AugmentationStep, bool]]

    def draw(self, rng: Rng, sizes: Sequence[Size]) -> list[tuple[T.TransformList, Size]]:
        """Transforms of the frames of one clip.

        Args:
            rng: the only source of randomness.
            sizes: size of each frame.

        Returns:
            Per frame the transform and the size of its result.
        """
        chains: list[list[T.Transform]] = [[] for _ in sizes]
        current = list(sizes)
        for step, by_clip in self.steps:
            shared = step.draw(rng) if by_clip else None
            for t, chain in enumerate(chains):
                for transform, size in step.build(shared if by_clip else step.draw(rng), current[t]):
                    chain.append(transform)
                    current[t] = size
        return [(T.TransformList(chain), size) for chain, size in zip(chains, current, strict=True)]


def shortest_edge_size(size: Size, short: int, longest: float) -> Size:
    """Size with the shorter side ``short``, or less where the longer side would exceed ``longest``.

    Source: detectron2's ``ResizeShortestEdge``.
    """
    height, width = size
    scale = short / min(height, width)
    if max(height, width) * scale > longest:
        scale = longest / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def _resize(size: Size, target: Size) -> tuple[T.Transform, Size]:
    if size == target:
        return T.NoOpTransform(), size
    return T.ResizeTransform(size[0], size[1], target[0], target[1]), target


def size_after_resize(transform: T.TransformList, size: Size) -> Size:
    """Size to which a chain of transforms first of all resizes; the given size if it begins otherwise."""
    first = next(iter(transform.transforms), None)
    return (first.new_h, first.new_w) if isinstance(first, T.ResizeTransform) else size


def starting_from(transform: T.TransformList, size: Size) -> T.TransformList:
    """The same chain for an image that has this size instead, if the chain first of all resizes it."""
    first = next(iter(transform.transforms), None)
    if not isinstance(first, T.ResizeTransform) or (first.h, first.w) == size:
        return transform
    target = (first.new_h, first.new_w)
    return T.TransformList([_resize(size, target)[0], *transform.transforms[1:]])


@dataclass(frozen=True)
class Resize:
    """Resize the shorter side to one of some lengths, or to a length between two.

    Attributes:
        short: lengths in pixels; two (lowest, highest) if ``between``.
        longest: largest length of the longer side.
        between: draw any length between two instead of one of some.
    """

    short: Sequence[int]
    longest: float
    between: bool = False

    def draw(self, rng: Rng) -> int:
        if self.between:
            return int(rng.integers(self.short[0], self.short[1] + 1))
        return self.short[int(rng.integers(len(self.short)))]

    def build(self, drawn: int, size: Size) -> list[tuple[T.Transform, Size]]:
        return [_resize(size, shortest_edge_size(size, drawn, self.longest))]


@dataclass(frozen=True)
class Flip:
    """Mirror half of the clips.

    Attributes:
        horizontal: left and right, otherwise top and bottom.
    """

    horizontal: bool = True

    def draw(self, rng: Rng) -> bool:
        return bool(rng.random() < 0.5)

    def build(self, drawn: bool, size: Size) -> list[tuple[T.Transform, Size]]:
        if not drawn:
            return []
        return [(T.HFlipTransform(size[1]) if self.horizontal else T.VFlipTransform(size[0]), size)]


@dataclass(frozen=True)
class Crop:
    """Cut out a random window; ``kind`` and ``size`` as ``INPUT.CROP.TYPE`` and ``INPUT.CROP.SIZE``.

    Attributes:
        kind: ``relative`` (share of height and width), ``relative_range`` (at least that share), ``absolute``
            (pixels), ``absolute_range`` (each side between the two numbers of pixels).
        size: two numbers, see ``kind``.

    Source: detectron2's ``RandomCrop``.
    """

    kind: str
    size: tuple[float, float]

    def __post_init__(self) -> None:
        if self.kind not in _CROP_TYPES:
            raise ValueError(f"INPUT.CROP.TYPE must be one of {_CROP_TYPES}, got {self.kind!r}")

    def draw(self, rng: Rng) -> tuple[float, ...]:
        """Four numbers in [0, 1): extent and place, in y and x."""
        return tuple(rng.random(4).tolist())

    def build(self, drawn: tuple[float, ...], size: Size) -> list[tuple[T.Transform, Size]]:
        height, width = (self._side(side, i, drawn[i]) for i, side in enumerate(size))
        y = int(drawn[2] * (size[0] - height + 1))
        x = int(drawn[3] * (size[1] - width + 1))
        return [(T.CropTransform(x, y, width, height, size[1], size[0]), (height, width))]

    def _side(self, side: int, axis: int, extent: float) -> int:
        if self.kind == "relative":
            return int(side * self.size[axis] + 0.5)
        if self.kind == "relative_range":
            return int(side * (self.size[axis] + extent * (1 - self.size[axis])) + 0.5)
        if self.kind == "absolute":
            return min(int(self.size[axis]), side)
        low, high = (min(side, int(limit)) for limit in self.size)
        return low + int(extent * (high - low + 1))


@dataclass(frozen=True)
class CropThenResize:
    """Half of the time, bring the image to a usual size and crop it; what follows resizes the window.

    Source: DETR (arXiv:2005.12872), appendix A.4; used for clips by SeqFormer and VITA.
    """

    crop: Crop

    def draw(self, rng: Rng) -> tuple[int, tuple[float, ...]] | None:
        resize = Resize(_SIZES_BEFORE_CROP, _LONGEST_BEFORE_CROP).draw(rng)
        window = self.crop.draw(rng)
        return (resize, window) if rng.random() < 0.5 else None

    def build(
        self, drawn: tuple[int, tuple[float, ...]] | None, size: Size
    ) -> list[tuple[T.Transform, Size]]:
        if drawn is None:
            return []
        resized = _resize(size, shortest_edge_size(size, drawn[0], _LONGEST_BEFORE_CROP))
        return [resized, *self.crop.build(drawn[1], resized[1])]


@dataclass(frozen=True)
class Rotate:
    """Rotate about a point near the middle; the size stays, corners become black and hold no object.

    Attributes:
        degrees: largest angle to either side.
        offset: largest distance of the centre of rotation to the middle, as a share of each side.
    """

    degrees: float = 15.0
    offset: float = 0.1

    def draw(self, rng: Rng) -> tuple[float, float, float]:
        x, y = rng.uniform(0.5 - self.offset, 0.5 + self.offset, 2)
        return float(rng.uniform(-self.degrees, self.degrees)), float(x), float(y)

    def build(self, drawn: tuple[float, float, float], size: Size) -> list[tuple[T.Transform, Size]]:
        angle, x, y = drawn
        centre = (x * size[1], y * size[0])
        return [(T.RotationTransform(size[0], size[1], angle, expand=False, center=centre), size)]


@dataclass(frozen=True)
class LargeScaleJitter:
    """Scale by a wide range and cut or pad to a square.

    Attributes:
        low: smallest scale of an image that fits into the square.
        high: largest scale.
        side: of the square, in pixels.

    Source: Copy-Paste (arXiv:2012.07177), section 3; detectron2's ``ResizeScale`` and ``FixedSizeCrop``.
    """

    low: float
    high: float
    side: int

    def draw(self, rng: Rng) -> tuple[float, float, float]:
        return float(rng.uniform(self.low, self.high)), float(rng.random()), float(rng.random())

    def build(self, drawn: tuple[float, float, float], size: Size) -> list[tuple[T.Transform, Size]]:
        scale = drawn[0] * self.side / max(size)
        height, width = (max(round(length * scale), 1) for length in size)
        steps = [_resize(size, (height, width))]
        cut = (min(height, self.side), min(width, self.side))
        y, x = round(drawn[1] * (height - cut[0])), round(drawn[2] * (width - cut[1]))
        steps.append((T.CropTransform(x, y, cut[1], cut[0], width, height), cut))
        missing_y, missing_x = self.side - cut[0], self.side - cut[1]
        # Grey as detectron2 pads; in label maps 0 is nothing.
        pad = T.PadTransform(0, 0, missing_x, missing_y, cut[1], cut[0], 128.0, 0)
        return [*steps, (pad, (self.side, self.side))]


@dataclass(frozen=True)
class ColorJitter:
    """Blend with black (brightness), the mean (contrast) or the grey image (saturation).

    Attributes:
        kind: ``brightness``, ``contrast`` or ``saturation``.
        strength: weights are within ``1 +- strength``.

    Source: detectron2's ``RandomBrightness``, ``RandomContrast``, ``RandomSaturation``.
    """

    kind: str
    strength: float = 0.1

    def draw(self, rng: Rng) -> float:
        return float(rng.uniform(1 - self.strength, 1 + self.strength))

    def build(self, drawn: float, size: Size) -> list[tuple[T.Transform, Size]]:
        def change(image: Image) -> Image:
            pixels = image.astype(np.float32)
            other: Any = 0.0
            if self.kind == "contrast":
                other = pixels.mean()
            elif self.kind == "saturation":
                other = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
                other = other[..., None]
            return (drawn * pixels + (1 - drawn) * other).clip(0, 255).astype(np.uint8)

        return [(T.ColorTransform(change), size)]


@dataclass(frozen=True)
class SsdColors:
    """Random brightness, contrast, saturation and hue, contrast first or last.

    Attributes:
        image_format: ``RGB`` or ``BGR``.

    Source: SSD (arXiv:1512.02325), section 2.2, photometric distortions.
    """

    image_format: str

    def draw(self, rng: Rng) -> tuple[list[float], list[bool]]:
        values = [
            float(rng.uniform(low, high)) for low, high in ((-32, 32), (0.5, 1.5), (0.5, 1.5), (-18, 18))
        ]
        return values, (rng.random(5) < 0.5).tolist()

    def build(self, drawn: tuple[list[float], list[bool]], size: Size) -> list[tuple[T.Transform, Size]]:
        (brightness, contrast, saturation, hue), (lighten, harden, saturate, tint, harden_first) = drawn

        def linear(image: NDArray[Any], factor: float, offset: float) -> NDArray[Any]:
            return (image.astype(np.float32) * factor + offset).clip(0, 255).astype(np.uint8)

        def change(image: NDArray[Any]) -> NDArray[Any]:
            image = image[..., ::-1] if self.image_format == "RGB" else image
            if lighten:
                image = linear(image, 1.0, brightness)
            if harden and harden_first:
                image = linear(image, contrast, 0.0)
            if saturate or tint:
                hsv: NDArray[Any] = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2HSV)
                if saturate:
                    hsv[..., 1] = linear(hsv[..., 1], saturation, 0.0)
                if tint:
                    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + round(hue)) % 180
                image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
            if harden and not harden_first:
                image = linear(image, contrast, 0.0)
            return np.ascontiguousarray(image[..., ::-1] if self.image_format == "RGB" else image)

        return [(T.ColorTransform(change), size)]


def build_augmentation(cfg: CfgNode, *, pseudo: bool = False, segments: bool = False) -> ClipAugmentation:
    """The training augmentation that ``INPUT.*`` describes.

    Frames of a video always share the draws of geometry and colour. Frames of a pseudo video share flip and
    resize where the configuration says ``..._by_clip``, and differ in everything else: that is what makes
    them a video.

    Args:
        cfg: the configuration.
        pseudo: for clips made from one image; size, crop and further steps come from ``INPUT.PSEUDO``.
        segments: for panoptic and semantic data, which are cropped after resizing, not before.

    Raises:
        ValueError: for a value that is not known; names the key.
    """
    source = cfg.INPUT.PSEUDO if pseudo else cfg.INPUT
    key = "INPUT.PSEUDO" if pseudo else "INPUT"
    style = source.MIN_SIZE_TRAIN_SAMPLING
    if style.removesuffix("_by_clip") not in ("choice", "range"):
        raise ValueError(
            f"{key}.MIN_SIZE_TRAIN_SAMPLING must be choice or range, with or without _by_clip, got {style!r}"
        )
    crop = Crop(source.CROP.TYPE, tuple(source.CROP.SIZE)) if source.CROP.ENABLED else None

    steps: list[tuple[AugmentationStep, bool]] = []
    if crop is not None and not segments:
        steps.append((CropThenResize(crop), not pseudo))
    if cfg.INPUT.LSJ_AUG.ENABLED:
        jitter = cfg.INPUT.LSJ_AUG
        steps.append((LargeScaleJitter(jitter.MIN_SCALE, jitter.MAX_SCALE, jitter.IMAGE_SIZE), not pseudo))
    else:
        resize = Resize(
            tuple(source.MIN_SIZE_TRAIN), source.MAX_SIZE_TRAIN or math.inf, style.startswith("range")
        )
        steps.append((resize, not pseudo or style.endswith("_by_clip")))
    if crop is not None and segments:
        steps.append((crop, not pseudo))
    steps += _flips(cfg.INPUT.RANDOM_FLIP, pseudo)
    for name in source.AUGMENTATIONS:
        if name == "rotation":
            steps.append((Rotate(), not pseudo))
        elif name in _COLOR_STEPS:
            steps.append((ColorJitter(name), not pseudo))
        else:
            raise ValueError(f"{key}.AUGMENTATIONS must be of {(*_COLOR_STEPS, 'rotation')}, got {name!r}")
    if cfg.INPUT.COLOR_AUG_SSD:
        steps.append((SsdColors(cfg.INPUT.FORMAT), not pseudo))
    return ClipAugmentation(steps)


def _flips(name: str, pseudo: bool) -> list[tuple[AugmentationStep, bool]]:
    if name == "none":
        return []
    axes: dict[str, Callable[[], Flip]] = {
        "flip": Flip,
        "horizontal": Flip,
        "vertical": lambda: Flip(horizontal=False),
    }
    if name.removesuffix("_by_clip") not in axes:
        raise ValueError(
            f"INPUT.RANDOM_FLIP must be none, flip, horizontal or vertical (_by_clip), got {name!r}"
        )
    return [(axes[name.removesuffix("_by_clip")](), not pseudo or name.endswith("_by_clip"))]
