"""Masked-attention decoder against the published numbers and against its slow plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.transformer_decoder.build import (
    PUBLISHED_DECODER_NAMES,
    build_transformer_decoder,
)
from mask2former.modeling.transformer_decoder.mask2former_transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    background,
)
from tests.mask2former.tiny import tiny_cfg
from tests.reference import load_golden, load_manifest, relative_error
from tests.weights import fill_state_dict, make_input


def decoder(**changes: Any) -> MultiScaleMaskedTransformerDecoder:
    settings: dict[str, Any] = {
        "in_channels": 256,
        "num_classes": 25,
        "hidden_dim": 256,
        "num_queries": 100,
        "nheads": 8,
        "dim_feedforward": 2048,
        "dec_layers": 9,
        "pre_norm": False,
        "mask_dim": 256,
        "enforce_input_project": False,
        **changes,
    }
    return MultiScaleMaskedTransformerDecoder(**settings).eval()


SMALL = {
    "in_channels": 8,
    "hidden_dim": 8,
    "mask_dim": 4,
    "num_queries": 5,
    "nheads": 2,
    "dim_feedforward": 16,
    "dec_layers": 4,
    "num_classes": 3,
}


def small_inputs(n: int = 2, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(5)
    scales = [torch.randn(n, 8, *size, generator=generator, dtype=dtype) for size in ((2, 3), (3, 5), (7, 9))]
    return scales, torch.randn(n, 4, 13, 18, generator=generator, dtype=dtype)


@pytest.fixture(scope="module")
def golden_run() -> tuple[dict[str, Any], dict[str, Any]]:
    meta, golden = load_golden("transformer_decoder")
    model = decoder()
    fill_state_dict(model, prefix=meta["weights_prefix"])
    t, h, w = meta["frames"], meta["h"], meta["w"]
    scales = [
        torch.from_numpy(make_input(f"ms{i}", [t, 256, h // stride, w // stride], meta["seed"]))
        for i, stride in enumerate((32, 16, 8))
    ]
    mask_features = torch.from_numpy(make_input("mask_features", [t, 256, h // 4, w // 4], meta["seed"]))
    with torch.no_grad():
        return golden, model(scales, mask_features, with_aux=True)


def statistics(x: Tensor) -> Tensor:
    return torch.stack([x.mean(), x.std(), x.abs().max(), x.abs().sum()])


def test_outputs_match_golden(golden_run: tuple[dict[str, Any], dict[str, Any]]) -> None:
    golden, outputs = golden_run
    assert relative_error(outputs["pred_logits"][None], golden["pred_logits"]) < 1e-4
    masks = outputs["pred_masks"].transpose(0, 1)[None]
    assert relative_error(masks[..., ::3, ::3], golden["pred_masks"]) < 1e-4
    assert relative_error(statistics(masks), golden["pred_masks_stats"]) < 1e-4
    assert relative_error(outputs["pred_embeds"].permute(2, 0, 1)[None], golden["pred_embds"]) < 1e-4


def test_auxiliary_outputs_match_golden(golden_run: tuple[dict[str, Any], dict[str, Any]]) -> None:
    golden, outputs = golden_run
    aux = outputs["aux_outputs"]
    assert len(aux) == 9
    for i in (0, 4, 8):
        assert relative_error(aux[i]["pred_logits"][None], golden[f"aux{i}_logits"]) < 1e-4
    masks = aux[0]["pred_masks"].transpose(0, 1)[None]
    assert relative_error(masks[..., ::3, ::3], golden["aux0_masks"]) < 1e-4
    stats = torch.stack([statistics(layer["pred_masks"]) for layer in aux])
    assert relative_error(stats, golden["aux_mask_stats"]) < 1e-4


def plain_decoder(
    model: MultiScaleMaskedTransformerDecoder, scales: list[Tensor], mask_features: Tensor
) -> Tensor:
    """Final mask logits; masks are made at full size at every layer and resized afterwards."""
    n = len(mask_features)
    x = model.query_feat.weight.expand(n, -1, -1)
    pos = model.query_embed.weight
    for i, (cross, attention, ffn) in enumerate(
        zip(
            model.transformer_cross_attention_layers,
            model.transformer_self_attention_layers,
            model.transformer_ffn_layers,
            strict=True,
        )
    ):
        scale = scales[i % 3]
        embeds = model.mask_embed(model.decoder_norm(x))
        masks = torch.einsum("nqc,nchw->nqhw", embeds, mask_features)
        masks = F.interpolate(masks, scale.shape[-2:], mode="bilinear", align_corners=False)
        blocked = masks.flatten(2).sigmoid() < 0.5
        blocked[blocked.all(-1)] = False
        memory = scale.flatten(2).transpose(1, 2) + model.level_embed.weight[i % 3]
        key_pos = model.pe_layer(scale).flatten(2).transpose(1, 2)
        x = cross(x, memory, memory_mask=blocked, key_pos=key_pos, query_pos=pos)
        x = ffn(attention(x, query_pos=pos))
    return torch.einsum("nqc,nchw->nqhw", model.mask_embed(model.decoder_norm(x)), mask_features)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_matches_plain_form_at_odd_sizes(pre_norm: bool) -> None:
    torch.manual_seed(2)
    model = decoder(**SMALL, pre_norm=pre_norm).double()
    scales, mask_features = small_inputs(3)
    outputs = model(scales, mask_features)
    torch.testing.assert_close(outputs["pred_masks"], plain_decoder(model, scales, mask_features))
    assert outputs["pred_logits"].shape == (3, 5, 4)
    assert outputs["pred_embeds"].shape == (3, 5, 8)
    product = torch.einsum("nqc,nchw->nqhw", outputs["pred_mask_embeds"], mask_features)
    torch.testing.assert_close(product, outputs["pred_masks"])


def test_only_what_is_asked_for() -> None:
    model = decoder(**SMALL).double()
    inputs = small_inputs()
    assert model(*inputs)["aux_outputs"] == []
    assert model(*inputs, with_masks=False)["pred_masks"] is None
    assert len(model.train()(*inputs)["aux_outputs"]) == 4
    assert model(*inputs, with_aux=False)["aux_outputs"] == []


def test_frames_do_not_mix_and_no_frame_is_fine() -> None:
    model = decoder(**SMALL).double()
    scales, mask_features = small_inputs(3)
    together = model(scales, mask_features)["pred_masks"]
    alone = model([scale[2:] for scale in scales], mask_features[2:])["pred_masks"]
    torch.testing.assert_close(together[2:], alone)
    empty = model([scale[:0] for scale in scales], mask_features[:0])
    assert empty["pred_logits"].shape == (0, 5, 4)


def test_empty_masks_look_everywhere() -> None:
    features = torch.ones(1, 1, 2, 2)
    features[0, 0, 0, 0] = -1
    embeds = torch.tensor([[[1.0], [-1.0], [0.0]]])
    assert background(embeds, features)[0].int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert not background(-embeds[:, :1].abs(), torch.ones(1, 1, 2, 2)).any()


def test_input_projection_where_channels_differ() -> None:
    model = decoder(**{**SMALL, "in_channels": 6})
    scales = [torch.rand(1, 6, 2, 2) for _ in range(3)]
    assert model(scales, torch.rand(1, 4, 4, 4))["pred_masks"].shape == (1, 5, 4, 4)
    assert "input_proj.2.bias" in model.state_dict()
    assert "input_proj.0.weight" in decoder(**SMALL, enforce_input_project=True).state_dict()
    assert not any("input_proj" in key for key in decoder(**SMALL).state_dict())


def test_gradients_reach_every_parameter() -> None:
    model = decoder(**SMALL).double().train()
    outputs = model(*small_inputs())
    layers = (outputs, *outputs["aux_outputs"])
    total = sum(layer["pred_logits"].square().sum() + layer["pred_masks"].square().sum() for layer in layers)
    total.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_old_names_load() -> None:
    model = decoder(**SMALL)
    old = {key.replace("query_feat", "static_query"): value + 1 for key, value in model.state_dict().items()}
    old = dict(old)  # a plain dict carries no version
    model.load_state_dict(old)
    torch.testing.assert_close(model.query_feat.weight, old["static_query.weight"])


def test_version_two_is_not_renamed() -> None:
    model = decoder(**SMALL)
    state = model.state_dict()
    state["static_query.weight"] = state.pop("query_feat.weight")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["query_feat.weight"], ["static_query.weight"])


@pytest.mark.parametrize("name", ["MultiScaleMaskedTransformerDecoder", *PUBLISHED_DECODER_NAMES])
def test_published_names_build_the_same_module(name: str) -> None:
    model = build_transformer_decoder(tiny_cfg(MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME=name), 32)
    assert type(model) is MultiScaleMaskedTransformerDecoder
    assert model.num_layers == 2


def test_keys_and_shapes_are_the_published_ones() -> None:
    prefix = "sem_seg_head.predictor."
    manifest = load_manifest("minvis_r50")["state_dict"]
    expected = {key[len(prefix) :]: shape for key, (shape, _) in manifest.items() if key.startswith(prefix)}
    with torch.device("meta"):
        model = decoder()
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"DECODER_NAME is 'Nonsense'.*VideoMultiScale"):
        build_transformer_decoder(tiny_cfg(MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME="Nonsense"), 32)
    with pytest.raises(ValueError, match=r"DEC_LAYERS.*smallest value is 2"):
        build_transformer_decoder(tiny_cfg(MODEL__MASK_FORMER__DEC_LAYERS=1), 32)
    with pytest.raises(ValueError, match="mask classification"):
        decoder(**SMALL, mask_classification=False)
    scales, mask_features = small_inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match="expected 3 feature levels, got 2"):
        decoder(**SMALL)(scales[:2], mask_features)
