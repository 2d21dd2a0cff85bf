"""The CUDA kernels' source, compiled for the CPU: numbers and gradients on machines without a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mask2former.modeling.pixel_decoder.ops.build_ops import OPS
from mask2former.modeling.pixel_decoder.ops.functions import ms_deform_attn_reference
from tests.mask2former.modeling.pixel_decoder.ops.problems import Problem, random_problem

EMULATION = Path(__file__).parent / "cuda_emulation"
KERNELS = OPS / "src" / "cuda" / "ms_deform_attn_kernels.cu"
LAUNCH = "kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(arguments...)"
EMULATED_LAUNCH = "emulation::launch(kernel, static_cast<unsigned>(blocks), kThreads, arguments...)"
TYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
# What rounding the output once may cost, relative to its largest number.
OUTPUT_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.float16: 2**-11, torch.bfloat16: 2**-8}

GXX = shutil.which("g++")
pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("cuda_emulation")
    source = KERNELS.read_text()
    assert source.count(LAUNCH) == 1
    emulated = folder / "kernels.cpp"
    emulated.write_text(source.replace(LAUNCH, EMULATED_LAUNCH))
    library = folder / "kernels.so"
    command = [
        str(GXX), "-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", f'-DKERNELS="{emulated}"',
        f"-I{EMULATION}", f"-I{KERNELS.parent}", str(EMULATION / "entry.cpp"), "-o", str(library),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return ctypes.CDLL(str(library))


def run(kernels: ctypes.CDLL, problem: Problem, grad_output: Tensor) -> tuple[Tensor, ...]:
    """Output and the gradients of value, locations and attention; guards around them must stay untouched."""
    value, _, _, locations, attention = problem
    batch, pixels, heads, channels = value.shape
    _, queries, _, levels, points = attention.shape
    sizes = (ctypes.c_int64 * 7)(batch, pixels, heads, channels, queries, levels, points)
    output = Guarded((batch, queries, heads * channels), value.dtype, fill=float("nan"))
    grads = [
        Guarded(value.shape, attention.dtype, fill=0),
        Guarded(locations.shape, attention.dtype, fill=float("nan")),
        Guarded(attention.shape, attention.dtype, fill=float("nan")),
    ]
    inputs = [Guarded(t.shape, t.dtype).holding(t) for t in problem]
    for function, tensors in [
        (kernels.emulate_forward, [*inputs, output]),
        (
            kernels.emulate_backward,
            [*inputs, Guarded(grad_output.shape, value.dtype).holding(grad_output), *grads],
        ),
    ]:
        pointers = (ctypes.c_void_p * len(tensors))(*(t.tensor.data_ptr() for t in tensors))
        assert function(TYPE_CODES[value.dtype], sizes, pointers) == 0
    for guarded in (output, *grads):
        guarded.check()
    return output.tensor, *(grad.tensor for grad in grads)


class Guarded:
    """A tensor between two stretches of NaN: reads outside show in results, writes outside in ``check``."""

    def __init__(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype, fill: float = 0) -> None:
        guard = 64  # a multiple of 16 bytes, as the allocator's alignment is
        count = torch.Size(shape).numel()
        whole = torch.full(
            (guard + count + guard,), float("nan") if dtype.is_floating_point else 1 << 40, dtype=dtype
        )
        self.guards = (whole[:guard], whole[guard + count :])
        self.tensor = whole[guard : guard + count].view(shape)
        self.tensor.fill_(fill)

    def holding(self, tensor: Tensor) -> Guarded:
        self.tensor.copy_(tensor)
        return self

    def check(self) -> None:
        assert all(guard.isnan().all() for guard in self.guards)


@pytest.mark.parametrize("dtype", TYPE_CODES, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        {"heads": 3, "channels": 32, "queries": 17, "levels": [(4, 5), (3, 2)], "points": 4},
        {"heads": 2, "channels": 8, "queries": 5, "levels": [(7, 3)], "points": 1},
        {"heads": 1, "channels": 5, "queries": 3, "levels": [(3, 3), (2, 2), (1, 1)]},  # no 16-byte loads
        {"batch": 1, "channels": 12, "queries": 9},  # lanes without channels
        {
            "batch": 1,
            "heads": 1,
            "channels": 300,
            "queries": 2,
            "points": 2,
        },  # more channels than a warp takes
        {
            "heads": 2,
            "channels": 1,
            "queries": 9,
            "levels": [(3, 4)],
            "points": 20,
        },  # more samples than lanes
        {"heads": 1, "channels": 64, "queries": 33, "levels": [(5, 5), (1, 9)], "points": 5, "spread": 3.0},
    ],
    ids=str,
)
def test_kernels_agree_with_the_reference(
    kernels: ctypes.CDLL, sizes: dict[str, int], dtype: torch.dtype
) -> None:
    computes_in = torch.float64 if dtype == torch.float64 else torch.float32
    problem = random_problem(dtype=computes_in, **sizes)  # type: ignore[arg-type]
    problem = problem._replace(value=problem.value.to(dtype))
    exact = problem.to(torch.float64).requires_grad()
    expected = ms_deform_attn_reference(*exact)
    grad_output = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape).to(dtype)
    output, *grads = run(kernels, problem, grad_output)
    exact_grads = exact.gradients(expected, grad_output.double())
    sums = 1e-14 if dtype == torch.float64 else 2e-6
    for actual, right, tolerance in zip(
        (output, *grads), (expected, *exact_grads), (OUTPUT_TOLERANCE[dtype], sums, sums, sums), strict=True
    ):
        error = (actual.double() - right).detach().abs().max().item()
        assert error <= tolerance * right.detach().abs().max().item()


def test_levels_outside_value_are_not_read(kernels: ctypes.CDLL) -> None:
    """Level tables on a GPU are not checked on the host; the kernels have to be safe by themselves."""
    problem = random_problem(dtype=torch.float32)
    grad_output = torch.ones(2, 5, 6)
    for shapes, starts in [
        ([[1000, 1000], [2, 3]], [0, 20]),
        ([[2**40, 2**40], [2, 3]], [0, 20]),
        ([[-4, -5], [2, 3]], [0, 20]),
        ([[4, 5], [2, 3]], [-1000, 20]),
        ([[4, 5], [2, 3]], [2**62, 20]),
    ]:
        broken = problem._replace(spatial_shapes=torch.tensor(shapes), level_start_index=torch.tensor(starts))
        output, *grads = run(kernels, broken, grad_output)
        only_second = problem.attention_weights.clone()
        only_second[:, :, :, 0] = 0
        expected = ms_deform_attn_reference(*problem._replace(attention_weights=only_second))
        torch.testing.assert_close(output, expected)
        assert not grads[0][:, :20].any()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_locations_that_are_no_place_sample_nothing(kernels: ctypes.CDLL, broken: float) -> None:
    problem = random_problem(dtype=torch.float32)
    locations = problem.sampling_locations.clone()
    locations[:, 2, ..., 1] = broken
    output, *_ = run(kernels, problem._replace(sampling_locations=locations), torch.ones(2, 5, 6))
    expected = ms_deform_attn_reference(*problem)
    expected[:, 2] = 0
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_nothing_to_do(kernels: ctypes.CDLL, empty: str) -> None:
    problem = random_problem(dtype=torch.float32, **{empty: 0})  # type: ignore[arg-type]
    output, grad_value, *_ = run(
        kernels, problem, torch.zeros(problem.value.shape[0], 0 if empty == "queries" else 5, 6)
    )
    assert output.numel() == 0
    assert not grad_value.any()
