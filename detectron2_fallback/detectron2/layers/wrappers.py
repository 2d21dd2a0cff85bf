"""PyTorch's layers and functions with the few differences that detectron2 relies on.

Annotations are written for TorchScript, which reads neither ``X | Y`` nor postponed ones reliably.
"""

import warnings
from collections.abc import Callable
from typing import Any, List, Optional  # noqa: UP035  (TorchScript)

import torch
from torch.nn import functional as F

# ruff: noqa: UP006, UP045  (TorchScript)


def shapes_to_tensor(x: List[int], device: Optional[torch.device] = None) -> torch.Tensor:
    """Turn a list of integers into a tensor; while tracing they are tensors, and stay connected to the input.

    Args:
        x: integers, or scalar tensors while tracing.
        device: of the result.
    """
    if torch.jit.is_scripting():
        return torch.as_tensor(x, device=device)
    if torch.jit.is_tracing():
        assert all([isinstance(t, torch.Tensor) for t in x]), (  # noqa: C419  (TorchScript)
            "Shape should be tensor during tracing!"
        )
        ret = torch.stack(x)  # type: ignore[arg-type]
        return ret if ret.device == device else ret.to(device=device)
    return torch.as_tensor(x, device=device)


def cat(tensors: List[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """Like ``torch.cat``, without a copy if there is one tensor only."""
    assert isinstance(tensors, (list, tuple))
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat(tensors, dim)


def empty_input_loss_func_wrapper(loss_func: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Let the mean of a loss over no targets be 0 with a gradient, where PyTorch gives NaN."""

    def wrapped_loss_func(
        input: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean", **kwargs: Any
    ) -> torch.Tensor:
        if target.numel() == 0 and reduction == "mean":
            return input.sum() * 0.0
        return loss_func(input, target, reduction=reduction, **kwargs)

    return wrapped_loss_func


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


class Conv2d(torch.nn.Conv2d):
    """``torch.nn.Conv2d`` followed by an optional norm and an optional activation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """
        Args:
            args, kwargs: for ``torch.nn.Conv2d``, and by keyword
                norm: a module that comes after the convolution.
                activation: a callable that comes last.
        """
        norm = kwargs.pop("norm", None)
        activation = kwargs.pop("activation", None)
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N C_in H W`` to ``N C_out H' W'``.

        Raises:
            AssertionError: for an empty batch in training with SyncBatchNorm, which would wait forever.
        """
        if not torch.jit.is_scripting():
            with warnings.catch_warnings(record=True):  # tracing warns about the comparison
                if x.numel() == 0 and self.training:
                    assert not isinstance(self.norm, torch.nn.SyncBatchNorm), (
                        "SyncBatchNorm does not support empty inputs!"
                    )
        x = self._conv_forward(x, self.weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


ConvTranspose2d = torch.nn.ConvTranspose2d
BatchNorm2d = torch.nn.BatchNorm2d
interpolate = F.interpolate
Linear = torch.nn.Linear


def nonzero_tuple(x: torch.Tensor):  # tuple or, in TorchScript, list, which its types cannot say
    """Like ``x.nonzero(as_tuple=True)``, also in TorchScript, where it gives a list."""
    if torch.jit.is_scripting():
        if x.dim() == 0:
            return x.unsqueeze(0).nonzero().unbind(1)
        return x.nonzero().unbind(1)
    return x.nonzero(as_tuple=True)


@torch.jit.script_if_tracing
def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """Return ``src`` on the device of ``dst``; a trace follows the device at run time."""
    return src.to(dst.device)
