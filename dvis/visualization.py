"""Drawing of results: masks, outlines, labels, scores and ids in colours that stay with the object."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["draw_instances", "draw_panoptic", "draw_semantic", "track_color"]

Color = tuple[int, int, int]


@lru_cache(maxsize=4096)
def track_color(track_id: int) -> Color:
    """RGB colour of a track: depends on the id alone, neighbours in id are far apart in hue."""
    hue = (0.09 + track_id * 0.618033988749895) % 1.0  # golden ratio: a sequence that never comes back close
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 0.75)[track_id % 3], (1.0, 0.95)[track_id % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_instances(
    frame: np.ndarray,
    masks: Sequence[np.ndarray],
    ids: Sequence[int],
    texts: Sequence[str],
    alpha: float = 0.5,
) -> np.ndarray:
    """Draw instances over a frame; the first is drawn last, on top.

    Args:
        frame: ``H W 3`` uint8 RGB; left unchanged.
        masks: one ``H W`` bool array per instance; empty masks are skipped.
        ids: one track id per instance; it chooses the colour.
        texts: what to write beside each instance, for instance ``"dog 3 87%"``.
        alpha: opacity of the masks, 0 to 1.

    Returns:
        ``H W 3`` uint8 RGB.
    """
    import cv2

    canvas = frame.copy()
    thickness = max(1, round(max(frame.shape[:2]) / 500))
    places: list[tuple[tuple[int, int], Color, str]] = []
    for mask, track_id, text in zip(reversed(masks), reversed(ids), reversed(texts), strict=True):
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        if not width:
            continue
        color = track_color(track_id)
        box = (slice(top, top + height), slice(left, left + width))
        crop = mask[box].view(np.uint8)
        _blend(canvas[box], crop, color, alpha)
        contours, _ = cv2.findContours(crop, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
        cv2.drawContours(canvas, contours, -1, color, thickness, lineType=cv2.LINE_AA)
        if text:
            x, y = _inner_point(crop)
            places.append(((left + x, top + y), color, text))
    return _write_texts(canvas, places)


def draw_panoptic(
    frame: np.ndarray,
    panoptic: np.ndarray,
    segments: Sequence[dict[str, Any]],
    names: Sequence[str],
    alpha: float = 0.55,
) -> np.ndarray:
    """Draw a panoptic map over a frame.

    Args:
        frame: ``H W 3`` uint8 RGB.
        panoptic: ``H W`` segment ids, 0 = nothing.
        segments: dicts with ``id``, ``category_id`` (class index) and ``isthing``.
        names: class names by class index.
        alpha: opacity, 0 to 1.

    Returns:
        ``H W 3`` uint8 RGB.
    """
    segments = [segment for segment in segments if (panoptic == segment["id"]).any()]
    return draw_instances(
        frame,
        [panoptic == segment["id"] for segment in segments],
        # Stuff keeps the colour of its class, so that a split and merged region does not flicker.
        [segment["id"] if segment["isthing"] else 1000 + segment["category_id"] for segment in segments],
        [
            names[segment["category_id"]] + (f" {segment['id']}" if segment["isthing"] else "")
            for segment in segments
        ],
        alpha,
    )


def draw_semantic(
    frame: np.ndarray, classes: np.ndarray, names: Sequence[str], alpha: float = 0.55
) -> np.ndarray:
    """Draw a map of class indices (``H W``; indices without a name are left blank) over a frame."""
    present = [int(index) for index in np.unique(classes) if 0 <= index < len(names)]
    return draw_instances(
        frame,
        [classes == index for index in present],
        [1000 + i for i in present],
        [names[i] for i in present],
        alpha,
    )


def _blend(canvas: np.ndarray, mask: np.ndarray, color: Color, alpha: float) -> None:
    """Tint the pixels of ``canvas`` (``h w 3``) in place where ``mask`` (``h w`` uint8) is not 0."""
    import cv2

    # Only 256 values per channel can come: a table of them is faster than the arithmetic.
    values = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    table = cv2.addWeighted(values, 1 - alpha, np.full_like(values, color), alpha, 0)
    cv2.copyTo(cv2.LUT(canvas, table), mask, canvas)


def _inner_point(mask: np.ndarray) -> tuple[int, int]:
    """The pixel ``(x, y)`` of the mask that is farthest from its border: a label there touches the object."""
    import cv2

    distance = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x) - 1, int(y) - 1


@lru_cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _write_texts(canvas: np.ndarray, texts: list[tuple[tuple[int, int], Color, str]]) -> np.ndarray:
    """Write each text centred at its point, on a plate of its colour, inside the picture."""
    if not texts:
        return canvas
    from PIL import Image, ImageDraw

    height, width = canvas.shape[:2]
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    font = _font(max(10, round(max(height, width) / 55)))
    for (x, y), color, text in texts:
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        text_width, text_height = right - left + 6, bottom - top + 4
        x0 = min(max(0, x - text_width // 2), max(0, width - text_width))
        y0 = min(max(0, y - text_height // 2), max(0, height - text_height))
        pen.rectangle((x0, y0, x0 + text_width, y0 + text_height), fill=color)
        bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        pen.text(
            (x0 + 3 - left, y0 + 2 - top), text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font
        )
    return np.array(image)
