"""Run-length codes against pycocotools, and the broken ones that pycocotools lets pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from dvis.data.rle import are_sound, check_rle, decode_rle, encode_mask, rle_areas, run_lengths, to_rle


@pytest.mark.parametrize("seed", range(20))
def test_round_trip_and_runs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 200, 2))
    mask = rng.random((height, width)) < rng.choice([0.0, 0.02, 0.5, 1.0])
    rle = encode_mask(mask)
    np.testing.assert_array_equal(decode_rle(rle), mask)
    assert rle_areas([rle]).tolist() == [mask.sum()]
    runs = run_lengths(rle["counts"])
    assert runs.sum() == mask.size
    assert runs[1::2].sum() == mask.sum()
    uncompressed = to_rle({"size": [height, width], "counts": runs.tolist()}, 0, 0)
    np.testing.assert_array_equal(decode_rle(uncompressed), mask)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 8)), min_size=1, max_size=6))
def test_many_codes_are_judged_as_one_by_one(codes: list[tuple[int, int]]) -> None:
    """Each code is a random mask; most kinds of damage make it unsound."""
    rles = []
    for seed, damage in codes:
        rng = np.random.default_rng(seed)
        rle = encode_mask(rng.random(rng.integers(1, 60, 2)) < rng.choice([0.02, 0.3, 1.0]))
        text = list(rle["counts"])
        place = int(rng.integers(len(text)))
        if damage == 1:
            text[place] = chr(int(rng.integers(30, 130)))
        elif damage == 2:
            del text[place:]
        elif damage == 3:
            text.insert(place, chr(int(rng.integers(48, 112))))
        elif damage == 4:
            text[place:place] = ["o"] * 7
        elif damage == 5:
            rle["size"][0] += 1
        rles.append({**rle, "counts": "".join(text)})

    def is_sound(rle: dict[str, Any]) -> bool:
        try:
            check_rle(rle)
        except ValueError:
            return False
        return True

    assert are_sound(rles) == all(is_sound(rle) for rle in rles)
    assert are_sound([{**rle, "counts": rle["counts"].encode("latin-1")} for rle in rles]) == are_sound(rles)


def test_areas_of_many_codes() -> None:
    """pycocotools 2.0.11 fails under numpy 2 for more than 255 codes in one call."""
    masks = np.random.default_rng(0).random((600, 5, 7)) < 0.5
    np.testing.assert_array_equal(rle_areas([encode_mask(mask) for mask in masks]), masks.sum(axis=(1, 2)))
    assert rle_areas([]).shape == (0,)


def test_polygons_drop_the_broken_ones() -> None:
    square = [1, 1, 5, 1, 5, 5, 1, 5]
    expected = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects([square], 8, 9)))
    kept = to_rle([square, [1, 1, 2, 2], [1, 1, 5, 1, 5, 5, 1]], 8, 9)
    np.testing.assert_array_equal(decode_rle(kept), expected)
    assert to_rle([[1, 1, 2, 2]], 8, 9) is None
    assert to_rle(None, 8, 9) is None
    assert to_rle([], 8, 9) is None


def test_broken_codes_are_refused() -> None:
    good = encode_mask(np.random.default_rng(0).random((20, 30)) < 0.5)
    for counts in (
        good["counts"][:-5],
        good["counts"] + "11",
        "",
        "zzzz",
        "\x01\x02",
        "\u00e9",
        "o" * 14 + "0",
    ):
        with pytest.raises(ValueError, match="run"):
            check_rle({"size": [20, 30], "counts": counts})
    with pytest.raises(ValueError, match="10 x 10 has 100"):
        decode_rle({**good, "size": [10, 10]})
    with pytest.raises(ValueError, match="cover 5 pixels"):
        to_rle({"size": [2, 2], "counts": [5]}, 0, 0)
    with pytest.raises(ValueError, match="non-negative"):
        to_rle({"size": [2, 2], "counts": [5, -1]}, 0, 0)
    with pytest.raises(ValueError, match="non-negative"):
        to_rle({"size": [2, 2], "counts": ["4"]}, 0, 0)
    for form in ("text", {"size": [2, 2]}, [3, 4]):
        with pytest.raises(ValueError, match="not"):
            to_rle(form, 2, 2)
