"""The temporal refiner: golden numbers, what must hold for any weights, and each component switched off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from dvis.modeling import refiner as refiner_module
from dvis.modeling.refiner import TemporalRefiner
from dvis.modeling.structures import predict_masks
from tests.reference import load_golden, relative_error
from tests.weights import fill_state_dict, make_input

SWITCHES = {
    "time_attention": "transformer_time_self_attention_layers",
    "time_conv": "conv_",
    "object_attention": "transformer_obj_self_attention_layers",
    "cross_attention": "transformer_cross_attention_layers",
    "class_weighting": "activation_proj",
}


def small_refiner(**settings: Any) -> TemporalRefiner:
    torch.manual_seed(0)
    sizes = {"num_classes": 5, "hidden_dim": 16, "mask_dim": 12, "num_heads": 4, "dim_feedforward": 24}
    return TemporalRefiner(**{**sizes, "num_layers": 2, **settings}).double().eval()


def random_queries(*shape: int, name: str = "queries") -> Tensor:
    return torch.from_numpy(make_input(name, shape)).double()


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Any], dict[str, np.ndarray], TemporalRefiner, Tensor, Tensor, Tensor]:
    meta, arrays = load_golden("temporal_refiner")
    refiner = TemporalRefiner(num_classes=meta["K"])
    fill_state_dict(refiner, prefix=meta["weights_prefix"])
    C, T, Q, seed = meta["C"], meta["frames"], meta["Q"], meta["seed"]
    queries, frames = (
        rearrange(torch.from_numpy(make_input(name, (1, C, T, Q), seed)), "b c t q -> b t q c")
        for name in ("instance_embeds", "frame_embeds")
    )
    features = torch.from_numpy(make_input("mask_features", (1, T, C, meta["h"], meta["w"]), seed))
    return meta, arrays, refiner, queries, frames, features


@pytest.mark.parametrize("tokens", [1, 17, 10_000])
def test_long_clips_are_refined_by_parts_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    refiner, x, frames = small_refiner(), random_queries(2, 5, 3, 16), random_queries(2, 5, 4, 16, name="f")
    whole = refiner(x, frames)
    monkeypatch.setattr(refiner_module, "TOKENS_AT_ONCE", tokens)
    with torch.no_grad():
        parts = refiner(x, frames)
    torch.testing.assert_close(parts.queries, whole.queries)
    torch.testing.assert_close(parts.logits, whole.logits)


def test_golden_forward(golden) -> None:
    meta, arrays, refiner, queries, frames, features = golden
    refiner.train()
    with torch.no_grad():
        refined = refiner(queries, frames)
        masks = predict_masks(refined.mask_embeds, features)
    assert relative_error(refined.logits[:, None], arrays["train_logits"]) < 1e-4
    assert relative_error(rearrange(refined.queries, "b t q c -> b c t q"), arrays["train_embds"]) < 1e-4
    assert relative_error(masks[..., ::2, ::2], arrays["train_masks"]) < 1e-4
    assert relative_error(refined.aux[0][0][:, None], arrays["aux0_logits"]) < 1e-4
    assert len(refined.aux) == meta["n_aux_train"]
    stats = [masks.mean(), masks.std(), masks.abs().max(), masks.abs().sum()]
    assert relative_error(np.array(stats), arrays["train_masks_stats"]) < 1e-4


def test_golden_eval(golden) -> None:
    _, arrays, refiner, queries, frames, features = golden
    refiner.eval()
    with torch.no_grad():
        refined = refiner(queries, frames)
        # Masks made per window and for a few slots are those of the whole clip.
        masks = torch.cat(
            [
                predict_masks(refined.mask_embeds[:, window, 5:9], features[:, window])
                for window in (slice(0, 3), slice(3, 6), slice(6, 7))
            ],
            dim=2,
        )
    every_frame = refined.logits[:, None].expand(-1, 7, -1, -1)  # the golden case repeats the class over time
    assert relative_error(every_frame, arrays["eval_logits"]) < 1e-4
    assert relative_error(masks[..., ::2, ::2], arrays["eval_masks"][:, 5:9]) < 1e-4
    assert refined.aux == ()  # not used at inference, so not made


def test_golden_gradient(golden) -> None:
    meta, arrays, refiner, queries, frames, _ = golden
    queries = queries.clone().requires_grad_()
    logits = refiner.train()(queries, frames).logits
    # The case was made with the probe of the logits repeated for every frame.
    probe = torch.from_numpy(make_input("probe", arrays["eval_logits"].shape, meta["seed"])).sum(dim=1)
    (gradient,) = torch.autograd.grad((logits * probe).sum(), queries)
    gradient = rearrange(gradient, "b t q c -> b c t q")
    assert relative_error(gradient[:, ::4], arrays["grad_instance_embeds"]) < 1e-3


@pytest.mark.parametrize(("B", "T", "Q"), [(1, 1, 1), (3, 1, 4), (2, 5, 7)])
def test_shapes(B: int, T: int, Q: int) -> None:
    refined = small_refiner()(random_queries(B, T, Q, 16), random_queries(B, T, Q + 2, 16, name="frames"))
    assert refined.logits.shape == (B, Q, 6)
    assert refined.queries.shape == (B, T, Q, 16)
    assert refined.mask_embeds.shape == (B, T, Q, 12)


def test_every_parameter_gets_a_gradient() -> None:
    refiner = small_refiner().train()
    refined = refiner(random_queries(1, 3, 4, 16), random_queries(1, 3, 4, 16, name="frames"))
    assert len(refined.aux) == 1
    sum((x**2).sum() for x in (refined.logits, refined.mask_embeds)).backward()
    # Adding a constant to all weights over time changes nothing: this bias has a gradient of zero.
    without = [n for n, p in refiner.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12]
    assert without == ["activation_proj.bias"]


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    refiner = small_refiner()
    queries, frames = random_queries(3, 4, 5, 16), random_queries(3, 4, 5, 16, name="frames")
    together = refiner(queries, frames)
    for b in range(3):
        alone = refiner(queries[b : b + 1], frames[b : b + 1])
        torch.testing.assert_close(alone.logits[0], together.logits[b], atol=1e-12, rtol=0)
        torch.testing.assert_close(alone.mask_embeds[0], together.mask_embeds[b], atol=1e-12, rtol=0)


def test_shuffled_queries_give_shuffled_results() -> None:
    refiner = small_refiner()
    queries, frames = random_queries(1, 4, 6, 16), random_queries(1, 4, 6, 16, name="frames")
    slots, other = torch.randperm(6), torch.randperm(6)
    expected = refiner(queries, frames)
    actual = refiner(queries[:, :, slots], frames[:, :, other])
    torch.testing.assert_close(actual.logits, expected.logits[:, slots], atol=1e-12, rtol=0)
    torch.testing.assert_close(actual.mask_embeds, expected.mask_embeds[:, :, slots], atol=1e-12, rtol=0)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_component_switched_off_has_no_parameters(switch: str) -> None:
    full, part = small_refiner(), small_refiner(**{switch: False})
    queries, frames = random_queries(2, 3, 4, 16), random_queries(2, 3, 4, 16, name="frames")
    removed = set(full.state_dict()) - set(part.state_dict())
    assert removed == {name for name in full.state_dict() if name.startswith(SWITCHES[switch])}
    part.load_state_dict({k: v for k, v in full.state_dict().items() if k not in removed})
    assert not torch.allclose(part(queries, frames).logits, full(queries, frames).logits)
    part.train()
    sum((x**2).sum() for x in (part(queries, frames).logits, part(queries, frames).mask_embeds)).backward()
    assert all(p.grad is not None for p in part.parameters())


def test_what_each_component_connects() -> None:
    """Time components join an object's frames, object attention a frame's objects."""
    queries, frames = random_queries(1, 9, 4, 16), random_queries(1, 9, 4, 16, name="frames")
    changed = queries.clone()
    changed[:, 0, 0] = random_queries(16, name="other")
    alone = dict.fromkeys(("time_attention", "time_conv", "object_attention", "cross_attention"), False)

    def touched(**on: bool) -> Tensor:  # T Q
        refiner = small_refiner(num_layers=1, **{**alone, **on})
        before, after = refiner(queries, frames), refiner(changed, frames)
        return (before.mask_embeds - after.mask_embeds)[0].abs().amax(-1) > 1e-9

    frame_0, object_0 = torch.arange(9)[:, None] == 0, torch.arange(4) == 0
    assert torch.equal(touched(), frame_0 & object_0)
    assert torch.equal(touched(time_attention=True), object_0.expand(9, 4))
    assert torch.equal(touched(time_conv=True), (torch.arange(9) <= 3)[:, None] & object_0)  # kernels 5 and 3
    assert torch.equal(touched(object_attention=True), frame_0.expand(9, 4))
    assert torch.equal(touched(cross_attention=True), frame_0 & object_0)


def test_bad_input() -> None:
    refiner = small_refiner()
    with pytest.raises(ValueError, match="T >= 1"):
        refiner(random_queries(1, 0, 4, 16), random_queries(1, 0, 4, 16))
    with pytest.raises(ValueError, match="frame_queries must be"):
        refiner(random_queries(1, 2, 4, 16), random_queries(1, 3, 4, 16))
    with pytest.raises(ValueError, match=r"MODEL.REFINER.DECODER_LAYERS must be at least 1, not 0"):
        small_refiner(num_layers=0)
