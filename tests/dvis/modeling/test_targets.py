from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Instances

from dvis.modeling.targets import clip_targets, frame_targets
from tests.reference import load_golden
from tests.weights import make_input

H, W = 8, 9


def frame(ids: list[int], classes: list[int], masks: torch.Tensor | None = None) -> Instances:
    result = Instances((H, W))
    result.gt_ids = torch.tensor(ids, dtype=torch.int64)
    result.gt_classes = torch.tensor(classes, dtype=torch.int64)
    masks = torch.ones(len(ids), H, W, dtype=torch.bool) if masks is None else masks
    result.gt_masks = BitMasks(masks)
    return result


def golden_frames(golden: dict[str, np.ndarray], padded: tuple[int, int]) -> list[Instances]:
    """The recorded clip; masks of visible objects are what the recorded targets hold."""
    N, T = golden["ids_in"].shape
    shape = tuple(golden["masks_shape"])
    masks = np.unpackbits(golden["masks"])[: np.prod(shape)].reshape(shape).astype(bool)
    kept = [n for n in range(N) if (golden["ids_in"][n] != -1).any()]
    frames = []
    for t in range(T):
        full = torch.zeros(N, H, W, dtype=torch.bool)
        full[kept] = torch.from_numpy(masks[:, t, :H, :W])
        assert padded == (H + 3, W + 5)
        frames.append(frame(golden["ids_in"][:, t].tolist(), golden["classes_in"][:, t].tolist(), full))
    return frames


@pytest.mark.parametrize(
    ("name", "from_last"), [("rule_targets_dvis", True), ("rule_targets_dvis_plus", False)]
)
def test_golden(name: str, from_last: bool) -> None:
    _, golden = load_golden(name)
    padded = tuple(golden["masks_shape"][-2:])
    targets = clip_targets(golden_frames(golden, padded), padded, 25, label_from_last_frame=from_last)
    assert targets["labels"].tolist() == golden["labels"].tolist()
    assert targets["ids"].tolist() == golden["ids"].tolist()
    shape = tuple(golden["masks_shape"])
    expected = np.unpackbits(golden["masks"])[: np.prod(shape)].reshape(shape).astype(bool)
    assert np.array_equal(targets["masks"].numpy(), expected)


def test_default_gives_the_visible_class_whatever_the_dummy() -> None:
    _, plus = load_golden("rule_targets_dvis_plus")
    _, dvis = load_golden("rule_targets_dvis")
    padded = tuple(dvis["masks_shape"][-2:])
    targets = clip_targets(golden_frames(dvis, padded), padded, 25)
    assert targets["labels"].tolist() == plus["labels"].tolist()


def test_frames_that_list_only_what_is_visible() -> None:
    masks = torch.from_numpy(make_input("masks", (4, H, W)) > 0)
    frames = [
        frame([7], [2], masks[:1]),
        frame([9, 7], [0, 2], masks[1:3]),
        frame([], [], masks[:0]),
        frame([9], [0], masks[3:]),
    ]
    targets = clip_targets(frames, (H, W), 3)
    assert targets["labels"].tolist() == [2, 0]
    assert targets["ids"].tolist() == [[7, 7, -1, -1], [-1, 9, -1, 9]]
    assert torch.equal(targets["masks"][0, :2], masks[[0, 2]])
    assert torch.equal(targets["masks"][1, [1, 3]], masks[[1, 3]])
    assert not targets["masks"][:, 2].any()


@pytest.mark.parametrize("num_frames", [1, 3])
def test_clip_without_objects(num_frames: int) -> None:
    bare = Instances((H, W))
    for frames in ([bare] * num_frames, [frame([-1], [3])] * num_frames):
        targets = clip_targets(frames, (H + 1, W), 3)
        assert targets["labels"].shape == (0,)
        assert targets["ids"].shape == (0, num_frames)
        assert targets["masks"].shape == (0, num_frames, H + 1, W)
        assert targets["masks"].dtype == torch.bool
        assert [len(f["labels"]) for f in frame_targets(targets)] == [0] * num_frames


def test_image_without_ids() -> None:
    image = frame([0, 0], [1, 2])
    image.remove("gt_ids")
    assert clip_targets([image], (H, W), 3)["ids"].tolist() == [[0], [1]]
    with pytest.raises(ValueError, match="frame 0 of the clip has no gt_ids"):
        clip_targets([image, image], (H, W), 3)


def test_frame_targets_show_what_the_frame_shows() -> None:
    targets = clip_targets([frame([1, -1], [0, 3]), frame([1, 2], [0, 1])], (H, W), 3)
    first, second = frame_targets(targets)
    assert first["labels"].tolist() == [0]
    assert first["ids"].tolist() == [[1]]
    assert first["masks"].shape == (1, 1, H, W)
    assert second["labels"].tolist() == [0, 1]
    assert torch.equal(second["masks"], targets["masks"][:, 1:])


def test_masks_as_tensor() -> None:
    plain = frame([4], [1])
    plain.gt_masks = torch.ones(1, H, W, dtype=torch.uint8)
    assert clip_targets([plain], (H, W), 3)["masks"].all()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            [frame([1], [3])],
            "frame 0 of the clip has an object of class 3, but the model knows classes 0 to 2",
        ),
        ([frame([1], [-1])], "class -1"),
        ([frame([1], [0]), frame([1, 1], [0, 0])], "frame 1 of the clip has two objects with id 1"),
    ],
)
def test_errors(frames: list[Instances], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip_targets(frames, (H, W), 3)


def test_masks_larger_than_the_input() -> None:
    with pytest.raises(ValueError, match="masks of 8 x 9 pixels do not fit into the input of 8 x 8"):
        clip_targets([frame([1], [0])], (8, 8), 3)


def test_masks_of_unknown_kind() -> None:
    bad = frame([1], [0])
    bad.gt_masks = ["polygon"]
    with pytest.raises(ValueError, match="gt_masks must be BitMasks or a `n H W` tensor, got list"):
        clip_targets([bad], (H, W), 3)
