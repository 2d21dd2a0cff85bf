"""The copy of a backbone that runs at inference: same numbers, never stale, in nobody's state."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from detectron2.layers import Conv2d, get_norm
from torch import nn

from mask2former.layers import FoldedNetwork, has_foldable_norms


def network(norm: str = "FrozenBN") -> nn.Sequential:
    """Two convolutions with norms whose statistics are not trivial, and one without."""
    layers = [
        Conv2d(3, 32, 3, bias=False, norm=get_norm(norm, 32), activation=nn.functional.relu),
        Conv2d(32, 32, 1, bias=True, norm=get_norm(norm, 32)),
        Conv2d(32, 5, 1),
    ]
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*layers).eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(values + 0.5 if "var" in name else values - 0.4)
    return model


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN", "GN", ""])
@torch.no_grad()
def test_same_numbers_and_state(norm: str) -> None:
    model, images = network(norm), torch.rand(2, 3, 9, 11)
    before = copy.deepcopy(model.state_dict())
    found = FoldedNetwork()(model, images)
    torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert has_foldable_norms(model) == ("BN" in norm)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@torch.no_grad()
def test_changed_weights_are_seen() -> None:
    model, images, folded = network(), torch.rand(1, 3, 6, 6), FoldedNetwork()
    first = folded(model, images)
    assert folded._copy is not None
    kept = folded._copy
    folded(model, images)
    assert folded._copy is kept  # made once
    model[1].norm.running_mean.add_(1)
    torch.testing.assert_close(folded(model, images), model(images), rtol=1e-4, atol=1e-4)
    model.load_state_dict({key: value / 2 for key, value in model.state_dict().items()})
    torch.testing.assert_close(folded(model, images), model(images), rtol=1e-4, atol=1e-4)
    model[0].weight.data = model[0].weight.data * 2
    torch.testing.assert_close(folded(model, images), model(images), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, model(images))
    model[0].weight.data.mul_(3)  # nothing counts this
    folded.forget()
    torch.testing.assert_close(folded(model, images), model(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_autocast_chooses_the_precision() -> None:
    model, images, folded = network(), torch.rand(1, 3, 6, 6), FoldedNetwork()
    exact = folded(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        low = folded(model, images)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(folded(model, images), exact, rtol=0, atol=0)


def test_copies_and_pickles_hold_no_network() -> None:
    folded = FoldedNetwork()
    folded(network(), torch.rand(1, 3, 6, 6))
    for other in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert other._copy is None
