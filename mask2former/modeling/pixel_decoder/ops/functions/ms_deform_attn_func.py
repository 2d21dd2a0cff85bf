"""Multi-scale deformable attention: the public function."""

from __future__ import annotations

from torch import Tensor

from mask2former.modeling.pixel_decoder.ops.functions.reference import ms_deform_attn_reference


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Multi-scale deformable attention."""
    output = ms_deform_attn_reference(
        value.float(),
        spatial_shapes,
        level_start_index,
        sampling_locations.float(),
        attention_weights.float(),
    )
    return output.to(value.dtype)
