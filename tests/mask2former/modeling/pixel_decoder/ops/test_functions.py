"""The function: numbers, gradients, edge cases, errors and operator registration of every back end here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mask2former.modeling.pixel_decoder.ops.functions import (
    available_backends,
    backend_report,
    backends,
    ms_deform_attn,
    ms_deform_attn_from_offsets,
    ms_deform_attn_reference,
)
from mask2former.modeling.pixel_decoder.ops.functions.ms_deform_attn_func import (
    attention_from_logits,
    locations_from_offsets,
)
from tests.mask2former.modeling.pixel_decoder.ops.problems import Problem, level_tables, random_problem
from tests.reference import load_golden

CPU_BACKENDS = [name for name in available_backends() if name != "cuda"]
Function = Callable[..., Tensor]


def with_backend(name: str) -> Function:
    def function(*args: Tensor) -> Tensor:
        return ms_deform_attn(*args, backend=name)

    return function


FUNCTIONS = {"reference": ms_deform_attn_reference, **{name: with_backend(name) for name in CPU_BACKENDS}}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def golden_problem(case: str, dtype: torch.dtype) -> tuple[Problem, dict[str, np.ndarray]]:
    _, arrays = load_golden(f"msda_core_{case}")
    shapes, starts = level_tables(arrays["spatial_shapes"].tolist())
    value, locations, attention = (torch.from_numpy(arrays[k]) for k in ("value", "locations", "attention"))
    return Problem(value, shapes, starts, locations, attention).to(dtype), arrays


# Numbers ----------


@every_function
@pytest.mark.parametrize(
    ("dtype", "suffix", "tolerance"), [(torch.float64, "64", 1e-12), (torch.float32, "32", 1e-5)]
)
@pytest.mark.parametrize("case", ["small", "typical", "outside", "border"])
def test_golden(case: str, dtype: torch.dtype, suffix: str, tolerance: float, function: Function) -> None:
    problem, arrays = golden_problem(case, dtype)
    problem = problem.requires_grad()
    output = function(*problem)
    assert output.dtype == dtype
    np.testing.assert_allclose(output.detach(), arrays[f"out{suffix}"], rtol=0, atol=tolerance)
    if f"grad_value{suffix}" not in arrays:
        return
    grads = problem.gradients(output, torch.from_numpy(arrays["grad_output"]).to(dtype))
    for name, grad in zip(("value", "locations", "attention"), grads, strict=True):
        np.testing.assert_allclose(grad, arrays[f"grad_{name}{suffix}"], rtol=0, atol=tolerance)


@every_function
def test_gradcheck(function: Function) -> None:
    problem = random_problem().requires_grad()

    def of_inputs(value: Tensor, locations: Tensor, attention: Tensor) -> Tensor:
        return function(value, problem.spatial_shapes, problem.level_start_index, locations, attention)

    assert torch.autograd.gradcheck(
        of_inputs, (problem.value, problem.sampling_locations, problem.attention_weights)
    )


def assert_agrees_with_reference(problem: Problem, backend: str, tolerance: float) -> None:
    """Output and gradients equal the float64 reference, relative to the largest number of each."""
    exact = problem.to(torch.float64).requires_grad()
    expected = ms_deform_attn_reference(*exact)
    problem = problem.requires_grad()
    output = ms_deform_attn(*problem, backend=backend)
    assert output.dtype == problem.value.dtype
    grad_output = (
        torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
    )
    grads = problem.gradients(output, grad_output)
    exact_grads = exact.gradients(expected, grad_output.double())
    for actual, right in [(output, expected), *zip(grads, exact_grads, strict=True)]:
        assert actual.shape == right.shape
        largest = max(1.0, right.detach().abs().max().item())
        assert (actual.double() - right).detach().abs().max().item() <= tolerance * largest


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_back_ends_agree_with_the_reference(backend: str, data: st.DataObject) -> None:
    count = st.integers(1, 4)
    problem = random_problem(
        seed=data.draw(st.integers(0, 2**16), label="seed"),
        batch=data.draw(st.integers(1, 3), label="batch"),
        queries=data.draw(st.integers(1, 20), label="queries"),
        heads=data.draw(count, label="heads"),
        channels=data.draw(st.sampled_from([1, 2, 3, 4, 7, 8, 16, 19, 32, 33, 64, 70]), label="channels"),
        levels=data.draw(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4)),
        points=data.draw(count, label="points"),
        spread=data.draw(st.sampled_from([0.5, 1.0, 1.5, 10.0]), label="spread"),
        dtype=data.draw(st.sampled_from([torch.float64, torch.float32]), label="dtype"),
    )
    assert_agrees_with_reference(problem, backend, 1e-12 if problem.value.dtype == torch.float64 else 2e-5)


@every_backend
def test_real_sizes(backend: str) -> None:
    problem = random_problem(
        batch=1,
        queries=300,
        heads=8,
        channels=32,
        levels=[(23, 40), (12, 20), (6, 10)],
        points=4,
        dtype=torch.float32,
    )
    assert_agrees_with_reference(problem, backend, 2e-5)


@every_backend
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_sums_in_float32(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    """Only the result is rounded, to the nearest number of its type."""
    problem = random_problem(queries=30, channels=32, dtype=torch.float32)
    half = problem.value.to(dtype)
    output = ms_deform_attn(half, *problem[1:], backend=backend)
    expected = ms_deform_attn_reference(half.float(), *problem[1:])
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=tolerance, atol=1e-5)

    value = half.clone().requires_grad_()
    exact = half.float().requires_grad_()
    ms_deform_attn(value, *problem[1:], backend=backend).sum().backward()
    ms_deform_attn_reference(exact, *problem[1:]).sum().backward()
    assert value.grad is not None
    assert value.grad.dtype == dtype
    torch.testing.assert_close(value.grad.float(), exact.grad, rtol=tolerance, atol=1e-5)


@every_backend
def test_locations_and_attention_of_another_dtype_get_gradients_in_it(backend: str) -> None:
    problem = random_problem().requires_grad()
    value = problem.value.detach().float().requires_grad_()
    output = ms_deform_attn(value, *problem[1:], backend=backend)
    assert output.dtype == torch.float32
    output.sum().backward()
    assert problem.sampling_locations.grad is not None
    assert problem.sampling_locations.grad.dtype == torch.float64


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_sampling_in_float32(backend: str, dtype: torch.dtype) -> None:
    problem = random_problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        output = ms_deform_attn(*problem, backend=backend)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, ms_deform_attn_reference(*problem))


# Edge cases ----------


@every_backend
@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_nothing_to_do(backend: str, empty: str) -> None:
    problem = random_problem(**{empty: 0}).requires_grad()
    output = ms_deform_attn(*problem, backend=backend)
    assert output.shape == (problem.value.shape[0], problem.sampling_locations.shape[1], 6)
    output.sum().backward()
    for tensor in (problem.value, problem.sampling_locations, problem.attention_weights):
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


@every_backend
def test_one_pixel_one_level_one_point(backend: str) -> None:
    problem = random_problem(levels=[(1, 1)], points=1, spread=3.0)
    assert_agrees_with_reference(problem, backend, 1e-12)


@every_backend
def test_levels_in_another_order(backend: str) -> None:
    """Levels need not be stored in the order in which they are numbered."""
    problem = random_problem(levels=[(4, 5), (2, 3)])
    starts = torch.tensor([6, 0])
    swapped = Problem(
        torch.cat([problem.value[:, 20:], problem.value[:, :20]], dim=1), problem[1], starts, *problem[3:]
    )
    expected = ms_deform_attn_reference(*problem)
    torch.testing.assert_close(ms_deform_attn(*swapped, backend=backend), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ms_deform_attn_reference(*swapped), expected, rtol=0, atol=1e-12)


@every_backend
@pytest.mark.parametrize("far", [-1e30, 1e30, -3.0, 7.0, float("inf"), -float("inf")])
def test_far_outside_gives_zero(backend: str, far: float) -> None:
    problem = random_problem(dtype=torch.float32)
    locations = problem.sampling_locations.clone()
    locations[..., 0] = far
    problem = problem._replace(sampling_locations=locations)
    if np.isfinite(far):
        problem = problem.requires_grad()
    output = ms_deform_attn(*problem, backend=backend)
    assert not output.detach().nan_to_num().any()
    if np.isfinite(far):
        assert not any(grad.any() for grad in problem.gradients(output, torch.ones_like(output)))


@every_backend
def test_locations_on_pixel_borders(backend: str) -> None:
    """Pixel centres give exactly the pixel; the half pixel outside fades to zero."""
    height, width = 3, 4
    value = torch.arange(1, 13, dtype=torch.float64).view(1, 12, 1, 1)
    shapes, starts = level_tables([(height, width)])
    columns = torch.tensor([0, 1, 3, -0.5, 3.5, 4, -1], dtype=torch.float64)
    locations = torch.stack([(columns + 0.5) / width, torch.full_like(columns, 0.5)], dim=-1).view(
        1, 7, 1, 1, 1, 2
    )
    output = ms_deform_attn(value, shapes, starts, locations, torch.ones(1, 7, 1, 1, 1), backend=backend)
    expected = torch.tensor([5, 6, 8, 2.5, 4, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(output.flatten(), expected, rtol=0, atol=1e-12)


@every_backend
@pytest.mark.parametrize("where", ["sampling_locations", "attention_weights", "value"])
def test_nan_stays_where_it_is(backend: str, where: str) -> None:
    """A NaN neither reads outside memory nor reaches results that do not use it."""
    problem = random_problem(queries=6, heads=1, dtype=torch.float32, spread=0.5)
    clean = ms_deform_attn(*problem, backend=backend)
    broken = getattr(problem, where).clone()
    if where == "value":
        broken[1] = float("nan")
        unaffected = (slice(0, 1),)
    else:
        broken[:, 3] = float("nan")
        unaffected = (slice(None), [0, 1, 2, 4, 5])
    problem = problem._replace(**{where: broken}).requires_grad()
    output = ms_deform_attn(*problem, backend=backend)
    torch.testing.assert_close(output[unaffected], clean[unaffected])
    problem.gradients(output, torch.ones_like(output))


@every_backend
def test_infinite_pixels_that_are_not_sampled_do_not_matter(backend: str) -> None:
    """The neighbourhood of value in memory is not read: levels of other heads, the bytes before and after."""
    problem = random_problem(levels=[(3, 3)], heads=2, channels=8, spread=2.0, dtype=torch.float32)
    before, after = 5, 7
    room = torch.full((before + problem.value.numel() + after,), float("nan"))
    value = room[before : before + problem.value.numel()].view_as(problem.value)
    value.copy_(problem.value)
    output = ms_deform_attn(value, *problem[1:], backend=backend)
    torch.testing.assert_close(output, ms_deform_attn_reference(*problem))


@every_backend
def test_strided_inputs(backend: str) -> None:
    problem = random_problem()
    strided = Problem(
        *(t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t for t in problem)
    )
    assert not strided.value.is_contiguous()
    expected = ms_deform_attn_reference(*problem)
    torch.testing.assert_close(ms_deform_attn(*strided, backend=backend), expected, rtol=0, atol=1e-12)
    expanded = problem._replace(value=problem.value[:1].expand(2, -1, -1, -1))
    expected = ms_deform_attn_reference(*expanded)
    torch.testing.assert_close(ms_deform_attn(*expanded, backend=backend), expected, rtol=0, atol=1e-12)
    # A gradient that is a view, as reductions give it.
    recorded = problem.requires_grad()
    output = ms_deform_attn(*recorded, backend=backend)
    grads = recorded.gradients(output, torch.ones(1, dtype=torch.float64).expand_as(output))
    assert torch.isfinite(grads[0]).all()


@every_backend
def test_more_elements_than_32_bits_count(backend: str) -> None:
    height, width, channels = 8192, 8193, 32
    assert height * width * channels > 2**31
    try:  # memory that is never touched costs nothing
        value = torch.from_numpy(np.zeros((1, height * width, 1, channels), dtype=np.float32))
    except MemoryError:
        pytest.skip("not enough address space")
    value[0, -1] = torch.arange(channels)
    shapes, starts = level_tables([(height, width)])
    last = torch.tensor([(width - 0.5) / width, (height - 0.5) / height], dtype=torch.float64)
    locations = last.view(1, 1, 1, 1, 1, 2).float()
    output = ms_deform_attn(value, shapes, starts, locations, torch.ones(1, 1, 1, 1, 1), backend=backend)
    torch.testing.assert_close(output[0, 0], torch.arange(channels).float(), rtol=2e-2, atol=0)


def test_threads_do_not_change_results() -> None:
    problem = random_problem(batch=1, queries=400, heads=8, channels=32, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            recorded = problem.requires_grad()
            output = ms_deform_attn(*recorded)
            results.append((output.detach(), *recorded.gradients(output, torch.ones_like(output))))
        finally:
            torch.set_num_threads(threads)
    if "cpp" in CPU_BACKENDS:
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    else:
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


# Errors ----------


def replaced(**changes: Callable[[Tensor], Tensor]) -> Problem:
    problem = random_problem()
    return problem._replace(**{name: change(getattr(problem, name)) for name, change in changes.items()})


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (replaced(value=lambda t: t[0]), r"value must have shape B S M D, got \(26, 2, 3\)"),
        (replaced(value=lambda t: t.long()), "value must be float32, .*got torch.int64"),
        (
            replaced(value=lambda t: t[:1]),
            r"sampling_locations must have shape \(1, 5, 2, 2, 3, 2\).*got \(2, 5",
        ),
        (replaced(value=lambda t: t[:, :, :1]), r"sampling_locations must have shape \(2, 5, 1, "),
        (replaced(sampling_locations=lambda t: t[0]), r"B Lq M L P 2, got \(5, 2, 2, 3, 2\)"),
        (
            replaced(sampling_locations=lambda t: t[..., :1]),
            r"3, 2\) to fit the others, got \(2, 5, 2, 2, 3, 1\)",
        ),
        (replaced(sampling_locations=lambda t: t.long()), "sampling_locations must be floating point"),
        (
            replaced(attention_weights=lambda t: t[..., :2]),
            r"attention_weights .*\(2, 5, 2, 2, 3\).*got \(2, 5, 2, 2, 2\)",
        ),
        (replaced(spatial_shapes=lambda t: t[:1]), r"spatial_shapes must have shape \(2, 2\).*got \(1, 2\)"),
        (replaced(spatial_shapes=lambda t: t.int()), "spatial_shapes must be int64, got torch.int32"),
        (
            replaced(level_start_index=lambda t: t[:1]),
            r"level_start_index must have shape \(2,\).*got \(1,\)",
        ),
        (replaced(spatial_shapes=lambda t: t * 2), r"one starts at 80, got \[0, 20\]"),
        (replaced(level_start_index=lambda t: t + 1), r"one starts at 0, got \[1, 21\]"),
        (replaced(level_start_index=lambda t: t - 1), r"one starts at 0, got \[-1, 19\]"),
        (replaced(level_start_index=lambda t: t * 0), r"got \[0, 0\]"),
        (replaced(value=lambda t: t[:, 1:]), r"26 pixels of spatial_shapes \[\[4, 5\], \[2, 3\]\], got 25"),
        (replaced(spatial_shapes=lambda t: t * 0), "at least 1 x 1, got 0 x 0"),
    ],
)
@every_backend
def test_wrong_input_is_named(problem: Problem, message: str, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*problem, backend=backend)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="one of cuda, cpp, pytorch or None, got 'fast'"):
        ms_deform_attn(*random_problem(), backend="fast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_forcing_what_is_not_there_says_why() -> None:
    with pytest.raises(RuntimeError, match="'cuda' is not available: PyTorch sees no CUDA device"):
        ms_deform_attn(*random_problem(), backend="cuda")


def test_second_derivatives_name_the_way_out() -> None:
    problem = random_problem().requires_grad()
    (grad,) = torch.autograd.grad(
        ms_deform_attn(*problem).sum(), problem.attention_weights, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="ms_deform_attn_reference"):
        grad.sum().backward()


def test_without_a_compiled_back_end_pytorch_is_used_and_one_warning_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(backends.logger, "warning", lambda text, *args: warnings.append(text % args))
    monkeypatch.setattr(backends, "_load", lambda name: "the compiler is on holiday")
    backends._warn_once.cache_clear()
    problem = random_problem()
    for _ in range(3):
        output = ms_deform_attn(*problem)
    torch.testing.assert_close(output, ms_deform_attn_reference(*problem), rtol=0, atol=1e-12)
    assert len(warnings) == 1
    assert "the cpp back end is not available (the compiler is on holiday)" in warnings[0]
    assert available_backends() == ("pytorch",)
    assert "holiday" in backend_report()["cpp"]
    with pytest.raises(RuntimeError, match="holiday"):
        ms_deform_attn(*problem, backend="cpp")
    backends._warn_once.cache_clear()


def test_report_names_every_back_end() -> None:
    report = backend_report()
    assert set(report) == {"cuda", "cpp", "pytorch"}
    for name, state in report.items():
        assert state.startswith("available: " if name in available_backends() else "not available: ")


# Operator ----------


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_operator_is_registered_correctly(backend: str, dtype: torch.dtype) -> None:
    problem = random_problem(dtype=dtype).requires_grad()
    torch.library.opcheck(torch.ops.dvis.ms_deform_attn.default, (*problem, backend))
    detached = Problem(*(t.detach() for t in problem))
    grad = torch.randn_like(ms_deform_attn(*detached))
    torch.library.opcheck(torch.ops.dvis.ms_deform_attn_backward.default, (*detached, grad, backend))


def test_compiles_as_one_graph() -> None:
    problem = random_problem(dtype=torch.float32)

    def network(*args: Tensor) -> Tensor:
        return ms_deform_attn(args[0] * 2, *args[1:]).relu().sum()

    # "aot_eager" traces forward and backward like the default compiler, without needing a C++ compiler.
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
    for queries in (5, 7):
        problem = random_problem(queries=queries, dtype=torch.float32)
        ours, expected = problem.requires_grad(), problem.requires_grad()
        output, right = compiled(*ours), network(*expected)
        torch.testing.assert_close(output, right)
        for grad, right_grad in zip(
            ours.gradients(output, torch.ones(())), expected.gradients(right, torch.ones(())), strict=True
        ):
            torch.testing.assert_close(grad, right_grad)


def test_exports_with_dynamic_sizes() -> None:
    class Network(torch.nn.Module):
        def forward(
            self, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, attention: Tensor
        ) -> Tensor:
            return ms_deform_attn(value, shapes, starts, locations, attention) + 1

    batch, queries = torch.export.Dim("batch"), torch.export.Dim("queries")
    program = torch.export.export(
        Network(),
        tuple(random_problem()),
        dynamic_shapes=({0: batch}, None, None, {0: batch, 1: queries}, {0: batch, 1: queries}),
    )
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.dvis.ms_deform_attn.default in called
    other = random_problem(batch=3, queries=9)
    torch.testing.assert_close(program.module()(*other), ms_deform_attn_reference(*other) + 1)


def test_inference_mode_and_no_grad() -> None:
    problem = random_problem().requires_grad()
    expected = ms_deform_attn_reference(*problem).detach()
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            output = ms_deform_attn(*problem)
        assert not output.requires_grad
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


# From offsets and logits ----------


def projected(dtype: torch.dtype, points: int = 3, channels: int = 32) -> tuple[Tensor, ...]:
    """Arguments of ``ms_deform_attn_from_offsets``; offsets and logits are columns of one tensor."""
    generator = torch.Generator().manual_seed(points)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    shapes, starts = level_tables([(6, 7), (3, 4)])
    heads, levels, queries = 3, 2, 37
    value = torch.randn(2, 54, heads, channels, generator=generator).to(dtype)
    reference = torch.rand(2, queries, levels, 2, generator=generator).to(precise)
    samples = heads * levels * points
    columns = (3 * torch.randn(2, queries, 3 * samples, generator=generator)).to(precise)
    offsets, logits = columns.split([2 * samples, samples], dim=-1)
    return value, shapes, starts, reference, offsets, logits


@every_backend
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
@pytest.mark.parametrize(("points", "channels"), [(4, 32), (1, 5), (3, 70)])
def test_from_offsets_is_softmax_and_locations(
    points: int, channels: int, dtype: torch.dtype, tolerance: float, backend: str
) -> None:
    value, shapes, starts, reference, offsets, logits = projected(dtype, points, channels)
    output = ms_deform_attn_from_offsets(value, shapes, starts, reference, offsets, logits, backend=backend)
    assert output.dtype == dtype
    per_point = (2, 37, 3, 2, points)
    places = reference[:, :, None, :, None] + offsets.unflatten(-1, (*per_point[2:], 2)) / shapes.flip(-1)[
        :, None
    ].to(offsets)
    attention = logits.unflatten(-1, (3, -1)).softmax(-1).view(per_point)
    expected = ms_deform_attn_reference(value.to(places.dtype), shapes, starts, places, attention)
    torch.testing.assert_close(output.to(places.dtype), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif("cpp" not in CPU_BACKENDS, reason="not built")
def test_from_offsets_equals_its_plain_form_and_has_its_gradients() -> None:
    inputs = projected(torch.float32)
    value, shapes, starts, reference, offsets, logits = inputs
    fused = ms_deform_attn_from_offsets(*inputs, backend="cpp")
    offsets.requires_grad_(False)
    leaves = [t.detach().clone().requires_grad_() for t in (value, offsets, logits)]
    recorded = ms_deform_attn_from_offsets(
        leaves[0], shapes, starts, reference, leaves[1], leaves[2], backend="cpp"
    )
    torch.testing.assert_close(fused, recorded, rtol=1e-5, atol=1e-6)
    recorded.sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
    # Also on the plain form's own two steps.
    locations = locations_from_offsets(reference, offsets, shapes, (3, 2, 3)).view(2, 37, 3, 2, 3, 2)
    attention = attention_from_logits(logits, 3).view(2, 37, 3, 2, 3)
    plain = ms_deform_attn(value, shapes, starts, locations, attention, backend="cpp")
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)


@every_backend
def test_from_offsets_with_logits_that_are_large_or_not_numbers(backend: str) -> None:
    value, shapes, starts, reference, offsets, logits = projected(torch.float32)
    logits = logits.clone()
    logits[0, 0] += 1e4
    logits[0, 1, 0], logits[0, 2, 0] = torch.nan, torch.inf
    logits[0, 3, 1:] = -torch.inf  # one sample of the first head is all that counts, other heads have none
    output = ms_deform_attn_from_offsets(value, shapes, starts, reference, offsets, logits, backend=backend)
    heads = output.unflatten(-1, (3, 32))
    assert heads[0, 0].isfinite().all()
    assert heads[0, 1, 0].isnan().all()
    assert heads[0, 2, 0].isnan().all()
    assert heads[0, 1:3, 1:].isfinite().all()
    assert heads[0, 3, 0].isfinite().all()
    assert heads[0, 4:].isfinite().all()
    assert heads[1].isfinite().all()


@pytest.mark.skipif("cpp" not in CPU_BACKENDS, reason="not built")
def test_from_offsets_checks_shapes_in_the_compiled_code() -> None:
    value, shapes, starts, reference, offsets, logits = projected(torch.float32)
    with pytest.raises(ValueError, match="offsets must be rows of 36"):
        ms_deform_attn_from_offsets(value, shapes, starts, reference, offsets[..., :-2], logits, "cpp")
    with pytest.raises(ValueError, match="must have the 54 pixels"):
        ms_deform_attn_from_offsets(value[:, 1:], shapes, starts, reference, offsets, logits, "cpp")
