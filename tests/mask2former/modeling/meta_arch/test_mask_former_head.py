"""Segmentation head: outputs, configuration and old weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head

from mask2former.modeling import MaskFormerHead
from tests.mask2former.tiny import tiny_cfg

SHAPES = {f"res{i + 2}": ShapeSpec(channels=8 * 2**i, stride=4 * 2**i) for i in range(4)}


def head(**options: Any) -> MaskFormerHead:
    return build_sem_seg_head(tiny_cfg(**options), SHAPES).eval()


def features(n: int = 2, h: int = 37, w: int = 53) -> dict[str, torch.Tensor]:
    return {
        name: torch.rand(n, shape.channels, -(-h // shape.stride), -(-w // shape.stride))
        for name, shape in SHAPES.items()
    }


def test_outputs() -> None:
    model = head()
    outputs = model(features())
    assert outputs["pred_logits"].shape == (2, 10, 5)
    assert outputs["pred_masks"].shape == (2, 10, 10, 14)
    assert outputs["pred_embeds"].shape == (2, 10, 32)
    assert outputs["mask_features"].shape == (2, 32, 10, 14)
    assert outputs["aux_outputs"] == []
    without = model(features(), with_masks=False, with_aux=True)
    assert without["pred_masks"] is None
    assert [layer["pred_masks"].shape for layer in without["aux_outputs"]] == [(2, 10, 10, 14)] * 2
    assert model.in_features == ["res2", "res3", "res4", "res5"]


def renamed(state: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {key.replace(old, new): value for key, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "sem_seg_head."])
def test_weights_of_the_first_version_load(prefix: str) -> None:
    source, target = head(), head()
    model: torch.nn.Module = torch.nn.ModuleDict({"sem_seg_head": target}) if prefix else target
    state = renamed(dict(source.state_dict()), "pixel_decoder.", "")
    state = renamed(state, "query_feat", "static_query")
    model.load_state_dict({prefix + key: value for key, value in state.items()})
    x = features()
    assert torch.equal(source(x)["pred_masks"], target(x)["pred_masks"])


def test_present_names_without_version_are_left_alone() -> None:
    source, target = head(), head()
    target.load_state_dict(dict(source.state_dict()))
    x = features()
    assert torch.equal(source(x)["pred_logits"], target(x)["pred_logits"])


def test_predictor_only_weights_are_left_alone() -> None:
    target = head()
    state = {key: value for key, value in target.state_dict().items() if key.startswith("predictor.")}
    missing, unexpected = target.load_state_dict(dict(state), strict=False)
    assert not unexpected
    assert all(key.startswith("pixel_decoder.") for key in missing)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"TRANSFORMER_IN_FEATURE is 'res5'.*multi_scale_pixel_decoder"):
        head(MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE="res5")
