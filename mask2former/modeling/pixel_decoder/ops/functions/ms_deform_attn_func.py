"""Multi-scale deformable attention: the public functions and the operator ``torch.ops.dvis.ms_deform_attn``.

Letters: B batch, S pixels of all levels, M heads, D channels per head, Lq queries, L levels, P points.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.pixel_decoder.ops.functions.backends import (
    choose_backend,
    run_backward,
    run_forward,
    run_forward_from_offsets,
)

_VALUE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None = None,
) -> Tensor:
    """For each query and head, a weighted sum of P points sampled bilinearly from each of L feature levels.

    Differentiable once in ``value``, ``sampling_locations`` and ``attention_weights``; for second derivatives
    use :func:`ms_deform_attn_reference`. Whatever the dtypes, locations and attention are used in float32 and
    sums are made in it (in float64 if ``value`` is float64); the output has the dtype of ``value``.

    Args:
        value: ``B S M D``, pixels of all levels one level after the other, each row by row.
        spatial_shapes: ``L 2`` int64, (height, width) of each level in pixels, at least 1. Like
            ``level_start_index`` it may stay on the CPU when ``value`` is on a GPU.
        level_start_index: ``L`` int64, where each level starts in S.
        sampling_locations: ``B Lq M L P 2``, (x, y) in [0, 1] from a level's top left to bottom right edge.
            Pixels outside count as zero. A location that is not a number samples nothing or gives NaN for its
            own query.
        attention_weights: ``B Lq M L P``; normally they sum to 1 over L and P.
        backend: "cuda", "cpp" or "pytorch"; None takes the fastest that this machine has for the device.

    Returns:
        ``B Lq M*D``.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the levels do not fill S (not looked
            at when they are on a GPU, where a level that does not fit samples nothing), or ``backend`` is
            unknown.
        RuntimeError: if ``backend`` is not available here; the message has the reason.

    Source: Deformable DETR (arXiv:2010.04159), equation 3.
    """
    _check(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    dtype = _compute_dtype(value)
    return torch.ops.dvis.ms_deform_attn(
        value,
        spatial_shapes,
        level_start_index,
        sampling_locations.to(dtype),
        attention_weights.to(dtype),
        backend,
    )


def ms_deform_attn_from_offsets(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Multi-scale deformable attention from what is projected from the queries.

    It is :func:`ms_deform_attn` on :func:`locations_from_offsets` and :func:`attention_from_logits`. Without
    gradients the C++ back end does all three together, query by query, and takes bfloat16 values as they are.

    Args:
        value: as in :func:`ms_deform_attn`, and so are the levels and ``backend``.
        spatial_shapes: ``L 2`` int64.
        level_start_index: ``L`` int64.
        reference_points: ``B Lq L 2`` or ``B Lq L 4``, see :func:`locations_from_offsets`.
        offsets: ``B Lq M*L*P*2``, float32 or more precise.
        logits: ``B Lq M*L*P``, likewise.
        backend: "cuda", "cpp" or "pytorch"; None takes the fastest that this machine has for the device.

    Returns:
        ``B Lq M*D``.

    Raises:
        ValueError: as :func:`ms_deform_attn`.
        RuntimeError: as :func:`ms_deform_attn`.

    Source: Deformable DETR (arXiv:2010.04159), equation 3.
    """
    batch, queries, levels = reference_points.shape[:3]
    heads = value.shape[2]
    points = logits.shape[-1] // (heads * levels)
    floats = (value, reference_points, offsets, logits)
    precise = _compute_dtype(value)
    together = (
        not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in floats))
        and value.device.type == "cpu"
        and value.dtype != torch.float16
        and reference_points.shape[-1] == 2
        and 0 not in (value.numel(), logits.numel())
        and all(t.dtype == precise for t in (reference_points, offsets, logits))
        and choose_backend(value, backend) == "cpp"
    )
    if together:
        _check_levels(value.shape[1], spatial_shapes, level_start_index)
        return run_forward_from_offsets(
            value, spatial_shapes, level_start_index, reference_points, offsets, logits, points
        )
    per_point = (batch, queries, heads, levels, points)
    locations = locations_from_offsets(reference_points, offsets, spatial_shapes, (heads, levels, points))
    attention = attention_from_logits(logits, heads)
    return ms_deform_attn(
        value,
        spatial_shapes,
        level_start_index,
        locations.view(*per_point, 2),
        attention.view(per_point),
        backend=backend,
    )


def locations_from_offsets(
    reference_points: Tensor, offsets: Tensor, spatial_shapes: Tensor, samples: tuple[int, int, int]
) -> Tensor:
    """Where to sample, in [0, 1], from offsets in pixels of a level or in parts of a box.

    Args:
        reference_points: ``B Lq L 2`` (x, y); or ``B Lq L 4``, boxes (centre x, centre y, width, height) that
            scale the offsets.
        offsets: ``B Lq M*L*P*2``: flat, because a CPU is slow at broadcasting along short axes.
        spatial_shapes: ``L 2``, (height, width).
        samples: M, L, P.

    Returns:
        ``B Lq M*L*P*2``.
    """
    heads, _, points = samples
    centres = reference_points[..., None, :2]
    if reference_points.shape[-1] == 2:
        width_height = spatial_shapes.flip(-1).to(offsets)
        moved = offsets / width_height[:, None, :].expand(*samples, 2).flatten()
    else:
        half_sizes = reference_points[:, :, None, :, None, 2:] / 2
        moved = (offsets.unflatten(-1, (*samples, 2)) / points * half_sizes).flatten(2)
    per_head = centres.expand(-1, -1, -1, points, -1).flatten(2)  # B Lq L*P*2
    return (moved.unflatten(-1, (heads, -1)) + per_head[:, :, None]).flatten(2)


def attention_from_logits(logits: Tensor, heads: int) -> Tensor:
    """Softmax of ``B Lq M*L*P`` over the samples of each head."""
    per_head = logits.unflatten(-1, (heads, -1))
    if logits.is_cuda:
        return per_head.softmax(-1).flatten(2)
    # The axis is short: a CPU does this several times faster than ``softmax``.
    exponentials = (per_head - per_head.detach().amax(-1, keepdim=True)).exp()
    return (exponentials / exponentials.sum(-1, keepdim=True)).flatten(2)


def _compute_dtype(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _check(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Raise ValueError for what can be seen without reading a tensor's data."""
    if value.dim() != 4:
        raise ValueError(f"value must have shape B S M D, got {tuple(value.shape)}")
    if value.dtype not in _VALUE_DTYPES:
        raise ValueError(f"value must be float32, float64, float16 or bfloat16, got {value.dtype}")
    batch, _, heads, _ = value.shape
    if sampling_locations.dim() != 6:
        raise ValueError(
            f"sampling_locations must have shape B Lq M L P 2, got {tuple(sampling_locations.shape)}"
        )
    _, queries, _, levels, points, _ = sampling_locations.shape
    expected = {
        "sampling_locations": (sampling_locations, (batch, queries, heads, levels, points, 2)),
        "attention_weights": (attention_weights, (batch, queries, heads, levels, points)),
        "spatial_shapes": (spatial_shapes, (levels, 2)),
        "level_start_index": (level_start_index, (levels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape} to fit the others, got {tuple(tensor.shape)}")
        if name in ("spatial_shapes", "level_start_index"):
            if tensor.dtype != torch.int64:
                raise ValueError(f"{name} must be int64, got {tensor.dtype}")
            if tensor.device not in (value.device, torch.device("cpu")):
                raise ValueError(f"{name} must be on {value.device} or the CPU, got {tensor.device}")
        else:
            if not tensor.is_floating_point():
                raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
            if tensor.device != value.device:
                raise ValueError(f"{name} must be on {value.device} like value, got {tensor.device}")


def _check_levels(pixels: int, spatial_shapes: Tensor, level_start_index: Tensor) -> None:
    """Raise ValueError unless the levels, in any order, fill value without gap or overlap."""
    shapes, starts = spatial_shapes.tolist(), level_start_index.tolist()
    filled = 0
    for start, (height, width) in sorted(zip(starts, shapes, strict=True)):
        if height < 1 or width < 1:
            raise ValueError(f"spatial_shapes must be at least 1 x 1, got {height} x {width}")
        if start != filled:
            raise ValueError(
                "level_start_index must put the levels one after the other: "
                f"with spatial_shapes {shapes} one starts at {filled}, got {starts}"
            )
        filled += height * width
    if filled != pixels:
        raise ValueError(f"value must have the {filled} pixels of spatial_shapes {shapes}, got {pixels}")


@torch.library.custom_op(
    "dvis::ms_deform_attn",
    mutates_args=(),
    schema="(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, "
    "Tensor attention_weights, str? backend) -> Tensor",
)
def _operator(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None,
) -> Tensor:
    chosen = choose_backend(value, backend)
    if chosen != "cuda" or spatial_shapes.device.type == "cpu":
        _check_levels(value.shape[1], spatial_shapes, level_start_index)
    return run_forward(
        chosen, value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )


@_operator.register_fake
def _operator_fake(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None,
) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * channels)


@torch.library.custom_op(
    "dvis::ms_deform_attn_backward",
    mutates_args=(),
    schema="(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, "
    "Tensor attention_weights, Tensor grad_output, str? backend) -> (Tensor, Tensor, Tensor)",
)
def _backward_operator(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return run_backward(
        choose_backend(value, backend),
        value,
        spatial_shapes,
        level_start_index,
        sampling_locations,
        attention_weights,
        grad_output,
    )


@_backward_operator.register_fake
def _backward_operator_fake(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad_value, grad_locations, grad_attention = torch.ops.dvis.ms_deform_attn_backward(
        *ctx.saved_tensors, grad_output, ctx.backend
    )
    return grad_value, None, None, grad_locations, grad_attention, None


def _no_second_gradients(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        "ms_deform_attn can be differentiated only once; use ms_deform_attn_reference for second derivatives"
    )


_operator.register_autograd(_gradients, setup_context=_save_inputs)
_backward_operator.register_autograd(_no_second_gradients)
