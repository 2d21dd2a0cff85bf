"""Colours that name the segments of a panoptic video."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Color", "SegmentColors", "color_to_id"]

Color = tuple[int, int, int]

REACH = 30  # how far a channel of an object's colour may be from its category's
ATTEMPTS = 100  # to find a free colour there
BLACK = (0, 0, 0)  # no segment


def color_to_id(color: Color) -> int:
    """Segment id of an RGB colour, ``R + 256 G + 65536 B``."""
    red, green, blue = color
    return red + 256 * green + 65536 * blue


class SegmentColors:
    """Hands out the colours of one video's segments, no two alike and none black.

    Stuff has the colour of its category. The first object of a category has its colour too, unless it is
    taken; further ones have a random one nearby. All colours of stuff count as taken from the start: two
    categories of VIPSeg share one.

    Args:
        categories: each with ``id``, ``isthing`` and ``color`` (RGB); without a colour it gets a random one.
        seed: the same calls with the same seed give the same colours.

    Source: VIPSeg, conversion to COCO's panoptic format.
    """

    def __init__(self, categories: Sequence[Mapping[str, Any]], seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._taken: set[Color] = {BLACK}
        self._stuff: dict[int, Color] = {}
        self._base: dict[int, Color] = {}
        for category in categories:
            red, green, blue = category.get("color") or self._rng.integers(1, 256, size=3).tolist()
            if category["isthing"]:
                self._base[category["id"]] = (red, green, blue)
            else:
                self._stuff[category["id"]] = self._free_color((red, green, blue))

    def take(self, category_id: int) -> Color:
        """The colour of stuff, or a new one for the next object of a category.

        Raises:
            KeyError: for an unknown category.
        """
        if category_id in self._stuff:
            return self._stuff[category_id]
        if category_id not in self._base:
            raise KeyError(f"category {category_id} has no colour")
        return self._free_color(self._base[category_id])

    def _free_color(self, base: Color) -> Color:
        color = base
        for attempt in itertools.count():
            if color not in self._taken and (color == base or color not in self._base.values()):
                break
            reach = REACH + attempt // ATTEMPTS  # farther away once nearly all nearby are taken
            offsets = self._rng.integers(-reach, reach + 1, size=3)
            red, green, blue = (np.array(base) + offsets).clip(0, 255).tolist()
            color = (red, green, blue)
        self._taken.add(color)
        return color
