"""The referring tracker: golden numbers, the plain form it must equal, and what must hold for any weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from dvis.modeling.matching import NonFiniteError, gather_queries, match_queries
from dvis.modeling.structures import predict_masks
from dvis.modeling.tracker import ReferringTracker, TrackerState
from tests.reference import load_golden, relative_error
from tests.weights import fill_state_dict, make_input


def small_tracker(**settings: Any) -> ReferringTracker:
    torch.manual_seed(0)
    sizes = {"num_classes": 5, "hidden_dim": 16, "mask_dim": 12, "num_heads": 4, "dim_feedforward": 24}
    return ReferringTracker(**{**sizes, "num_layers": 3, **settings}).double().eval()


def random_queries(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(make_input("queries", shape, seed)).double()


def plain_outputs(tracker: ReferringTracker, queries: Tensor) -> Tensor:
    """The tracker as the paper writes it, one layer of one frame after the other: ``B T Q C``."""
    outputs: list[Tensor] = []
    for t in range(queries.shape[1]):
        frame = queries[:, t]
        if t == 0:
            x = aligned = frame
        else:
            pairs = zip(aligned, frame, strict=True)
            orders = [match_queries(previous, current, inverse=True) for previous, current in pairs]
            x = aligned = torch.stack([clip[order] for clip, order in zip(frame, orders, strict=True)])
        for cross_layer, self_layer, ffn_layer in zip(
            tracker.transformer_cross_attention_layers,
            tracker.transformer_self_attention_layers,
            tracker.transformer_ffn_layers,
            strict=True,
        ):
            x = cross_layer(outputs[-1] if outputs else x, frame, identity=x)
            x = ffn_layer(self_layer(x))
        outputs.append(x)
    return tracker.decoder_norm(torch.stack(outputs, dim=1))


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Any], dict[str, np.ndarray], ReferringTracker, Tensor, Tensor]:
    """Case, tracker with its weights, queries ``B T Q C`` and mask features, in float64.

    Six frames of six random layers amplify rounding: the golden float32 numbers differ from float64 by
    most of the tolerance (7e-5 of 1e-4 for the logits, 6e-4 of 1e-3 for the gradient). Our side therefore
    adds none.
    """
    meta, arrays = load_golden("referring_tracker")
    tracker = ReferringTracker(num_classes=meta["K"])
    fill_state_dict(tracker, prefix=meta["weights_prefix"])
    queries = rearrange(torch.from_numpy(arrays["frame_embeds"]), "b c t q -> b t q c").double()
    shape = (1, meta["frames"], meta["C"], meta["h"], meta["w"])
    features = torch.from_numpy(make_input("mask_features", shape, meta["seed"])).double()
    return meta, arrays, tracker.double(), queries, features


def stats(x: Tensor) -> np.ndarray:
    return np.array([x.mean(), x.std(), x.abs().max(), x.abs().sum()])


def test_golden_forward(golden) -> None:
    _, arrays, tracker, queries, features = golden
    with torch.no_grad():
        linked, _ = tracker(queries)
        masks = predict_masks(linked.mask_embeds, features)
        aux_masks = [predict_masks(embeds, features) for _, embeds in linked.aux]
        frame_queries = tracker.frame_forward(queries)
    assert np.array_equal(linked.order[0], arrays["indices"])
    assert relative_error(linked.logits, arrays["pred_logits"]) < 1e-4
    assert relative_error(rearrange(linked.queries, "b t q c -> b c t q"), arrays["pred_embds"]) < 1e-4
    assert relative_error(masks[..., ::2, ::2], arrays["pred_masks"]) < 1e-4
    assert relative_error(stats(masks), arrays["pred_masks_stats"]) < 1e-4
    assert relative_error(linked.aux[0][0], arrays["aux0_logits"]) < 1e-4
    assert relative_error(np.stack([stats(m) for m in aux_masks]), arrays["aux_mask_stats"]) < 1e-4
    assert relative_error(rearrange(frame_queries, "b t q c -> b c t q"), arrays["frame_forward"]) < 1e-4


def test_golden_resume(golden) -> None:
    meta, arrays, tracker, queries, _ = golden
    state, windows = None, []
    with torch.no_grad():
        for window in queries.split(meta["split"], dim=1):
            linked, state = tracker(window, state)
            windows.append(linked)
    assert np.array_equal(torch.cat([w.order[0] for w in windows]), arrays["resumed_indices"])
    logits = torch.cat([w.logits for w in windows], dim=1)
    assert relative_error(logits, arrays["resumed_logits"]) < 1e-4


def test_golden_gradient(golden) -> None:
    meta, arrays, tracker, queries, _ = golden
    queries = queries.clone().requires_grad_()
    logits = tracker(queries)[0].logits
    probe = torch.from_numpy(make_input("probe", tuple(logits.shape), meta["seed"]))
    (gradient,) = torch.autograd.grad((logits * probe).sum(), queries)
    gradient = rearrange(gradient, "b t q c -> b c t q")
    assert relative_error(gradient[:, ::4], arrays["grad_frame_embeds"]) < 1e-3
    # The mean of the gradient cancels to nearly nothing: only spread, maximum and sum say something.
    assert np.allclose(stats(gradient)[1:], arrays["grad_frame_embeds_stats"][1:], rtol=1e-3)


def test_float32_stays_near_float64(golden) -> None:
    _, _, tracker, queries, _ = golden
    single = ReferringTracker(num_classes=25)
    fill_state_dict(single, prefix="tracker.")
    with torch.no_grad():
        expected = tracker(queries)[0].logits
        actual = single(queries.float())[0].logits
    assert actual.dtype == torch.float32
    assert relative_error(actual, expected.numpy()) < 5e-4


def test_equals_the_plain_form_and_its_gradients() -> None:
    tracker = small_tracker()
    queries = random_queries(2, 4, 7, 16).requires_grad_()
    probe = random_queries(2, 4, 7, 16, seed=1)
    actual = tracker(queries)[0].queries
    expected = plain_outputs(tracker, queries)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    wrt = [queries, *(p for name, p in tracker.named_parameters() if name.startswith("transformer"))]
    for a, b in zip(
        torch.autograd.grad((actual * probe).sum(), wrt),
        torch.autograd.grad((expected * probe).sum(), wrt),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_compiled_layers_give_the_same() -> None:
    plain, tracker = small_tracker().eval(), small_tracker().eval()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    tracker.compile_layers("aot_eager")
    state = compiled_state = None
    with torch.no_grad():
        for window in random_queries(1, 9, 5, 16).split([3, 5, 1], dim=1):
            expected, state = plain(window, state)
            found, compiled_state = tracker(window, compiled_state)
            torch.testing.assert_close(found.queries, expected.queries)
    # The first frame, which refers to itself, and the others: not one per frame or window.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert tracker.state_dict().keys() == plain.state_dict().keys()


def test_every_parameter_gets_a_gradient() -> None:
    tracker = small_tracker().train()
    linked, _ = tracker(random_queries(1, 3, 4, 16))
    assert len(linked.aux) == 2
    sum((x**2).sum() for x in (linked.logits, linked.mask_embeds)).backward()
    without = [name for name, p in tracker.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (3, 1, 5, 16), (2, 5, 9, 16)])
def test_shapes(shape: tuple[int, int, int, int]) -> None:
    B, T, Q, C = shape
    tracker = small_tracker()
    linked, state = tracker(random_queries(*shape))
    assert linked.logits.shape == (B, T, Q, 6)
    assert linked.queries.shape == (B, T, Q, C)
    assert linked.mask_embeds.shape == (B, T, Q, 12)
    assert linked.order.shape == (B, T, Q)
    assert linked.aux == ()
    assert state.aligned.shape == state.output.shape == (B, Q, C)
    assert tracker.frame_forward(random_queries(*shape)).shape == (B, T, Q, C)


def test_causal() -> None:
    tracker = small_tracker()
    queries = random_queries(1, 6, 5, 16)
    changed = queries.clone()
    changed[:, 4:] = random_queries(1, 2, 5, 16, seed=3)
    before, after = tracker(queries)[0], tracker(changed)[0]
    assert torch.equal(before.logits[:, :4], after.logits[:, :4])
    assert torch.equal(before.mask_embeds[:, :4], after.mask_embeds[:, :4])
    assert not torch.equal(before.logits[:, 4:], after.logits[:, 4:])


@pytest.mark.parametrize("lengths", [[6], [1] * 6, [4, 2], [1, 5]])
@pytest.mark.parametrize("initial_value", ["zero", "previous", "segmenter", "matched"])
def test_split_and_continued_equals_one_pass(lengths: list[int], initial_value: str) -> None:
    tracker = small_tracker(initial_value=initial_value)
    queries = random_queries(2, 6, 5, 16)
    expected, last = tracker(queries)
    state: TrackerState | None = None
    parts = []
    for window in queries.split(lengths, dim=1):
        linked, state = tracker(window, state)
        parts.append(linked)
    assert state is not None
    torch.testing.assert_close(
        torch.cat([p.logits for p in parts], dim=1), expected.logits, atol=1e-12, rtol=0
    )
    assert torch.equal(torch.cat([p.order for p in parts], dim=1), expected.order)
    torch.testing.assert_close(state.output, last.output, atol=1e-12, rtol=0)
    assert torch.equal(state.aligned, last.aligned)


def test_state_is_not_changed() -> None:
    tracker = small_tracker()
    _, state = tracker(random_queries(1, 2, 5, 16))
    copy = state.output.clone(), state.aligned.clone()
    tracker(random_queries(1, 2, 5, 16, seed=2), state)
    assert torch.equal(state.output, copy[0])
    assert torch.equal(state.aligned, copy[1])
    assert not dict(tracker.named_buffers())


@pytest.mark.parametrize("matching", ["inverse", "forward"])
def test_shuffled_queries_give_shuffled_results(matching: str) -> None:
    tracker = small_tracker(matching=matching)
    queries = random_queries(2, 4, 7, 16)
    shuffle = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    expected, actual = tracker(queries)[0], tracker(queries[:, :, shuffle])[0]
    torch.testing.assert_close(actual.logits, expected.logits[:, :, shuffle], atol=1e-12, rtol=0)


def test_forward_matching_does_not_depend_on_the_order_within_later_frames() -> None:
    tracker = small_tracker(matching="forward")
    queries = random_queries(1, 4, 7, 16)
    shuffled = queries.clone()
    for t in range(1, 4):
        shuffled[:, t] = queries[:, t, torch.randperm(7, generator=torch.Generator().manual_seed(t))]
    expected, actual = tracker(queries)[0], tracker(shuffled)[0]
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-12, rtol=0)


def test_shuffled_in_every_frame() -> None:
    # Each clip and frame is shuffled in its own way, reproducibly; `order` refers to the queries as given.
    tracker = small_tracker(initial_value="segmenter", matching="forward", shuffle_queries=True)
    queries = random_queries(2, 4, 7, 16).requires_grad_()
    torch.manual_seed(0)
    linked, state = tracker(queries)
    orders = linked.order.flatten(0, 1)
    assert torch.equal(orders.sort(-1).values, torch.arange(7).expand(8, 7))
    assert not torch.equal(linked.order[:, 0], torch.arange(7).expand(2, 7))  # first frames, too
    torch.testing.assert_close(gather_queries(queries, linked.order)[:, -1], state.aligned)
    (gradient,) = torch.autograd.grad(linked.logits.square().sum(), queries)
    assert gradient.abs().amin(-1).gt(0).all()

    # What is matched does not depend on the order; from unmatched queries the output does.
    first = orders.reshape(2, 4, 7)[:, :1]
    matched, plain = (
        small_tracker(matching="forward", shuffle_queries=True),
        small_tracker(matching="forward"),
    )
    in_slots, _ = plain(torch.cat([gather_queries(queries[:, :1], first), queries[:, 1:]], dim=1))
    torch.manual_seed(0)
    torch.testing.assert_close(matched(queries)[0].logits, in_slots.logits, atol=1e-12, rtol=0)
    again, _ = tracker(queries)
    assert not torch.allclose(again.logits, linked.logits, atol=1e-3)


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    tracker = small_tracker()
    queries = random_queries(3, 4, 5, 16)
    together, state = tracker(queries)
    again, _ = tracker(queries, state)
    for b in range(3):
        alone, own_state = tracker(queries[b : b + 1])
        torch.testing.assert_close(alone.logits[0], together.logits[b], atol=1e-12, rtol=0)
        alone_again, _ = tracker(queries[b : b + 1], own_state)
        torch.testing.assert_close(alone_again.logits[0], again.logits[b], atol=1e-12, rtol=0)


@pytest.mark.parametrize("cross_attention", ["referring", "standard"])
@pytest.mark.parametrize("initial_value", ["zero", "previous", "segmenter", "matched"])
def test_ablation_switches(initial_value: str, cross_attention: str) -> None:
    tracker = small_tracker(initial_value=initial_value, cross_attention=cross_attention)
    queries = random_queries(1, 2, 5, 16)
    linked, _ = tracker(queries)

    first = tracker.frame_forward(queries)[:, 0]
    torch.testing.assert_close(
        linked.queries[:, 0], first, atol=1e-12, rtol=0
    )  # the first frame has no switch
    _, state = tracker(queries[:, :1])
    aligned = gather_queries(queries, linked.order)[:, 1]
    starts = {
        "zero": torch.zeros_like(aligned),
        "previous": state.output,
        "segmenter": queries[:, 1],
        "matched": aligned,
    }
    x = starts[initial_value]
    layers = zip(
        tracker.transformer_cross_attention_layers,
        tracker.transformer_self_attention_layers,
        tracker.transformer_ffn_layers,
        strict=True,
    )
    for cross_layer, self_layer, ffn_layer in layers:
        query = state.output if cross_attention == "referring" else x
        x = ffn_layer(self_layer(cross_layer(query, queries[:, 1], identity=x)))
    torch.testing.assert_close(linked.queries[:, 1], tracker.decoder_norm(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial_value": "last"}, "MODEL.TRACKER.INITIAL_VALUE is 'last'; allowed are zero, previous"),
        ({"cross_attention": "plain"}, "MODEL.TRACKER.CROSS_ATTENTION is 'plain'"),
        ({"matching": "both"}, "MODEL.TRACKER.MATCHING is 'both'"),
        ({"num_layers": 0}, "MODEL.TRACKER.DECODER_LAYERS must be at least 1, not 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_tracker(**settings)


def test_bad_input() -> None:
    tracker = small_tracker()
    with pytest.raises(ValueError, match="T >= 1"):
        tracker(random_queries(1, 0, 5, 16))
    with pytest.raises(ValueError, match="B T Q C"):
        tracker(random_queries(3, 5, 16))
    _, state = tracker(random_queries(1, 1, 5, 16))
    with pytest.raises(ValueError, match="previous"):
        tracker(random_queries(2, 1, 5, 16), state)
    broken = random_queries(2, 3, 5, 16)
    broken[1, 2, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="clip 1 of the batch, frame 2"):
        tracker(broken)
