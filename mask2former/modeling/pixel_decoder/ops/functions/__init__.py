"""The multi-scale deformable attention function and what can be asked about its back ends."""

from .backends import available_backends, backend_report
from .ms_deform_attn_func import ms_deform_attn, ms_deform_attn_from_offsets
from .reference import ms_deform_attn_reference

__all__ = [
    "available_backends",
    "backend_report",
    "ms_deform_attn",
    "ms_deform_attn_from_offsets",
    "ms_deform_attn_reference",
]
