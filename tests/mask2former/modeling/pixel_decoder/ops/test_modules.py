"""The module: golden case, initialisation, box references, padding, autocast and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mask2former.modeling.pixel_decoder.ops.functions import available_backends
from mask2former.modeling.pixel_decoder.ops.modules import MSDeformAttn
from tests.mask2former.modeling.pixel_decoder.ops.problems import level_tables
from tests.reference import load_golden
from tests.weights import fill_state_dict, make_input

CPU_BACKENDS = [name for name in available_backends() if name != "cuda"]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_golden(backend: str) -> None:
    meta, arrays = load_golden("msda_module")
    module = MSDeformAttn(
        meta["d_model"], len(meta["shapes"]), meta["n_heads"], meta["n_points"], backend=backend
    )
    fill_state_dict(module, prefix=meta["weights_prefix"])
    shapes, starts = level_tables(meta["shapes"])
    batch, pixels, channels = meta["N"], int(shapes.prod(1).sum()), meta["d_model"]
    seed = meta["seed"]
    query = torch.from_numpy(make_input("query", [batch, meta["Lq"], channels], seed)).requires_grad_()
    memory = torch.from_numpy(make_input("memory", [batch, pixels, channels], seed)).requires_grad_()
    reference_points = torch.from_numpy(arrays["reference_points"])
    padding_mask = torch.from_numpy(arrays["padding_mask"])

    output = module(query, reference_points, memory, shapes, starts, padding_mask)
    np.testing.assert_allclose(output.detach(), arrays["out"], rtol=0, atol=1e-5)

    output.backward(torch.from_numpy(make_input("grad", output.shape, seed)))
    assert query.grad is not None
    assert memory.grad is not None
    assert module.sampling_offsets.weight.grad is not None
    assert module.attention_weights.weight.grad is not None
    for grad, name in [
        (query.grad[:, ::7, ::5], "grad_query"),
        (memory.grad[:, ::7, ::5], "grad_memory"),
        (module.sampling_offsets.weight.grad[::3, ::8], "grad_sampling_offsets_weight"),
        (module.attention_weights.weight.grad[::3, ::8], "grad_attention_weights_weight"),
    ]:
        expected = arrays[name]
        np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))


def test_state_dict_names() -> None:
    assert {key: tuple(value.shape) for key, value in MSDeformAttn(16, 3, 4, 2).state_dict().items()} == {
        "sampling_offsets.weight": (48, 16),
        "sampling_offsets.bias": (48,),
        "attention_weights.weight": (24, 16),
        "attention_weights.bias": (24,),
        "value_proj.weight": (16, 16),
        "value_proj.bias": (16,),
        "output_proj.weight": (16, 16),
        "output_proj.bias": (16,),
    }


def test_starts_with_fixed_points_in_all_directions() -> None:
    module = MSDeformAttn(32, n_levels=2, n_heads=8, n_points=3)
    offsets = module.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    for head in range(8):
        angle = 2 * math.pi * head / 8
        for point in range(3):
            for level in range(2):
                x, y = offsets[head, level, point].tolist()
                assert max(abs(x), abs(y)) == pytest.approx(point + 1)
                assert x * math.sin(angle) - y * math.cos(angle) == pytest.approx(0, abs=1e-5)
    for zero in (
        module.sampling_offsets.weight,
        module.attention_weights.weight,
        module.attention_weights.bias,
    ):
        assert not zero.any()
    bound = math.sqrt(6 / 64)
    for projection in (module.value_proj, module.output_proj):
        assert projection.weight.abs().max() <= bound
        assert projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        assert not projection.bias.any()


def module_inputs(
    box: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes, starts = level_tables([(3, 5), (2, 2)])
    query = torch.randn(2, 7, 16, generator=generator)
    memory = torch.randn(2, 19, 16, generator=generator)
    reference = torch.rand(2, 7, 2, 4 if box else 2, generator=generator)
    return query.to(dtype), reference.to(dtype), memory.to(dtype), shapes, starts


def random_module(**settings: str) -> MSDeformAttn:
    torch.manual_seed(0)
    module = MSDeformAttn(16, n_levels=2, n_heads=4, n_points=2, **settings)
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.3)
    torch.nn.init.normal_(module.attention_weights.weight, std=0.3)
    return module


def test_boxes_scale_the_offsets() -> None:
    """A box of 2P / (w, h) makes an offset as long as a pixel of the level."""
    module = random_module()
    query, reference, memory, shapes, starts = module_inputs()
    sizes = 2 * module.n_points / shapes.flip(-1)
    boxes = torch.cat([reference, sizes.expand(2, 7, 2, 2)], dim=-1)
    points = module(query, reference, memory, shapes, starts)
    torch.testing.assert_close(module(query, boxes, memory, shapes, starts), points)


def test_padding_counts_as_zero() -> None:
    module = random_module()
    query, reference, memory, shapes, starts = module_inputs()
    mask = torch.zeros(2, 19, dtype=torch.bool)
    mask[:, 4:9] = True
    expected = module(query, reference, memory, shapes, starts, mask)
    memory = torch.where(mask[..., None], torch.randn_like(memory) * 100, memory)
    torch.testing.assert_close(module(query, reference, memory, shapes, starts, mask), expected)


def test_gradcheck() -> None:
    module = random_module().double()
    query, reference, memory, shapes, starts = module_inputs(dtype=torch.float64)
    inputs = (query.requires_grad_(), reference.requires_grad_(), memory.requires_grad_())
    assert torch.autograd.gradcheck(lambda *t: module(*t, shapes, starts), inputs)


def test_a_large_logit_is_no_overflow() -> None:
    module = random_module()
    torch.nn.init.constant_(module.attention_weights.bias, 1e4)
    query, reference, memory, shapes, starts = module_inputs()
    assert torch.isfinite(module(query, reference, memory, shapes, starts)).all()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_autocast_keeps_positions_precise(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mask2former.modeling.pixel_decoder.ops.modules import ms_deform_attn as source

    seen = {}
    function = source.ms_deform_attn_from_offsets

    def spy(
        value: Tensor,
        shapes: Tensor,
        starts: Tensor,
        reference: Tensor,
        offsets: Tensor,
        logits: Tensor,
        **kwargs: str,
    ) -> Tensor:
        seen.update(value=value.dtype, offsets=offsets.dtype, logits=logits.dtype)
        return function(value, shapes, starts, reference, offsets, logits, **kwargs)

    monkeypatch.setattr(source, "ms_deform_attn_from_offsets", spy)
    module = random_module(backend=backend)
    exact = module(*module_inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(*module_inputs())
    assert seen == {"value": torch.bfloat16, "offsets": torch.float32, "logits": torch.float32}
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)
    output.float().sum().backward()
    assert module.sampling_offsets.weight.grad is not None
    assert torch.isfinite(module.sampling_offsets.weight.grad).all()


def test_no_queries() -> None:
    module = random_module()
    query, reference, memory, shapes, starts = module_inputs()
    assert module(query[:, :0], reference[:, :0], memory, shapes, starts).shape == (2, 0, 16)
    assert module(query[:0], reference[:0], memory[:0], shapes, starts).shape == (0, 7, 16)


def test_compiles_as_one_graph() -> None:
    module = random_module()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    inputs = module_inputs()
    torch.testing.assert_close(compiled(*inputs), module(*inputs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_model": 10, "n_heads": 4}, "divisible by n_heads, got 10 and 4"),
        ({"n_levels": 0}, "n_levels must be at least 1, got 0"),
        ({"n_points": -1}, "n_points must be at least 1, got -1"),
    ],
)
def test_wrong_settings(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MSDeformAttn(**settings)


@pytest.mark.parametrize(
    ("index", "replacement", "message"),
    [
        (0, torch.zeros(2, 7, 15), r"query must have shape B Lq 16, got \(2, 7, 15\)"),
        (
            1,
            torch.zeros(2, 7, 2, 3),
            r"reference_points must have shape \(2, 7, 2\) and 2 .*got \(2, 7, 2, 3\)",
        ),
        (1, torch.zeros(2, 7, 3, 2), r"reference_points must have shape .*got \(2, 7, 3, 2\)"),
        (2, torch.zeros(1, 19, 16), r"input_flatten must have shape 2 S 16 .*got \(1, 19, 16\)"),
        (2, torch.zeros(2, 20, 16), "value must have the 19 pixels of spatial_shapes .*got 20"),
        (
            5,
            torch.zeros(2, 18, dtype=torch.bool),
            r"input_padding_mask must have shape \(2, 19\), got \(2, 18\)",
        ),
    ],
)
def test_wrong_input_is_named(index: int, replacement: Tensor, message: str) -> None:
    inputs: list[Tensor | None] = [*module_inputs(), None]
    inputs[index] = replacement
    with pytest.raises(ValueError, match=message):
        random_module()(*inputs)
