"""Colours of segments: no two alike, stuff as its category, objects nearby."""

from __future__ import annotations

import numpy as np
import pytest

from dvis.data.categories import load_categories
from dvis.data.colors import SegmentColors, color_to_id


def test_colors_of_vipseg() -> None:
    categories = load_categories("vipseg_vspw")
    by_id = {category["id"]: category for category in categories}
    colors = SegmentColors(categories, seed=3)
    stuff = [c["id"] for c in categories if not c["isthing"]]
    things = [c["id"] for c in categories if c["isthing"]]
    given = {category_id: colors.take(category_id) for category_id in stuff}
    for category_id in stuff:
        assert colors.take(category_id) == given[category_id]
    taken = list(given.values())
    for category_id in things:
        base = np.array(by_id[category_id]["color"])
        objects = [colors.take(category_id) for _ in range(5)]
        assert all(np.abs(np.array(color) - base).max() <= 30 for color in objects)
        if category_id != 48:  # car shares its colour with a kind of stuff
            assert objects[0] == tuple(base)
        taken += objects
    assert len(set(taken)) == len(taken)
    assert (0, 0, 0) not in taken


def test_same_seed_same_colors() -> None:
    categories = load_categories("toy_vps")
    first, second, other = (SegmentColors(categories, seed) for seed in (1, 1, 2))
    thing = next(c["id"] for c in categories if c["isthing"])
    sequences = [[colors.take(thing) for _ in range(4)] for colors in (first, second, other)]
    assert sequences[0] == sequences[1] != sequences[2]


def test_more_objects_than_colors_nearby(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvis.data.colors.REACH", 1)
    colors = SegmentColors([{"id": 0, "isthing": 1, "color": [0, 0, 0]}])
    taken = {colors.take(0) for _ in range(20)}
    assert len(taken) == 20


def test_unknown_category() -> None:
    with pytest.raises(KeyError, match="category 5 has no colour"):
        SegmentColors([{"id": 0, "isthing": 1}]).take(5)


def test_id_of_a_color() -> None:
    assert color_to_id((1, 2, 3)) == 1 + 2 * 256 + 3 * 65536
