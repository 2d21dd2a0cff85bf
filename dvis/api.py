"""Segment videos and streams in a few lines.

Example:
    >>> import dvis
    >>> segmenter = dvis.VideoSegmenter.from_config("configs/ovis/DVIS_Online_R50.yaml", "model.pth")
    >>> for frame in segmenter.stream(dvis.open_video("street.mp4"), min_score=0.5):
    ...     print(frame.index, frame.labels, frame.ids, frame.masks.shape)
    >>> video = segmenter.segment_video("street.mp4")
    >>> video.scores, video.labels, video.masks[0][0]  # masks[object][frame], run-length codes

``stream`` needs the same memory after a hundred and after a hundred thousand frames; ``segment_video``
sees the whole video before it gives scores, and keeps what is needed for the masks under
``MODEL.MASK_FORMER.TEST.MAX_MEMORY_GB``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeTransform
from detectron2.modeling import build_model
from torch import Tensor

from dvis.checkpoint import load_weights
from dvis.config import load_config
from dvis.data.augmentation import shortest_edge_size
from dvis.data.custom import use_custom_datasets
from dvis.inference.engine import Prediction, StreamState
from dvis.modeling.meta_arch.base import VideoModel
from dvis.video_io import open_video, read_ahead

__all__ = ["FrameResult", "VideoResult", "VideoSegmenter"]

Frames = str | os.PathLike[str] | int | Iterable[Any]


@dataclass(frozen=True)
class VideoResult:
    """What was found in a video.

    Attributes:
        task: ``vis``, ``vps`` or ``vss``.
        size: (height, width) of the video in pixels.
        num_frames: T.
        scores: probability per object, best first; of panoptic segments and semantic maps there is none.
        labels: class index per object or segment.
        ids: identity per object or segment; a stream's frames share them. One object may appear under several
            labels, and stuff of one class under several identities.
        masks: ``vis``: per object, one COCO run-length code per frame (``mask_format="rle"``) or a bool
            tensor ``N T H W``; ``vps``: int32 ``T H W`` with 0 or an id + 1; ``vss``: class indices ``T H
            W``.
        class_names: name per class index; empty if the data set's metadata have none.
    """

    task: str
    size: tuple[int, int]
    num_frames: int
    scores: list[float]
    labels: list[int]
    ids: list[int]
    masks: Any
    class_names: list[str] = field(repr=False)


@dataclass(frozen=True)
class FrameResult(VideoResult):
    """What is known of one frame of a stream; fields as in :class:`VideoResult`, masks without the axis T.

    Attributes:
        index: number of the frame in the stream.
        state: continues the stream after this frame; None inside a window.
    """

    index: int = 0
    state: StreamState | None = field(default=None, repr=False)


class VideoSegmenter:
    """A model with its weights, ready for videos of any size, length and source."""

    def __init__(
        self,
        model: VideoModel,
        *,
        min_size: int = 0,
        max_size: int = 1333,
        channel_order: str = "RGB",
        read_ahead: int = 4,
    ) -> None:
        """
        Args:
            model: a meta-architecture of this project; it is put into eval mode.
            min_size: frames are resized so that the shorter side has this many pixels; 0: as they are.
            max_size: but the longer side never more than this.
            channel_order: ``RGB`` or ``BGR``, what the model was trained with.
            read_ahead: frames of a file or folder that a thread decodes while the model works on earlier
                ones; 0: no thread. Cameras and iterables of the caller are read when a frame is needed.
        """
        if not isinstance(model, VideoModel):
            raise ValueError(
                f"{type(model).__name__} is no video model; set MODEL.META_ARCHITECTURE to one, such as "
                "DVIS_online"
            )
        if channel_order not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {channel_order!r}; allowed are RGB and BGR")
        self.model = model.eval()
        self.min_size = min_size
        self.max_size = max_size
        self.channel_order = channel_order
        self.read_ahead = read_ahead

    @classmethod
    def from_config(
        cls,
        config: str | os.PathLike[str] | CfgNode,
        weights: str | os.PathLike[str] | None = None,
        overrides: Sequence[Any] = (),
        device: str | None = None,
    ) -> VideoSegmenter:
        """Build a model from its configuration and weights.

        Args:
            config: a YAML file, or what ``dvis.load_config`` returned.
            weights: a checkpoint; None: ``MODEL.WEIGHTS`` of the configuration; empty: none.
            overrides: ``key, value, ...``, as for ``dvis.load_config``.
            device: such as ``cuda:1``; default ``MODEL.DEVICE``, or the CPU where there is no GPU.

        Raises:
            FileNotFoundError: if the configuration or the weights do not exist.
            KeyError: for an unknown key in the configuration.
            ValueError: if a value is not allowed, or the weights do not belong to the model.
        """
        if isinstance(config, CfgNode):
            cfg = config.clone()
            cfg.defrost()
            cfg.merge_from_list(list(overrides))
        else:
            cfg = load_config(config, overrides)
        if device is not None:
            cfg.MODEL.DEVICE = device
        elif cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
            cfg.MODEL.DEVICE = "cpu"
        use_custom_datasets(cfg)
        model: Any = build_model(cfg)
        load_weights(model, cfg.MODEL.WEIGHTS if weights is None else weights, complete=True)
        return cls(
            model,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            channel_order=cfg.INPUT.FORMAT,
        )

    @property
    def class_names(self) -> list[str]:
        """Name per class index, as far as the data set's metadata tell."""
        # Where there is stuff, the list of stuff holds the names of all classes.
        metadata = self.model.metadata
        return list(
            getattr(metadata, "stuff_classes", None) or getattr(metadata, "thing_classes", None) or []
        )

    def stream(
        self,
        frames: Frames,
        *,
        min_score: float = 0.0,
        mask_format: str = "bitmask",
        state: StreamState | None = None,
    ) -> Iterator[FrameResult]:
        """Segment frame by frame, in constant memory and without looking ahead further than a window.

        Args:
            frames: a path or camera index, or an iterable of ``H W 3`` uint8 RGB frames.
            min_score: ``vis``: drop objects below this probability.
            mask_format: ``vis``: ``bitmask`` or ``rle``.
            state: of the last result of an earlier part of the stream, to continue it.

        Raises:
            ValueError: if the model needs the whole video, there is no frame, or frames differ in size.
            VideoError: if the video cannot be read.
        """
        source = _Source(frames)
        index = 0 if state is None else state.num_frames
        changes = {"min_score": min_score, "mask_format": mask_format}
        for prediction in self.model.engine().stream(self._prepared(source), state):
            yield self._frame_result(prediction, source.size, index, changes)
            index += 1

    def segment_video(
        self, frames: Frames, *, min_score: float = 0.0, mask_format: str = "rle"
    ) -> VideoResult:
        """Segment a whole video.

        Args:
            frames: as for :meth:`stream`; read once, never held as a whole.
            min_score: ``vis``: drop objects below this probability.
            mask_format: ``vis``: ``rle`` or ``bitmask``.

        Raises:
            ValueError: if there is no frame, or frames differ in size.
            VideoError: if the video cannot be read.
        """
        source = _Source(frames)
        with self.model.engine().run(self._prepared(source)) as prediction:
            assert source.size is not None
            result = self.model.postprocess(
                prediction, source.size, min_score=min_score, mask_format=mask_format
            )
            return VideoResult(
                size=source.size,
                num_frames=prediction.masks.num_frames,
                class_names=self.class_names,
                **_common_fields(result),
            )

    def _prepared(self, source: _Source) -> Iterator[Tensor]:
        """Frames as the model takes them: resized, in its channel order, ``3 H W``."""
        return read_ahead(map(self._prepare, source), self.read_ahead if source.is_stored else 0)

    def _prepare(self, frame: np.ndarray) -> Tensor:
        frame = self._resize(frame)
        if self.channel_order == "BGR":
            frame = frame[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))
        # From pinned memory the copy to the device does not hold up the host.
        return tensor.pin_memory() if self.model.device.type == "cuda" else tensor

    def _resize(self, frame: np.ndarray) -> np.ndarray:
        if not self.min_size:
            return frame
        height, width = frame.shape[:2]
        size = shortest_edge_size((height, width), self.min_size, self.max_size)
        return frame if size == (height, width) else ResizeTransform(height, width, *size).apply_image(frame)

    def _frame_result(
        self, prediction: Prediction, size: tuple[int, int] | None, index: int, changes: dict[str, Any]
    ) -> FrameResult:
        assert size is not None
        result = _common_fields(self.model.postprocess(prediction, size, **changes))
        masks = result.pop("masks")
        if isinstance(masks, list):
            masks = [codes[0] for codes in masks]
        else:
            masks = masks[:, 0] if result["task"] == "vis" else masks[0]
        return FrameResult(
            size=size,
            num_frames=1,
            class_names=self.class_names,
            masks=masks,
            index=index,
            state=prediction.state,
            **result,
        )


class _Source:
    """Frames of any origin with checks; remembers their size once the first one was read."""

    def __init__(self, frames: Frames) -> None:
        is_named = isinstance(frames, str | os.PathLike | int)
        self.frames = open_video(frames) if is_named else frames  # type: ignore[arg-type]
        self.name = str(getattr(self.frames, "name", frames if is_named else "stream"))
        # Reading a camera ahead would only make its frames older.
        self.is_stored = is_named and getattr(self.frames, "is_stored", True)
        self.size: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        for t, frame in enumerate(self.frames):  # type: ignore[arg-type]
            frame = np.asarray(frame)
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
                raise ValueError(
                    f"{self.name}: frame {t} must be `H W 3` uint8, got {frame.dtype} of shape {frame.shape}"
                )
            height, width = frame.shape[:2]
            if self.size is not None and self.size != (height, width):
                raise ValueError(
                    f"{self.name}: frame {t} has {height} x {width} pixels, the frames before "
                    f"{self.size[0]} x {self.size[1]}; all frames of a video must have one size"
                )
            self.size = (height, width)
            yield frame
        if self.size is None:
            raise ValueError(f"{self.name}: the video has no frames")


def _common_fields(result: dict[str, Any]) -> dict[str, Any]:
    """Fields of a result that all tasks share, from what postprocessing returned."""
    task, masks = result["task"], result["pred_masks"]
    if task == "vis":
        scores, labels, ids = result["pred_scores"], result["pred_labels"], result["pred_ids"]
    elif task == "vps":
        scores, ids = [], result["pred_ids"]
        labels = [segment["category_id"] for segment in result["segments_infos"]]
        # Segment numbers are those of one call; identities hold for the whole stream.
        identity = torch.tensor([0, *(i + 1 for i in ids)], dtype=torch.int32)
        masks = torch.stack([identity[frame.long()] for frame in masks])
    else:
        scores, labels, ids = [], [], []
    return {"task": task, "scores": scores, "labels": labels, "ids": ids, "masks": masks}
