"""The segmenter through torch.compile: same results, same keys, not in training."""

from __future__ import annotations

import pytest
import torch

from tests.dvis.tiny import shared_tiny_model, tiny_model, tiny_video

KEY = "MODEL.MASK_FORMER.TEST.COMPILE"


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_segmenter_gives_the_same(backend: str) -> None:
    plain, model = shared_tiny_model("online"), tiny_model("online", KEY, backend)
    assert model.state_dict().keys() == plain.state_dict().keys()
    video = {"image": tiny_video(4)}  # windows of three frames and of one
    torch._dynamo.reset()
    expected, found = plain([video])[0], model([video])[0]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert found["pred_ids"] == expected["pred_ids"]
    assert found["pred_scores"] == pytest.approx(expected["pred_scores"], abs=1e-5)
    agreement = (found["pred_masks"] == expected["pred_masks"]).float().mean()
    assert agreement > 0.999


def test_unknown_back_end() -> None:
    with pytest.raises(ValueError, match=r"TEST.COMPILE is 'fast'; allowed are '' and .*inductor"):
        tiny_model("online", KEY, "fast")
