"""bfloat16 in the segmenter: what becomes less precise and what must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dvis.inference import precision
from dvis.inference.precision import autocast_dtype
from tests.dvis.tiny import shared_tiny_model, tiny_model, tiny_video

KEY = "MODEL.MASK_FORMER.TEST.PRECISION"
CPU = torch.device("cpu")


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autocast_dtype("float32", CPU) is None
    assert autocast_dtype("bfloat16", CPU) is torch.bfloat16
    for there, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(precision, "_computes_in_bfloat16", lambda device, there=there: there)
        assert autocast_dtype("auto", CPU) is expected
    with pytest.raises(ValueError, match=f"{KEY} is 'half'; allowed are float32, bfloat16, auto"):
        autocast_dtype("half", CPU)
    with pytest.raises(ValueError, match=f"{KEY} is 'half'"):
        tiny_model("online", KEY, "half")


@pytest.mark.parametrize("mode", ["minvis", "online", "offline"])
def test_results_stay_close(mode: str) -> None:
    exact, fast = shared_tiny_model(mode), tiny_model(mode, KEY, "bfloat16")
    frames = torch.stack(tiny_video(3))[None]
    with torch.no_grad():
        expected, found = exact.segment(frames, with_masks=True), fast.segment(frames, with_masks=True)
    for name in ("logits", "queries", "mask_embeds", "mask_features", "masks"):
        a, b = getattr(expected, name), getattr(found, name)
        assert b.dtype == torch.float32
        # The mean: a mask logit near zero that flips shows a query something else, and moves it more.
        assert 0 < (a - b).abs().mean() < 0.1 * a.abs().mean(), name
    assert ((expected.masks > 0) == (found.masks > 0)).float().mean() > 0.97
    # Scores are no multiples of what bfloat16 can tell apart.
    assert not torch.equal(found.logits, found.logits.bfloat16().float())


def test_training_is_not_affected() -> None:
    fast: Any = tiny_model("minvis", KEY, "bfloat16").train()
    exact: Any = tiny_model("minvis").train()
    frames = torch.stack(tiny_video(2))[None]
    with torch.no_grad():
        torch.testing.assert_close(fast.segment(frames).queries, exact.segment(frames).queries)
