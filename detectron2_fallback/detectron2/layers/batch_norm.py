"""Normalisation layers. Annotations are not postponed, because TorchScript reads those of the buffers."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn
from torch.nn import functional as F

from .wrappers import BatchNorm2d

__all__ = ["CycleBatchNormList", "FrozenBatchNorm2d", "LayerNorm", "NaiveSyncBatchNorm", "get_norm"]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and affine terms, all four of which are buffers.

    Version 1 of its state had no statistics, version 2 no epsilon; both are converted when loaded.
    """

    _version = 3
    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N C H W`` to the same shape and dtype."""
        if x.requires_grad:
            # F.batch_norm would keep more memory for the gradients of weight and bias, which are not needed.
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            bias = self.bias - self.running_mean * scale
            scale, bias = scale.reshape(1, -1, 1, 1), bias.reshape(1, -1, 1, 1)
            return x * scale.to(x.dtype) + bias.to(x.dtype)
        # Without gradients F.batch_norm is one fused operation.
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        version = local_metadata.get("version")
        mean, var = prefix + "running_mean", prefix + "running_var"
        if version is None or version < 2:
            state_dict.setdefault(mean, torch.zeros_like(self.running_mean))
            state_dict.setdefault(var, torch.ones_like(self.running_var))
        # Plain batch norm has versions of its own (and counts batches); its variance is used with epsilon.
        elif version < 3 and var in state_dict and prefix + "num_batches_tracked" not in state_dict:
            logging.getLogger(__name__).info(
                "FrozenBatchNorm %s is upgraded to version 3.", prefix.rstrip(".")
            )
            state_dict[var] = state_dict[var] - self.eps
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every ``BatchNorm2d`` and ``SyncBatchNorm`` in a module by a frozen one.

        Args:
            module: changed in place, unless it is a batch norm itself.

        Returns:
            The module, or its replacement.

        Raises:
            ValueError: for a batch norm without running statistics.
        """
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            if module.running_mean is None or module.running_var is None:
                raise ValueError(f"{module} keeps no running statistics that could be frozen.")
            frozen = cls(module.num_features, module.eps)
            if module.affine:
                frozen.weight.data = module.weight.data.clone().detach()
                frozen.bias.data = module.bias.data.clone().detach()
            frozen.running_mean.data = module.running_mean.data
            frozen.running_var.data = module.running_var.data
            return frozen
        for name, child in module.named_children():
            new_child = cls.convert_frozen_batchnorm(child)
            if new_child is not child:
                module.add_module(name, new_child)
        return module


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Build a normalisation layer.

    Args:
        norm: one of BN, SyncBN, FrozenBN, GN, nnSyncBN, naiveSyncBN, naiveSyncBN_N, LN; empty or None for
            none; or a callable that takes the number of channels.
        out_channels: number of channels.

    Raises:
        KeyError: if there is no norm of that name.
    """
    if norm is None:
        return None
    if isinstance(norm, str):
        if len(norm) == 0:
            return None
        builders: dict[str, Callable[[int], nn.Module]] = {
            "BN": BatchNorm2d,
            "SyncBN": nn.SyncBatchNorm,
            "FrozenBN": FrozenBatchNorm2d,
            "GN": lambda channels: nn.GroupNorm(32, channels),
            # For comparison and debugging.
            "nnSyncBN": nn.SyncBatchNorm,
            "naiveSyncBN": NaiveSyncBatchNorm,
            "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
            "LN": LayerNorm,
        }
        norm = builders[norm]
    return norm(out_channels)


class NaiveSyncBatchNorm(BatchNorm2d):
    """Batch norm over all processes by plain all-reduce, also on the CPU.

    Statistics are those of ``N x H x W`` cells. With ``stats_mode=""`` every process counts the same; with
    ``"N"`` it counts as many times as it has images, which may be none.
    """

    def __init__(self, *args: Any, stats_mode: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert stats_mode in ["", "N"]
        self._stats_mode = stats_mode
        self.momentum: float

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map ``N C H W`` to the same shape and dtype."""
        if comm.get_world_size() == 1 or not self.training:
            return super().forward(input)
        half_input = input.dtype == torch.float16
        if half_input:
            input = input.float()  # float16 overflows in the squares
        mean, var, momentum = self._global_statistics(input)
        scale = self.weight * torch.rsqrt(var + self.eps)
        bias = self.bias - mean * scale
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean += momentum * (mean.detach() - self.running_mean)
        self.running_var += momentum * (var.detach() - self.running_var)
        ret = input * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
        return ret.half() if half_input else ret

    def _global_statistics(
        self, input: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, float | torch.Tensor]:
        """Return mean ``C``, variance ``C`` over all processes and the momentum to use."""
        num_images, channels = input.shape[0], input.shape[1]
        if self._stats_mode == "":
            assert num_images > 0, 'SyncBatchNorm(stats_mode="") does not support zero batch size.'
            moments = _sum_over_processes(_moments(input)) * (1.0 / comm.get_world_size())
            momentum: float | torch.Tensor = self.momentum
        else:
            if num_images == 0:
                sums = torch.zeros([2 * channels + 1], device=input.device, dtype=input.dtype)
                sums = sums + input.sum()  # connects the input to the graph
            else:
                sums = torch.cat([_moments(input), input.new_ones(1)]) * num_images
            sums = _sum_over_processes(sums)
            total = sums[-1].detach()
            momentum = total.clamp(max=1) * self.momentum  # nothing is learned from no images
            moments = sums[:-1] / total.clamp(min=1)
        mean, mean_of_squares = torch.split(moments, channels)
        return mean, mean_of_squares - mean * mean, momentum


def _sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    """All-reduce through which gradients flow back to every process."""
    from torch.distributed.nn import functional

    return functional.all_reduce(x)


def _moments(x: torch.Tensor) -> torch.Tensor:
    """Mean and mean of squares over ``N H W``: ``2C``."""
    return torch.cat([x.mean(dim=[0, 2, 3]), (x * x).mean(dim=[0, 2, 3])], dim=0)


class CycleBatchNormList(nn.ModuleList):
    """Batch norms that share affine terms but not statistics, used in turn (one per feature level).

    The i-th call uses norm ``i % length``, so that each level of a pyramid finds the statistics it was
    trained with.
    """

    def __init__(self, length: int, bn_class: type[nn.Module] = nn.BatchNorm2d, **kwargs: Any) -> None:
        """
        Args:
            length: number of norms.
            bn_class: their class.
            kwargs: for its constructor, by name; ``affine`` says whether affine terms are wanted.
        """
        self._affine = kwargs.pop("affine", True)
        super().__init__([bn_class(**kwargs, affine=False) for _ in range(length)])
        if self._affine:
            num_features = kwargs["num_features"]
            self.weight = nn.Parameter(torch.ones(num_features))
            self.bias = nn.Parameter(torch.zeros(num_features))
        self._pos = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N C H W`` to the same shape with the next norm."""
        ret = self[self._pos](x)
        self._pos = (self._pos + 1) % len(self)
        if self._affine:
            ret = ret * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)
        return ret

    def extra_repr(self) -> str:
        return f"affine={self._affine}"


class LayerNorm(nn.Module):
    """Layer norm over the channels of ``N C H W``."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N C H W`` to the same shape."""
        mean = x.mean(1, keepdim=True)
        centred = x - mean
        var = centred.pow(2).mean(1, keepdim=True)
        x = centred / torch.sqrt(var + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]
