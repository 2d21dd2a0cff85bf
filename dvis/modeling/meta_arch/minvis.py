"""MinVIS: the segmenter alone, trained on single frames and linked by matching its queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from einops import rearrange
from torch import Tensor

from dvis.modeling.losses import mean_losses
from dvis.modeling.matching import gather_queries, match_frames
from dvis.modeling.meta_arch.base import VideoModel
from dvis.modeling.structures import LinkedOutput, SegmenterOutput
from dvis.modeling.targets import frame_targets

__all__ = ["MatchingState", "MinVIS", "VideoMaskFormer_frame"]

MAX_NUM = 10  # results per video; published, whatever MODEL.MASK_FORMER.TEST.MAX_NUM says (behaviour 10)


@dataclass(frozen=True)
class MatchingState:
    """The last frame's queries in slot order, ``B Q C``: what the next frame is matched to."""

    queries: Tensor


@META_ARCH_REGISTRY.register()
class MinVIS(VideoModel):
    """Objects are linked because queries of one object resemble each other in neighbouring frames.

    Source: MinVIS (arXiv:2208.02245).
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        settings = arguments["inference"]
        kept = replace(settings.postprocess, max_num=MAX_NUM)
        return {**arguments, "inference": replace(settings, postprocess=kept)}

    def losses(self, frames: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses with every frame as an independent image, that is a clip with T = 1."""
        segmented = self.segment(frames, with_masks=True, with_aux=self.deep_supervision)
        assert segmented.masks is not None
        layers = [(segmented.logits, segmented.masks), *segmented.aux]
        if not self.loss_per_clip:
            return self._image_losses(layers, targets)
        losses = []
        for b, target in enumerate(targets):
            clip = slice(b, b + 1)
            num_masks = max(float(sum(len(frame["labels"]) for frame in frame_targets(target))), 1.0)
            outputs = [(logits[clip], masks[clip]) for logits, masks in layers]
            losses.append(self._image_losses(outputs, [target], num_masks))
        return mean_losses(losses)

    def _image_losses(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        targets: Sequence[dict[str, Tensor]],
        num_masks: float | None = None,
    ) -> dict[str, Tensor]:
        """Losses of clips as images.

        Args:
            layers: class logits ``B T Q K+1`` and mask logits ``B Q T h w``, of the last layer first.
            targets: of each clip.
            num_masks: normaliser of the mask losses, see ``SetCriterion``.
        """
        final, *aux = (_as_images(logits, masks) for logits, masks in layers)
        images = [frame for clip in targets for frame in frame_targets(clip)]
        return self.criterion({**final, "aux_outputs": aux}, images, num_masks=num_masks)

    @property
    def num_aux_layers(self) -> int:
        predictor: Any = self.sem_seg_head.predictor
        return predictor.num_layers

    def link(
        self, segmented: SegmenterOutput, state: MatchingState | None
    ) -> tuple[LinkedOutput, MatchingState]:
        """Order each frame's queries as the frame before; see ``dvis.inference.engine.Linker``."""
        order = match_frames(segmented.queries, None if state is None else state.queries)
        queries = gather_queries(segmented.queries, order)
        assert segmented.mask_embeds is not None
        linked = LinkedOutput(
            logits=gather_queries(segmented.logits, order),
            queries=queries,
            mask_embeds=gather_queries(segmented.mask_embeds, order),
            order=order,
        )
        return linked, MatchingState(queries[:, -1])


@META_ARCH_REGISTRY.register()
class VideoMaskFormer_frame(MinVIS):
    """MinVIS under the name that its own project published."""


def _as_images(logits: Tensor, masks: Tensor) -> dict[str, Any]:
    """``B T Q K+1`` and ``B Q T h w`` to the criterion's layout with one clip of one frame per image."""
    return {
        "pred_logits": rearrange(logits, "b t q k -> (b t) q k"),
        "pred_masks": rearrange(masks, "b q t h w -> (b t) q 1 h w"),
    }
