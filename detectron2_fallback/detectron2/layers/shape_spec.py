"""The interface between two modules: what shape features have."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ShapeSpec"]


class ShapeSpec(NamedTuple):
    """What is known about a feature map; None for what is not."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
    """Pixels of the input per cell."""
