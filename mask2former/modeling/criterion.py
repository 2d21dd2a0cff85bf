"""The training criterion: class, mask and dice losses of matched queries, at every decoder layer.

Shapes: ``B`` clips, ``Q`` queries, ``N`` objects, ``T`` frames, ``K+1`` classes with "no object". An image
is a clip with ``T = 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from mask2former.modeling.losses import at_least_float, class_loss, dice_loss, sigmoid_ce_loss
from mask2former.modeling.masks import MaskProducts, select
from mask2former.modeling.matcher import HungarianMatcher, Indices, MatchingWeights
from mask2former.modeling.points import sample_points, uncertain_points

__all__ = ["SetCriterion", "build_criterion", "loss_weights"]

Targets = Sequence[Mapping[str, Tensor]]
Matcher = Callable[[Mapping[str, Tensor], Targets], list[Indices]]


class SetCriterion(nn.Module):
    """Losses of a set of predictions against a set of objects.

    Source: Mask2Former (arXiv:2112.01527), sections 3.3 and 4.1; DETR (arXiv:2005.12872), section 3.1.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: Matcher,
        weight_dict: Mapping[str, float],
        eos_coef: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ) -> None:
        """
        Args:
            num_classes: ``K``, without "no object".
            matcher: gives each clip's matched (query, object) indices.
            weight_dict: weight of each loss by name, auxiliary ones included; applied by the
                meta-architecture (see :meth:`weighted`).
            eos_coef: weight of "no object" in the class loss.
            num_points: points per mask and frame.
            oversample_ratio: see :func:`uncertain_points`.
            importance_sample_ratio: see :func:`uncertain_points`.

        Raises:
            ValueError: if a ratio is out of range; names the config key.
        """
        super().__init__()
        if oversample_ratio < 1:
            raise ValueError(f"MODEL.MASK_FORMER.OVERSAMPLE_RATIO must be at least 1, not {oversample_ratio}")
        if not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                f"MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO must be in [0, 1], not {importance_sample_ratio}"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = eos_coef
        self.register_buffer("empty_weight", empty_weight)

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: Targets,
        indices: Sequence[Indices] | None = None,
        aux_indices: Sequence[Sequence[Indices]] | None = None,
        num_masks: float | None = None,
    ) -> dict[str, Tensor]:
        """Compute all losses, without their weights.

        Random points are drawn in the published order: matching and mask loss of the final predictions,
        then of auxiliary layers 0, 1, ...

        Args:
            outputs: ``pred_logits`` ``B Q K+1``, ``pred_masks`` ``B Q T h w`` (a tensor, or a
                ``MaskProducts``, which needs less memory and time), and optionally ``aux_outputs``, a list of
                such dicts.
            targets: per clip ``labels`` ``N`` int64 in ``[0, K]`` and ``masks`` ``N T H W`` bool.
            indices: matched (query, object) indices per clip, where something else guides the matching; then
                used for every layer. None: each layer is matched by itself.
            aux_indices: the same per auxiliary layer, where they differ from ``indices``.
            num_masks: normaliser of the mask losses. None: the number of objects, averaged over processes,
                which all processes then must call together.

        Returns:
            ``loss_ce``, ``loss_mask``, ``loss_dice`` of the final predictions, and ``..._<i>`` of auxiliary
            layer ``i``. Without any object mask losses are zero (and still carry a gradient).
        """
        if num_masks is None:
            num_masks = self._num_masks(targets)
        losses = self._losses(outputs, targets, indices, num_masks)
        for i, aux in enumerate(outputs.get("aux_outputs") or ()):
            guide = indices if aux_indices is None else aux_indices[i]
            for name, loss in self._losses(aux, targets, guide, num_masks).items():
                losses[f"{name}_{i}"] = loss
        return losses

    def weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply each loss with its weight; losses without a weight are left out."""
        weights = self.weight_dict
        return {name: loss * weights[name] for name, loss in losses.items() if name in weights}

    def _num_masks(self, targets: Targets) -> float:
        """Number of objects per process, averaged over processes, at least one."""
        total = float(sum(len(target["labels"]) for target in targets))
        if comm.get_world_size() > 1:
            count = torch.as_tensor([total], dtype=torch.float32, device=self.empty_weight.device)
            torch.distributed.all_reduce(count)
            total = count.item()
        return max(total / comm.get_world_size(), 1.0)

    def _losses(
        self,
        outputs: Mapping[str, Tensor],
        targets: Targets,
        indices: Sequence[Indices] | None,
        num_masks: float,
    ) -> dict[str, Tensor]:
        if indices is None:
            indices = self.matcher(outputs, targets)
        with torch.autocast(self.empty_weight.device.type, enabled=False):
            return {
                "loss_ce": self._class_loss(outputs["pred_logits"], targets, indices),
                **self._mask_losses(outputs["pred_masks"], targets, indices, num_masks),
            }

    def _class_loss(self, logits: Tensor, targets: Targets, indices: Sequence[Indices]) -> Tensor:
        classes = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
        for b, (queries, objects) in enumerate(indices):
            labels = targets[b]["labels"]
            classes[b, queries.to(logits.device)] = labels[objects.to(labels.device)]
        return class_loss(logits, classes, self.empty_weight)

    def _mask_losses(
        self,
        mask_logits: Tensor | MaskProducts,
        targets: Targets,
        indices: Sequence[Indices],
        num_masks: float,
    ) -> dict[str, Tensor]:
        predicted = select(mask_logits, [queries for queries, _ in indices])
        if not len(predicted):
            zero = predicted.sum()  # of nothing, but what it is computed from gets a gradient
            return {"loss_mask": zero, "loss_dice": zero}
        predicted = at_least_float(predicted)
        truth = select([target["masks"] for target in targets], [objects for _, objects in indices])
        coords = uncertain_points(
            predicted.detach(),
            self.num_points * predicted.shape[1],
            self.oversample_ratio,
            self.importance_sample_ratio,
        )
        with torch.no_grad():
            labels = sample_points(truth.to(predicted), coords)
        logits = sample_points(predicted, coords)
        return {
            "loss_mask": sigmoid_ce_loss(logits, labels, num_masks),
            "loss_dice": dice_loss(logits, labels, num_masks),
        }

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, num_points={self.num_points}, weights={self.weight_dict}"


def loss_weights(cfg: CfgNode, num_aux: int) -> dict[str, float]:
    """Weights by loss name for the final predictions and ``num_aux`` auxiliary layers, from ``cfg``."""
    settings = cfg.MODEL.MASK_FORMER
    weights = {
        "loss_ce": settings.CLASS_WEIGHT,
        "loss_mask": settings.MASK_WEIGHT,
        "loss_dice": settings.DICE_WEIGHT,
    }
    aux = {f"{name}_{i}": weight for i in range(num_aux) for name, weight in weights.items()}
    return {**weights, **aux}


def build_criterion(cfg: CfgNode, num_aux: int) -> SetCriterion:
    """Build the criterion with its matcher.

    Args:
        cfg: configuration; ``MODEL.MASK_FORMER`` and ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` are read.
        num_aux: auxiliary layers that have losses; 0 without deep supervision.
    """
    settings = cfg.MODEL.MASK_FORMER
    matcher = HungarianMatcher(
        MatchingWeights(settings.CLASS_WEIGHT, settings.MASK_WEIGHT, settings.DICE_WEIGHT),
        settings.TRAIN_NUM_POINTS,
    )
    return SetCriterion(
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        matcher,
        loss_weights(cfg, num_aux),
        eos_coef=settings.NO_OBJECT_WEIGHT,
        num_points=settings.TRAIN_NUM_POINTS,
        oversample_ratio=settings.OVERSAMPLE_RATIO,
        importance_sample_ratio=settings.IMPORTANCE_SAMPLE_RATIO,
    )
