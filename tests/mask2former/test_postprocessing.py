"""Semantic, panoptic and instance results against slow plain forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mask2former.postprocessing import (
    MaskResizer,
    instance_inference,
    panoptic_inference,
    semantic_inference,
)

Q, K = 12, 4
RESIZER = MaskResizer((32, 64), (30, 61), (47, 90))


@pytest.fixture
def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    smooth = F.interpolate(torch.randn(1, Q, 3, 5, generator=generator) * 6, size=(8, 16), mode="bicubic")[0]
    return torch.randn(Q, K + 1, generator=generator) * 3, smooth


def full_size(masks: torch.Tensor) -> torch.Tensor:
    masks = F.interpolate(masks[None], size=(32, 64), mode="bilinear", align_corners=False)[..., :30, :61]
    return F.interpolate(masks, size=(47, 90), mode="bilinear", align_corners=False)[0]


def test_resizer_matches_two_plain_steps(predictions: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.testing.assert_close(RESIZER(predictions[1]), full_size(predictions[1]))
    assert RESIZER(predictions[1][:0]).shape == (0, 47, 90)


def test_semantic(predictions: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, masks = predictions
    classes = logits.softmax(-1)[:, :K]
    first = semantic_inference(logits, masks, RESIZER, resize_logits=True)
    expected = sum(c[:, None, None] * m.sigmoid() for c, m in zip(classes, full_size(masks), strict=True))
    torch.testing.assert_close(first, expected)
    padded = F.interpolate(masks[None], size=(32, 64), mode="bilinear")[0]
    scores = sum(c[:, None, None] * m.sigmoid() for c, m in zip(classes, padded, strict=True))
    expected = F.interpolate(scores[None, :, :30, :61], size=(47, 90), mode="bilinear")[0]
    torch.testing.assert_close(semantic_inference(logits, masks, RESIZER), expected)


def plain_panoptic(logits, masks, things, object_threshold, overlap_threshold):
    """Segment by segment, in query order."""
    scores, labels = logits.softmax(-1).max(-1)
    kept = [q for q in range(Q) if labels[q] != K and scores[q] > object_threshold]
    probability = full_size(masks).sigmoid()
    panoptic, segments, stuff = torch.zeros(47, 90, dtype=torch.int32), [], {}
    if not kept:
        return panoptic, segments
    owner = torch.tensor(kept)[torch.stack([scores[q] * probability[q] for q in kept]).argmax(0)]
    for q in kept:
        label, inside = labels[q].item(), probability[q] >= 0.5
        visible = (owner == q) & inside
        if not visible.any() or (owner == q).sum() / inside.sum() < overlap_threshold:
            continue
        if label not in things and label in stuff:
            panoptic[visible] = stuff[label]
            continue
        segments.append({"id": len(segments) + 1, "isthing": label in things, "category_id": label})
        panoptic[visible] = len(segments)
        if label not in things:
            stuff[label] = len(segments)
    return panoptic, segments


@pytest.mark.parametrize(("object_threshold", "overlap_threshold"), [(0.0, 0.0), (0.5, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("things", [{0, 1}, set(), {0, 1, 2, 3}])
def test_panoptic(predictions, things, object_threshold: float, overlap_threshold: float) -> None:
    logits, masks = predictions
    arguments = (things, object_threshold, overlap_threshold)
    panoptic, segments = panoptic_inference(logits, masks, RESIZER, *arguments)
    expected, expected_segments = plain_panoptic(logits, masks, *arguments)
    assert panoptic.dtype == torch.int32
    assert torch.equal(panoptic, expected)
    assert segments == expected_segments
    assert bool(segments) == (object_threshold < 1)


def test_panoptic_merges_stuff() -> None:
    logits = torch.full((3, K + 1), -9.0)
    logits[:, 2] = 9.0
    masks = torch.full((3, 8, 16), -9.0)
    for q in range(3):
        masks[q, :, 5 * q : 5 * q + 5] = 9.0
    panoptic, segments = panoptic_inference(logits, masks, RESIZER, {0}, 0.5, 0.5)
    assert segments == [{"id": 1, "isthing": False, "category_id": 2}]
    assert panoptic.unique().tolist() == [0, 1]
    assert len(panoptic_inference(logits, masks, RESIZER, {2}, 0.5, 0.5)[1]) == 3


def test_instances(predictions: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, masks = predictions
    instances = instance_inference(logits, masks, RESIZER, 20)
    assert instances.image_size == (47, 90)
    assert len(instances) == 20
    assert (instances.scores.diff() <= 0).all()
    classes, sized = logits.softmax(-1)[:, :K], full_size(masks)
    expected = []
    for index in classes.flatten().topk(20).indices.tolist():
        q, label = divmod(index, K)
        inside = sized[q] > 0
        mean = (sized[q].sigmoid() * inside).sum() / (inside.sum() + 1e-6)
        expected.append(((classes[q, label] * mean).item(), label, inside))
    expected.sort(key=lambda item: -item[0])
    for i, (score, label, inside) in enumerate(expected):
        assert instances.scores[i].item() == pytest.approx(score, rel=1e-5)
        assert instances.pred_classes[i] == label
        assert torch.equal(instances.pred_masks[i], inside)
        if inside.any():
            y, x = inside.nonzero().T
            box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert instances.pred_boxes.tensor[i].tolist() == box


def test_instances_of_things_only(predictions: tuple[torch.Tensor, torch.Tensor]) -> None:
    instances = instance_inference(*predictions, RESIZER, 20, things={1, 3})
    assert set(instances.pred_classes.tolist()) <= {1, 3}
    nothing = instance_inference(*predictions, RESIZER, 20, things=set())
    assert len(nothing) == 0
    assert nothing.pred_masks.shape == (0, 47, 90)
    assert nothing.pred_boxes.tensor.shape == (0, 4)


def test_fewer_pairs_than_asked_for(predictions: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert len(instance_inference(*predictions, RESIZER, 10**6)) == Q * K
