"""Matching against the published costs and assignments, and its error messages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling.matcher import (
    HungarianMatcher,
    MatchingWeights,
    assign,
    dice_cost,
    matching_cost,
    sigmoid_ce_cost,
)
from tests.reference import load_golden, relative_error
from tests.weights import RandTape, make_input

WEIGHTS = MatchingWeights(2.0, 5.0, 5.0)


def golden_case():
    meta, golden = load_golden("matcher")
    t, q = meta["frames"], meta["Q"]
    h, w = meta["h"] // 4, meta["w"] // 4
    shape = golden["gt_shape"]
    masks = np.unpackbits(golden["gt"])[: np.prod(shape)].reshape(shape).astype(bool)
    outputs = {
        "pred_logits": torch.from_numpy(make_input("logits", [t, q, meta["K"] + 1], meta["seed"], 2.0)),
        "pred_masks": torch.from_numpy(make_input("masks", [t, q, 1, h, w], meta["seed"], 3.0)),
    }
    labels = torch.from_numpy(golden["labels"])
    frames = torch.from_numpy(masks)
    targets = [{"labels": labels, "masks": frames[:, i : i + 1]} for i in range(t)]
    return meta, golden, outputs, targets


def test_costs_and_assignment_match_golden(monkeypatch) -> None:
    meta, golden, outputs, targets = golden_case()
    tape = RandTape(meta["seed"])
    monkeypatch.setattr(torch, "rand", tape)
    weights = MatchingWeights(**meta["weights"])
    for f, target in enumerate(targets):
        cost = matching_cost(
            outputs["pred_logits"][f],
            outputs["pred_masks"][f],
            target["labels"],
            target["masks"],
            num_points=meta["points"],
            weights=weights,
        )
        assert relative_error(cost, golden[f"frame{f}_cost"]) < 1e-4
    monkeypatch.setattr(torch, "rand", second := RandTape(meta["seed"]))
    for f, (queries, objects) in enumerate(HungarianMatcher(weights, meta["points"])(outputs, targets)):
        assert queries.tolist() == golden[f"frame{f}_src"].tolist()
        assert objects.tolist() == golden[f"frame{f}_tgt"].tolist()
    assert tape.shapes == second.shapes == [tuple(shape) for shape in golden["rand_shapes"]]


def test_pairwise_costs_equal_the_losses() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 30, dtype=torch.float64) * 5
    labels = (torch.rand(3, 30) > 0.4).double()
    for q, n in itertools.product(range(4), range(3)):
        bce = F.binary_cross_entropy_with_logits(logits[q], labels[n])
        torch.testing.assert_close(sigmoid_ce_cost(logits, labels)[q, n], bce)
        p = logits[q].sigmoid()
        dice = 1 - (2 * (p * labels[n]).sum() + 1) / (p.sum() + labels[n].sum() + 1)
        torch.testing.assert_close(dice_cost(logits, labels)[q, n], dice)


def test_clip_draws_points_for_all_frames(monkeypatch) -> None:
    monkeypatch.setattr(torch, "rand", tape := RandTape(1))
    outputs = {"pred_logits": torch.zeros(1, 3, 4), "pred_masks": torch.zeros(1, 3, 5, 4, 6)}
    targets = [{"labels": torch.tensor([0, 2]), "masks": torch.ones(2, 5, 16, 24, dtype=torch.bool)}]
    ((queries, objects),) = HungarianMatcher(WEIGHTS, 10)(outputs, targets)
    assert tape.shapes == [(1, 50, 2)]
    assert len(queries) == len(objects) == 2


def test_right_objects_are_found() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(3, 1, 32, 32, dtype=torch.bool)
    for i in range(3):
        masks[i, :, 8 * i : 8 * i + 8] = True
    order = torch.tensor([2, 0, 1])
    logits = torch.zeros(4, 6)
    logits[torch.arange(3), torch.tensor([5, 3, 4])[order] - 3] = 4.0
    mask_logits = F.interpolate(torch.cat([masks[order], masks[:1] & False]).float() * 20 - 10, size=(16, 16))
    targets = [{"labels": torch.tensor([2, 0, 1]), "masks": masks}]
    outputs = {"pred_logits": logits[None], "pred_masks": mask_logits[None]}
    ((queries, objects),) = HungarianMatcher(WEIGHTS, 200)(outputs, targets)
    assert queries.tolist() == [0, 1, 2]
    assert objects.tolist() == order.tolist()


def test_no_objects_and_more_objects_than_queries() -> None:
    outputs = {"pred_logits": torch.randn(2, 3, 4), "pred_masks": torch.randn(2, 3, 1, 5, 7)}
    targets = [
        {"labels": torch.zeros(n, dtype=torch.int64), "masks": torch.rand(n, 1, 20, 28) > 0.5} for n in (0, 5)
    ]
    indices = HungarianMatcher(WEIGHTS, 16)(outputs, targets)
    assert [len(queries) for queries, _ in indices] == [0, 3]
    assert all(pair.dtype == torch.int64 for pair in indices[0])
    assert HungarianMatcher(WEIGHTS, 16)({"pred_logits": torch.zeros(0, 3, 4)}, []) == []


def test_half_precision_matches_in_single() -> None:
    _, _, outputs, targets = golden_case()
    matcher = HungarianMatcher(WEIGHTS, 256)
    torch.manual_seed(3)
    expected = matcher({k: v.half().float() for k, v in outputs.items()}, targets)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = matcher({k: v.half() for k, v in outputs.items()}, targets)
    for (q0, o0), (q1, o1) in zip(expected, actual, strict=True):
        assert torch.equal(q0, q1)
        assert torch.equal(o0, o1)


@pytest.mark.parametrize("name", ["pred_logits", "pred_masks"])
def test_broken_numbers_are_named(name: str) -> None:
    _, _, outputs, targets = golden_case()
    outputs[name][2] = float("nan")
    with pytest.raises(FloatingPointError, match=rf"clip 2 is not finite; not finite: {name}.*BASE_LR"):
        HungarianMatcher(WEIGHTS, 256)(outputs, targets)


def test_bad_input_is_refused() -> None:
    arguments = {"num_points": 4, "weights": WEIGHTS}
    logits, masks = torch.zeros(3, 4), torch.zeros(3, 2, 4, 4)
    labels = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"same T.*\(1, 3, 8, 8\)"):
        matching_cost(logits, masks, labels, torch.zeros(1, 3, 8, 8), **arguments)
    with pytest.raises(ValueError, match="1 labels, but 2"):
        matching_cost(logits, masks, labels, torch.zeros(2, 2, 8, 8), **arguments)
    with pytest.raises(ValueError, match="matching weights"):
        MatchingWeights(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="TRAIN_NUM_POINTS"):
        HungarianMatcher(WEIGHTS, 0)


def test_assign_is_optimal() -> None:
    cost = np.random.default_rng(0).random((4, 3))
    queries, objects = assign(cost)
    best = min(sum(cost[q, n] for n, q in enumerate(rows)) for rows in itertools.permutations(range(4), 3))
    assert cost[queries, objects].sum() == pytest.approx(best)
