"""Matching of frames and of objects: golden assignments, both directions, and broken numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dvis.modeling.matching import (
    FirstAppearanceMatcher,
    NonFiniteError,
    gather_queries,
    match_frames,
    match_queries,
)
from mask2former.modeling.matcher import MatchingWeights
from tests.reference import load_golden, unpack_bits
from tests.weights import RandTape, make_input


def random_queries(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(make_input("queries", shape, seed))


# Frames to frames.


def test_both_directions() -> None:
    reference = torch.eye(4)
    current = 3 * torch.eye(4)[[2, 0, 3, 1]]  # only directions count
    forward = match_queries(reference, current)
    assert torch.equal(3 * reference, current[forward])
    # The published DVIS takes for slot i the query at the position that query i would belong to.
    inverse = match_queries(reference, current, inverse=True)
    assert torch.equal(inverse, torch.tensor([2, 0, 3, 1]))
    assert torch.equal(inverse, forward.argsort())


@pytest.mark.parametrize("inverse", [False, True])
def test_a_window_equals_frame_after_frame(inverse: bool) -> None:
    queries = random_queries(3, 5, 7, 4)
    orders = match_frames(queries, inverse=inverse)
    assert torch.equal(orders[:, 0], torch.arange(7).expand(3, 7))
    for b in range(3):
        aligned = queries[b, 0]
        for t in range(1, 5):
            order = match_queries(aligned, queries[b, t], inverse=inverse)
            assert torch.equal(order, orders[b, t])
            aligned = queries[b, t, order]
    aligned = gather_queries(queries, orders)
    continued = match_frames(queries[:, 2:], aligned[:, 1], inverse=inverse)
    assert torch.equal(continued, orders[:, 2:])


def test_gather_queries_keeps_the_last_axes() -> None:
    values = random_queries(2, 3, 4, 5, 2)
    order = torch.stack([torch.randperm(4) for _ in range(6)]).view(2, 3, 4)
    gathered = gather_queries(values, order)
    assert torch.equal(gathered[1, 2, 3], values[1, 2, order[1, 2, 3]])


def test_frames_that_cannot_be_matched() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        match_queries(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="B T Q C"):
        match_frames(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"previous must be `B Q C` = \(1, 4, 2\)"):
        match_frames(torch.zeros(1, 1, 4, 2), torch.zeros(1, 3, 2))
    queries = random_queries(1, 2, 3, 4)
    queries[0, 1, 2] = torch.inf
    with pytest.raises(NonFiniteError, match="clip 0 of the batch, frame 1 of the window"):
        match_frames(queries)


def test_half_precision_queries_are_matched_in_single() -> None:
    queries = random_queries(1, 4, 50, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        order = match_frames(queries)
    assert torch.equal(order, match_frames(queries))


# Objects to slots.


@contextmanager
def rand_tape(seed: int) -> Iterator[RandTape]:
    original, torch.rand = torch.rand, RandTape(seed)
    try:
        yield torch.rand
    finally:
        torch.rand = original


def frames_of(labels: Any, ids: Any, masks: Any) -> list[dict[str, Tensor]]:
    labels, ids, masks = (torch.as_tensor(x) for x in (labels, ids, masks))
    return [
        {"labels": labels, "ids": ids[:, t : t + 1], "masks": masks[:, t : t + 1]}
        for t in range(ids.shape[1])
    ]


def test_golden_first_appearance() -> None:
    meta, golden = load_golden("matcher")
    masks = unpack_bits(golden, "gt")
    T, Q, h, w = meta["frames"], meta["Q"], meta["h"] // 4, meta["w"] // 4
    outputs = {
        "pred_logits": torch.from_numpy(make_input("logits", (T, Q, meta["K"] + 1), meta["seed"], 2.0)),
        "pred_masks": torch.from_numpy(make_input("masks", (T, Q, 1, h, w), meta["seed"], 3.0)),
    }
    targets = frames_of(golden["labels"], golden["ids"], masks)
    matcher = FirstAppearanceMatcher(MatchingWeights(**meta["weights"]), meta["points"])
    with rand_tape(meta["seed"]) as tape:
        indices = matcher(outputs, targets)
    assert np.array_equal(tape.shapes, golden["cons_rand_shapes"])
    assert len(indices) == T
    for slots, objects in indices:
        assert np.array_equal(slots, golden["cons_src"])
        assert np.array_equal(objects, golden["cons_tgt"])


@pytest.mark.parametrize(("package", "shared"), [("dvis", True), ("dvis_plus", False)])
def test_golden_slots_are_not_shared_unless_asked(package: str, shared: bool) -> None:
    meta, golden = load_golden(f"rule_duplicate_query_{package}")
    outputs = {
        "pred_logits": torch.from_numpy(golden["logits"]),
        "pred_masks": torch.from_numpy(golden["masks"]),
    }
    targets = frames_of(golden["labels"], golden["ids"], golden["gt"])
    matcher = FirstAppearanceMatcher(MatchingWeights(**meta["weights"]), meta["points"], shared=shared)
    with rand_tape(meta["seed"]):
        slots, objects = matcher(outputs, targets)[0]
    assert np.array_equal(slots, golden["src"])
    assert np.array_equal(objects, golden["tgt"])
    assert FirstAppearanceMatcher(MatchingWeights(), 1).shared is False


def small_clip(num_slots: int, ids: list[list[int]]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    N, T = len(ids), len(ids[0])
    outputs = {
        "pred_logits": torch.from_numpy(make_input("logits", (T, num_slots, 4))),
        "pred_masks": torch.from_numpy(make_input("masks", (T, num_slots, 1, 5, 7))),
    }
    return outputs, frames_of(
        torch.zeros(N, dtype=torch.int64), ids, torch.ones(N, T, 20, 28, dtype=torch.bool)
    )


MATCHER = FirstAppearanceMatcher(MatchingWeights(2.0, 5.0, 5.0), 16)


def test_more_objects_than_slots() -> None:
    outputs, targets = small_clip(2, [[0, 0], [1, 1], [2, 2], [-1, 3]])
    slots, objects = MATCHER(outputs, targets)[0]
    assert sorted(slots.tolist()) == [0, 1]
    assert set(objects.tolist()) <= {0, 1, 2}


def test_no_object() -> None:
    outputs = {"pred_logits": torch.zeros(2, 3, 4), "pred_masks": torch.zeros(2, 3, 1, 5, 7)}
    empty = frames_of(
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 2, dtype=torch.int64),
        torch.zeros(0, 2, 20, 28, dtype=torch.bool),
    )
    indices = MATCHER(outputs, empty)
    assert len(indices) == 2
    assert all(len(slots) == len(objects) == 0 for slots, objects in indices)


def test_cost_that_is_not_finite() -> None:
    outputs, targets = small_clip(3, [[-1, 0]])
    outputs["pred_masks"][1, 2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"frame 1 of the clip is not finite \(not finite: pred_masks\)"):
        MATCHER(outputs, targets)
