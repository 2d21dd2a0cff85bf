"""What only a CUDA device can show: how often the host waits; compiled, pinned, half-precision variants."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from dvis.api import VideoSegmenter
from dvis.modeling.meta_arch import VideoModel
from tests.dvis.tiny import tiny_model, tiny_video

pytestmark = pytest.mark.gpu


def on_gpu(mode: str, *overrides: Any) -> VideoModel:
    return tiny_model(mode, "MODEL.DEVICE", "cuda", *overrides)


def synchronisations(model: VideoModel, num_frames: int) -> int:
    """How often the host waits for the device while one window is segmented and linked."""
    frames = model.prepare([frame.cuda() for frame in tiny_video(num_frames)]).frames
    with torch.no_grad():
        model.link(model.segment(frames), None)  # what is allocated once
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                model.link(model.segment(frames), None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in found)


@pytest.mark.parametrize("mode", ["minvis", "online", "offline"])
def test_the_host_waits_per_window_and_not_per_frame(mode: str) -> None:
    model = on_gpu(mode)
    assert synchronisations(model, 2) == synchronisations(model, 6)


def test_inductor_gives_the_same() -> None:
    video = {"image": tiny_video(6)}
    expected = on_gpu("online")([video])[0]
    found = on_gpu("online", "MODEL.MASK_FORMER.TEST.COMPILE", "inductor")([video])[0]
    assert found["pred_scores"] == pytest.approx(expected["pred_scores"], abs=1e-3)
    assert (found["pred_masks"] == expected["pred_masks"]).float().mean() > 0.99


def test_reading_ahead_into_pinned_memory_changes_nothing(tmp_path: Any) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for t in range(20):
        Image.fromarray(rng.integers(0, 256, (37, 54, 3), dtype=np.uint8)).save(tmp_path / f"{t:03d}.png")
    model = on_gpu("online")
    results = [VideoSegmenter(model, read_ahead=count).segment_video(tmp_path) for count in (0, 4)]
    assert results[0].scores == pytest.approx(results[1].scores, abs=1e-6)
    assert results[0].ids == results[1].ids
    assert results[0].masks == results[1].masks


def test_the_frozen_segmenter_in_half_precision_trains() -> None:
    from benchmarks.run import make_clip

    model = on_gpu("offline", "MODEL.MASK_FORMER.FROZEN.PRECISION", "auto").train()
    losses = model([make_clip(5, (45, 64))])
    sum(losses.values()).backward()
    assert all(bool(loss.isfinite()) for loss in losses.values())
