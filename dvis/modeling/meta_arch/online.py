"""DVIS online: a frozen segmenter, and the referring tracker that is trained to link what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from dvis.modeling.losses import masks_per_clip, mean_losses
from dvis.modeling.matching import FirstAppearanceMatcher, gather_queries
from dvis.modeling.meta_arch.base import VideoModel
from dvis.modeling.schedule import GuidanceSchedule
from dvis.modeling.structures import LinkedOutput, SegmenterOutput
from dvis.modeling.tracker import ReferringTracker, TrackerState
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.masks import MaskProducts

__all__ = ["DVIS_online", "build_tracker"]


@META_ARCH_REGISTRY.register()
class DVIS_online(VideoModel):
    """Every frame is linked as it comes; the result never depends on later frames.

    Source: DVIS (arXiv:2306.03413), section 3.2.
    """

    criterion: SetCriterion

    @configurable
    def __init__(self, *, tracker: ReferringTracker, schedule: GuidanceSchedule, **base: Any) -> None:
        """
        Args:
            tracker: links frames; what is trained here.
            schedule: how long the segmenter guides the matching.
            **base: see ``VideoModel``.
        """
        super().__init__(**base)
        self.tracker = tracker
        self.schedule = schedule
        self.freeze("backbone", "sem_seg_head")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        criterion = arguments["criterion"]
        criterion.matcher = FirstAppearanceMatcher(
            criterion.matcher.weights, criterion.matcher.num_points, shared=cfg.MODEL.TRACKER.SHARED_QUERIES
        )
        schedule = GuidanceSchedule(
            stage="tracker",
            guided_fraction=cfg.MODEL.TRACKER.GUIDED_FRACTION,
            max_iter=cfg.SOLVER.MAX_ITER,
        )
        return {**arguments, "tracker": build_tracker(cfg), "schedule": schedule}

    def losses(self, frames: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses of the tracked objects in every frame, with one assignment for the whole clip.

        In the first part of the schedule objects are assigned by the segmenter's predictions, put in slot
        order (equation 4), afterwards by those of each tracker layer (equation 3).
        """
        normalizers = masks_per_clip(
            [clip["ids"].numel() for clip in targets], frames.device, alone=self.loss_per_clip
        )
        segmented = self.segment(frames)
        linked, _ = self.tracker(segmented.queries)
        guided = self.schedule.advance()
        layers = [(linked.logits, linked.mask_embeds), *(linked.aux if self.deep_supervision else ())]
        guide = _in_slot_order(segmented, linked) if guided else None
        losses = []
        for b, target in enumerate(targets):
            features = segmented.mask_features[b]
            final, *aux = (_as_frames(logits[b], embeds[b], features) for logits, embeds in layers)
            frame_targets = _every_object_in_every_frame(target)
            indices = None
            if guide is not None:
                logits, embeds = guide
                indices = self.criterion.matcher(_as_frames(logits[b], embeds[b], features), frame_targets)
            outputs: dict[str, Any] = {**final, "aux_outputs": aux}
            losses.append(self.criterion(outputs, frame_targets, indices, num_masks=normalizers[b]))
        return mean_losses(losses)

    @property
    def num_aux_layers(self) -> int:
        return self.tracker.num_layers - 1

    def link(
        self, segmented: SegmenterOutput, state: TrackerState | None
    ) -> tuple[LinkedOutput, TrackerState]:
        """Track; see ``dvis.inference.engine.Linker``."""
        return self.tracker(segmented.queries, state)


def build_tracker(cfg: CfgNode) -> ReferringTracker:
    """The tracker that ``MODEL.TRACKER`` describes, with the segmenter's widths."""
    settings = cfg.MODEL.TRACKER
    tracker = ReferringTracker(
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        hidden_dim=cfg.MODEL.MASK_FORMER.HIDDEN_DIM,
        mask_dim=cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
        num_heads=cfg.MODEL.MASK_FORMER.NHEADS,
        dim_feedforward=cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD,
        num_layers=settings.DECODER_LAYERS,
        initial_value=settings.INITIAL_VALUE,
        cross_attention=settings.CROSS_ATTENTION,
        matching=settings.MATCHING,
        shuffle_queries=settings.SHUFFLE_QUERIES,
    )
    if backend := cfg.MODEL.MASK_FORMER.TEST.COMPILE:
        tracker.compile_layers(backend)
    return tracker


def _in_slot_order(segmented: SegmenterOutput, linked: LinkedOutput) -> tuple[Tensor, Tensor]:
    """The segmenter's class logits ``B T Q K+1`` and mask embeddings ``B T Q C``, ordered as the slots."""
    assert segmented.mask_embeds is not None
    assert linked.order is not None
    return (
        gather_queries(segmented.logits, linked.order),
        gather_queries(segmented.mask_embeds, linked.order),
    )


def _as_frames(logits: Tensor, mask_embeds: Tensor, mask_features: Tensor) -> dict[str, Any]:
    """Predictions of a clip in the criterion's layout, with frames in the place of clips.

    Args:
        logits: ``T Q K+1``.
        mask_embeds: ``T Q C``.
        mask_features: ``T C h w``.
    """
    return {"pred_logits": logits, "pred_masks": MaskProducts(mask_embeds[:, None], mask_features[:, None])}


def _every_object_in_every_frame(clip: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Split a clip's targets into T frames that all list all N objects, those not visible with an empty mask.

    A slot stays with its object where that is hidden; it is trained to give the object's class and no
    pixels.
    """
    return [
        {"labels": clip["labels"], "ids": clip["ids"][:, t : t + 1], "masks": clip["masks"][:, t : t + 1]}
        for t in range(clip["ids"].shape[1])
    ]
