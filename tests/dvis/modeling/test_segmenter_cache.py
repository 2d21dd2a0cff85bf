"""A frozen segmenter's remembered outputs: the same numbers, and only what is new is segmented."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from dvis.modeling.segmenter_cache import SegmenterCache
from dvis.modeling.structures import SegmenterOutput
from tests.dvis.modeling.meta_arch.test_dvis import clip
from tests.dvis.tiny import tiny_model


class Segmenter:
    """Stands in for a segmenter; its outputs are sums over the frame, and it counts frames."""

    def __init__(self) -> None:
        self.num_frames = 0

    def __call__(self, frames: Tensor) -> SegmenterOutput:
        self.num_frames += frames.shape[1]
        total = frames.sum(dim=(2, 3, 4))[..., None, None]
        return SegmenterOutput(
            logits=total.expand(-1, -1, 4, 3),
            masks=None,
            queries=total.expand(-1, -1, 4, 5) + 1,
            mask_features=total[..., None].expand(-1, -1, 5, 2, 2) + 2,
            mask_embeds=total.expand(-1, -1, 4, 5) + 3,
        )


def test_known_frames_are_not_segmented_again() -> None:
    cache, segmenter = SegmenterCache(1.0), Segmenter()
    frames = torch.rand(2, 3, 3, 6, 7)
    expected = Segmenter()(frames)
    for _ in range(2):
        found = cache(segmenter, frames)
        for name in ("logits", "queries", "mask_features", "mask_embeds"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-5)
    assert segmenter.num_frames == len(cache) == 6
    mixed = torch.cat([frames[:, 1:], torch.rand(2, 1, 3, 6, 7)], dim=1)
    torch.testing.assert_close(cache(segmenter, mixed).queries, Segmenter()(mixed).queries)
    assert segmenter.num_frames == 8


def test_a_frame_that_comes_twice_in_a_batch_is_segmented_once() -> None:
    cache, segmenter = SegmenterCache(1.0), Segmenter()
    frame = torch.rand(1, 1, 3, 6, 7)
    cache(segmenter, frame.expand(2, 3, -1, -1, -1))
    assert segmenter.num_frames == 1


def test_equal_pixels_of_another_shape_are_another_frame() -> None:
    cache, segmenter = SegmenterCache(1.0), Segmenter()
    cache(segmenter, torch.ones(1, 1, 3, 6, 8))
    cache(segmenter, torch.ones(1, 1, 3, 8, 6))
    assert segmenter.num_frames == 2


def test_a_full_cache_says_so_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    per_frame = 4 * (12 + 20 + 20 + 20)
    cache, segmenter = SegmenterCache(2.5 * per_frame / 2**30), Segmenter()
    frames = torch.rand(1, 4, 3, 6, 7)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(cache(segmenter, frames).logits, Segmenter()(frames).logits)
    assert len(cache) == 2
    assert segmenter.num_frames == 4 + 2
    assert len(caplog.records) == 1
    assert "FROZEN.CACHE_GB" in caplog.text


def test_a_budget_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"FROZEN\.CACHE_GB"):
        SegmenterCache(-1.0)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_losses_and_gradients_do_not_depend_on_the_cache(mode: str) -> None:
    found = []
    for gigabytes in (0.0, 0.5):
        # Without the cache also one frame at a time: then the segmenter's outputs are equal to the last bit.
        frozen = "MODEL.MASK_FORMER.FROZEN"
        pairs = (f"{frozen}.CACHE_GB", gigabytes, f"{frozen}.WINDOW_SIZE", 1)
        model: Any = tiny_model(mode, *pairs).train()
        for _ in range(2):  # the second time from memory
            torch.manual_seed(0)
            model.zero_grad()
            losses = model([clip(3), clip(3, seed=1)])
            sum(losses.values()).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((losses, gradients))
    assert found[1][1]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_inference_and_a_segmenter_in_training_use_no_cache() -> None:
    for mode in ("minvis", "online"):
        model: Any = tiny_model(mode, "MODEL.MASK_FORMER.FROZEN.CACHE_GB", 0.5)
        if mode == "minvis":
            model.train()([clip(1)])
        else:
            model([clip(3)])
        assert len(model.segmenter_cache) == 0
