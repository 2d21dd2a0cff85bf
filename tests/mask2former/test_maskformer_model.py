"""The image model: builds, trains, segments, and has the published state dict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances, PolygonMasks

import dvis
from mask2former import MaskFormer
from mask2former.maskformer_model import mask_tensor
from tests.mask2former.tiny import tiny_cfg
from tests.reference import load_manifest

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PANOPTIC = "mask2former_test_panoptic"
MetadataCatalog.get(PANOPTIC).set(thing_dataset_id_to_contiguous_id={7: 0, 9: 1})


def image_with_squares(h: int = 64, w: int = 96, n: int = 2) -> dict[str, Any]:
    """A dark image with ``n`` bright squares in different colours, and their annotations."""
    image = torch.full((3, h, w), 30, dtype=torch.uint8)
    masks = torch.zeros(n, h, w, dtype=torch.bool)
    for i in range(n):
        masks[i, 8 + 10 * i : 32 + 10 * i, 8 + 40 * i : 40 + 40 * i] = True
        image[i % 3, masks[i]] = 220
    instances = Instances((h, w))
    instances.gt_classes = torch.arange(n) % 4
    instances.gt_masks = BitMasks(masks)
    return {"image": image, "height": h, "width": w, "instances": instances}


def test_loss_falls_on_one_image() -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).train()
    assert isinstance(model, MaskFormer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch = [image_with_squares()]
    totals = []
    for _ in range(8):
        losses = model(batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert set(losses) == {f"loss_{n}{s}" for n in ("ce", "mask", "dice") for s in ("", "_0", "_1")}
    assert totals[-1] < 0.7 * totals[0], totals


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).train()
    sum(model([image_with_squares(), image_with_squares(41, 57, 1)]).values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_loss_weights_and_deep_supervision() -> None:
    batch = [image_with_squares()]
    plain = build_model(tiny_cfg(MODEL__MASK_FORMER__DEEP_SUPERVISION=False)).train()
    assert set(plain(batch)) == {"loss_ce", "loss_mask", "loss_dice"}
    heavy = build_model(tiny_cfg(MODEL__MASK_FORMER__CLASS_WEIGHT=200.0)).train()
    light = build_model(tiny_cfg()).train()
    heavy.load_state_dict(light.state_dict())
    nothing = [image_with_squares(n=0)]
    torch.testing.assert_close(heavy(nothing)["loss_ce_0"], light(nothing)["loss_ce_0"] * 100)


def test_training_under_autocast() -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([image_with_squares()])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_segmenter_is_one_graph() -> None:
    """No graph breaks; the code generation of a real back end is not what is tested here."""
    model = build_model(tiny_cfg()).eval()

    def segment(images: torch.Tensor) -> torch.Tensor:
        return model.sem_seg_head(model.backbone(images))["pred_masks"]

    images = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        compiled = torch.compile(segment, backend="eager", fullgraph=True)(images)
        torch.testing.assert_close(compiled, segment(images))


def test_image_without_objects_trains() -> None:
    model = build_model(tiny_cfg()).train()
    losses = model([image_with_squares(n=0)])
    assert losses["loss_mask"].item() == 0
    sum(losses.values()).backward()


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (1, 70)])
def test_all_results_at_odd_sizes(size: tuple[int, int]) -> None:
    options = {f"MODEL__MASK_FORMER__TEST__{name}_ON": True for name in ("SEMANTIC", "INSTANCE", "PANOPTIC")}
    model = build_model(tiny_cfg(DATASETS__TRAIN=(PANOPTIC,), TEST__DETECTIONS_PER_IMAGE=6, **options)).eval()
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    with torch.no_grad():
        (sized, own) = model([{"image": image, "height": 50, "width": 45}, {"image": image}])
    for result, (h, w) in ((sized, (50, 45)), (own, size)):
        assert result["sem_seg"].shape == (4, h, w)
        ids, segments = result["panoptic_seg"]
        assert ids.shape == (h, w)
        assert set(ids.unique().tolist()) <= {0, *(segment["id"] for segment in segments)}
        assert len(result["instances"]) <= 6
        assert result["instances"].pred_masks.shape[1:] == (h, w)
        assert set(result["instances"].pred_classes.tolist()) <= {0, 1}


def test_only_what_is_switched_on() -> None:
    model = build_model(tiny_cfg()).eval()
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 40, 40)}])
    assert list(result) == ["sem_seg"]


def test_images_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).eval()
    images = [torch.rand(3, 64, 64) * 255 for _ in range(3)]
    with torch.no_grad():
        together = model([{"image": image} for image in images])
        for image, result in zip(images, together, strict=True):
            alone = model([{"image": image}])[0]["sem_seg"]
            torch.testing.assert_close(alone, result["sem_seg"], atol=1e-4, rtol=0)


def test_padding_of_targets() -> None:
    model = build_model(tiny_cfg())
    batch = [image_with_squares(40, 50, 1), image_with_squares(64, 33, 2)]
    targets = model.prepare_targets(batch, model.preprocess(batch))
    assert [tuple(target["masks"].shape) for target in targets] == [(1, 1, 64, 64), (2, 1, 64, 64)]
    for x, target in zip(batch, targets, strict=True):
        h, w = x["image"].shape[1:]
        assert torch.equal(target["masks"][:, 0, :h, :w], x["instances"].gt_masks.tensor)
        assert target["masks"].sum() == x["instances"].gt_masks.tensor.sum()


def test_masks_of_any_kind() -> None:
    polygon = PolygonMasks([[[1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]]])
    bits = BitMasks.from_polygon_masks(polygon, 6, 8).tensor
    assert bits.any()
    for masks in (polygon, BitMasks(bits), bits, bits.float()):
        assert torch.equal(mask_tensor(masks, (6, 8)), bits)


def test_missing_annotations_are_named() -> None:
    model = build_model(tiny_cfg()).train()
    with pytest.raises(ValueError, match=r"image 1 .*cat\.jpg.*'instances'"):
        model([image_with_squares(), {"image": torch.zeros(3, 32, 32), "file_name": "cat.jpg"}])


def test_panoptic_needs_metadata() -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        build_model(tiny_cfg(MODEL__MASK_FORMER__TEST__PANOPTIC_ON=True))


@pytest.mark.parametrize(
    ("manifest", "config"),
    [
        ("mask2former_r50_coco_instance", "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"),
        ("mask2former_r50_coco_panoptic", "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"),
        (
            "mask2former_swinl_coco_instance",
            "coco/instance-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml",
        ),
        ("minvis_r50", "ovis/MinVIS_R50.yaml"),
        ("minvis_swinl", "ovis/swin/MinVIS_SwinL.yaml"),
    ],
)
def test_published_configs_build_the_published_state_dict(manifest: str, config: str) -> None:
    """On the meta device, which takes no memory. MinVIS has the keys of the image model."""
    expected = load_manifest(manifest)
    options = ["MODEL.META_ARCHITECTURE", "MaskFormer", "MODEL.DEVICE", "meta"]
    cfg = dvis.load_config(CONFIGS / config, [*options, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False])
    with torch.device("meta"):
        model = build_model(cfg)
    tensors = model.state_dict().items()
    state = {key: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for key, tensor in tensors}
    assert state == expected["state_dict"]
    parameters = dict(model.named_parameters())
    assert sorted(set(state) - set(parameters)) == sorted(expected["buffers"])
    trainable = sum(p.numel() for p in parameters.values() if p.requires_grad)
    assert trainable == expected["num_trainable"]
