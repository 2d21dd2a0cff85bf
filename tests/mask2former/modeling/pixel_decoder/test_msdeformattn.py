"""Pixel decoder against the published numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from mask2former.modeling.pixel_decoder import msdeformattn
from mask2former.modeling.pixel_decoder.build import build_pixel_decoder
from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder, reference_points
from tests.mask2former.tiny import tiny_cfg
from tests.reference import load_golden, relative_error
from tests.weights import fill_state_dict, make_input

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def shapes(*channels: int) -> dict[str, ShapeSpec]:
    return {
        name: ShapeSpec(channels=c, stride=stride)
        for c, (name, stride) in zip(channels, STRIDES.items(), strict=True)
    }


def decoder(**changes: object) -> MSDeformAttnPixelDecoder:
    settings = {
        "transformer_dropout": 0.0,
        "transformer_nheads": 8,
        "transformer_dim_feedforward": 1024,
        "transformer_enc_layers": 6,
        "conv_dim": 256,
        "mask_dim": 256,
        "norm": "GN",
        "transformer_in_features": ["res3", "res4", "res5"],
        "common_stride": 4,
        **changes,
    }
    input_shape = settings.pop("input_shape", shapes(256, 512, 1024, 2048))
    return MSDeformAttnPixelDecoder(input_shape, **settings).eval()


def small_decoder(**changes: object) -> MSDeformAttnPixelDecoder:
    small = {
        "input_shape": shapes(4, 5, 6, 7),
        "conv_dim": 32,
        "mask_dim": 16,
        "transformer_dim_feedforward": 8,
        "transformer_enc_layers": 1,
    }
    return decoder(**{**small, **changes})


def test_outputs_match_golden() -> None:
    meta, golden = load_golden("pixel_decoder")
    model = decoder()
    fill_state_dict(model, prefix=meta["weights_prefix"])
    features = {
        name: torch.from_numpy(
            make_input(name, [meta["B"], c, meta["h"] // stride, meta["w"] // stride], meta["seed"])
        )
        for c, (name, stride) in zip((256, 512, 1024, 2048), STRIDES.items(), strict=True)
    }
    first_layer = []
    model.transformer.encoder.layers[0].register_forward_hook(lambda *args: first_layer.append(args[2]))
    with torch.no_grad():
        mask_features, coarsest, scales = model.forward_features(features)
    assert relative_error(first_layer[0][:, ::5, ::4], golden["encoder_layer0"]) < 1e-4
    assert relative_error(mask_features[:, ::4, ::2, ::2], golden["mask_features"]) < 1e-4
    assert torch.equal(coarsest, scales[0])
    outputs = {"mask_features": mask_features, **{f"ms_{i}": scale for i, scale in enumerate(scales)}}
    for name, output in outputs.items():
        stats = torch.stack([output.mean(), output.std(), output.abs().max(), output.abs().sum()])
        assert relative_error(stats, golden[f"{name}_stats"]) < 1e-4
    for i, scale in enumerate(scales):
        assert relative_error(scale[:, ::2], golden[f"ms_{i}"]) < 1e-4


def test_odd_sizes_and_batches() -> None:
    model = small_decoder().double()
    sizes = {"res2": (13, 19), "res3": (7, 10), "res4": (4, 5), "res5": (2, 3)}
    features = {
        name: torch.rand(3, c, *sizes[name], dtype=torch.float64)
        for c, name in zip((4, 5, 6, 7), sizes, strict=True)
    }
    mask_features, _, scales = model.forward_features(features)
    assert mask_features.shape == (3, 16, 13, 19)
    assert [tuple(scale.shape[2:]) for scale in scales] == [(2, 3), (4, 5), (7, 10)]
    alone = model.forward_features({name: feature[1:2] for name, feature in features.items()})[0]
    torch.testing.assert_close(mask_features[1:2], alone)


def test_precision_is_kept_under_autocast() -> None:
    model = small_decoder()
    features = {name: torch.rand(1, c, 8, 8) for c, name in zip((4, 5, 6, 7), STRIDES, strict=True)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.forward_features({name: f.bfloat16() for name, f in features.items()})[0]
    assert low.dtype == torch.float32


def test_without_gradients_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msdeformattn, "TOKENS_AT_ONCE", 37)  # does not divide the number of tokens
    model = small_decoder(transformer_enc_layers=2)
    fill_state_dict(model)
    features = {name: torch.randn(2, c, 24, 40) for c, name in zip((4, 5, 6, 7), STRIDES, strict=True)}
    features = {
        name: F.interpolate(feature, size=(96 // STRIDES[name], 160 // STRIDES[name]))
        for name, feature in features.items()
    }
    mask_features, _, levels = model.forward_features(features)
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            given = {name: feature.to(memory_format=layout) for name, feature in features.items()}
            found, _, found_levels = model.forward_features(given)
            torch.testing.assert_close(found, mask_features, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found_levels, levels, rtol=1e-4, atol=1e-5)
            assert all(torch.equal(given[name], features[name]) for name in features)


def test_gradients_reach_every_parameter() -> None:
    model = small_decoder().train()
    features = {name: torch.rand(1, c, 4, 4) for c, name in zip((4, 5, 6, 7), STRIDES, strict=True)}
    mask_features, _, scales = model.forward_features(features)
    (mask_features.square().sum() + sum(scale.square().sum() for scale in scales)).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


def test_reference_points_are_cell_centres() -> None:
    points = reference_points([(1, 2), (2, 1)], torch.device("cpu"), torch.float64)
    assert points.shape == (4, 2, 2)
    assert points[:, 0].tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]
    assert torch.equal(points[:, 0], points[:, 1])


def test_no_fpn_level_when_the_encoder_has_the_stride() -> None:
    model = small_decoder(common_stride=8)
    features = {
        name: torch.rand(1, c, 64 // STRIDES[name], 64 // STRIDES[name])
        for c, name in zip((4, 5, 6, 7), STRIDES, strict=True)
    }
    assert model.forward_features(features)[0].shape == (1, 16, 8, 8)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ENCODER_IN_FEATURES must name three.*res6"):
        small_decoder(transformer_in_features=["res3", "res4", "res6"])
    cfg = tiny_cfg(MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME="NoSuchDecoder")
    with pytest.raises(ValueError, match=r"PIXEL_DECODER_NAME is 'NoSuchDecoder'"):
        build_pixel_decoder(cfg, shapes(4, 5, 6, 7))
    cfg = tiny_cfg(MODEL__SEM_SEG_HEAD__IN_FEATURES=["res2", "res3", "res4", "res9"])
    with pytest.raises(ValueError, match=r"IN_FEATURES names \['res9'\].*res5"):
        build_pixel_decoder(cfg, shapes(4, 5, 6, 7))
