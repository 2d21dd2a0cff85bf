"""Attention and feed-forward blocks shared by the segmenter's decoder, the tracker and the refiner.

Shapes: ``B`` batch, ``Q`` queries, ``M`` memory positions, ``C`` channels. All blocks are batch first.
State-dict names are the published ones (``self_attn.*``, ``multihead_attn.*``, ``linear1/2.*``, ``norm.*``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.parameter import Parameter

__all__ = ["CrossAttentionLayer", "FFNLayer", "MultiheadAttention", "SelfAttentionLayer"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class MultiheadAttention(nn.Module):
    """Multi-head attention with the parameters of ``torch.nn.MultiheadAttention``.

    Written on ``scaled_dot_product_attention`` because it takes masks that broadcast over heads (torch's
    module wants one copy per head) and because projections can be called on their own: a tracker projects the
    keys and values of a whole window at once.

    Source: Vaswani et al. (arXiv:1706.03762), section 3.2.2.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        """
        Args:
            embed_dim: channels ``C`` of queries, keys, values and the output.
            num_heads: number of heads; must divide ``embed_dim``.
            dropout: probability of dropping an attention weight in training.

        Raises:
            ValueError: if ``num_heads`` does not divide ``embed_dim``.
        """
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim ({embed_dim}) must be a multiple of num_heads ({num_heads})")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def _project(self, x: Tensor, part: int) -> Tensor:
        rows = slice(part * self.embed_dim, (part + 1) * self.embed_dim)
        projected = F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return rearrange(projected, "b n (heads d) -> b heads n d", heads=self.num_heads)

    def project_query(self, query: Tensor) -> Tensor:
        """Project queries ``B Q C`` to ``B heads Q C/heads``."""
        return self._project(query, 0)

    def project_key_value(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Project keys and values ``B M C`` to ``B heads M C/heads`` each."""
        return self._project(key, 1), self._project(value, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attention over projected inputs (``B heads n d``), then the output projection: ``B Q C``.

        ``attn_mask`` is as in :meth:`forward`.
        """
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = attn_mask.logical_not()  # scaled_dot_product_attention: True takes part
            else:
                attn_mask = attn_mask.to(query.dtype)
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.unsqueeze(1)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout)
        return self.out_proj(rearrange(attended, "b heads n d -> b n (heads d)"))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: ``B Q C``.
            key: ``B M C``.
            value: ``B M C``.
            attn_mask: ``Q M``, ``B Q M`` or ``B heads Q M`` (dimensions of size 1 broadcast). Boolean: True
                may *not* be looked at (as in ``torch.nn.MultiheadAttention``); floating: added to the scores.
                A row that masks everything has no defined result, callers unmask such rows.

        Returns:
            ``B Q C``.
        """
        return self.attend(self.project_query(query), *self.project_key_value(key, value), attn_mask)


def with_pos(x: Tensor, pos: Tensor | None) -> Tensor:
    """Add a position encoding if there is one."""
    return x if pos is None else x + pos


class SelfAttentionLayer(nn.Module):
    """Self attention with residual and layer norm (post-norm, or pre-norm if asked).

    ``result = norm(x + MHA(x + query_pos, x + query_pos, x))``

    Source: Mask2Former (arXiv:2112.01527), section 3.2.
    """

    def __init__(
        self, d_model: int, nhead: int, dropout: float = 0.0, normalize_before: bool = False
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, nhead, dropout)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.normalize_before = normalize_before

    def forward(
        self, x: Tensor, *, query_pos: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            x: ``B Q C``.
            query_pos: added to queries and keys, ``B Q C`` or broadcastable.
            attn_mask: see :meth:`MultiheadAttention.forward`.

        Returns:
            ``B Q C``.
        """
        source = self.norm(x) if self.normalize_before else x
        query = with_pos(source, query_pos)
        x = x + self.dropout(self.self_attn(query, query, source, attn_mask))
        return x if self.normalize_before else self.norm(x)


class CrossAttentionLayer(nn.Module):
    """Cross attention with residual and layer norm; plain or referring by the choice of ``identity``.

    ``result = norm(identity + MHA(query + query_pos, memory + key_pos, memory))``; plain cross attention has
    ``identity = query``, DVIS's referring cross attention lets the query refer to the previous frame's output
    while the residual path carries this frame's aligned queries.

    Source: Mask2Former (arXiv:2112.01527), section 3.2; DVIS (arXiv:2306.03413), section 3.2 (referring).
    """

    def __init__(
        self, d_model: int, nhead: int, dropout: float = 0.0, normalize_before: bool = False
    ) -> None:
        super().__init__()
        self.multihead_attn = MultiheadAttention(d_model, nhead, dropout)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.normalize_before = normalize_before

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        *,
        identity: Tensor | None = None,
        memory_mask: Tensor | None = None,
        key_pos: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            query: ``B Q C``.
            memory: ``B M C``, keys (with ``key_pos``) and values (without).
            identity: residual path, ``B Q C``; ``query`` if None.
            memory_mask: see :meth:`MultiheadAttention.forward`; True may not be looked at.
            key_pos: added to the keys, ``B M C`` or broadcastable.
            query_pos: added to the queries, ``B Q C`` or broadcastable.

        Returns:
            ``B Q C``.
        """
        identity = query if identity is None else identity
        if self.normalize_before:
            query = self.norm(query)
        attended = self.multihead_attn(
            with_pos(query, query_pos), with_pos(memory, key_pos), memory, attn_mask=memory_mask
        )
        x = identity + self.dropout(attended)
        return x if self.normalize_before else self.norm(x)


class FFNLayer(nn.Module):
    """Two linear layers with residual and layer norm: ``norm(x + linear2(act(linear1(x))))``.

    Source: Vaswani et al. (arXiv:1706.03762), section 3.3.
    """

    def __init__(
        self,
        d_model: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        activation: str = "relu",
        normalize_before: bool = False,
    ) -> None:
        """
        Args:
            d_model: channels ``C``.
            dim_feedforward: channels of the hidden layer.
            dropout: probability, after the activation and after the second layer.
            activation: ``relu`` or ``gelu``.
            normalize_before: pre-norm instead of post-norm.

        Raises:
            ValueError: for an unknown activation.
        """
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, not {activation!r}")
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.activation = ACTIVATIONS[activation]
        self.normalize_before = normalize_before
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``... C`` to ``... C``."""
        source = self.norm(x) if self.normalize_before else x
        x = x + self.dropout(self.linear2(self.dropout(self.activation(self.linear1(source)))))
        return x if self.normalize_before else self.norm(x)
