"""Registry of region-of-interest heads; this subset has none of its own."""

from .roi_heads import ROI_HEADS_REGISTRY, build_roi_heads

__all__ = ["ROI_HEADS_REGISTRY", "build_roi_heads"]
