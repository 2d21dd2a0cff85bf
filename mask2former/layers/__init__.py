"""Building blocks used by the segmenter, the tracker and the refiner alike."""

from mask2former.layers.attention import (
    CrossAttentionLayer,
    FFNLayer,
    MultiheadAttention,
    SelfAttentionLayer,
)
from mask2former.layers.folding import FoldedNetwork, has_foldable_norms
from mask2former.layers.mlp import MLP
from mask2former.layers.position_encoding import PositionEmbeddingSine, PositionEmbeddingSine3D

__all__ = [
    "MLP",
    "CrossAttentionLayer",
    "FFNLayer",
    "FoldedNetwork",
    "MultiheadAttention",
    "PositionEmbeddingSine",
    "PositionEmbeddingSine3D",
    "SelfAttentionLayer",
    "has_foldable_norms",
]
