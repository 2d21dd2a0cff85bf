"""Helpers for tests."""

from __future__ import annotations

import io
from typing import Any

import torch
from detectron2.structures import Boxes, Instances

__all__ = ["assert_instances_allclose", "random_boxes", "reload_script_model"]


def random_boxes(num_boxes: int, max_coord: float = 100, device: str | torch.device = "cpu") -> torch.Tensor:
    """Return valid random boxes, ``N 4`` in XYXY form with coordinates up to ``max_coord``."""
    boxes = torch.rand(num_boxes, 4, device=device) * (max_coord * 0.5)
    boxes.clamp_(min=1.0)  # a side of a thousandth of a pixel makes overlaps inexact
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def reload_script_model(module: Any) -> Any:
    """Save a scripted module or function and load it again."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def assert_instances_allclose(
    input: Instances, other: Instances, *, rtol: float = 1e-5, msg: str = "", size_as_tensor: bool = False
) -> None:
    """Check that two sets of instances are equal up to rounding.

    Args:
        input: instances of an image.
        other: instances to compare with.
        rtol: relative tolerance for floating-point fields.
        msg: put before the message of a failure.
        size_as_tensor: compare image sizes as tensors, for traced models.

    Raises:
        AssertionError: if they differ.
        ValueError: for a field of a type that cannot be compared.
    """
    msg = msg if not msg else msg.rstrip() + ": "
    sizes = f"{msg}image_size is {input.image_size} vs. {other.image_size}!"
    if size_as_tensor:
        assert torch.equal(torch.tensor(input.image_size), torch.tensor(other.image_size)), sizes
    else:
        assert input.image_size == other.image_size, sizes
    fields, other_fields = sorted(input.get_fields()), sorted(other.get_fields())
    assert fields == other_fields, f"{msg}fields are {fields} vs. {other_fields}!"
    for name in fields:
        a, b = input.get(name), other.get(name)
        if isinstance(a, Boxes):
            a, b = a.tensor, b.tensor
        if not isinstance(a, torch.Tensor):
            raise ValueError(f"Don't know how to compare field {name} of type {type(a)}")
        same = torch.allclose(a, b, rtol=rtol) if a.is_floating_point() else torch.equal(a, b)
        assert a.shape == b.shape and same, f"{msg}field {name} differs: {a} vs. {b}!"  # noqa: PT018
