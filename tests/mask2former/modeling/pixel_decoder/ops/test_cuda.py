"""The CUDA back end on a GPU: parity with the float64 reference, dtypes, streams, graphs, sizes."""

from __future__ import annotations

import pytest
import torch

from mask2former.modeling.pixel_decoder.ops.functions import (
    available_backends,
    backend_report,
    ms_deform_attn,
    ms_deform_attn_reference,
)
from mask2former.modeling.pixel_decoder.ops.modules import MSDeformAttn
from tests.mask2former.modeling.pixel_decoder.ops.problems import Problem, level_tables, random_problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
R50_360P = {
    "batch": 2,
    "queries": 4760,
    "heads": 8,
    "channels": 32,
    "levels": [(45, 80), (23, 40), (12, 20)],
    "points": 4,
}
SIZES = [
    {},
    {"heads": 3, "channels": 32, "queries": 17, "points": 4},
    {"heads": 1, "channels": 5, "queries": 3, "levels": [(3, 3), (2, 2), (1, 1)]},
    {"batch": 1, "channels": 12, "queries": 9},
    {"batch": 1, "heads": 1, "channels": 300, "queries": 2, "points": 2},
    {"heads": 2, "channels": 1, "queries": 9, "levels": [(3, 4)], "points": 20},
    R50_360P,
]
FLOAT32_SUMS = 1e-5  # atomic additions in any order
OUTPUT_TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def test_is_built() -> None:
    assert "cuda" in available_backends(), backend_report()["cuda"]


@pytest.mark.parametrize("dtype", OUTPUT_TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_agrees_with_the_reference(sizes: dict[str, int], dtype: torch.dtype) -> None:
    computes_in = torch.float64 if dtype == torch.float64 else torch.float32
    problem = random_problem(dtype=computes_in, **sizes).on("cuda")  # type: ignore[arg-type]
    problem = problem._replace(value=problem.value.to(dtype)).requires_grad()
    exact = problem.to(torch.float64).requires_grad()
    output = ms_deform_attn(*problem, backend="cuda")
    expected = ms_deform_attn_reference(*exact)
    assert output.dtype == dtype
    grad_output = torch.randn_like(expected).to(dtype)
    grads = problem.gradients(output, grad_output)
    exact_grads = exact.gradients(expected, grad_output.double())
    sums = 1e-12 if dtype == torch.float64 else FLOAT32_SUMS
    tolerances = (OUTPUT_TOLERANCE[dtype], max(sums, OUTPUT_TOLERANCE[dtype]), sums, sums)
    for actual, right, tolerance in zip((output, *grads), (expected, *exact_grads), tolerances, strict=True):
        error = (actual.double() - right).detach().abs().max().item()
        assert error <= tolerance * right.detach().abs().max().item()


def test_gradcheck() -> None:
    problem = random_problem().on("cuda").requires_grad()
    inputs = (problem.value, problem.sampling_locations, problem.attention_weights)
    assert torch.autograd.gradcheck(
        lambda v, x, a: ms_deform_attn(v, problem[1], problem[2], x, a, backend="cuda"),
        inputs,
        nondet_tol=1e-10,
    )


@pytest.mark.parametrize("backend", ["cuda", "pytorch"])
def test_operator_is_registered_correctly(backend: str) -> None:
    problem = random_problem().on("cuda").requires_grad()
    torch.library.opcheck(torch.ops.dvis.ms_deform_attn.default, (*problem, backend))


def test_pytorch_back_end_agrees() -> None:
    problem = random_problem(dtype=torch.float32).on("cuda").requires_grad()
    output = ms_deform_attn(*problem, backend="pytorch")
    expected = ms_deform_attn_reference(*problem)
    torch.testing.assert_close(output, expected)
    for grad, right in zip(
        problem.gradients(output, torch.ones_like(output)),
        problem.gradients(expected, torch.ones_like(output)),
        strict=True,
    ):
        torch.testing.assert_close(grad, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_nothing_to_do(empty: str) -> None:
    problem = random_problem(**{empty: 0}).on("cuda").requires_grad()  # type: ignore[arg-type]
    ms_deform_attn(*problem, backend="cuda").sum().backward()
    assert problem.value.grad is not None
    assert not problem.value.grad.any()


def test_levels_may_stay_on_the_cpu_and_are_then_checked() -> None:
    problem = random_problem().on("cuda")
    expected = ms_deform_attn_reference(*problem)
    mixed = problem._replace(
        spatial_shapes=problem.spatial_shapes.cpu(), level_start_index=problem.level_start_index.cpu()
    )
    torch.testing.assert_close(ms_deform_attn(*mixed, backend="cuda"), expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="level_start_index must put the levels"):
        ms_deform_attn(*mixed._replace(spatial_shapes=mixed.spatial_shapes * 2), backend="cuda")


def test_bad_levels_on_the_device_and_nan_locations_read_nothing_outside() -> None:
    problem = random_problem().on("cuda")
    for shapes in (problem.spatial_shapes * 1000, -problem.spatial_shapes, problem.spatial_shapes + 2**60):
        output = ms_deform_attn(*problem._replace(spatial_shapes=shapes), backend="cuda")
        torch.cuda.synchronize()
        assert not output.any()
    nowhere = torch.full_like(problem.sampling_locations, float("nan"))
    assert not ms_deform_attn(*problem._replace(sampling_locations=nowhere), backend="cuda").any()


def test_tensors_on_another_device_are_named() -> None:
    problem = random_problem().on("cuda")
    with pytest.raises(ValueError, match=r"attention_weights must be on cuda:0 like value, got cpu"):
        ms_deform_attn(*problem._replace(attention_weights=problem.attention_weights.cpu()))
    with pytest.raises(ValueError, match=r"'cpp' needs tensors on cpu, got cuda"):
        ms_deform_attn(*problem, backend="cpp")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = MSDeformAttn(64, 2, 4, 2).cuda()
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.1)
    shapes, starts = (t.cuda() for t in level_tables([(6, 7), (3, 4)]))
    query, memory = torch.randn(2, 9, 64, device="cuda"), torch.randn(2, 54, 64, device="cuda")
    reference = torch.rand(2, 9, 2, 2, device="cuda")
    exact = module(query, reference, memory, shapes, starts)
    with torch.autocast("cuda", dtype=dtype):
        output = module(query, reference, memory, shapes, starts)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)
    output.float().sum().backward()
    assert module.value_proj.weight.grad is not None


def test_follows_the_current_stream_and_fits_into_a_graph() -> None:
    problem = random_problem(dtype=torch.float32).on("cuda")
    expected = ms_deform_attn_reference(*problem)
    static = Problem(*(t.clone() for t in problem))
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ms_deform_attn(*static, backend="cuda")  # warm-up
    stream.synchronize()
    with torch.cuda.graph(graph):
        output = ms_deform_attn(*static, backend="cuda")
    static.value.mul_(2)
    graph.replay()
    torch.testing.assert_close(output, expected * 2)


def test_compiles_as_one_graph() -> None:
    problem = random_problem(dtype=torch.float32).on("cuda")
    compiled = torch.compile(lambda *t: ms_deform_attn(*t) * 2, fullgraph=True)
    torch.testing.assert_close(compiled(*problem), ms_deform_attn_reference(*problem) * 2)


def test_nondeterminism_is_announced() -> None:
    problem = random_problem().on("cuda").requires_grad()
    output = ms_deform_attn(*problem, backend="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="ms_deform_attn_cuda_backward"):
            output.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_more_elements_than_32_bits_count() -> None:
    height, width, channels = 8192, 8193, 32
    if torch.cuda.mem_get_info()[0] < 3 * height * width * channels:
        pytest.skip("not enough memory")
    value = torch.zeros(1, height * width, 1, channels, dtype=torch.bfloat16, device="cuda")
    assert value.numel() > 2**31
    value[0, -1] = torch.arange(channels)
    shapes, starts = level_tables([(height, width)])
    last = torch.tensor([(width - 0.5) / width, (height - 0.5) / height], dtype=torch.float64)
    locations = last.view(1, 1, 1, 1, 1, 2).float().cuda()
    attention = torch.ones(1, 1, 1, 1, 1, device="cuda")
    output = ms_deform_attn(value, shapes, starts, locations, attention, backend="cuda")
    torch.testing.assert_close(output[0, 0].float().cpu(), torch.arange(channels).float(), rtol=2e-2, atol=0)
