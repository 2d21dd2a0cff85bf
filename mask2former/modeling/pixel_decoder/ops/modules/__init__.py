"""Modules built on multi-scale deformable attention."""

from .ms_deform_attn import MSDeformAttn

__all__ = ["MSDeformAttn"]
