"""The plain forms of the training tricks give the losses and gradients of the fast ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.plain_training import use_plain
from benchmarks.run import make_clip
from dvis.modeling.meta_arch import offline, online
from mask2former.modeling import criterion, matcher
from mask2former.modeling.masks import MaskProducts
from mask2former.modeling.points import sample_points
from tests.dvis.tiny import tiny_model


def step(model: Any) -> dict[str, float]:
    """Losses and gradients of one step."""
    model.zero_grad()
    torch.manual_seed(0)
    losses = model([make_clip(3, (45, 64)), make_clip(3, (45, 64))])
    sum(losses.values()).backward()
    norms = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    return {name: float(value.detach()) for name, value in {**losses, **norms}.items()}


@pytest.mark.parametrize("name", ["masks", "points", "segmenter"])
@pytest.mark.parametrize(("mode", "guided"), [("online", 1.0), ("offline", 1.0), ("offline", 0.0)])
def test_same_step(mode: str, guided: float, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"online": "TRACKER", "offline": "REFINER"}[mode]
    model = tiny_model(mode, f"MODEL.{part}.GUIDED_FRACTION", guided).train()
    expected = step(model)
    for module in (online, offline):  # so that it is taken back
        monkeypatch.setattr(module, "MaskProducts", MaskProducts)
    for module in (criterion, matcher):
        monkeypatch.setattr(module, "sample_points", sample_points)
    use_plain(model, name)
    assert step(model) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="PLAIN=fast: allowed are masks, points, segmenter"):
        use_plain(None, "fast")
