from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dvis.data.rle import decode_rle
from dvis.inference import postprocess as module
from dvis.inference.postprocess import FrameSizes, PostprocessSettings, postprocess
from tests.weights import make_input

T, Q, K = 4, 9, 5
SIZES = FrameSizes(padded=(32, 40), image=(27, 38), output=(51, 64))


class Masks:
    """Mask logits in memory, ``Q T h w``; remembers what was read."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.slots_read: set[int] = set()

    @property
    def num_frames(self) -> int:
        return self.logits.shape[1]

    def read(self, slots: Tensor, start: int, stop: int) -> Tensor:
        self.slots_read.update(slots.tolist())
        return self.logits[slots, start:stop]


@pytest.fixture
def masks() -> Masks:
    return Masks(torch.from_numpy(make_input("mask logits", (Q, T, 8, 10), std=2)))


@pytest.fixture
def probabilities() -> Tensor:
    return torch.from_numpy(make_input("class logits", (Q, K + 1), std=2)).softmax(-1)


@pytest.fixture(params=[1, 20_000, 10**9], ids=["one map at a time", "some", "all at once"])
def step_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(module, "STEP_ELEMENTS", request.param)
    return request.param


def to_image(maps: Tensor) -> Tensor:
    """The published way, all at once: to the padded input, cut."""
    maps = F.interpolate(maps, size=SIZES.padded, mode="bilinear", align_corners=False)
    return maps[..., : SIZES.image[0], : SIZES.image[1]]


def to_output(maps: Tensor) -> Tensor:
    return F.interpolate(maps, size=SIZES.output, mode="bilinear", align_corners=False)


def test_vis_against_plain_version(masks: Masks, probabilities: Tensor, step_elements: int) -> None:
    result = postprocess("vis", probabilities, masks, SIZES, PostprocessSettings(max_num=7))
    scores, index = probabilities[:, :-1].flatten().sort(descending=True)
    full = to_output(to_image(masks.logits)) > 0
    assert result["task"] == "vis"
    assert result["image_size"] == SIZES.output
    assert result["pred_scores"] == scores[:7].tolist()
    assert result["pred_labels"] == (index[:7] % K).tolist()
    assert result["pred_ids"] == (index[:7] // K).tolist()
    assert torch.equal(result["pred_masks"], full[index[:7] // K])


def test_vis_makes_only_the_masks_that_are_kept(masks: Masks, probabilities: Tensor) -> None:
    result = postprocess("vis", probabilities, masks, SIZES, PostprocessSettings(max_num=3))
    assert masks.slots_read == set(result["pred_ids"])


def test_vis_codes_equal_bitmasks(masks: Masks, probabilities: Tensor, step_elements: int) -> None:
    bits = postprocess("vis", probabilities, masks, SIZES, PostprocessSettings())
    codes = postprocess("vis", probabilities, masks, SIZES, PostprocessSettings(mask_format="rle"))
    assert len(codes["pred_masks"]) == len(bits["pred_masks"])
    for tube, expected in zip(codes["pred_masks"], bits["pred_masks"], strict=True):
        assert [code["size"] for code in tube] == [list(SIZES.output)] * T
        assert np.array_equal([decode_rle(code) for code in tube], expected.numpy())


def test_one_slot_with_several_classes(masks: Masks) -> None:
    probabilities = torch.full((Q, K + 1), 0.01)
    probabilities[4, 1], probabilities[4, 3] = 0.5, 0.4
    result = postprocess("vis", probabilities, masks, SIZES, PostprocessSettings(max_num=2))
    assert result["pred_ids"] == [4, 4]
    assert result["pred_labels"] == [1, 3]
    assert torch.equal(result["pred_masks"][0], result["pred_masks"][1])


@pytest.mark.parametrize("mask_format", ["bitmask", "rle"])
def test_vis_without_detection(masks: Masks, probabilities: Tensor, mask_format: str) -> None:
    settings = PostprocessSettings(min_score=2.0, mask_format=mask_format)
    result = postprocess("vis", probabilities, masks, SIZES, settings)
    assert result["pred_scores"] == result["pred_labels"] == result["pred_ids"] == []
    assert len(result["pred_masks"]) == 0
    if mask_format == "bitmask":
        assert result["pred_masks"].shape == (0, T, *SIZES.output)


def plain_panoptic(
    probabilities: Tensor, logits: Tensor, settings: PostprocessSettings
) -> tuple[Tensor, list[dict[str, Any]], list[int]]:
    """The published algorithm, with everything in memory."""
    scores, labels = probabilities.max(-1)
    kept = ((labels != K) & (scores > settings.object_threshold)).nonzero()[:, 0]
    result = torch.zeros(T, *SIZES.output, dtype=torch.int32)
    segments: list[dict[str, Any]] = []
    ids: list[int] = []
    if not len(kept):
        return result, segments, ids
    probs = to_output(to_image(logits[kept]).sigmoid())
    winner = (scores[kept].view(-1, 1, 1, 1) * probs).argmax(0)
    stuff: dict[int, int] = {}
    for n, slot in enumerate(kept.tolist()):
        label = int(labels[slot])
        won, own = winner == n, probs[n] >= 0.5
        area, mask = own.sum(), won & own
        if not mask.any() or won.sum() / area < settings.overlap_threshold:
            continue
        if label not in settings.thing_classes:
            if label in stuff:
                result[mask] = stuff[label]
                continue
            stuff[label] = len(segments) + 1
        segments.append(
            {"id": len(segments) + 1, "isthing": label in settings.thing_classes, "category_id": label}
        )
        ids.append(slot)
        result[mask] = len(segments)
    return result, segments, ids


@pytest.mark.parametrize("object_threshold", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("overlap_threshold", [0.0, 0.2, 0.8])
def test_vps_against_plain_version(
    masks: Masks, probabilities: Tensor, step_elements: int, object_threshold: float, overlap_threshold: float
) -> None:
    settings = PostprocessSettings(
        object_threshold=object_threshold,
        overlap_threshold=overlap_threshold,
        thing_classes=frozenset({0, 1}),
    )
    result = postprocess("vps", probabilities, masks, SIZES, settings)
    expected, segments, ids = plain_panoptic(probabilities, masks.logits, settings)
    assert result["segments_infos"] == segments
    assert result["pred_ids"] == ids
    assert torch.equal(result["pred_masks"], expected)


def test_vps_merges_stuff_and_keeps_slot_order(masks: Masks) -> None:
    probabilities = torch.full((Q, K + 1), 0.0)
    probabilities[:, 3] = torch.linspace(0.5, 0.9, Q)
    settings = PostprocessSettings(thing_classes=frozenset({0}))
    stuff = postprocess("vps", probabilities, masks, SIZES, settings)
    assert [s["category_id"] for s in stuff["segments_infos"]] == [3]
    things = postprocess(
        "vps", probabilities, masks, SIZES, PostprocessSettings(thing_classes=frozenset({3}))
    )
    assert things["pred_ids"] == sorted(things["pred_ids"])
    assert len(things["pred_ids"]) > 1
    assert torch.equal(stuff["pred_masks"] > 0, things["pred_masks"] > 0)


def test_vss_against_plain_version(masks: Masks, probabilities: Tensor, step_elements: int) -> None:
    result = postprocess("vss", probabilities, masks, SIZES, PostprocessSettings())
    probs = to_output(to_image(masks.logits).sigmoid())
    votes = torch.einsum("qk,qthw->kthw", probabilities[:, :-1], probs)
    assert result["pred_masks"].dtype == torch.uint8
    # Another order of summation may decide between equals.
    assert (result["pred_masks"] != votes.argmax(0)).sum() <= 2


def test_vss_with_many_classes(masks: Masks) -> None:
    probabilities = torch.zeros(Q, 301)
    probabilities[:, 299] = 1
    result = postprocess("vss", probabilities, masks, SIZES, PostprocessSettings())
    assert result["pred_masks"].unique().tolist() == [299]


def test_errors(masks: Masks, probabilities: Tensor) -> None:
    with pytest.raises(ValueError, match="TASK is 'vos'; allowed are vis, vps, vss"):
        postprocess("vos", probabilities, masks, SIZES, PostprocessSettings())
    with pytest.raises(ValueError, match="MASK_FORMAT is 'png'; allowed are bitmask, rle"):
        PostprocessSettings(mask_format="png")
    with pytest.raises(ValueError, match="MAX_NUM must be at least 1, not 0"):
        PostprocessSettings(max_num=0)
