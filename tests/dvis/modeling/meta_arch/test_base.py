from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from dvis.modeling.matching import NonFiniteError
from dvis.modeling.meta_arch import VideoModel
from tests.dvis.tiny import NUM_CLASSES, shared_tiny_model, tiny_config, tiny_model, tiny_video


def clip(
    num_frames: int = 2, num_objects: int = 2, size: tuple[int, int] = (37, 54), seed: int = 0
) -> dict[str, Any]:
    images = tiny_video(num_frames, size, seed)
    instances = []
    for t in range(num_frames):
        frame = Instances(size)
        masks = torch.zeros(num_objects, *size, dtype=torch.bool)
        for n in range(num_objects):
            masks[n, 2 + 9 * n : 11 + 9 * n, 4 + t : 20 + 3 * t + 5 * seed] = True
        frame.gt_ids = torch.arange(num_objects)
        frame.gt_classes = torch.arange(num_objects) % NUM_CLASSES
        frame.gt_masks = BitMasks(masks)
        instances.append(frame)
    return {"image": images, "instances": instances, "video_id": f"clip{seed}"}


def test_preprocess_normalizes_and_pads() -> None:
    model = shared_tiny_model("minvis")
    videos = [clip(), clip(seed=1)]
    frames = model.preprocess(videos)
    assert frames.shape == (2, 2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    torch.testing.assert_close(frames[1, 0, :, :37, :54], (videos[1]["image"][0] - mean) / std)
    assert not frames[..., 37:, :].any()
    assert not frames[..., 54:].any()


def test_uint8_frames_are_what_their_values_say() -> None:
    model = shared_tiny_model("minvis")
    frames = [frame.clamp(0, 255).round() for frame in tiny_video(2)]
    first = model([{"image": frames}])[0]
    second = model([{"image": [frame.to(torch.uint8) for frame in frames]}])[0]
    assert first["pred_scores"] == second["pred_scores"]


def test_size_divisibility_of_the_backbone() -> None:
    model = tiny_model("minvis", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY", -1)
    assert model.size_divisibility == model.backbone.size_divisibility


def test_frozen_parts_survive_train() -> None:
    model = tiny_model("minvis")
    model.freeze("backbone", "sem_seg_head.pixel_decoder")
    for mode in (True, False, True):
        model.train(mode)
        assert not model.backbone.training
        assert not model.get_submodule("sem_seg_head.pixel_decoder.mask_features").training
        assert model.get_submodule("sem_seg_head.predictor").training == mode
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for p in model.get_submodule("sem_seg_head.predictor").parameters())


@pytest.mark.parametrize("size", [(37, 54), (1, 33), (64, 32)])
@pytest.mark.parametrize("num_frames", [1, 4])
@pytest.mark.parametrize("task", ["vis", "vps", "vss"])
def test_result_of_any_size(
    size: tuple[int, int], num_frames: int, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_tiny_model("minvis")
    settings = replace(model.inference.postprocess, object_threshold=0.1)
    monkeypatch.setattr(model, "inference", replace(model.inference, task=task, postprocess=settings))
    monkeypatch.setattr(model, "metadata", SimpleNamespace(thing_dataset_id_to_contiguous_id={10: 0, 20: 1}))
    video = {"image": tiny_video(num_frames, size), "height": 41, "width": 23}
    result = model([video])[0]
    assert result["image_size"] == (41, 23)
    assert result["task"] == task
    assert tuple(result["pred_masks"].shape[-3:]) == (num_frames, 41, 23)
    if task == "vis":
        assert len(result["pred_scores"]) == len(result["pred_labels"]) == len(result["pred_ids"]) == 10
        assert result["pred_scores"] == sorted(result["pred_scores"], reverse=True)
    if task == "vps":
        ids = {segment["id"] for segment in result["segments_infos"]}
        assert set(result["pred_masks"].unique().tolist()) - {0} == ids
        assert len(result["pred_ids"]) == len(ids)


def test_output_size_is_that_of_the_frames_if_not_given() -> None:
    assert shared_tiny_model("minvis")([{"image": tiny_video(1)}])[0]["image_size"] == (37, 54)


def test_input_can_ask_for_codes() -> None:
    model = shared_tiny_model("minvis")
    codes = model([{"image": tiny_video(2), "mask_format": "rle"}])[0]["pred_masks"]
    assert [len(tube) for tube in codes] == [2] * 10
    assert codes[0][0]["size"] == [37, 54]


def test_keep_continues_the_previous_call_until_a_new_video() -> None:
    model, video = shared_tiny_model("minvis"), tiny_video(6)
    whole = model([{"image": video}])[0]
    model([{"image": video[:4]}])
    second = model([{"image": video[4:], "keep": True}])[0]
    assert second["pred_ids"] == whole["pred_ids"]
    assert second["pred_scores"] == pytest.approx(whole["pred_scores"], abs=1e-5)
    again = model([{"image": video}])[0]
    assert again["pred_scores"] == whole["pred_scores"]


def test_keep_needs_one_video() -> None:
    with pytest.raises(ValueError, match="`keep` continues one stream"):
        shared_tiny_model("minvis")([{"image": tiny_video(1)}, {"image": tiny_video(1), "keep": True}])


def test_the_offline_model_says_that_it_ignores_keep(caplog: pytest.LogCaptureFixture) -> None:
    model, video = shared_tiny_model("offline"), tiny_video(3)
    expected = model([{"image": video}])[0]
    result = model([{"image": video, "keep": True}])[0]
    assert result["pred_scores"] == expected["pred_scores"]
    assert "`keep` is ignored" in caplog.text


@pytest.mark.parametrize("num_frames", [1, 3])
def test_clips_without_objects_have_finite_losses(num_frames: int) -> None:
    model = tiny_model("minvis").train()
    losses = model([clip(num_frames, 0)])
    assert all(bool(loss.isfinite()) for loss in losses.values())
    sum(losses.values()).backward()
    assert not losses["loss_mask"]
    assert losses["loss_ce"] > 0


def test_without_deep_supervision_only_the_last_layer_is_trained() -> None:
    model = tiny_model("minvis", "MODEL.MASK_FORMER.DEEP_SUPERVISION", False).train()
    assert set(model([clip()])) == {"loss_ce", "loss_mask", "loss_dice"}


def test_losses_are_weighted() -> None:
    model = shared_tiny_model("minvis")
    one = torch.ones(())
    weighted = model.weigh({"loss_ce": one, "loss_mask_0": one, "loss_dice_12": one})
    assert {name: float(loss) for name, loss in weighted.items()} == {
        "loss_ce": 2.0,
        "loss_mask_0": 5.0,
        "loss_dice_12": 5.0,
    }


def bad_masks() -> dict[str, Any]:
    video = clip()
    video["instances"][1].gt_classes[0] = NUM_CLASSES
    return video


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([clip(0)], r"at least 1; got 0 \(video clip0\)"),
        ([clip(2), clip(3, seed=1)], r"got 2 \(video clip0\), 3 \(video clip1\)"),
        ([{"image": tiny_video(1), "file_names": ["a/1.jpg"]}], "video a/1.jpg: training needs `instances`"),
        ([bad_masks()], "video clip0: frame 1 of the clip has an object of class 4"),
    ],
)
def test_bad_training_input(videos: list[dict[str, Any]], message: str) -> None:
    model = tiny_model("minvis").train()
    with pytest.raises(ValueError, match=message):
        model(videos)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ({"image": [], "video_id": 7}, "video 7: the video has no frames"),
        ({"image": [*tiny_video(1), *tiny_video(1, (5, 6))]}, "video 0 of the batch: frame 1 has 5 x 6"),
    ],
)
def test_bad_video(video: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shared_tiny_model("minvis")([video])


def test_non_finite_losses_stop_with_names() -> None:
    model = tiny_model("minvis").train()
    model.loss_weights["loss_dice"] = float("inf")
    with pytest.raises(NonFiniteError, match=r"video clip0, video clip1: not finite: loss_dice = inf, loss"):
        model([clip(), clip(seed=1)])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TASK", "vos", "TASK is 'vos'; allowed are vis, vps, vss"),
        ("MAX_NUM", 0, "MAX_NUM must be at least 1"),
        ("MASK_FORMAT", "png", "MASK_FORMAT is 'png'"),
        ("MAX_MEMORY_GB", -1.0, "MAX_MEMORY_GB must be 0 or a positive number"),
    ],
)
def test_bad_settings_are_found_at_construction(key: str, value: Any, message: str) -> None:
    cfg = tiny_config("minvis", f"MODEL.MASK_FORMER.TEST.{key}", value)
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_panoptic_results_need_things() -> None:
    model = tiny_model("minvis", "MODEL.MASK_FORMER.TEST.TASK", "vps")
    model.metadata = None
    with pytest.raises(ValueError, match="thing_dataset_id_to_contiguous_id"):
        model([{"image": tiny_video(1)}])


def test_things_come_from_the_first_data_set_that_knows_them() -> None:
    MetadataCatalog.get("test_base_unknown")
    MetadataCatalog.get("test_base_known").set(thing_dataset_id_to_contiguous_id={5: 1, 7: 3})
    names = ["DATASETS.TRAIN", "('test_base_unknown',)", "DATASETS.TEST", "('test_base_known',)"]
    model: Any = build_model(tiny_config("minvis", *names))
    assert isinstance(model, VideoModel)
    assert model.thing_classes() == {1, 3}
