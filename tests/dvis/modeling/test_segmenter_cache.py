"""A frozen segmenter's remembered outputs: the same numbers, and only what is new is segmented."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
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


def assert_equal(found: SegmenterOutput, expected: SegmenterOutput, tolerance: float = 0) -> None:
    for name in ("logits", "queries", "mask_features", "mask_embeds"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance)


def test_known_frames_are_not_segmented_again() -> None:
    cache, segmenter = SegmenterCache(1.0), Segmenter()
    frames = torch.rand(2, 3, 3, 6, 7)
    expected = Segmenter()(frames)
    for _ in range(2):
        found = cache(segmenter, frames)
        assert_equal(found, expected, tolerance=1e-5)
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


def test_a_folder_is_shared(tmp_path: Path) -> None:
    frames = torch.rand(2, 3, 3, 6, 7)
    first, segmenter = SegmenterCache(1.0, tmp_path), Segmenter()
    expected = first(segmenter, frames)
    # One more frame than the six: the one by which the segmenter is known.
    assert segmenter.num_frames == 7
    again = SegmenterCache(0.0, tmp_path)
    segmenter = Segmenter()
    for _ in range(2):
        assert_equal(again(segmenter, frames), expected)
    assert segmenter.num_frames == 1
    assert len(again) == 0


def test_another_segmenter_has_its_own_part_of_the_folder(tmp_path: Path) -> None:
    frames = torch.rand(1, 2, 3, 6, 7)
    SegmenterCache(1.0, tmp_path)(Segmenter(), frames)
    other = Segmenter()
    shifted = SegmenterCache(1.0, tmp_path)(lambda frames: other(frames + 1e-3), frames)
    assert other.num_frames == 3
    torch.testing.assert_close(shifted.queries, Segmenter()(frames + 1e-3).queries)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = torch.rand(1, 2, 3, 6, 7)
    expected = SegmenterCache(1.0, tmp_path)(Segmenter(), frames)
    files = sorted(tmp_path.glob("*/*.pt"))
    assert len(files) == 2
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:100])
    for is_damaged in (True, False):
        segmenter = Segmenter()
        caplog.clear()
        found = SegmenterCache(1.0, tmp_path)(segmenter, frames)
        assert_equal(found, expected)
        assert segmenter.num_frames == (3 if is_damaged else 1)
        assert ("cannot be read" in caplog.text) == is_damaged
    assert sorted(tmp_path.glob("*/*")) == files, "nothing is left behind"


def test_a_full_disk_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    frames = torch.rand(1, 3, 3, 6, 7)
    monkeypatch.setattr(torch, "save", fail)
    assert_equal(SegmenterCache(1.0, tmp_path)(Segmenter(), frames), Segmenter()(frames), tolerance=1e-5)
    assert [record.message for record in caplog.records] == [
        f"{next(tmp_path.iterdir())} takes no more frames: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"
    ]
    assert not list(tmp_path.glob("*/*"))


def test_the_folder_takes_over_when_the_memory_is_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, segmenter = SegmenterCache(1.5 * 4 * (12 + 20 + 20 + 20) / 2**30, tmp_path), Segmenter()
    frames = torch.rand(1, 4, 3, 6, 7)
    for _ in range(2):
        torch.testing.assert_close(cache(segmenter, frames).logits, Segmenter()(frames).logits)
    assert len(cache) == 1
    assert segmenter.num_frames == 1 + 4
    assert not caplog.records


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"FROZEN\.CACHE_GB"):
        SegmenterCache(-1.0)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_losses_and_gradients_do_not_depend_on_the_cache(mode: str, tmp_path: Path) -> None:
    found = []
    for gigabytes, folder in ((0.0, ""), (0.5, ""), (0.0, str(tmp_path))):
        # Without the cache also one frame at a time: then the segmenter's outputs are equal to the last bit.
        frozen = "MODEL.MASK_FORMER.FROZEN"
        pairs = (f"{frozen}.CACHE_GB", gigabytes, f"{frozen}.CACHE_DIR", folder, f"{frozen}.WINDOW_SIZE", 1)
        model: Any = tiny_model(mode, *pairs).train()
        for _ in range(2):  # the second time from memory
            torch.manual_seed(0)
            model.zero_grad()
            losses = model([clip(3), clip(3, seed=1)])
            sum(losses.values()).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((losses, gradients))
    assert found[1][1]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_inference_and_a_segmenter_in_training_use_no_cache() -> None:
    for mode in ("minvis", "online"):
        model: Any = tiny_model(mode, "MODEL.MASK_FORMER.FROZEN.CACHE_GB", 0.5)
        if mode == "minvis":
            model.train()([clip(1)])
        else:
            model([clip(3)])
        assert len(model.segmenter_cache) == 0
