"""DVIS offline: segmenter and tracker are frozen, the temporal refiner is trained to correct the tracks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from dvis.modeling.losses import masks_per_clip, mean_losses
from dvis.modeling.meta_arch.base import VideoModel
from dvis.modeling.meta_arch.online import build_tracker
from dvis.modeling.refiner import TemporalRefiner
from dvis.modeling.schedule import GuidanceSchedule
from dvis.modeling.structures import LinkedOutput, RefinedOutput, SegmenterOutput
from dvis.modeling.tracker import ReferringTracker, TrackerState
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.masks import MaskProducts

__all__ = ["DVIS_offline", "build_refiner"]


@META_ARCH_REGISTRY.register()
class DVIS_offline(VideoModel):
    """Tracks are corrected with the whole video (offline) or with each window of it (semi-online).

    Source: DVIS (arXiv:2306.03413), section 3.3.
    """

    refines = True
    criterion: SetCriterion

    @configurable
    def __init__(
        self,
        *,
        tracker: ReferringTracker,
        refiner: TemporalRefiner,
        schedule: GuidanceSchedule,
        **base: Any,
    ) -> None:
        """
        Args:
            tracker: links frames.
            refiner: corrects the tracks; what is trained here.
            schedule: how long the tracker guides the matching.
            **base: see ``VideoModel``.
        """
        super().__init__(**base)
        self.tracker = tracker
        self.refiner = refiner
        self.schedule = schedule
        self.freeze("backbone", "sem_seg_head", "tracker")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        schedule = GuidanceSchedule(
            stage="refiner",
            guided_fraction=cfg.MODEL.REFINER.GUIDED_FRACTION,
            max_iter=cfg.SOLVER.MAX_ITER,
        )
        return {
            **super().from_config(cfg),
            "tracker": build_tracker(cfg),
            "refiner": build_refiner(cfg),
            "schedule": schedule,
        }

    def losses(self, frames: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses of the refined objects on whole clips.

        In the first part of the schedule objects are assigned by the tracker's predictions (equation 7),
        with the mean of its class logits over time; afterwards by those of each refiner layer (equation 6).
        """
        normalizers = masks_per_clip(
            [len(clip["ids"]) for clip in targets], frames.device, alone=self.loss_per_clip
        )
        with torch.no_grad():
            segmented = self.segment(frames)
            linked, _ = self.link(segmented, None)
        assert linked.frame_queries is not None
        refined = self.refine(linked.queries, linked.frame_queries)
        guided = self.schedule.advance()
        layers = [(refined.logits, refined.mask_embeds), *(refined.aux if self.deep_supervision else ())]
        losses = []
        for b, target in enumerate(targets):
            clip = slice(b, b + 1)
            features = segmented.mask_features[clip]
            final, *aux = (_as_clip(logits[clip], embeds[clip], features) for logits, embeds in layers)
            indices = None
            if guided:
                guide = _as_clip(linked.logits[clip].mean(dim=1), linked.mask_embeds[clip], features)
                indices = self.criterion.matcher(guide, [target])
            outputs: dict[str, Any] = {**final, "aux_outputs": aux}
            losses.append(self.criterion(outputs, [target], indices, num_masks=normalizers[b]))
        return mean_losses(losses)

    @property
    def num_aux_layers(self) -> int:
        return self.refiner.num_layers - 1

    def link(
        self, segmented: SegmenterOutput, state: TrackerState | None
    ) -> tuple[LinkedOutput, TrackerState]:
        """Track, and prepare what the refiner looks at; see ``dvis.inference.engine.Linker``."""
        linked, state = self.tracker(segmented.queries, state)
        return replace(linked, frame_queries=self.tracker.frame_forward(segmented.queries)), state

    def refine(self, queries: Tensor, frame_queries: Tensor) -> RefinedOutput:
        """Refine; see ``dvis.inference.engine.Refiner``."""
        return self.refiner(queries, frame_queries)


def build_refiner(cfg: CfgNode) -> TemporalRefiner:
    """The refiner that ``MODEL.REFINER`` describes, with the segmenter's widths."""
    settings = cfg.MODEL.REFINER
    return TemporalRefiner(
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        hidden_dim=cfg.MODEL.MASK_FORMER.HIDDEN_DIM,
        mask_dim=cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
        num_heads=cfg.MODEL.MASK_FORMER.NHEADS,
        dim_feedforward=cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD,
        num_layers=settings.DECODER_LAYERS,
        time_attention=settings.TIME_ATTENTION,
        time_conv=settings.TIME_CONV,
        object_attention=settings.OBJECT_ATTENTION,
        cross_attention=settings.CROSS_ATTENTION,
        class_weighting=settings.CLASS_WEIGHTING,
    )


def _as_clip(logits: Tensor, mask_embeds: Tensor, mask_features: Tensor) -> dict[str, Any]:
    """Predictions of one clip in the criterion's layout: logits ``1 Q K+1``, masks ``1 Q T h w``."""
    return {"pred_logits": logits, "pred_masks": MaskProducts(mask_embeds, mask_features)}
