"""The colour augmentation of the SSD detector."""

from __future__ import annotations

import random

import cv2
import numpy as np
from fvcore.transforms.transform import Transform

__all__ = ["ColorAugSSDTransform"]


class ColorAugSSDTransform(Transform):
    """Random brightness, contrast, saturation and hue, drawn anew for each image.

    Source: Liu et al., "SSD" (arXiv:1512.02325); ranges as in its published training program.
    """

    def __init__(
        self,
        img_format: str,
        brightness_delta: int = 32,
        contrast_low: float = 0.5,
        contrast_high: float = 1.5,
        saturation_low: float = 0.5,
        saturation_high: float = 1.5,
        hue_delta: int = 18,
    ) -> None:
        """
        Args:
            img_format: "BGR" or "RGB", the order of the image's channels.
            brightness_delta: largest change of brightness, of 255.
            contrast_low: smallest factor on the values.
            contrast_high: largest factor on the values.
            saturation_low: smallest factor on the saturation.
            saturation_high: largest factor on the saturation.
            hue_delta: largest change of hue, of 180.
        """
        super().__init__()
        assert img_format in ["BGR", "RGB"]
        self.is_rgb = img_format == "RGB"
        self.brightness_delta = brightness_delta
        self.contrast_low = contrast_low
        self.contrast_high = contrast_high
        self.saturation_low = saturation_low
        self.saturation_high = saturation_high
        self.hue_delta = hue_delta

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Coordinates stay as they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Labels stay as they are."""
        return segmentation

    def apply_image(self, img: np.ndarray, interp: str | None = None) -> np.ndarray:
        """Change the colours of ``H W 3`` uint8; ``interp`` is not used."""
        if self.is_rgb:
            img = img[:, :, [2, 1, 0]]
        img = self.brightness(img)
        if random.randrange(2):
            img = self.hue(self.saturation(self.contrast(img)))
        else:
            img = self.contrast(self.hue(self.saturation(img)))
        return img[:, :, [2, 1, 0]] if self.is_rgb else img

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        """``img * alpha + beta`` as uint8, clipped."""
        return np.clip(img.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    def brightness(self, img: np.ndarray) -> np.ndarray:
        """Add one value to all pixels, in half of the cases."""
        if random.randrange(2):
            return self.convert(img, beta=random.uniform(-self.brightness_delta, self.brightness_delta))
        return img

    def contrast(self, img: np.ndarray) -> np.ndarray:
        """Multiply all pixels by one factor, in half of the cases."""
        if random.randrange(2):
            return self.convert(img, alpha=random.uniform(self.contrast_low, self.contrast_high))
        return img

    def saturation(self, img: np.ndarray) -> np.ndarray:
        """Multiply the saturation of ``H W 3`` BGR by one factor, in half of the cases."""
        if random.randrange(2):
            hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
            hsv[:, :, 1] = self.convert(
                hsv[:, :, 1], alpha=random.uniform(self.saturation_low, self.saturation_high)
            )
            return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        return img

    def hue(self, img: np.ndarray) -> np.ndarray:
        """Turn the hue of ``H W 3`` BGR by one angle, in half of the cases."""
        if random.randrange(2):
            hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
            turned = hsv[:, :, 0].astype(int) + random.randint(-self.hue_delta, self.hue_delta)
            hsv[:, :, 0] = turned % 180
            return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        return img
