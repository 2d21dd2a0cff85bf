"""Sine position encodings of images and clips.

Shapes: ``N`` images or clips, ``T`` frames, ``h w`` grid, ``F`` features per axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["PositionEmbeddingSine", "PositionEmbeddingSine3D"]

_EPS = 1e-6  # added to an axis' length before dividing; part of the published numbers


def _interleaved_sine(position: Tensor, num_feats: int, temperature: float) -> Tensor:
    """Sines (even features) and cosines (odd features) of ``position``: ``...`` -> ``... num_feats``."""
    index = torch.arange(num_feats, dtype=position.dtype, device=position.device)
    period = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / num_feats)
    angle = position[..., None] / period
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)


class _SineEncoding(nn.Module):
    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: float = 10000,
        normalize: bool = False,
        scale: float | None = None,
    ) -> None:
        """
        Args:
            num_pos_feats: features ``F`` per axis, even.
            temperature: base of the periods.
            normalize: map each axis to ``(0, scale]`` instead of counting cells from one.
            scale: length of a normalised axis; two pi if None.

        Raises:
            ValueError: for an odd ``num_pos_feats``, or a ``scale`` without ``normalize``.
        """
        super().__init__()
        if num_pos_feats < 2 or num_pos_feats % 2:
            raise ValueError(f"num_pos_feats must be even and positive, not {num_pos_feats}")
        if scale is not None and not normalize:
            raise ValueError("scale has a meaning only with normalize=True")
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.normalize = normalize
        self.scale = 2 * math.pi if scale is None else scale

    def _axis(self, valid: Tensor, dim: int) -> Tensor:
        """Coordinates of the cells along ``dim``: 1, 2, ... over valid cells, normalised if so configured."""
        coordinate = valid.cumsum(dim)
        if self.normalize:
            length = coordinate.narrow(dim, coordinate.shape[dim] - 1, 1)
            coordinate = coordinate / (length + _EPS) * self.scale
        return coordinate

    def _encode(self, coordinate: Tensor, num_feats: int) -> Tensor:
        return _interleaved_sine(coordinate, num_feats, self.temperature)

    def extra_repr(self) -> str:
        return f"num_pos_feats={self.num_pos_feats}, normalize={self.normalize}, scale={self.scale:.4g}"


class PositionEmbeddingSine(_SineEncoding):
    """Sine encoding of image positions; the first ``F`` channels encode y, the last ``F`` encode x.

    Source: DETR (arXiv:2005.12872), appendix A.4.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            x: ``N C h w``; only its shape, device and precision are used.
            mask: ``N h w`` bool, True = padding, which does not count as a position.

        Returns:
            ``N 2F h w`` float32 (float64 if ``x`` is); without a mask an expanded view, equal for all ``N``.
        """
        n, _, h, w = x.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        if mask is None:
            # All rows are alike, so each axis is encoded on its own and broadcast.
            y = self._encode(self._axis(x.new_ones(h, dtype=dtype), 0), self.num_pos_feats)
            x_axis = self._encode(self._axis(x.new_ones(w, dtype=dtype), 0), self.num_pos_feats)
            grid = torch.cat((y[:, None].expand(h, w, -1), x_axis[None].expand(h, w, -1)), dim=-1)
            return grid.permute(2, 0, 1).expand(n, -1, h, w)
        valid = mask.logical_not().to(dtype)
        y = self._encode(self._axis(valid, 1), self.num_pos_feats)
        x_axis = self._encode(self._axis(valid, 2), self.num_pos_feats)
        return torch.cat((y, x_axis), dim=-1).permute(0, 3, 1, 2)


class PositionEmbeddingSine3D(_SineEncoding):
    """Sine encoding of clip positions: the image encoding plus an encoding of time over all ``2F`` channels.

    Source: Mask2Former for video instance segmentation (arXiv:2112.10764), section 2.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            x: ``N T C h w``; only its shape, device and precision are used.
            mask: ``N T h w`` bool, True = padding.

        Returns:
            ``N T 2F h w`` float32 (float64 if ``x`` is).
        """
        n, t, _, h, w = x.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        valid = x.new_ones((n, t, h, w), dtype=dtype) if mask is None else mask.logical_not().to(dtype)
        time = self._encode(self._axis(valid, 1), 2 * self.num_pos_feats)
        y = self._encode(self._axis(valid, 2), self.num_pos_feats)
        x_axis = self._encode(self._axis(valid, 3), self.num_pos_feats)
        return (torch.cat((y, x_axis), dim=-1) + time).permute(0, 1, 4, 2, 3)
