"""The criterion against the published losses, gradients and order of random draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mask2former.modeling.criterion import SetCriterion, build_criterion, loss_weights
from mask2former.modeling.matcher import HungarianMatcher, MatchingWeights
from mask2former.modeling.points import uncertain_points as uncertain
from tests.mask2former.tiny import tiny_cfg
from tests.reference import load_golden, relative_error
from tests.weights import RandTape, make_input

K = 3


def criterion(**changes: Any) -> SetCriterion:
    settings: dict[str, Any] = {
        "num_classes": K,
        "matcher": HungarianMatcher(MatchingWeights(2.0, 5.0, 5.0), 16),
        "weight_dict": {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0},
        "eos_coef": 0.1,
        "num_points": 16,
        "oversample_ratio": 3.0,
        "importance_sample_ratio": 0.75,
        **changes,
    }
    return SetCriterion(**settings)


def clips(b: int = 2, t: int = 1, counts: tuple[int, ...] = (2, 3)) -> tuple[dict[str, Tensor], list[dict]]:
    generator = torch.Generator().manual_seed(7)
    outputs = {
        "pred_logits": torch.randn(b, 5, K + 1, generator=generator).requires_grad_(),
        "pred_masks": torch.randn(b, 5, t, 6, 7, generator=generator).requires_grad_(),
    }
    targets = [
        {
            "labels": torch.randint(K, (n,), generator=generator),
            "masks": torch.rand(n, t, 24, 28, generator=generator) > 0.5,
        }
        for n in counts
    ]
    return outputs, targets


def test_losses_and_gradients_match_golden(monkeypatch) -> None:
    meta, golden = load_golden("criterion")
    t, q = meta["frames"], meta["Q"]
    logits = torch.from_numpy(make_input("logits", [t, q, meta["K"] + 1], meta["seed"], 2.0)).requires_grad_()
    size = [t, q, 1, meta["h"] // 4, meta["w"] // 4]
    masks = torch.from_numpy(make_input("masks", size, meta["seed"], 3.0)).requires_grad_()
    shape = golden["gt_shape"]
    truth = torch.from_numpy(np.unpackbits(golden["gt"])[: np.prod(shape)].reshape(shape).astype(bool))
    labels = torch.from_numpy(golden["labels"])
    targets = [{"labels": labels, "masks": truth[:, f : f + 1]} for f in range(t)]
    indices = [(torch.from_numpy(golden[f"src_{f}"]), torch.from_numpy(golden[f"tgt_{f}"])) for f in range(t)]
    model = criterion(
        num_classes=meta["K"],
        eos_coef=meta["eos_coef"],
        num_points=meta["points"],
        oversample_ratio=meta["oversample_ratio"],
        importance_sample_ratio=meta["importance_sample_ratio"],
    )
    monkeypatch.setattr(torch, "rand", tape := RandTape(meta["seed"]))
    coords = []
    monkeypatch.setattr(
        "mask2former.modeling.criterion.uncertain_points",
        lambda *args, original=uncertain: coords.append(original(*args)) or coords[-1],
    )
    losses = model({"pred_logits": logits, "pred_masks": masks}, targets, indices)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(meta["losses"], rel=1e-5)
    assert tape.shapes == [tuple(shape) for shape in golden["rand_shapes"]]
    np.testing.assert_allclose(coords[0], golden["point_coords"], atol=1e-6)
    sum(model.weighted(losses).values()).backward()
    assert relative_error(logits.grad, golden["grad_logits"]) < 1e-4
    assert relative_error(masks.grad[:, ::2], golden["grad_masks"]) < 1e-4


def test_order_of_draws(monkeypatch) -> None:
    """As in the published training: per layer the matching, then the points of the mask loss."""
    outputs, targets = clips(counts=(2, 1))
    aux = [clips()[0], clips()[0]]
    per_layer = [(1, 16, 2), (1, 16, 2), (3, 48, 2), (3, 4, 2)]
    monkeypatch.setattr(torch, "rand", tape := RandTape(0))
    losses = criterion()({**outputs, "aux_outputs": aux}, targets)
    assert tape.shapes == per_layer * 3
    assert list(losses) == [
        f"{name}{suffix}" for suffix in ("", "_0", "_1") for name in ("loss_ce", "loss_mask", "loss_dice")
    ]
    monkeypatch.setattr(torch, "rand", tape := RandTape(0))
    indices = [(torch.tensor([0, 4]), torch.tensor([1, 0])), (torch.tensor([2]), torch.tensor([0]))]
    criterion()({**outputs, "aux_outputs": aux}, targets, indices)
    assert tape.shapes == per_layer[2:] * 3


def test_clip_draws_as_published(monkeypatch) -> None:
    """Shapes of ``train_dvis_offline``: points of all frames of a clip in one draw, one row per object."""
    outputs, targets = clips(1, 6, (3,))
    monkeypatch.setattr(torch, "rand", tape := RandTape(0))
    criterion()(outputs, targets)
    assert tape.shapes == [(1, 96, 2), (3, 288, 2), (3, 24, 2)]


def test_guided_matching_may_differ_per_layer() -> None:
    outputs, targets = clips(counts=(1, 1))
    first = [(torch.tensor([0]), torch.tensor([0]))] * 2
    other = [(torch.tensor([3]), torch.tensor([0]))] * 2
    model = criterion()

    def ce(**arguments: Any) -> tuple[float, float]:
        losses = model({**outputs, "aux_outputs": [outputs]}, targets, **arguments)
        return losses["loss_ce"].item(), losses["loss_ce_0"].item()

    a, b = ce(indices=first)
    assert a == b
    c, d = ce(indices=first, aux_indices=[other])
    assert (c, d) == (a, ce(indices=other)[0])
    assert c != d


def test_batch_equals_its_clips() -> None:
    """With matching given and many points, the losses of two clips are the mean of those of each."""
    outputs, targets = clips(counts=(2, 2))
    indices = [(torch.tensor([0, 1]), torch.tensor([0, 1])), (torch.tensor([3, 4]), torch.tensor([1, 0]))]
    model = criterion(num_points=4000, importance_sample_ratio=0.0, oversample_ratio=1.0)
    torch.manual_seed(0)
    both = model(outputs, targets, indices)
    single = [
        model({k: v[b : b + 1] for k, v in outputs.items()}, targets[b : b + 1], indices[b : b + 1])
        for b in range(2)
    ]
    for name in ("loss_mask", "loss_dice"):
        assert both[name].item() == pytest.approx(sum(s[name].item() for s in single) / 2, rel=0.02)


def test_clip_without_objects_keeps_the_graph() -> None:
    outputs, targets = clips(counts=(0, 0))
    losses = criterion()(outputs, targets)
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    assert losses["loss_ce"].item() > 0
    sum(losses.values()).backward()
    assert not outputs["pred_masks"].grad.any()
    assert outputs["pred_logits"].grad.any()


def test_one_empty_clip_beside_another() -> None:
    outputs, targets = clips(counts=(0, 2))
    losses = criterion()(outputs, targets)
    sum(losses.values()).backward()
    assert not outputs["pred_masks"].grad[0].any()
    assert outputs["pred_masks"].grad[1].any()


def test_losses_are_single_precision_under_autocast() -> None:
    outputs, targets = clips()
    low = {name: value.detach().half().requires_grad_() for name, value in outputs.items()}
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion()(low, targets)
    torch.manual_seed(0)
    expected = criterion()({name: value.float() for name, value in low.items()}, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name])


def test_number_of_masks_is_averaged_over_processes(monkeypatch) -> None:
    outputs, targets = clips(counts=(2, 1))
    indices = [(torch.tensor([0, 4]), torch.tensor([1, 0])), (torch.tensor([2]), torch.tensor([0]))]
    torch.manual_seed(0)
    alone = criterion()(outputs, targets, indices)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(9.0))  # the other one has 9
    torch.manual_seed(0)
    shared = criterion()(outputs, targets, indices)
    torch.testing.assert_close(shared["loss_mask"] * 6, alone["loss_mask"] * 3)
    torch.testing.assert_close(shared["loss_ce"], alone["loss_ce"])


def test_weights_come_from_the_configuration() -> None:
    cfg = tiny_cfg()
    model = build_criterion(cfg, 2)
    assert model.weight_dict == loss_weights(cfg, 2)
    assert model.weight_dict["loss_ce"] == model.weight_dict["loss_ce_1"] == 2.0
    assert model.weight_dict["loss_mask_0"] == model.weight_dict["loss_dice"] == 5.0
    assert "loss_ce_2" not in model.weight_dict
    assert model.empty_weight.tolist() == pytest.approx([1.0] * 4 + [0.1])
    assert list(model.state_dict()) == ["empty_weight"]
    weighted = model.weighted({"loss_ce": torch.tensor(1.5), "unknown": torch.tensor(1.0)})
    assert {name: loss.item() for name, loss in weighted.items()} == {"loss_ce": 3.0}


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"OVERSAMPLE_RATIO.*0\.5"):
        criterion(oversample_ratio=0.5)
    with pytest.raises(ValueError, match=r"IMPORTANCE_SAMPLE_RATIO.*1\.5"):
        criterion(importance_sample_ratio=1.5)
