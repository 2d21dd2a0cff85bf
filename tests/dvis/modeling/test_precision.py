"""Assignments are computed in float32, also where training runs in half precision."""

from __future__ import annotations

import pytest
import torch

from dvis.modeling.matching import match_frames
from mask2former.modeling.matcher import HungarianMatcher, MatchingWeights, matching_cost

Q, T, N, K = 12, 2, 4, 5


def clip(seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    outputs = {
        "pred_logits": torch.randn(1, Q, K + 1, generator=generator),
        "pred_masks": 4 * torch.randn(1, Q, T, 16, 20, generator=generator),
    }
    target = {
        "labels": torch.randint(K, (N,), generator=generator),
        "masks": torch.rand(N, T, 32, 40, generator=generator) > 0.6,
    }
    return outputs, target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matching_costs_do_not_depend_on_autocast(dtype: torch.dtype) -> None:
    outputs, target = clip(0)

    def cost() -> torch.Tensor:
        torch.manual_seed(3)  # the points at which masks are compared
        return matching_cost(
            outputs["pred_logits"][0].to(dtype),
            outputs["pred_masks"][0].to(dtype),
            target["labels"],
            target["masks"],
            num_points=50,
            weights=MatchingWeights(2.0, 5.0, 5.0),
        )

    expected = cost()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = cost()
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("seed", range(5))
def test_assignments_do_not_depend_on_autocast(seed: int) -> None:
    outputs, target = clip(seed)
    matcher = HungarianMatcher(MatchingWeights(2.0, 5.0, 5.0), 50)
    queries = torch.randn(1, 6, Q, 8, generator=torch.Generator().manual_seed(seed))
    results = []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            ((rows, columns),) = matcher(outputs, [target])
            results.append((rows.tolist(), columns.tolist(), match_frames(queries).tolist()))
    assert results[0] == results[1]


def test_half_precision_would_be_too_coarse() -> None:
    """What the tests above protect from: queries that bfloat16 cannot tell apart are ordered rightly."""
    base = torch.randn(8, generator=torch.Generator().manual_seed(0))
    frame = torch.stack([base + 1e-3 * torch.eye(8)[i] for i in range(4)])
    order = torch.tensor([2, 0, 3, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = match_frames(torch.stack([frame, frame[order]])[None])[0, 1]
    assert frame[order][found].equal(frame)
