"""The image meta-architecture: one image in, semantic, instance or panoptic segmentation out.

Shapes: ``N`` images or objects, ``Q`` queries, ``K`` classes, ``H W`` pixels of the padded input, ``h w``
grid of the mask logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import BitMasks, ImageList, PolygonMasks
from torch import Tensor, nn

from mask2former.modeling.criterion import SetCriterion, build_criterion
from mask2former.postprocessing import (
    MaskResizer,
    instance_inference,
    panoptic_inference,
    semantic_inference,
)

__all__ = ["MaskFormer", "mask_tensor"]


def mask_tensor(masks: Tensor | BitMasks | PolygonMasks, image_size: tuple[int, int]) -> Tensor:
    """Ground-truth masks of any kind as ``N H W`` bool."""
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *image_size)
    return (masks.tensor if isinstance(masks, BitMasks) else masks).bool()


def as_clips(outputs: dict[str, Any]) -> dict[str, Tensor]:
    """Predictions of images as those of clips with one frame, which is what the criterion takes."""
    return {"pred_logits": outputs["pred_logits"], "pred_masks": outputs["pred_masks"].unsqueeze(2)}


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask classification for universal image segmentation.

    Source: MaskFormer (arXiv:2107.06278), Mask2Former (arXiv:2112.01527).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        num_queries: int,
        object_mask_threshold: float,
        overlap_threshold: float,
        metadata: Metadata | None,
        size_divisibility: int,
        sem_seg_postprocess_before_inference: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        semantic_on: bool,
        panoptic_on: bool,
        instance_on: bool,
        test_topk_per_image: int,
        deep_supervision: bool = True,
    ) -> None:
        """
        Args:
            backbone: images to features.
            sem_seg_head: features to classes and masks (``MaskFormerHead``).
            criterion: losses with their weights.
            num_queries: ``Q``.
            object_mask_threshold: panoptic: lowest class probability of a query.
            overlap_threshold: panoptic: lowest share of a mask that other masks must leave visible.
            metadata: of the data set; tells things from stuff (panoptic only).
            size_divisibility: inputs are padded to a multiple of it; negative: the backbone's own.
            sem_seg_postprocess_before_inference: semantic: resize mask logits, not class scores, to the
                output.
            pixel_mean: per channel.
            pixel_std: per channel.
            semantic_on: make ``sem_seg``.
            panoptic_on: make ``panoptic_seg``.
            instance_on: make ``instances``.
            test_topk_per_image: instances per image.
            deep_supervision: losses at every decoder layer.

        Raises:
            ValueError: if panoptic results are asked for without metadata.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.num_queries = num_queries
        self.overlap_threshold = overlap_threshold
        self.object_mask_threshold = object_mask_threshold
        self.metadata = metadata
        self.size_divisibility = size_divisibility if size_divisibility >= 0 else backbone.size_divisibility
        self.sem_seg_postprocess_before_inference = sem_seg_postprocess_before_inference
        self.semantic_on = semantic_on
        self.instance_on = instance_on
        self.panoptic_on = panoptic_on
        self.test_topk_per_image = test_topk_per_image
        self.deep_supervision = deep_supervision
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        if panoptic_on and metadata is None:
            raise ValueError("panoptic inference needs metadata: set DATASETS.TRAIN or DATASETS.TEST")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        settings = cfg.MODEL.MASK_FORMER
        backbone = build_backbone(cfg)
        data_sets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": build_criterion(cfg, settings.DEC_LAYERS - 1 if settings.DEEP_SUPERVISION else 0),
            "num_queries": settings.NUM_OBJECT_QUERIES,
            "object_mask_threshold": settings.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": settings.TEST.OVERLAP_THRESHOLD,
            "metadata": MetadataCatalog.get(data_sets[0]) if data_sets else None,
            "size_divisibility": settings.SIZE_DIVISIBILITY,
            "sem_seg_postprocess_before_inference": (
                settings.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
                or settings.TEST.PANOPTIC_ON
                or settings.TEST.INSTANCE_ON
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "semantic_on": settings.TEST.SEMANTIC_ON,
            "instance_on": settings.TEST.INSTANCE_ON,
            "panoptic_on": settings.TEST.PANOPTIC_ON,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "deep_supervision": settings.DEEP_SUPERVISION,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Train on or segment images.

        Args:
            batched_inputs: per image ``image`` (``3 H W``, the config's channel order and range); in training
                ``instances`` with ``gt_classes`` and ``gt_masks``; at inference optionally ``height`` and
                ``width``, the size of the output.

        Returns:
            In training the weighted losses by name. Otherwise per image what is switched on of ``sem_seg``
            (class scores ``K H W``), ``panoptic_seg`` (ids ``H W`` int32 and segments_info), ``instances``.

        Raises:
            ValueError: if a training image comes without ``instances``.
        """
        images = self.preprocess(batched_inputs)
        features = self.backbone(images.tensor)
        outputs = self.sem_seg_head(features, with_aux=self.training and self.deep_supervision)
        if not self.training:
            return self._inference(outputs, images, batched_inputs)
        targets = self.prepare_targets(batched_inputs, images)
        clips = [as_clips(output) for output in (outputs, *outputs["aux_outputs"])]
        losses = self.criterion({**clips[0], "aux_outputs": clips[1:]}, targets)
        return self.criterion.weighted(losses)

    def preprocess(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them to one size."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def prepare_targets(
        self, batched_inputs: Sequence[dict[str, Any]], images: ImageList
    ) -> list[dict[str, Tensor]]:
        """Annotations as the criterion takes them: ``labels`` ``N`` and ``masks`` ``N 1 H W``, padded."""
        H, W = images.tensor.shape[-2:]
        targets = []
        for i, x in enumerate(batched_inputs):
            if "instances" not in x:
                name = x.get("file_name", "no file name")
                raise ValueError(f"image {i} of the training batch ({name}) has no 'instances'")
            instances = x["instances"].to(self.device)
            masks = mask_tensor(instances.gt_masks, instances.image_size).to(self.device)
            padded = F.pad(masks, (0, W - masks.shape[-1], 0, H - masks.shape[-2]))
            targets.append({"labels": instances.gt_classes, "masks": padded[:, None]})
        return targets

    def _inference(
        self, outputs: dict[str, Any], images: ImageList, batched_inputs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        H, W = images.tensor.shape[-2:]
        results = []
        for logits, masks, x, image_size in zip(
            outputs["pred_logits"], outputs["pred_masks"], batched_inputs, images.image_sizes, strict=True
        ):
            output_size = (x.get("height", image_size[0]), x.get("width", image_size[1]))
            resizer = MaskResizer((H, W), image_size, output_size)
            results.append(self._one_image(logits.float(), masks.float(), resizer))
        return results

    def _one_image(self, logits: Tensor, masks: Tensor, resizer: MaskResizer) -> dict[str, Any]:
        """Results of one image: ``logits`` ``Q K+1``, ``masks`` ``Q h w``."""
        result: dict[str, Any] = {}
        if self.semantic_on:
            result["sem_seg"] = semantic_inference(
                logits, masks, resizer, self.sem_seg_postprocess_before_inference
            )
        things = None
        if self.panoptic_on:
            assert self.metadata is not None
            things = set(self.metadata.thing_dataset_id_to_contiguous_id.values())
            result["panoptic_seg"] = panoptic_inference(
                logits, masks, resizer, things, self.object_mask_threshold, self.overlap_threshold
            )
        if self.instance_on:
            result["instances"] = instance_inference(logits, masks, resizer, self.test_topk_per_image, things)
        return result
