"""Arguments of the deformable attention op: right ones agree with the reference, wrong ones are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from mask2former.modeling.pixel_decoder.ops.functions import ms_deform_attn, ms_deform_attn_reference
from mask2former.modeling.pixel_decoder.ops.functions.backends import available_backends
from tests.fuzz.cases import fuzz, sizes
from tests.mask2former.modeling.pixel_decoder.ops.problems import Problem, random_problem

BACKENDS = [name for name in available_backends() if name != "cuda"]  # the problems are on the CPU
sides = st.tuples(st.integers(1, 6), st.integers(1, 6))
problems = st.builds(
    random_problem,
    seed=st.integers(0, 1000), batch=st.integers(0, 3), queries=st.integers(0, 4), heads=st.integers(1, 3),
    channels=st.integers(1, 9), levels=st.lists(sides, min_size=1, max_size=4), points=st.integers(1, 4),
    spread=st.sampled_from([0.5, 1.4, 8.0]),
)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@sizes(100, 3000)
def test_any_shape_agrees_with_the_reference(backend: str, examples: int) -> None:
    def check(problem: Problem, seed: int) -> None:
        ours, reference = problem.requires_grad(), problem.requires_grad()
        output, expected = ms_deform_attn(*ours, backend=backend), ms_deform_attn_reference(*reference)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
        if not expected.requires_grad:  # of nothing
            assert output.numel() == 0
            return
        gradient = torch.randn(
            output.shape, generator=torch.Generator().manual_seed(seed), dtype=output.dtype
        )
        for actual, right in zip(
            ours.gradients(output, gradient), reference.gradients(expected, gradient), strict=True
        ):
            torch.testing.assert_close(actual, right, rtol=1e-8, atol=1e-8)

    fuzz(examples, check, problems, st.integers(0, 99))


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.bool]
# What may stand in a location or in the level tables.
WILD = [0.0, -1.0, 1e30, -1e30, float("nan"), float("inf")]
WILD_INTEGERS = [0, -1, 2**31, 2**62, -(2**62), 7]


@pytest.mark.parametrize("backend", BACKENDS)
@sizes(200, 4000)
def test_wrong_arguments_are_errors(backend: str, examples: int) -> None:
    changes = st.tuples(
        st.integers(0, 4),
        st.one_of(
            st.sampled_from(["transpose", "slice", "unsqueeze", "squeeze", "double", "wild", "strided"]),
            st.sampled_from(DTYPES),
        ),
        st.integers(0, 5),
    )

    def check(problem: Problem, changes: list[tuple[int, Any, int]]) -> None:
        arguments = [*problem.to(torch.float32)]
        for which, change, number in changes:
            arguments[which] = changed(arguments[which], change, number)
        try:
            output = ms_deform_attn(*arguments, backend=backend)
        except ValueError as error:
            assert str(error)  # noqa: PT017
            return
        value, locations = arguments[0], arguments[3]
        assert output.shape == (value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
        assert output.dtype == value.dtype

    fuzz(examples, check, problems, st.lists(changes, min_size=1, max_size=3))


def changed(tensor: torch.Tensor, change: Any, number: int) -> torch.Tensor:
    if isinstance(change, torch.dtype):
        return tensor.to(change)
    axis = number % max(tensor.dim(), 1)
    if change == "transpose" and tensor.dim() > 1:
        return tensor.transpose(axis, (axis + 1) % tensor.dim())
    if change == "slice" and tensor.dim():
        return tensor.narrow(axis, 0, max(tensor.shape[axis] - 1, 0))
    if change == "unsqueeze":
        return tensor.unsqueeze(axis)
    if change == "squeeze":
        return tensor.flatten()[:1].squeeze()
    if change == "double" and tensor.dim():
        return torch.cat([tensor, tensor], dim=axis)
    if change == "strided" and tensor.dim():
        return torch.stack([tensor, tensor], dim=-1)[..., 0]
    if change == "wild" and tensor.numel():
        tensor = tensor.contiguous().clone()
        wild = torch.tensor(WILD[number] if tensor.is_floating_point() else WILD_INTEGERS[number])
        tensor.view(-1)[number % tensor.numel()] = wild.to(
            tensor.dtype
        )  # as a cast: int32 keeps the low bits
    return tensor
