"""Run-length codes: what is written is read again, and nothing else gets through."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import DataObject
from pycocotools import mask as mask_utils

from dvis.data.errors import BrokenDataError
from dvis.data.readers import read_instances
from dvis.data.rle import check_rle, decode_rle, encode_mask, rle_areas, run_lengths, to_rle
from tests.fuzz.cases import fuzz, json_values, mutated_bytes, sizes

masks = arrays(bool, st.tuples(st.integers(1, 17), st.integers(1, 19)))


@sizes(300, 5000)
def test_round_trip(examples: int) -> None:
    def check(mask: np.ndarray) -> None:
        rle = encode_mask(mask)
        check_rle(rle)
        assert np.array_equal(decode_rle(rle), mask)
        assert np.array_equal(mask_utils.decode(rle).astype(bool), mask)
        assert rle_areas([rle])[0] == mask.sum()
        counts = run_lengths(rle["counts"])
        uncompressed = {"size": list(mask.shape), "counts": counts.tolist()}
        again = to_rle(uncompressed, *mask.shape)
        assert again is not None
        assert np.array_equal(decode_rle(again), mask)

    fuzz(examples, check, masks)


def read(segmentation: Any, height: int, width: int) -> None:
    """Either a mask of the frame's size or an error that names the place."""
    record = {
        "video_id": 1, "source": "a.json", "file_names": ["0.jpg"], "height": height, "width": width,
        "annotations": [{"id": 5, "category_id": 0, "iscrowd": 0, "segmentations": [segmentation]}],
    }  # fmt: skip
    message = ""
    try:
        found = read_instances(record, 0)
    except BrokenDataError as error:
        message = str(error)
    if message:
        assert "video 1 of a.json, frame 0 (0.jpg), annotation 5" in message
    else:
        assert all(layer.shape == (height, width) for layer in found.layers)


@sizes(400, 6000)
def test_any_json_value_as_a_mask(examples: int) -> None:
    mapping = st.fixed_dictionaries(
        {
            "size": st.lists(st.integers(-2, 9), max_size=3) | json_values(),
            "counts": st.text(max_size=9) | st.lists(st.integers(-2, 40), max_size=8) | json_values(),
        }
    )
    fuzz(examples, read, mapping | json_values(), st.integers(1, 8), st.integers(1, 8))


@sizes(400, 6000)
def test_damaged_codes(examples: int) -> None:
    def check(mask: np.ndarray, data: DataObject) -> None:
        rle = encode_mask(mask)
        damaged = mutated_bytes(data, rle["counts"].encode())
        read({"size": rle["size"], "counts": damaged.decode("latin-1")}, *mask.shape)
        read({"size": rle["size"], "counts": damaged}, *mask.shape)

    fuzz(examples, check, masks, st.data())


@sizes(300, 4000)
def test_polygons(examples: int) -> None:
    numbers = st.one_of(
        st.floats(-20, 40), st.floats(), st.integers(-5, 30), st.sampled_from([1e9, 1e18, -1e9, "3", None])
    )
    polygons = st.lists(st.lists(numbers, max_size=10), max_size=3)
    fuzz(examples, read, polygons, st.integers(1, 8), st.integers(1, 8))


@sizes(300, 4000)
def test_texts_as_codes(examples: int) -> None:
    alphabet = st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=24)

    def check(counts: str | bytes, height: int, width: int) -> None:
        rle = {"size": [height, width], "counts": counts}
        try:
            mask = decode_rle(rle)
        except ValueError:
            return
        assert mask.shape == (height, width)
        check_rle(rle)
        # What passes the check is safe for the C code, and means the same to it.
        assert np.array_equal(mask_utils.decode(rle).astype(bool), mask)

    fuzz(examples, check, alphabet | st.binary(max_size=24), st.integers(0, 30), st.integers(0, 30))
