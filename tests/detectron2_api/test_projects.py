"""The parts of the DeepLab and PointRend projects that Mask2Former builds on."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from detectron2.projects.point_rend import ColorAugSSDTransform, add_pointrend_config
from detectron2.projects.point_rend.point_features import (
    generate_regular_grid_point_coords,
    get_point_coords_wrt_image,
    get_uncertain_point_coords_on_grid,
    get_uncertain_point_coords_with_randomness,
    point_sample,
    point_sample_fine_grained_features,
    sample_point_labels,
)
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from tests.weights import RandTape

# ------------------------------------------------------------------ configs


def test_deeplab_config() -> None:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    assert cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA == 1.0
    assert (cfg.SOLVER.POLY_LR_POWER, cfg.SOLVER.POLY_LR_CONSTANT_ENDING) == (0.9, 0.0)
    head = cfg.MODEL.SEM_SEG_HEAD
    assert (head.LOSS_TYPE, head.PROJECT_FEATURES, head.PROJECT_CHANNELS) == (
        "hard_pixel_mining",
        ["res2"],
        [48],
    )
    assert (head.ASPP_CHANNELS, head.ASPP_DILATIONS, head.ASPP_DROPOUT) == (256, [6, 12, 18], 0.1)
    assert head.USE_DEPTHWISE_SEPARABLE_CONV is False
    resnets = cfg.MODEL.RESNETS
    assert (resnets.RES4_DILATION, resnets.RES5_MULTI_GRID, resnets.STEM_TYPE) == (1, [1, 2, 4], "deeplab")


def test_pointrend_config() -> None:
    cfg = get_cfg()
    add_pointrend_config(cfg)
    assert cfg.INPUT.COLOR_AUG_SSD is False
    head = cfg.MODEL.POINT_HEAD
    assert (head.TRAIN_NUM_POINTS, head.OVERSAMPLE_RATIO, head.IMPORTANCE_SAMPLE_RATIO) == (196, 3, 0.75)
    assert (head.SUBDIVISION_STEPS, head.SUBDIVISION_NUM_POINTS, head.NUM_CLASSES) == (5, 784, 80)
    assert cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON is False


# ------------------------------------------------------------------ schedule


def poly_cfg(**solver: object) -> CfgNode:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.MAX_ITER = 20
    cfg.SOLVER.WARMUP_ITERS = 0
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def poly_rates(cfg: CfgNode) -> list[float]:
    optimizer = torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 2.0},
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.2},
        ]
    )
    scheduler = build_lr_scheduler(cfg, optimizer)
    assert isinstance(scheduler, WarmupPolyLR)
    values = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rate, small = (group["lr"] for group in optimizer.param_groups)
        assert small == pytest.approx(rate / 10)
        values.append(rate)
        optimizer.step()
        scheduler.step()
    return values


def test_poly_schedule() -> None:
    expected = [2.0 * (1 - i / 20) ** 0.9 for i in range(20)]
    assert poly_rates(poly_cfg()) == pytest.approx(expected)
    warm = poly_rates(poly_cfg(WARMUP_ITERS=4, WARMUP_FACTOR=0.5))
    factors = [0.5, 0.625, 0.75, 0.875] + [1.0] * 16
    assert warm == pytest.approx([a * b for a, b in zip(expected, factors, strict=True)])
    constant = poly_rates(poly_cfg(WARMUP_ITERS=2, WARMUP_FACTOR=0.1, WARMUP_METHOD="constant"))
    assert constant[:2] == pytest.approx([0.1 * v for v in expected[:2]])
    ending = poly_rates(poly_cfg(POLY_LR_CONSTANT_ENDING=0.3))
    assert ending == pytest.approx([max(v, 0.6) for v in expected])


def test_deeplab_builder_knows_detectron2s_schedules() -> None:
    cfg = poly_cfg(LR_SCHEDULER_NAME="WarmupMultiStepLR", STEPS=(10,))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    assert type(build_lr_scheduler(cfg, optimizer)).__name__ == "LRMultiplier"
    cfg.SOLVER.LR_SCHEDULER_NAME = "NoSuchLR"
    with pytest.raises(ValueError, match="NoSuchLR"):
        build_lr_scheduler(cfg, optimizer)


# ------------------------------------------------------------------ points


def test_point_sample_at_pixel_centres_and_outside() -> None:
    features = torch.arange(24.0).view(1, 2, 3, 4)
    grid = torch.stack(
        torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(4) + 0.5) / 4, indexing="ij")[::-1], dim=-1
    )
    torch.testing.assert_close(point_sample(features, grid[None], align_corners=False), features)
    points = torch.tensor([[[2.5 / 4, 1.5 / 3], [2.0 / 4, 1.5 / 3], [-1.0, 0.5]]])
    sampled = point_sample(features, points, align_corners=False)
    torch.testing.assert_close(sampled, torch.tensor([[[6.0, 5.5, 0.0], [18.0, 17.5, 0.0]]]))
    assert point_sample(features[:0], points[:0], align_corners=False).shape == (0, 2, 3)


def test_point_sample_gradient() -> None:
    features = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    points = torch.rand(2, 6, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: point_sample(x, points, align_corners=False), features)


def test_regular_grid() -> None:
    grid = generate_regular_grid_point_coords(2, 2, torch.device("cpu"))
    expected = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert grid.tolist() == [expected, expected]


def certainty(logits: torch.Tensor) -> torch.Tensor:
    return -logits.abs()


def test_uncertain_points_with_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = RandTape(3)
    logits = torch.linspace(-1, 1, 64).view(1, 1, 1, 64).expand(3, 1, 64, 64)
    monkeypatch.setattr(torch, "rand", tape)
    points = get_uncertain_point_coords_with_randomness(logits, certainty, 8, 3.0, 0.75)
    assert tape.shapes == [(3, 24, 2), (3, 2, 2)]
    assert points.shape == (3, 8, 2)
    replay = RandTape(3)
    candidates, rest = torch.from_numpy(replay.draw((3, 24, 2))), torch.from_numpy(replay.draw((3, 2, 2)))
    # Logits are zero in the middle: the most uncertain points are those nearest to it.
    order = (candidates[..., 0] - 0.5).abs().argsort(dim=1)[:, :6]
    expected = torch.gather(candidates, 1, order[..., None].expand(-1, -1, 2))
    torch.testing.assert_close(points[:, :6], expected)
    torch.testing.assert_close(points[:, 6:], rest)


def test_uncertain_points_limits() -> None:
    logits = torch.rand(2, 1, 4, 4)
    assert get_uncertain_point_coords_with_randomness(logits, certainty, 5, 1, 1.0).shape == (2, 5, 2)
    assert get_uncertain_point_coords_with_randomness(logits, certainty, 5, 2, 0.0).shape == (2, 5, 2)
    assert get_uncertain_point_coords_with_randomness(logits[:0], certainty, 5, 3, 0.5).shape == (0, 5, 2)
    with pytest.raises(AssertionError):
        get_uncertain_point_coords_with_randomness(logits, certainty, 5, 0.5, 0.5)
    with pytest.raises(AssertionError):
        get_uncertain_point_coords_with_randomness(logits, certainty, 5, 3, 1.5)


def test_uncertain_points_on_grid() -> None:
    uncertainty = torch.zeros(2, 1, 3, 4)
    uncertainty[0, 0, 2, 1] = 5.0
    uncertainty[1, 0, 0, 3] = 4.0
    indices, coords = get_uncertain_point_coords_on_grid(uncertainty, 1)
    assert indices.tolist() == [[9], [3]]
    torch.testing.assert_close(coords, torch.tensor([[[1.5 / 4, 2.5 / 3]], [[3.5 / 4, 0.5 / 3]]]))
    indices, coords = get_uncertain_point_coords_on_grid(uncertainty, 100)
    assert indices.shape == (2, 12)
    sampled = point_sample(uncertainty, coords, align_corners=False)
    torch.testing.assert_close(sampled[:, 0], uncertainty.flatten(1).gather(1, indices))


def test_fine_grained_features() -> None:
    torch.manual_seed(0)
    maps = [torch.rand(2, 3, 16, 24), torch.rand(2, 5, 8, 12)]
    boxes = [
        Boxes(torch.tensor([[0.0, 0.0, 24.0, 16.0], [4.0, 2.0, 12.0, 10.0]])),
        Boxes(torch.tensor([[2.0, 2.0, 20.0, 12.0]])),
    ]
    points = torch.rand(3, 7, 2)
    features, in_image = point_sample_fine_grained_features(maps, [1.0, 0.5], boxes, points)
    assert features.shape == (3, 8, 7)
    torch.testing.assert_close(in_image[1], points[1] * 8.0 + torch.tensor([4.0, 2.0]))
    relative = in_image / torch.tensor([24.0, 16.0])
    for region, image in enumerate([0, 0, 1]):
        expected = [
            point_sample(m[image, None], relative[region, None], align_corners=False)[0] for m in maps
        ]
        torch.testing.assert_close(features[region], torch.cat(expected))
    torch.testing.assert_close(in_image, get_point_coords_wrt_image(Boxes.cat(boxes).tensor, points))


def test_sample_point_labels() -> None:
    masks = torch.zeros(2, 8, 8)
    masks[0, :, 4:] = 1
    masks[1] = 1
    instances = Instances((8, 8), gt_masks=BitMasks(masks))
    instances.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0], [2.0, 2.0, 6.0, 6.0]]))
    points = torch.tensor([[[0.1, 0.5], [0.9, 0.5]]] * 2)
    labels = sample_point_labels([instances], points)
    assert labels.tolist() == [[0.0, 1.0], [1.0, 1.0]]


# ------------------------------------------------------------------ colour augmentation


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_color_augmentation_keeps_form_and_is_seeded() -> None:
    transform = ColorAugSSDTransform("RGB")
    results = []
    for seed in (1, 1, 2, 3, 4):
        random.seed(seed)
        results.append(transform.apply_image(image()))
    assert all(r.shape == (20, 30, 3) and r.dtype == np.uint8 for r in results)
    assert np.array_equal(results[0], results[1])
    assert len({r.tobytes() for r in results}) >= 3
    points, labels = np.array([[1.0, 2.0]]), np.ones((20, 30), np.uint8)
    assert transform.apply_coords(points) is points
    assert transform.apply_segmentation(labels) is labels


def test_color_augmentation_of_rgb_is_that_of_bgr_with_channels_exchanged() -> None:
    for seed in range(20):
        random.seed(seed)
        bgr = ColorAugSSDTransform("BGR").apply_image(image())
        random.seed(seed)
        rgb = ColorAugSSDTransform("RGB").apply_image(image()[:, :, ::-1])
        assert np.array_equal(rgb[:, :, ::-1], bgr)
    with pytest.raises(AssertionError):
        ColorAugSSDTransform("YUV")


def test_color_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = ColorAugSSDTransform("BGR")
    monkeypatch.setattr(random, "randrange", lambda n: 1)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    monkeypatch.setattr(random, "randint", lambda low, high: high)
    original = image()
    assert np.array_equal(transform.brightness(original), np.minimum(original.astype(int) + 32, 255))
    assert np.array_equal(transform.contrast(original), np.minimum(original * 1.5, 255).astype(np.uint8))
    hsv = cv2.cvtColor(original, cv2.COLOR_BGR2HSV)
    turned = hsv.copy()
    turned[:, :, 0] = (hsv[:, :, 0].astype(int) + 18) % 180
    assert np.array_equal(transform.hue(original), cv2.cvtColor(turned, cv2.COLOR_HSV2BGR))
    monkeypatch.setattr(random, "randrange", lambda n: 0)
    assert np.array_equal(transform.apply_image(original), original)
