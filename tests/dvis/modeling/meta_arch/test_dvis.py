"""DVIS online and offline as whole models: keys, training, hand-over between stages, inference."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

import dvis
from dvis.checkpoint import load_weights
from dvis.modeling.matching import NonFiniteError
from dvis.modeling.meta_arch import VideoModel
from tests.dvis.golden import check_training_step, replaced_rand
from tests.dvis.tiny import CONFIGS, NUM_CLASSES, NUM_QUERIES, ROOT, shared_tiny_model, tiny_model, tiny_video
from tests.reference import load_manifest
from tests.weights import RandTape


def clip(
    num_frames: int = 3, num_objects: int = 2, size: tuple[int, int] = (40, 56), seed: int = 0
) -> dict[str, Any]:
    """A training clip in which object 0 is always there and the others come one frame later each."""
    images = tiny_video(num_frames, size, seed)
    instances = []
    for t in range(num_frames):
        masks = torch.zeros(num_objects, *size, dtype=torch.bool)
        ids = torch.full((num_objects,), -1)
        for n in range(min(num_objects, t + 1)):
            masks[n, 4 + 8 * n : 16 + 8 * n, 3 + 2 * t + seed : 20 + 2 * t + seed] = True
            ids[n] = n
        frame = Instances(size)
        frame.gt_ids, frame.gt_masks = ids, BitMasks(masks)
        frame.gt_classes = torch.where(ids == -1, NUM_CLASSES, torch.arange(num_objects) % NUM_CLASSES)
        instances.append(frame)
    return {"image": images, "instances": instances, "video_id": f"clip{seed}"}


def gradients(model: VideoModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


# Parameters.


@pytest.mark.parametrize(
    ("manifest", "config"),
    [
        ("dvis_online_r50", "ovis/DVIS_Online_R50.yaml"),
        ("dvis_offline_r50", "ovis/DVIS_Offline_R50.yaml"),
        ("dvis_online_swinl", "ovis/swin/DVIS_Online_SwinL.yaml"),
        ("dvis_offline_swinl", "ovis/swin/DVIS_Offline_SwinL.yaml"),
    ],
)
def test_keys_shapes_and_frozen_parts_are_the_published_ones(manifest: str, config: str) -> None:
    expected = load_manifest(manifest)
    cfg = dvis.load_config(ROOT / "configs" / config, ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    shapes = {
        key: [list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in model.state_dict().items()
    }
    assert shapes == expected["state_dict"]
    parameters = dict(model.named_parameters())
    assert set(shapes) - set(parameters) == set(expected["buffers"])
    frozen = {key for key, p in parameters.items() if not p.requires_grad}
    assert frozen == {
        key for key in parameters if key.startswith(tuple(expected["frozen_parameters_prefixes"]))
    }
    assert sum(p.numel() for p in parameters.values() if p.requires_grad) == expected["num_trainable"]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_frozen_parts_stay_as_they_are(mode: str) -> None:
    model = tiny_model(mode).train()
    frozen = ("backbone", "sem_seg_head") + (("tracker",) if mode == "offline" else ())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    sum(model([clip()]).values()).backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    trained = "tracker." if mode == "online" else "refiner."
    assert changed
    assert all(key.startswith(trained) for key in changed)
    for name, module in model.named_modules():
        if name.startswith(frozen):
            assert not module.training, name
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith(frozen))


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_frozen_parts_make_no_auxiliary_outputs_and_no_graph(mode: str) -> None:
    model = tiny_model(mode).train()
    frames = model.preprocess([clip()])
    segmented = model.segment(frames)
    assert segmented.aux == ()
    assert segmented.masks is None
    assert not segmented.queries.requires_grad
    linked, _ = model.link(segmented, None)
    assert len(linked.aux) == (1 if mode == "online" else 0)
    assert linked.queries.requires_grad == (mode == "online")


# Training.


def test_golden_step_of_the_online_stage_in_the_guided_half() -> None:
    # The recorded assignment gives one slot to two objects, see MODEL.TRACKER.SHARED_QUERIES.
    check_training_step("dvis_online_r50", ["MODEL.TRACKER.SHARED_QUERIES", True])


@pytest.mark.parametrize("name", ["dvis_online_r50_late", "dvis_offline_r50", "dvis_offline_r50_late"])
def test_golden_step(name: str) -> None:
    check_training_step(name)


@pytest.mark.parametrize("guided", [1.0, 0.0])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_batch_of_two_gives_what_two_batches_of_one_give(mode: str, guided: float) -> None:
    part = "TRACKER" if mode == "online" else "REFINER"
    model = tiny_model(mode, f"MODEL.{part}.GUIDED_FRACTION", guided).train()
    clips = [clip(num_objects=3, seed=0), clip(num_objects=1, seed=1)]
    with replaced_rand(RandTape(0)):
        together = model(clips)
        sum(together.values()).backward()
        of_two = gradients(model)
    with replaced_rand(RandTape(0)):
        alone = [model([c]) for c in clips]
        (sum(loss for losses in alone for loss in losses.values()) / 2).backward()
        of_one = gradients(model)
    assert together.keys() == alone[0].keys()
    for name, loss in together.items():
        torch.testing.assert_close(loss, (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-5)
    largest = max(float(g.abs().max()) for g in of_one.values())
    for name, gradient in of_two.items():
        torch.testing.assert_close(gradient, of_one[name], rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_clip_without_objects_trains_the_classes(mode: str) -> None:
    model = tiny_model(mode).train()
    losses = model([clip(num_objects=0)])
    assert all(float(loss.detach()) == 0 for name, loss in losses.items() if "ce" not in name)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_one_frame_and_odd_sizes_train(mode: str) -> None:
    model = tiny_model(mode).train()
    losses = model([clip(num_frames=1, num_objects=1, size=(37, 51))])
    sum(losses.values()).backward()
    assert all(bool(loss.isfinite()) for loss in losses.values())


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_mixed_precision_trains(mode: str) -> None:
    model = tiny_model(mode).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([clip()])
    sum(losses.values()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)
    assert all(loss.dtype == torch.float32 and bool(loss.isfinite()) for loss in losses.values())


@pytest.mark.parametrize("guided", [1.0, 0.0])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_losses_fall(mode: str, guided: float) -> None:
    part = "TRACKER" if mode == "online" else "REFINER"
    torch.manual_seed(0)
    model = tiny_model(mode, f"MODEL.{part}.GUIDED_FRACTION", guided).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    totals = []
    for _ in range(25):
        total = sum(model([clip()]).values())
        totals.append(float(total.detach()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert sum(totals[-5:]) / 5 < 0.7 * totals[0]


@pytest.mark.parametrize(
    ("mode", "key", "value"),
    [
        ("online", "MODEL.TRACKER.INITIAL_VALUE", "zero"),
        ("online", "MODEL.TRACKER.INITIAL_VALUE", "previous"),
        ("online", "MODEL.TRACKER.CROSS_ATTENTION", "standard"),
        ("offline", "MODEL.REFINER.TIME_ATTENTION", False),
        ("offline", "MODEL.REFINER.TIME_CONV", False),
        ("offline", "MODEL.REFINER.OBJECT_ATTENTION", False),
        ("offline", "MODEL.REFINER.CROSS_ATTENTION", False),
        ("offline", "MODEL.REFINER.CLASS_WEIGHTING", False),
    ],
)
def test_ablations_train_and_infer(mode: str, key: str, value: Any) -> None:
    published, ablated = shared_tiny_model(mode), tiny_model(mode, key, value)
    frames = tiny_video(3)
    with published.engine().run(frames) as usual, ablated.engine().run(frames) as changed:
        assert not torch.allclose(usual.probabilities, changed.probabilities)
    losses = ablated.train()([clip()])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in ablated.parameters() if p.requires_grad)


# The schedule and the hand-over between stages.


def calls_of_matcher(model: VideoModel) -> int:
    """Train one step and return how often the objects were assigned: once if guided, else per layer."""
    calls, matcher = [], model.criterion.matcher
    model.criterion.matcher = lambda *arguments: calls.append(1) or matcher(*arguments)
    try:
        model.train()([clip()])
    finally:
        model.criterion.matcher = matcher
    return len(calls)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_first_half_of_the_schedule_is_guided(mode: str) -> None:
    model = tiny_model(mode, "SOLVER.MAX_ITER", 4)
    with EventStorage() as storage:
        found = []
        for _ in range(4):
            found.append(calls_of_matcher(model))
            storage.step()
    assert found == [1, 1, 2, 2]


def test_a_resumed_run_keeps_its_position_without_a_key_of_its_own(tmp_path: Path) -> None:
    model = tiny_model("online", "SOLVER.MAX_ITER", 4)
    assert [calls_of_matcher(model) for _ in range(2)] == [1, 1]  # no trainer: the model counts itself
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    resumed = tiny_model("online", "SOLVER.MAX_ITER", 4)
    DetectionCheckpointer(resumed).load(str(tmp_path / "model.pth"))
    assert calls_of_matcher(resumed) == 2
    assert not [key for key in model.state_dict() if "schedule" in key]
    # A trainer's own count goes first: fine-tuning starts its schedule anew.
    with EventStorage(0):
        assert calls_of_matcher(resumed) == 1


def test_each_stage_starts_from_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stages = {mode: tiny_model(mode, "SOLVER.MAX_ITER", 2) for mode in CONFIGS}
    calls_of_matcher(stages["online"])
    for mode, model in stages.items():
        DetectionCheckpointer(model, str(tmp_path)).save(mode)
    with caplog.at_level(logging.INFO, logger="dvis"):
        online = tiny_model("online")
        load_weights(online, tmp_path / "minvis.pth")
        offline = tiny_model("offline", "SOLVER.MAX_ITER", 2)
        load_weights(offline, tmp_path / "online.pth")
    fresh = [record.getMessage() for record in caplog.records if "freshly" in record.getMessage()]
    assert "tracker (" in fresh[0]
    assert "refiner (" in fresh[1]
    assert "tracker" not in fresh[1]
    assert calls_of_matcher(offline) == 1  # the refiner's schedule starts anew
    with pytest.raises(ValueError, match="weights of DVIS_offline"):
        load_weights(tiny_model("online"), tmp_path / "offline.pth")
    with pytest.raises(ValueError, match=r"does not train its tracker.*weights of DVIS_online"):
        load_weights(tiny_model("offline"), tmp_path / "minvis.pth")


# Numbers that are not finite.


@pytest.mark.parametrize(("guided", "what"), [(1.0, "loss_ce"), (0.0, "pred_logits")])
def test_non_finite_numbers_stop_and_name_video_and_tensor(guided: float, what: str) -> None:
    model = tiny_model("online", "MODEL.TRACKER.GUIDED_FRACTION", guided).train()
    with torch.no_grad():
        model.tracker.class_embed.bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match=f"video clip5.*{what}"):
        model([clip(seed=5)])


def test_a_video_that_is_not_finite_is_named() -> None:
    frames = tiny_video(2)
    frames[1][:] = torch.inf
    with pytest.raises(NonFiniteError, match=r"video street: .*queries are not finite: .* frame 1"):
        shared_tiny_model("online")([{"image": frames, "video_name": "street"}])


@pytest.mark.parametrize("mode", ["minvis", "online", "offline"])
def test_a_batch_can_be_skipped(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(mode, "SOLVER.NON_FINITE", "skip").train()
    broken = clip(seed=5)
    broken["image"][1][:] = torch.nan
    usual, skipped = model([clip()]), model([broken])
    assert "video clip5: " in caplog.text
    assert skipped.keys() == usual.keys()
    assert all(float(loss.detach()) == 0 for loss in skipped.values())
    sum(skipped.values()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)
    with torch.no_grad():
        trained[0].fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="the weights of the model are not finite"):
        model([broken])


# Inference (what holds for every mode is in tests/dvis/inference/test_engine.py).


def run(model: VideoModel, frames: list[Tensor]) -> tuple[Tensor, Tensor]:
    with model.engine().run(frames) as prediction:
        return prediction.probabilities, prediction.masks.read(torch.arange(NUM_QUERIES), 0, len(frames))


def test_semi_online_with_one_window_is_offline() -> None:
    frames = tiny_video(4)
    test = "MODEL.MASK_FORMER.TEST"
    windows = tiny_model("offline", f"{test}.REFINE_OVER", "window", f"{test}.WINDOW_SIZE", 4)
    for actual, expected in zip(run(windows, frames), run(shared_tiny_model("offline"), frames), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_semi_online_refines_each_window() -> None:
    frames = tiny_video(5)
    test = "MODEL.MASK_FORMER.TEST"
    model = tiny_model("offline", f"{test}.REFINE_OVER", "window", f"{test}.WINDOW_SIZE", 2)
    state, refined_logits, linked_logits = None, [], []
    with torch.no_grad():
        for start in (0, 2, 4):
            segmented = model.segment(model.prepare(frames[start : start + 2]).frames)
            linked, state = model.link(segmented, state)
            refined = model.refine(linked.queries, linked.frame_queries)
            linked_logits += list(linked.logits[0])
            refined_logits += [refined.logits[0]] * len(linked.logits[0])
    means = [torch.stack(logits).mean(dim=0).softmax(-1) for logits in (linked_logits, refined_logits)]
    torch.testing.assert_close(run(model, frames)[0], torch.maximum(*means), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["vis", "vps", "vss"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_one_frame_of_odd_size(mode: str, task: str) -> None:
    model = tiny_model(mode, "MODEL.MASK_FORMER.TEST.TASK", task)
    model.metadata = SimpleNamespace(thing_dataset_id_to_contiguous_id={0: 0, 1: 1})
    result = model([{"image": tiny_video(1, size=(33, 47)), "height": 66, "width": 95}])[0]
    assert result["image_size"] == (66, 95)
    assert result["pred_masks"].shape[-3:] == (1, 66, 95)


@pytest.mark.parametrize("window", [1, 2, 100])
def test_windows_of_the_frozen_segmenter_do_not_show(window: int) -> None:
    model = tiny_model("offline", "MODEL.MASK_FORMER.FROZEN.WINDOW_SIZE", window).train()
    frames = model.preprocess([clip(), clip(seed=1)])
    found = model.segment(frames)
    model.eval()
    expected = model.segment(frames)
    for name in ("logits", "queries", "mask_features", "mask_embeds"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name).detach(), rtol=1e-4, atol=1e-4
        )
    assert found.num_frames == 3


def test_precision_of_the_frozen_segmenter() -> None:
    frames = tiny_model("online").preprocess([clip()])
    half = tiny_model("online", "MODEL.MASK_FORMER.FROZEN.PRECISION", "bfloat16").train().segment(frames)
    full = tiny_model("online").train().segment(frames)
    assert half.queries.dtype == torch.float32
    assert not torch.equal(half.queries, full.queries)


def test_bad_settings_of_the_frozen_segmenter() -> None:
    with pytest.raises(ValueError, match=r"FROZEN.WINDOW_SIZE must be at least 1, not 0"):
        tiny_model("online", "MODEL.MASK_FORMER.FROZEN.WINDOW_SIZE", 0)
    with pytest.raises(ValueError, match=r"FROZEN.PRECISION is 'half'; allowed are float32, bfloat16, auto"):
        tiny_model("online", "MODEL.MASK_FORMER.FROZEN.PRECISION", "half")
