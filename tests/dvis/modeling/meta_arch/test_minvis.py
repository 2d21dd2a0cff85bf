from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dvis
from dvis.modeling.meta_arch.minvis import VideoMaskFormer_frame
from tests.dvis.golden import ROOT, check_training_step, replaced_rand
from tests.dvis.modeling.meta_arch.test_base import clip
from tests.dvis.tiny import tiny_model
from tests.reference import load_manifest


def test_golden_training_step() -> None:
    check_training_step("minvis_r50")


@pytest.mark.parametrize(
    ("manifest", "config"),
    [("minvis_r50", "ovis/MinVIS_R50.yaml"), ("minvis_swinl", "ovis/swin/MinVIS_SwinL.yaml")],
)
def test_keys_and_shapes_are_the_published_ones(manifest: str, config: str) -> None:
    from detectron2.modeling import build_model

    expected = load_manifest(manifest)
    cfg = dvis.load_config(ROOT / "configs" / config, ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    state = model.state_dict()
    assert {
        key: [list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in state.items()
    } == expected["state_dict"]
    assert set(state) - {key for key, _ in model.named_parameters()} == set(expected["buffers"])
    assert all(p.requires_grad for p in model.parameters())


def same_points(*shape: Any, **_: Any) -> Tensor:
    """In the place of ``torch.rand``: points that do not depend on how many were drawn before."""
    sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    one = torch.rand(sizes[1:], generator=torch.Generator().manual_seed(sizes[1]))
    return one.expand(sizes).clone()


def test_a_batch_has_the_sums_over_objects_of_its_parts() -> None:
    """Losses of a batch are means over all its objects (frames, for classes), as for images."""
    model = tiny_model("minvis").train()
    clips = [clip(2, 2), clip(2, 1, seed=1)]
    num_objects = [4, 2]
    original = torch.rand

    def points(*shape: Any, **keywords: Any) -> Tensor:
        with replaced_rand(original):
            return same_points(*shape, **keywords)

    with replaced_rand(points):
        single = [model([video]) for video in clips]
        both = model(clips)
    for name in both:
        if name.startswith(("loss_mask", "loss_dice")):
            expected = sum(
                float(s[name].detach()) * n for s, n in zip(single, num_objects, strict=True)
            ) / sum(num_objects)
            assert float(both[name].detach()) == pytest.approx(expected, rel=1e-4)


def test_the_name_of_its_own_project() -> None:
    model = tiny_model("minvis", "MODEL.META_ARCHITECTURE", "VideoMaskFormer_frame")
    assert isinstance(model, VideoMaskFormer_frame)


def test_ten_results_whatever_max_num_says() -> None:
    model = tiny_model("minvis", "MODEL.MASK_FORMER.TEST.MAX_NUM", 3)
    assert model.inference.postprocess.max_num == 10
