"""Multi-layer perceptron used for mask, class and re-identification embeddings."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """``num_layers`` linear layers with ReLU in between (none after the last); state dict ``layers.N.*``."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        """
        Args:
            in_dim: input channels.
            hidden_dim: channels of every inner layer.
            out_dim: output channels.
            num_layers: number of linear layers.

        Raises:
            ValueError: if ``num_layers`` is not positive.
        """
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, not {num_layers}")
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``... in_dim`` to ``... out_dim``."""
        *inner, last = self.layers
        for layer in inner:
            x = F.relu(layer(x))
        return last(x)
