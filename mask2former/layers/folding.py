"""Convolutional networks at inference on a CPU: batch norm folded into convolutions, channels last.

Shapes: ``N C H W`` images.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

__all__ = ["FoldedNetwork", "fold_batch_norms", "has_foldable_norms"]


def has_foldable_norms(network: nn.Module) -> bool:
    """Whether there is a convolution with a batch norm that :func:`fold_batch_norms` would fold."""
    return any(_is_foldable(module) for module in network.modules())


def fold_batch_norms(network: nn.Module) -> None:
    """Replace convolution and batch norm with fixed statistics by one convolution, in place.

    ``scale * (w * x) + shift`` is ``(scale * w) * x + shift``. The state dict changes, so this is for copies.

    Args:
        network: any module; only ``detectron2.layers.Conv2d`` with a batch norm as its ``norm`` are changed.
    """
    module: Any
    for module in network.modules():
        if not _is_foldable(module):
            continue
        norm = module.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if module.bias is not None:
            shift = shift + module.bias * scale
        module.weight = nn.Parameter((module.weight * scale[:, None, None, None]).detach(), False)
        module.bias = nn.Parameter(shift.detach(), False)
        module.norm = None


def _is_foldable(module: nn.Module) -> bool:
    if not isinstance(module, Conv2d):
        return False
    norm = module.norm
    if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
        return norm.affine and norm.running_mean is not None
    return isinstance(norm, FrozenBatchNorm2d)


class FoldedNetwork:
    """Runs a copy of a network that is made for inference on a CPU, and makes it anew when weights change.

    Not a module: the copy belongs to no state dict, no optimizer and no copy or pickle of its owner. Changes
    are seen by each tensor's address and count of in-place operations. What writes through ``tensor.data``
    is not counted and calls :meth:`forget`.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Give the copy's memory back."""
        self._copy: nn.Module | None = None
        self._made_of: Any = None

    def __call__(self, network: nn.Module, images: Tensor) -> Any:
        """What ``network(images)`` gives without gradients, up to rounding, in channels last.

        Under autocast for the CPU the weights of convolutions are kept in its precision.

        Args:
            network: in eval mode, on the CPU.
            images: ``N C H W``.
        """
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
        tensors = [*network.parameters(), *network.buffers()]
        versions = [(t.data_ptr(), None if t.is_inference() else t._version) for t in tensors]
        made_of = (network, dtype, versions)
        if self._copy is None or made_of != self._made_of:
            self.forget()  # first, so that there are never two copies
            self._copy, self._made_of = _copy_for_inference(network, dtype), made_of
        return self._copy(images.to(dtype=dtype, memory_format=torch.channels_last))

    def __deepcopy__(self, memo: dict[int, Any]) -> FoldedNetwork:
        return FoldedNetwork()

    def __getstate__(self) -> dict[str, Any]:
        return {"_copy": None, "_made_of": None}


@torch.no_grad()
def _copy_for_inference(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    copied = copy.deepcopy(network)
    fold_batch_norms(copied)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d):
            module.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return copied.requires_grad_(False)
