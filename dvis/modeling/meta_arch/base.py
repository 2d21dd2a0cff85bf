"""What all video models share: preprocessing, targets, weighted losses, frozen parts, and the way to the
engine.

Letters: B videos, T frames, Q queries, K classes, H W pixels of the padded input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_backbone, build_sem_seg_head
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from dvis.inference.engine import InferenceEngine, Prediction, PreparedFrames, StreamState
from dvis.inference.postprocess import TASKS, FrameSizes, PostprocessSettings, postprocess
from dvis.inference.precision import autocast_dtype, check_precision
from dvis.inference.store import StoreSettings
from dvis.modeling.matching import NonFiniteError
from dvis.modeling.segmenter import segment_frames
from dvis.modeling.segmenter_cache import SegmenterCache
from dvis.modeling.structures import LinkedOutput, RefinedOutput, SegmenterOutput
from dvis.modeling.targets import clip_targets
from mask2former.layers import FoldedNetwork, has_foldable_norms
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.matcher import HungarianMatcher, MatchingWeights

__all__ = ["FrozenSettings", "InferenceSettings", "VideoModel"]

logger = logging.getLogger(__name__)

NON_FINITE = ("stop", "skip")


@dataclass(frozen=True)
class InferenceSettings:
    """How a model runs on a video; ``MODEL.MASK_FORMER.TEST.*``.

    Attributes:
        task: ``vis``, ``vps`` or ``vss``.
        window_size: frames that are segmented together.
        refine_over: what the refiner sees, ``video`` or ``window``.
        precision: of the segmenter, see ``dvis.inference.precision``.
        compile_backend: of ``torch.compile``, for segmenter and tracker; empty: they are not compiled.
        postprocess: what is kept of a video.
        store: memory budgets.
    """

    task: str = "vis"
    window_size: int = 3
    refine_over: str = "video"
    precision: str = "float32"
    compile_backend: str = ""
    postprocess: PostprocessSettings = field(default_factory=PostprocessSettings)
    store: StoreSettings = field(default_factory=StoreSettings)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"MODEL.MASK_FORMER.TEST.TASK is {self.task!r}; allowed are {', '.join(TASKS)}")
        check_precision(self.precision)
        if self.compile_backend and self.compile_backend not in (known := torch.compiler.list_backends(())):
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.COMPILE is {self.compile_backend!r}; allowed are '' and the back "
                f"ends of torch.compile: {', '.join(known)}"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> InferenceSettings:
        test = cfg.MODEL.MASK_FORMER.TEST
        return cls(
            task=test.TASK,
            window_size=test.WINDOW_SIZE,
            refine_over=test.REFINE_OVER,
            precision=test.PRECISION,
            compile_backend=test.COMPILE,
            postprocess=PostprocessSettings(
                max_num=test.MAX_NUM,
                mask_format=test.MASK_FORMAT,
                object_threshold=test.OBJECT_MASK_THRESHOLD,
                overlap_threshold=test.OVERLAP_THRESHOLD,
            ),
            store=StoreSettings(
                max_device_gb=test.MAX_DEVICE_MEMORY_GB,
                max_host_gb=test.MAX_MEMORY_GB,
                spill_dir=test.SPILL_DIR,
                half_precision=test.HALF_PRECISION_STORE,
            ),
        )


@dataclass(frozen=True)
class FrozenSettings:
    """How a frozen segmenter runs while the parts behind it are trained; ``MODEL.MASK_FORMER.FROZEN.*``.

    Attributes:
        window_size: frames that are segmented together.
        precision: see ``dvis.inference.precision``.
        cache_gb: memory for what it said of frames, in 2**30 bytes, see ``SegmenterCache``.
        cache_dir: folder where that is also kept; with no memory and no folder nothing is remembered.
    """

    window_size: int = 4
    precision: str = "float32"
    cache_gb: float = 0.0
    cache_dir: str = ""

    def __post_init__(self) -> None:
        if self.window_size < 1:
            raise ValueError(
                f"MODEL.MASK_FORMER.FROZEN.WINDOW_SIZE must be at least 1, not {self.window_size}"
            )
        check_precision(self.precision, "MODEL.MASK_FORMER.FROZEN.PRECISION")


class VideoModel(nn.Module):
    """Base of the meta-architectures: a segmenter, and what a subclass adds to link and refine.

    A subclass names its further parts in the constructor, freezes what it does not train (:meth:`freeze`),
    and implements :meth:`losses` and :meth:`link`; one that refines also :meth:`refine` and sets ``refines``.

    Input is a list with one dict per video: ``image``: T tensors ``3 height width``, uint8 or float,
    channels as in the configuration; ``height`` and ``width`` of the result (default: of the images); in
    training ``instances``: T ``Instances`` with ``gt_ids``, ``gt_classes``, ``gt_masks``; at inference
    ``keep``: true to continue the stream of the previous call, and ``mask_format``: ``bitmask`` or ``rle``
    instead of the configured one. Output at inference: one dict per video, see
    ``dvis.inference.postprocess``.
    """

    refines = False

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: nn.Module,
        loss_weights: Mapping[str, float],
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        inference: InferenceSettings,
        metadata: Any = None,
        deep_supervision: bool = True,
        label_from_last_frame: bool = False,
        non_finite: str = "stop",
        loss_per_clip: bool = False,
        frozen_segmenter: FrozenSettings | None = None,
    ) -> None:
        """
        Args:
            backbone: a detectron2 backbone.
            sem_seg_head: ``MaskFormerHead``.
            criterion: ``SetCriterion``.
            loss_weights: weight per loss name without the number of an auxiliary layer.
            num_classes: K, without "no object".
            pixel_mean: per channel, in the order and scale of the input.
            pixel_std: likewise.
            size_divisibility: sides of the input are padded to a multiple; negative: the backbone's own.
            inference: how a video is processed and what is kept of it.
            metadata: of the data set; tells things from stuff for panoptic results.
            deep_supervision: also train the predictions of every earlier layer.
            label_from_last_frame: see ``clip_targets``.
            non_finite: what happens if a matching cost or a loss is not finite: ``stop``, or ``skip`` the
                batch with a warning.
            loss_per_clip: whether each clip's losses are normalised by themselves; otherwise together with
                those of the other clips and processes.
            frozen_segmenter: how the segmenter runs in training, if a subclass freezes it.

        Raises:
            ValueError: if ``non_finite`` is neither.
        """
        if non_finite not in NON_FINITE:
            raise ValueError(f"SOLVER.NON_FINITE is {non_finite!r}; allowed are {', '.join(NON_FINITE)}")
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.loss_weights = dict(loss_weights)
        self.num_classes = num_classes
        self.size_divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        self.inference = inference
        self.metadata = metadata
        self.deep_supervision = deep_supervision
        self.label_from_last_frame = label_from_last_frame
        self.non_finite = non_finite
        self.loss_per_clip = loss_per_clip
        self.frozen_segmenter = frozen_segmenter or FrozenSettings()
        memory, folder = self.frozen_segmenter.cache_gb, self.frozen_segmenter.cache_dir
        self.segmenter_cache = SegmenterCache(memory, folder or None) if memory or folder else None
        # Told of each batch that is not finite, the error, and whether the batch is skipped; may raise.
        self.on_non_finite: Callable[[Sequence[Mapping[str, Any]], NonFiniteError, bool], None] | None = None
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", _per_channel(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", _per_channel(pixel_std), persistent=False)
        self.frozen_parts: tuple[str, ...] = ()
        # Backbone and head as inference calls them. In a tuple, so that they add no keys to the state dict.
        self._compiled: tuple[Any, Any] | None = None
        if inference.compile_backend:
            self._compiled = (
                torch.compile(backbone, backend=inference.compile_backend),
                torch.compile(sem_seg_head, backend=inference.compile_backend),
            )
        self._folded_backbone = FoldedNetwork()
        # For `keep` in the input, a published habit. New code holds the state itself: see InferenceEngine.
        self._last_stream: StreamState | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        settings = cfg.MODEL.MASK_FORMER
        backbone = build_backbone(cfg)
        sem_seg_head = build_sem_seg_head(cfg, backbone.output_shape())
        loss_weights = {
            "loss_ce": settings.CLASS_WEIGHT,
            "loss_mask": settings.MASK_WEIGHT,
            "loss_dice": settings.DICE_WEIGHT,
        }
        matching_weights = MatchingWeights(
            cost_class=settings.CLASS_WEIGHT,
            cost_mask=settings.MASK_WEIGHT,
            cost_dice=settings.DICE_WEIGHT,
        )
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        return {
            "backbone": backbone,
            "sem_seg_head": sem_seg_head,
            "criterion": SetCriterion(
                num_classes,
                matcher=HungarianMatcher(matching_weights, settings.TRAIN_NUM_POINTS),
                weight_dict=loss_weights,
                eos_coef=settings.NO_OBJECT_WEIGHT,
                num_points=settings.TRAIN_NUM_POINTS,
                oversample_ratio=settings.OVERSAMPLE_RATIO,
                importance_sample_ratio=settings.IMPORTANCE_SAMPLE_RATIO,
            ),
            "loss_weights": loss_weights,
            "num_classes": num_classes,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": settings.SIZE_DIVISIBILITY,
            "inference": InferenceSettings.from_config(cfg),
            # Of several training sets the last one's classes are learned.
            "metadata": _metadata((*reversed(cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST)),
            "deep_supervision": settings.DEEP_SUPERVISION,
            "label_from_last_frame": cfg.INPUT.LABEL_FROM_LAST_FRAME,
            "non_finite": cfg.SOLVER.NON_FINITE,
            "loss_per_clip": cfg.SOLVER.LOSS_PER_CLIP,
            "frozen_segmenter": FrozenSettings(
                window_size=settings.FROZEN.WINDOW_SIZE,
                precision=settings.FROZEN.PRECISION,
                cache_gb=settings.FROZEN.CACHE_GB,
                cache_dir=settings.FROZEN.CACHE_DIR,
            ),
        }

    # What a subclass provides.

    def losses(self, frames: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the unweighted losses of a batch of clips.

        Args:
            frames: normalised and padded, ``B T 3 H W``.
            targets: per clip, see ``clip_targets``.
        """
        raise NotImplementedError

    @property
    def num_aux_layers(self) -> int:
        """Number of earlier layers that have losses of their own under deep supervision."""
        raise NotImplementedError

    def link(self, segmented: SegmenterOutput, state: Any | None) -> tuple[LinkedOutput, Any]:
        """Link frames; see ``dvis.inference.engine.Linker``."""
        raise NotImplementedError

    def refine(self, queries: Tensor, frame_queries: Tensor) -> RefinedOutput:
        """Refine linked objects; see ``dvis.inference.engine.Refiner``."""
        raise NotImplementedError(f"{type(self).__name__} does not refine")

    # Frozen parts.

    def freeze(self, *names: str) -> None:
        """Give the sub-modules of these names no gradient and eval mode, whatever mode the model is in."""
        self.frozen_parts = (*self.frozen_parts, *names)
        for name in names:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> VideoModel:
        super().train(mode)
        self._folded_backbone.forget()
        for name in self.frozen_parts:
            self.get_submodule(name).eval()
        return self

    # The common path.

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Return weighted losses in training mode, otherwise one result per video; see the class."""
        if not self.training:
            if len(batched_inputs) > 1 and any(video.get("keep", False) for video in batched_inputs):
                raise ValueError("`keep` continues one stream: give one video per call")
            return [self._infer(video) for video in batched_inputs]
        frames = self.preprocess(batched_inputs)
        targets = self.prepare_targets(batched_inputs, (frames.shape[-2], frames.shape[-1]))
        names = ", ".join(_name_of(video, i) for i, video in enumerate(batched_inputs))
        try:
            losses = self.weigh(self.losses(frames, targets))
            _check_finite(losses)
        except FloatingPointError as error:
            failure = NonFiniteError(f"{names}: {error}")
            if self.on_non_finite is not None:
                self.on_non_finite(batched_inputs, failure, self.non_finite == "skip")
            if self.non_finite == "skip":
                logger.warning("%s; the batch is skipped (SOLVER.NON_FINITE)", failure)
                return self._no_losses()
            raise failure from error
        return losses

    def segment(self, frames: Tensor, *, with_masks: bool = False, with_aux: bool = False) -> SegmenterOutput:
        """Segment ``B T 3 H W``.

        While the parts behind it are trained, a frozen segmenter leaves nothing for a backward pass, takes a
        few frames at a time, and may remember them, unless masks or predictions of earlier layers are asked
        for.
        """
        frozen = "sem_seg_head" in self.frozen_parts
        serves_training = self.training and frozen
        precision = self.inference.precision
        if self.training:
            precision = self.frozen_segmenter.precision if frozen else "float32"
        # Compiled for inference only: training also asks for other outputs.
        backbone, head = (not self.training and self._compiled) or (self.extract_features, self.sem_seg_head)
        segment = partial(
            segment_frames,
            backbone,
            head,
            with_masks=with_masks,
            with_aux=with_aux,
            autocast_dtype=autocast_dtype(precision, self.device),
            window_size=self.frozen_segmenter.window_size if serves_training else None,
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            if serves_training and self.segmenter_cache is not None and not (with_masks or with_aux):
                return self.segmenter_cache(segment, frames)
            return segment(frames)

    def extract_features(self, images: Tensor) -> dict[str, Tensor]:
        """Run the backbone on ``N 3 H W``; without gradients on a CPU it is a faster copy that runs."""
        plain = torch.is_grad_enabled() or self.backbone.training or images.device.type != "cpu"
        if plain or torch.compiler.is_compiling() or not has_foldable_norms(self.backbone):
            return self.backbone(images)
        return self._folded_backbone(self.backbone, images)

    def preprocess(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Tensor:
        """Normalise the frames of clips of one length and pad them to one size: ``B T 3 H W``.

        Raises:
            ValueError: if a clip has no frame, or clips differ in length; names the video.
        """
        lengths = {len(video["image"]) for video in batched_inputs}
        if len(lengths) != 1 or 0 in lengths:
            found = ", ".join(f"{len(v['image'])} ({_name_of(v, i)})" for i, v in enumerate(batched_inputs))
            raise ValueError(
                f"the clips of a batch must have the same number of frames, at least 1; got {found}"
            )
        frames = self._normalize([frame for video in batched_inputs for frame in video["image"]])
        return frames.unflatten(0, (len(batched_inputs), -1))

    def prepare_targets(
        self, batched_inputs: Sequence[Mapping[str, Any]], padded_size: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """Targets of each clip, see ``clip_targets``.

        Raises:
            ValueError: for annotations that do not fit; names the video and the frame.
        """
        targets = []
        for i, video in enumerate(batched_inputs):
            if "instances" not in video:
                raise ValueError(f"{_name_of(video, i)}: training needs `instances`, objects per frame")
            try:
                targets.append(
                    clip_targets(
                        video["instances"],
                        padded_size,
                        self.num_classes,
                        device=self.device,
                        label_from_last_frame=self.label_from_last_frame,
                    )
                )
            except ValueError as error:
                raise ValueError(f"{_name_of(video, i)}: {error}") from error
        return targets

    def weigh(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply each loss by the weight of its kind; ``loss_ce_3`` is the ``loss_ce`` of auxiliary
        layer 3.

        Without deep supervision the losses of auxiliary layers are left out.
        """
        weighted = {}
        for name, loss in losses.items():
            kind = name.rstrip("0123456789").rstrip("_")
            if kind == name or self.deep_supervision:
                weighted[name] = loss * self.loss_weights[kind]
        return weighted

    def _no_losses(self) -> dict[str, Tensor]:
        """Losses of zero under the usual names, with a gradient of zero for every trained parameter.

        Other processes may have losses of their own in this step: they wait for these names and gradients.

        Raises:
            NonFiniteError: if a trained parameter is not finite, which skipping would not mend.
        """
        zero = torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0.0
        if not zero.isfinite():
            raise NonFiniteError("the weights of the model are not finite; start from an earlier checkpoint")
        suffixes = ["", *(f"_{i}" for i in range(self.num_aux_layers if self.deep_supervision else 0))]
        return {f"{kind}{suffix}": zero for kind in self.loss_weights for suffix in suffixes}

    def engine(self) -> InferenceEngine:
        """The inference engine of this model; cheap to make, and without any state."""
        return InferenceEngine(
            prepare=self.prepare,
            segment=self.segment,
            link=self.link,
            refine=self.refine if self.refines else None,
            refine_over=self.inference.refine_over,
            window_size=self.inference.window_size,
            store=self.inference.store,
        )

    def prepare(self, frames: Sequence[Tensor]) -> PreparedFrames:
        """Normalise and pad the frames of a window, ``3 height width`` each."""
        return PreparedFrames(self._normalize(frames)[None], (frames[0].shape[-2], frames[0].shape[-1]))

    def postprocess(
        self, prediction: Prediction, output_size: tuple[int, int], **changes: Any
    ) -> dict[str, Any]:
        """Make the configured task's result, see ``dvis.inference.postprocess.postprocess``.

        Args:
            prediction: of a video or of a frame of a stream.
            output_size: (height, width) of the result.
            **changes: fields of ``PostprocessSettings`` that replace the configured ones.
        """
        settings = self.inference.postprocess
        if self.inference.task == "vps":
            settings = replace(settings, thing_classes=self.thing_classes())
        return postprocess(
            self.inference.task,
            prediction.probabilities,
            prediction.masks,
            FrameSizes(prediction.padded_size, prediction.image_size, output_size),
            replace(settings, **changes),
        )

    def thing_classes(self) -> frozenset[int]:
        """Class indices of things, from the data set's metadata.

        Raises:
            ValueError: if the metadata does not say.
        """
        things = getattr(self.metadata, "thing_dataset_id_to_contiguous_id", None)
        if things is None:
            raise ValueError(
                "panoptic results need to know which classes are things: the metadata of DATASETS.TRAIN and "
                "DATASETS.TEST have no thing_dataset_id_to_contiguous_id"
            )
        return frozenset(things.values())

    def _normalize(self, frames: Sequence[Tensor]) -> Tensor:
        # Only copies from pinned memory do not block; the others are as ever.
        on_device = [frame.to(self.device, non_blocking=True) for frame in frames]
        normalized = [(frame.float() - self.pixel_mean) / self.pixel_std for frame in on_device]
        return ImageList.from_tensors(normalized, self.size_divisibility).tensor

    def _infer(self, video: Mapping[str, Any]) -> dict[str, Any]:
        frames = video["image"]
        state = self._last_stream if video.get("keep", False) else None
        if state is not None and self.refines and self.inference.refine_over == "video":
            logger.warning("`keep` is ignored: the refiner sees one whole video per call")
            state = None
        try:
            with self.engine().run(frames, state) as prediction:
                height, width = prediction.image_size
                output_size = (int(video.get("height", height)), int(video.get("width", width)))
                self._last_stream = prediction.state
                mask_format = video.get("mask_format", self.inference.postprocess.mask_format)
                return self.postprocess(prediction, output_size, mask_format=mask_format)
        except ValueError as error:
            if type(error) is not ValueError:  # errors of the data name their video themselves
                raise
            raise ValueError(f"{_name_of(video, 0)}: {error}") from error
        except FloatingPointError as error:
            raise NonFiniteError(f"{_name_of(video, 0)}: {error}") from error


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def _check_finite(losses: Mapping[str, Tensor]) -> None:
    """Raise ``NonFiniteError`` with the names and values of the losses that are not finite."""
    if not losses or bool(torch.stack([loss.detach() for loss in losses.values()]).isfinite().all()):
        return
    broken = ", ".join(f"{name} = {loss.item()}" for name, loss in losses.items() if not loss.isfinite())
    raise NonFiniteError(f"not finite: {broken}")


def _name_of(video: Mapping[str, Any], index: int) -> str:
    """What to call a video in a message."""
    for key in ("video_name", "name", "video_id"):
        if key in video:
            return f"video {video[key]}"
    files = video.get("file_names") or [video.get("file_name")]
    return f"video {files[0]}" if files[0] else f"video {index} of the batch"


def _metadata(names: Sequence[str]) -> Any:
    """Metadata of the first data set that knows its classes, else of the first; None without data sets."""
    all_metadata = [MetadataCatalog.get(name) for name in names]
    known = [m for m in all_metadata if hasattr(m, "thing_dataset_id_to_contiguous_id")]
    return next(iter(known or all_metadata), None)
