"""Swin Transformer backbone (T, S, B, L) with the published parameter names.

Shapes: ``N`` images, ``H W`` pixels, ``h w`` patches of a stage, ``C`` channels of a stage, ``s`` side of a
window, ``n = s * s`` patches of a window, ``nW`` windows of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from einops import rearrange
from torch import Tensor, nn

__all__ = ["D2SwinTransformer", "SwinTransformer"]

STAGE_NAMES = ("res2", "res3", "res4", "res5")


def drop_path(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zero whole samples (first dimension) with ``probability`` and rescale the others.

    Source: stochastic depth (arXiv:1603.09382), section 3.
    """
    if probability == 0.0 or not training:
        return x
    keep = 1.0 - probability
    drawn = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
    return x * (drawn / keep)


def relative_position_index(side: int) -> Tensor:
    """Row of the bias table, below ``(2 side - 1) ** 2``, per pair of patches of a window: ``n n`` int64."""
    axis = torch.arange(side)
    y, x = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    dy = y[:, None] - y[None, :] + side - 1
    dx = x[:, None] - x[None, :] + side - 1
    return dy * (2 * side - 1) + dx


def shifted_window_mask(h: int, w: int, side: int, shift: int, device: torch.device) -> Tensor:
    """Which pairs of patches of a shifted window were no neighbours before the cyclic shift.

    Args:
        h: rows of the padded patch grid, a multiple of ``side``.
        w: columns of it.
        side: side of a window.
        shift: how far the grid was rolled, ``0 < shift < side``.
        device: of the result.

    Returns:
        ``nW n n`` bool, True = must not attend.

    Source: Swin Transformer (arXiv:2103.14030), section 3.2 and figure 4.
    """

    def band(length: int) -> Tensor:
        # 0: before the last window; 1: last window, own neighbours; 2: last window, rolled in from the start
        position = torch.arange(length, device=device)
        return (position >= length - side).long() + (position >= length - shift).long()

    region = band(h)[:, None] * 3 + band(w)[None, :]
    windows = rearrange(region, "(rows a) (cols b) -> (rows cols) (a b)", a=side, b=side)
    return windows[:, :, None] != windows[:, None, :]


class WindowAttention(nn.Module):
    """Multi-head attention among the patches of a window, with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale  # None: one over the square root of a head's channels
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            x: ``N nW n C``.
            mask: ``nW n n`` bool, True = must not attend.

        Returns:
            ``N nW n C``.
        """
        num_windows = x.shape[1]
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # heads n n
        if mask is None:
            layout = "(N W) heads"
            bias = bias[None]
        else:
            # Windows differ in their mask, images do not: windows join the heads, so the mask broadcasts.
            layout = "N (W heads)"
            # A finite number as published: a very negative score, not an excluded one.
            bias = (bias + mask[:, None].to(bias.dtype) * -100.0).flatten(0, 1)[None]
        query, key, value = rearrange(
            self.qkv(x), f"N W n (three heads d) -> three {layout} n d", three=3, heads=self.num_heads
        )
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias.to(query.dtype),
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.scale,
        )
        attended = rearrange(
            attended, f"{layout} n d -> N W n (heads d)", W=num_windows, heads=self.num_heads
        )
        return self.proj_drop(self.proj(attended))


class Mlp(nn.Module):
    """Two linear layers with GELU in between (names ``fc1``, ``fc2``)."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class SwinBlock(nn.Module):
    """Window attention and feed-forward, each with pre-norm, residual and stochastic depth."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shifted: bool,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
        attn_drop: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = window_size // 2 if shifted else 0
        self.drop_path_rate = drop_path_rate
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            x: ``N h w C``.
            mask: result of :func:`shifted_window_mask` for the padded grid; used by shifted blocks only.

        Returns:
            ``N h w C``.
        """
        x = x + drop_path(self._attend(self.norm1(x), mask), self.drop_path_rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path_rate, self.training)

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        side = self.window_size
        x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
        rows, cols = x.shape[1] // side, x.shape[2] // side
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = rearrange(x, "N (r a) (c b) C -> N (r c) (a b) C", a=side, b=side)
        windows = self.attn(windows, mask if self.shift else None)
        x = rearrange(windows, "N (r c) (a b) C -> N (r a) (c b) C", r=rows, c=cols, a=side, b=side)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :h, :w]


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbouring patches: ``N h w C`` -> ``N ceil(h/2) ceil(w/2) 2C``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        x = rearrange(x, "N (h dy) (w dx) C -> N h w (dx dy C)", dy=2, dx=2)
        return self.reduction(self.norm(x))


class SwinStage(nn.Module):
    """Blocks of one resolution and the step down to the next one."""

    def __init__(self, blocks: Sequence[SwinBlock], dim: int, downsample: bool, use_checkpoint: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.window_size = blocks[0].window_size
        self.downsample = PatchMerging(dim) if downsample else None
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``N h w C`` to this stage's output ``N h w C`` and the next stage's input."""
        side, shift = self.window_size, self.window_size // 2
        _, h, w, _ = x.shape
        mask = shifted_window_mask(h + -h % side, w + -w % side, side, shift, x.device)
        for block in self.blocks:
            if self.use_checkpoint and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Cut an image into patches and embed each: ``N 3 H W`` -> ``N h w C``; odd sizes are padded."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        _, _, H, W = x.shape
        x = F.pad(x, (0, -W % self.patch_size, 0, -H % self.patch_size))
        x = rearrange(self.proj(x), "N C h w -> N h w C")
        return x if self.norm is None else self.norm(x)


class SwinTransformer(nn.Module):
    """Hierarchical transformer with attention inside shifted windows.

    Source: Swin Transformer (arXiv:2103.14030), section 3.
    """

    def __init__(
        self,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        ape: bool = False,
        patch_norm: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        use_checkpoint: bool = False,
    ) -> None:
        """
        Args:
            pretrain_img_size: side of the pre-training images in pixels; sizes the absolute position table.
            patch_size: side of a patch in pixels.
            in_chans: channels of an image.
            embed_dim: channels of the first stage; each stage doubles them.
            depths: blocks per stage.
            num_heads: attention heads per stage.
            window_size: side of a window in patches.
            mlp_ratio: hidden channels of feed-forward layers relative to their input.
            qkv_bias: bias of the query, key and value projection.
            qk_scale: scale of attention scores; None: one over the square root of a head's channels.
            drop_rate: dropout of features.
            attn_drop_rate: dropout of attention weights.
            drop_path_rate: probability of skipping the deepest block; it rises linearly from 0.
            ape: add an absolute position table.
            patch_norm: layer norm after the patch embedding.
            out_indices: stages to return.
            use_checkpoint: recompute activations in the backward pass.

        Raises:
            ValueError: if ``depths`` and ``num_heads`` differ in length or heads do not divide channels.
        """
        super().__init__()
        if len(depths) != len(num_heads):
            raise ValueError(f"depths {list(depths)} and num_heads {list(num_heads)} must be equally long")
        self.num_features = [embed_dim * 2**i for i in range(len(depths))]
        for dim, heads in zip(self.num_features, num_heads, strict=True):
            if dim % heads:
                raise ValueError(f"num_heads: a stage of {dim} channels cannot have {heads} heads")
        self.out_indices = tuple(out_indices)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, patch_norm)
        self.absolute_pos_embed: nn.Parameter | None = None
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)

        num_blocks = sum(depths)
        rates = [drop_path_rate * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
        self.layers = nn.ModuleList()
        for stage, (first, last) in enumerate(pairwise([0, *accumulate(depths)])):
            dim = self.num_features[stage]
            blocks = [
                SwinBlock(
                    dim,
                    num_heads[stage],
                    window_size,
                    shifted=i % 2 == 1,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path_rate=rate,
                )
                for i, rate in enumerate(rates[first:last])
            ]
            self.layers.append(SwinStage(blocks, dim, stage < len(depths) - 1, use_checkpoint))
        # One norm per stage, returned or not: published checkpoints hold them all.
        for stage, dim in enumerate(self.num_features):
            self.add_module(f"norm{stage}", nn.LayerNorm(dim))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images ``N 3 H W`` to ``{"res2": N C h w, ...}`` for the stages in ``out_indices``."""
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            table = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic")
            x = x + rearrange(table, "N C h w -> N h w C")
        x = self.pos_drop(x)
        outputs = {}
        for i, stage in enumerate(self.layers):
            output, x = stage(x)
            if i in self.out_indices:
                normed = self.get_submodule(f"norm{i}")(output)
                outputs[f"res{i + 2}"] = rearrange(normed, "N h w C -> N C h w").contiguous()
            if i == max(self.out_indices):
                break
        return outputs


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer, Backbone):
    """Swin as a detectron2 backbone; settings from ``cfg.MODEL.SWIN``."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        """
        Raises:
            ValueError: for a name in ``MODEL.SWIN.OUT_FEATURES`` that Swin does not have.
        """
        swin = cfg.MODEL.SWIN
        names = STAGE_NAMES[: len(swin.DEPTHS)]
        unknown = sorted(set(swin.OUT_FEATURES) - set(names))
        if unknown or not swin.OUT_FEATURES:
            raise ValueError(
                f"MODEL.SWIN.OUT_FEATURES is {list(swin.OUT_FEATURES)}; possible are {list(names)}"
            )
        super().__init__(
            pretrain_img_size=swin.PRETRAIN_IMG_SIZE,
            patch_size=swin.PATCH_SIZE,
            in_chans=input_shape.channels or 3,
            embed_dim=swin.EMBED_DIM,
            depths=swin.DEPTHS,
            num_heads=swin.NUM_HEADS,
            window_size=swin.WINDOW_SIZE,
            mlp_ratio=swin.MLP_RATIO,
            qkv_bias=swin.QKV_BIAS,
            qk_scale=swin.QK_SCALE,
            drop_rate=swin.DROP_RATE,
            attn_drop_rate=swin.ATTN_DROP_RATE,
            drop_path_rate=swin.DROP_PATH_RATE,
            ape=swin.APE,
            patch_norm=swin.PATCH_NORM,
            out_indices=[names.index(name) for name in swin.OUT_FEATURES],
            use_checkpoint=swin.USE_CHECKPOINT,
        )
        self._out_features = [name for name in names if name in swin.OUT_FEATURES]
        self._out_feature_strides = {name: swin.PATCH_SIZE * 2**i for i, name in enumerate(names)}
        self._out_feature_channels = dict(zip(names, self.num_features, strict=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Raises:
            ValueError: if ``x`` is not ``N 3 H W``.
        """
        if x.dim() != 4:
            raise ValueError(f"SwinTransformer takes images N 3 H W, not a tensor of shape {tuple(x.shape)}")
        return super().forward(x)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }

    @property
    def size_divisibility(self) -> int:
        return 32
