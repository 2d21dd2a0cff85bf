"""Configuration keys have the published names and defaults."""

from __future__ import annotations

import json
from typing import Any

import pytest
from detectron2.config import CfgNode

import mask2former
from tests.mask2former.tiny import default_cfg
from tests.reference import DATA


def leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(leaves(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


@pytest.mark.parametrize("project", ["Mask2Former", "MinVIS", "DVIS"])
def test_defaults_are_the_published_ones(project: str) -> None:
    published = json.loads((DATA / "configs" / f"{project}.json").read_text())["_defaults"]
    published = leaves(published)
    cfg = leaves(default_cfg())
    ours = {key: cfg[key] for key in published if key in cfg and key != "SEED"}  # SEED: a video model's
    assert ours == {key: published[key] for key in ours}
    # What is missing belongs to the video models.
    if project == "Mask2Former":
        assert set(ours) == set(published)


def test_adding_twice_changes_nothing() -> None:
    cfg = default_cfg()
    expected = leaves(cfg)
    mask2former.add_maskformer2_config(cfg)
    assert leaves(cfg) == expected


def test_nothing_else_is_touched() -> None:
    from detectron2.config import get_cfg

    before, after = leaves(get_cfg()), leaves(default_cfg())
    deeplab = {"MODEL.RESNETS.STEM_TYPE"}
    changed = {key for key in before if before[key] != after[key]} - deeplab
    assert not changed
    assert isinstance(default_cfg().MODEL.SWIN, CfgNode)
