"""Distinct colours for drawing."""

from __future__ import annotations

import colorsys
import random

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_NUM_COLORS = 72
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def _make_palette() -> np.ndarray:
    """``72 3`` RGB in [0, 1]: neighbours differ in hue, further ones in brightness and saturation too.

    Steps of the golden ratio around the colour circle are slow to come near an earlier hue. Project choice.
    """
    shades = ((1.0, 0.85), (0.85, 0.65), (0.55, 0.95))  # saturation, value
    return np.array(
        [colorsys.hsv_to_rgb(i * _GOLDEN_RATIO % 1, *shades[i % len(shades)]) for i in range(_NUM_COLORS)],
        dtype=np.float32,
    )


_PALETTE = _make_palette()


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """All colours of the palette.

    Args:
        rgb: channel order, RGB or BGR.
        maximum: 255 or 1.

    Returns:
        ``N 3`` float32 in [0, maximum].
    """
    assert maximum in (255, 1), maximum
    colors = _PALETTE * maximum
    return colors if rgb else colors[:, ::-1]


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One random colour of the palette (from Python's ``random``): 3 floats."""
    return random_colors(1, rgb, maximum)[0]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """N different random colours of the palette.

    Args:
        N: how many, at most the size of the palette.
        rgb: channel order, RGB or BGR.
        maximum: 255 or 1.
    """
    palette = colormap(rgb, maximum)
    return [palette[i] for i in random.sample(range(_NUM_COLORS), N)]
