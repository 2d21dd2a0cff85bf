"""Swin against the published numbers and against a slow plain form."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec

from mask2former.modeling.backbone.swin import (
    D2SwinTransformer,
    PatchMerging,
    SwinBlock,
    SwinTransformer,
    WindowAttention,
    drop_path,
    shifted_window_mask,
)
from tests.mask2former.tiny import default_cfg
from tests.reference import load_golden, relative_error
from tests.weights import fill_state_dict, make_input

SMALL = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 3, "out_indices": (0, 1)}


def test_outputs_match_golden() -> None:
    meta, golden = load_golden("backbone_swin_small")
    cfg = default_cfg()
    cfg.merge_from_list(meta["opts"])
    model = D2SwinTransformer(cfg, ShapeSpec(channels=3)).eval()
    assert len(fill_state_dict(model, prefix=meta["weights_prefix"])) > 0
    assert len(model.state_dict()) == meta["num_keys"]
    image = torch.from_numpy(make_input("image", [meta["B"], 3, meta["H"], meta["W"]], meta["seed"]))
    with torch.no_grad():
        outputs = model(image)
    assert {name: list(output.shape) for name, output in outputs.items()} == meta["shapes"]
    for name, output in outputs.items():
        sampled = output[:, ::4] if name == "res5" else output[:, ::4, ::2, ::2]
        assert relative_error(sampled, golden[name]) < 1e-4
        stats = [output.mean(), output.std(), output.abs().max(), output.abs().sum()]
        assert relative_error(torch.stack(stats), golden[f"{name}_stats"]) < 1e-4


@pytest.mark.parametrize("size", [(33, 47), (4, 4), (5, 61), (1, 1)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    model = SwinTransformer(**SMALL).eval()
    outputs = model(torch.rand(2, 3, *size))
    h, w = -(-size[0] // 4), -(-size[1] // 4)
    assert outputs["res2"].shape == (2, 8, h, w)
    assert outputs["res3"].shape == (2, 16, -(-h // 2), -(-w // 2))


def test_images_of_a_batch_do_not_mix() -> None:
    model = SwinTransformer(**SMALL).eval().double()
    images = torch.rand(3, 3, 29, 31, dtype=torch.float64)
    together = model(images)
    for i in range(3):
        alone = model(images[i : i + 1])
        for name, output in alone.items():
            torch.testing.assert_close(together[name][i : i + 1], output)


def plain_window_attention(module: WindowAttention, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One window and one head at a time."""
    windows = []
    for window, blocked in zip(x, mask, strict=True):
        query, key, value = module.qkv(window).chunk(3, dim=-1)
        dim = query.shape[1] // module.num_heads
        heads = []
        for head in range(module.num_heads):
            part = slice(head * dim, (head + 1) * dim)
            scores = query[:, part] @ key[:, part].T / dim**0.5
            scores = scores + module.relative_position_bias_table[module.relative_position_index, head]
            heads.append((scores - 100.0 * blocked.to(scores)).softmax(-1) @ value[:, part])
        windows.append(module.proj(torch.cat(heads, dim=1)))
    return torch.stack(windows)


def test_window_attention_matches_plain_form() -> None:
    torch.manual_seed(0)
    module = WindowAttention(8, 3, 2).double()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    mask = shifted_window_mask(6, 6, 3, 1, x.device)
    assert mask.any()
    for blocked in (None, mask):
        plain_mask = torch.zeros_like(mask) if blocked is None else blocked
        for i in range(2):
            expected = plain_window_attention(module, x[i], plain_mask)
            torch.testing.assert_close(module(x, blocked)[i], expected)


def test_shifted_mask_separates_what_was_rolled_in() -> None:
    h, w, side, shift = 6, 9, 3, 1
    image = torch.arange(h * w).view(h, w).roll((-shift, -shift), (0, 1))
    mask = shifted_window_mask(h, w, side, shift, image.device)
    windows = image.view(h // side, side, w // side, side).transpose(1, 2).reshape(-1, side * side)
    y, x = windows // w, windows % w
    far = ((y[:, :, None] - y[:, None]).abs() >= side) | ((x[:, :, None] - x[:, None]).abs() >= side)
    assert torch.equal(mask, far)


def test_patch_merging_order() -> None:
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    merged = merging(torch.arange(12.0).view(1, 3, 4, 1))
    assert merged[0, 0, 0].tolist() == [0, 4, 1, 5]
    assert merged[0, 1, 1].tolist() == [10, 0, 11, 0]


def test_gradient_checkpointing_changes_nothing() -> None:
    torch.manual_seed(1)
    plain = SwinTransformer(**SMALL, drop_path_rate=0.0).double()
    saving = SwinTransformer(**SMALL, drop_path_rate=0.0, use_checkpoint=True).double()
    saving.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    for model in (plain, saving):
        model(image)["res3"].square().sum().backward()
    for (name, expected), actual in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(actual.grad, expected.grad, msg=name)


def test_drop_path() -> None:
    x = torch.ones(2000, 2, 2)
    assert torch.equal(drop_path(x, 0.25, training=False), x)
    dropped = drop_path(x, 0.25, training=True)
    kept = dropped[:, 0, 0] > 0
    assert torch.equal(dropped[kept], x[kept] / 0.75)
    assert not dropped[~kept].any()
    assert abs(kept.float().mean() - 0.75) < 0.05
    modules = SwinTransformer(**SMALL).modules()
    rates = [module.drop_path_rate for module in modules if isinstance(module, SwinBlock)]
    assert rates == pytest.approx([0, 0.2 / 3, 0.4 / 3, 0.2])


def test_absolute_positions_and_fewer_outputs() -> None:
    cfg = default_cfg()
    cfg.merge_from_list(["MODEL.SWIN.EMBED_DIM", 24, "MODEL.SWIN.OUT_FEATURES", ["res3", "res4"]])
    cfg.merge_from_list(["MODEL.SWIN.APE", True, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1]])
    model = D2SwinTransformer(cfg, ShapeSpec(channels=3)).eval()
    assert model.absolute_pos_embed.shape == (1, 24, 56, 56)
    outputs = model(torch.rand(1, 3, 40, 24))
    shapes = model.output_shape()
    assert list(outputs) == list(shapes) == ["res3", "res4"]
    for name, output in outputs.items():
        assert output.shape[1] == shapes[name].channels
        assert -(-40 // shapes[name].stride) == output.shape[2]
    assert model.size_divisibility == 32


def test_bad_settings_are_refused() -> None:
    cfg = default_cfg()
    cfg.MODEL.SWIN.OUT_FEATURES = ["res2", "res6"]
    with pytest.raises(ValueError, match=r"MODEL.SWIN.OUT_FEATURES.*res6.*res5"):
        D2SwinTransformer(cfg, ShapeSpec(channels=3))
    with pytest.raises(ValueError, match=r"depths.*num_heads"):
        SwinTransformer(depths=(1, 1), num_heads=(1,))
    with pytest.raises(ValueError, match=r"96 channels.*5 heads"):
        SwinTransformer(depths=(1,), num_heads=(5,))
    cfg = default_cfg()
    cfg.MODEL.SWIN.DEPTHS = [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"N 3 H W.*\(3, 8, 8\)"):
        D2SwinTransformer(cfg, ShapeSpec(channels=3))(torch.rand(3, 8, 8))
