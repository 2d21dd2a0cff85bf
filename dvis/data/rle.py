"""Run-length codes of masks in all published forms; a thin, checking layer over pycocotools.

A code is ``{"size": [h, w], "counts": bytes or str}``, column-major, the first run counts zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

Rle = dict[str, Any]

# pycocotools 2.0.11 overflows a uint8 under numpy 2 when asked for the areas of more codes than this.
_MAX_CODES_PER_CALL = 255
# It fills memory with the points of a line that leads far out of the frame, and has runs of 30 bits.
_FARTHEST = 10  # times the longer side
_MAX_DIGITS = 6
_MAX_PIXELS = 2**29


def to_rle(segmentation: Any, height: int, width: int) -> Rle | None:
    """Turn any published form of one frame's mask into a compressed code.

    Polygons with fewer than three points or an odd number of values are dropped.

    Args:
        segmentation: compressed or uncompressed code, list of polygons, or ``None``.
        height: frame height in pixels, used for polygons.
        width: frame width in pixels, used for polygons.

    Returns:
        The code, or ``None`` where there is no mask or no polygon is left.

    Raises:
        ValueError: if the form is unknown or uncompressed runs do not fill their size. The runs of
            compressed codes are not looked at; use `check_rle`.

    Source: YouTube-VIS, OVIS and COCO annotation formats.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if _is_polygon(polygon, max(height, width))]
        return mask_utils.merge(mask_utils.frPyObjects(polygons, height, width)) if polygons else None
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError(
            f"a mask is null, polygons or a dict of 'size' and 'counts', not {segmentation!s:.80}"
        )
    if not isinstance(segmentation["counts"], list):
        return segmentation  # type: ignore[return-value]
    _check_runs(np.asarray(segmentation["counts"]), segmentation["size"])
    height, width = segmentation["size"]
    return mask_utils.frPyObjects(dict(segmentation), height, width)


def checked_rle(segmentation: Any, height: int, width: int) -> Rle | None:
    """As `to_rle`, for a mask of which nothing is known yet.

    Raises:
        ValueError: if the mask is broken in any way, or of another size than the frame.
    """
    try:
        rle = to_rle(segmentation, height, width)
        if rle is not None:
            check_rle(rle)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"broken mask: {error}") from error
    if rle is not None and tuple(rle["size"]) != (height, width):
        raise ValueError(f"the mask has {tuple(rle['size'])} pixels, the frame {(height, width)}")
    return rle


def check_rle(rle: Rle) -> None:
    """Raise ``ValueError`` unless a compressed code is well formed and fills its size exactly.

    pycocotools does not do this: a truncated code decodes to whatever was in memory.
    """
    _check_runs(run_lengths(rle["counts"]), rle["size"])


def are_sound(rles: Sequence[Rle]) -> bool:
    """Whether `check_rle` would accept all of these compressed codes; several times faster than one by one.

    It may say no to codes that are merely unusual, never yes to a broken one. Sizes must be two numbers.
    """
    if not rles:
        return True
    texts = [rle["counts"] for rle in rles]
    if not all(isinstance(text, (bytes, str)) and text for text in texts):
        return False
    raw = [text.encode("latin-1", errors="replace") if isinstance(text, str) else text for text in texts]
    digits = np.frombuffer(b"".join(raw), dtype=np.uint8) - np.uint8(48)
    last = digits < 32  # of a run: without the continuation flag
    code_ends = np.cumsum([len(text) for text in raw])
    if (digits > 63).any() or not last[code_ends - 1].all():
        return False
    ends = np.flatnonzero(last)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _MAX_DIGITS:
        return False
    values = (digits[ends] & np.uint8(0x1F)).astype(np.int64)
    values -= (values & 0x10) << 1  # the highest digit has the sign
    for place in range(2, int(lengths.max()) + 1):
        longer = np.flatnonzero(lengths >= place)
        values[longer] = (values[longer] << 5) + (digits[ends[longer] - place + 1] & np.uint8(0x1F))
    # Runs as pairs of zeros and ones, a code beginning a row: what is added up lies one below the other.
    first = np.concatenate(([0], np.searchsorted(ends, code_ends[:-1] - 1, side="right")))
    number = np.diff(first, append=len(ends))
    row = np.concatenate(([0], np.cumsum((number + 1) // 2)))
    pairs = np.zeros((row[-1], 2), np.int64)
    flat = pairs.reshape(-1)
    flat[np.arange(len(ends)) + np.repeat(2 * row[:-1] - first, number)] = values
    pairs[row[:-1], 0] = 0  # the first run stands alone
    totals = np.cumsum(pairs, axis=0)
    before = np.where(row[:-1, None] > 0, totals[row[:-1] - 1], 0)
    totals -= np.repeat(before, np.diff(row), axis=0)
    totals[row[:-1], 0] = values[first]
    totals[row[1:][number % 2 == 1] - 1, 1] = 0  # no run there
    pixels = [rle["size"][0] * rle["size"][1] for rle in rles]
    if max(pixels) > _MAX_PIXELS:
        return False
    return bool((totals >= 0).all() and (np.add.reduceat(totals.sum(axis=1), row[:-1]) == pixels).all())


def run_lengths(counts: bytes | str) -> NDArray[np.int64]:
    """Decode the text of a compressed code into its run lengths.

    Each run is a little-endian group of five-bit digits with a continuation flag, sign-extended; from the
    fourth run on the text holds the difference to the run before the previous one.

    Raises:
        ValueError: for characters outside of the code's alphabet or a last run that is cut off.

    Source: COCO compressed run-length format.
    """
    if not isinstance(counts, (bytes, str)):
        raise ValueError(f"a compressed code is a text, not {counts!s:.80}")
    raw = counts.encode("latin-1", errors="replace") if isinstance(counts, str) else counts
    digits = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    if digits.min() < 0 or digits.max() > 63:
        raise ValueError("the run-length text has characters outside of its alphabet")
    last = (digits & 0x20) == 0
    if not last[-1]:
        raise ValueError("the run-length text is cut off in the middle of a run")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if place.max() >= _MAX_DIGITS:
        raise ValueError("the run-length text has a run that is longer than any image")
    values = np.add.reduceat((digits & 0x1F) << (5 * place), starts)
    negative = (digits[ends] & 0x10) != 0
    values -= np.where(negative, np.int64(1) << (5 * (place[ends] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def rle_areas(rles: Sequence[Rle]) -> NDArray[np.float64]:
    """Number of pixels of each code."""
    chunks = [
        mask_utils.area(list(rles[i : i + _MAX_CODES_PER_CALL]))
        for i in range(0, len(rles), _MAX_CODES_PER_CALL)
    ]
    return np.concatenate(chunks).astype(np.float64) if chunks else np.zeros(0)


def encode_mask(mask: NDArray[np.bool_]) -> Rle:
    """Compress one ``H W`` mask; ``counts`` is text, ready for JSON."""
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(size) for size in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """Expand a compressed code to an ``H W`` mask.

    Raises:
        ValueError: if the code is broken or does not fill its size.
    """
    runs = run_lengths(rle["counts"])
    _check_runs(runs, rle["size"])
    height, width = rle["size"]
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _is_polygon(polygon: Any, side: int) -> bool:
    """Whether a list is a polygon; what crashes pycocotools is an error."""
    if not isinstance(polygon, Sequence) or isinstance(polygon, str):
        raise ValueError(f"a polygon is a list of x, y, x, y, ..., not {polygon!s:.80}")
    if not all(isinstance(value, Real) and math.isfinite(value) for value in polygon):
        raise ValueError(f"a polygon holds something else than numbers: {polygon!s:.80}")
    if polygon and max(map(abs, polygon)) > _FARTHEST * side:
        raise ValueError(f"a polygon has points far outside of its frame: {polygon!s:.80}")
    return len(polygon) % 2 == 0 and len(polygon) >= 6


def _check_runs(runs: NDArray[Any], size: Any) -> None:
    if not isinstance(size, Sequence) or len(size) != 2 or not all(_is_side(side) for side in size):
        raise ValueError(f"the size of a mask is two numbers of pixels, not {size!s:.80}")
    num_pixels = int(size[0]) * int(size[1])
    if num_pixels > _MAX_PIXELS:
        raise ValueError(f"the size {size[0]} x {size[1]} is larger than any image")
    if runs.ndim != 1 or (len(runs) and runs.dtype.kind not in "iu") or (runs < 0).any():
        raise ValueError("the run lengths are not non-negative numbers")
    # One by one first: the sum of large numbers could wrap around.
    covered = runs.max() if len(runs) and runs.max() > num_pixels else runs.sum()
    if covered != num_pixels:
        raise ValueError(
            f"the runs cover {int(covered)} pixels, the size {size[0]} x {size[1]} has {num_pixels}"
        )


def _is_side(side: Any) -> bool:
    return isinstance(side, (int, np.integer)) and not isinstance(side, bool) and int(side) >= 0
