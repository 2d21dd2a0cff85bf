"""Drawing annotations and predictions on images, with matplotlib (imported when the first image is drawn)."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from enum import Enum, unique
from types import ModuleType
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Keypoints, PolygonMasks
from PIL import Image

from .colormap import random_color
from .file_io import PathManager

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

_SMALL_OBJECT_AREA = 1000  # pixels of the output at scale 1; smaller objects get their label outside
_SMALL_OBJECT_HEIGHT = 40
_LARGE_COMPONENT_AREA = 120000  # every part of a mask that is larger gets a label of its own
_OFF_WHITE = (1.0, 1.0, 240.0 / 255)
_KEYPOINT_THRESHOLD = 0.05


def _cv2() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise ImportError("drawing masks needs OpenCV: pip install opencv-python-headless") from error
    return cv2


def _to_rgb(color: Any) -> tuple[float, float, float]:
    """Any colour that matplotlib understands as three floats in [0, 1]."""
    import matplotlib.colors as mplc

    return mplc.to_rgb(color)


def _unit_color(color: Sequence[float]) -> list[float]:
    return [value / 255 for value in color]


@unique
class ColorMode(Enum):
    """How instances are coloured."""

    IMAGE = 0
    """A random colour for every instance."""
    SEGMENTATION = 1
    """Instances of a class have similar colours, from the metadata."""
    IMAGE_BW = 2
    """As IMAGE, on a picture that is grey where there is no instance."""


class GenericMask:
    """A mask in any format, converted when another one is asked for.

    Args:
        mask_or_polygons: polygons (a list of arrays x0 y0 x1 y1 ...), an RLE, or an ``H W`` array of 0 and 1.
        height, width: size of the image.

    Raises:
        ValueError: if the object is none of these.
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int) -> None:
        self._mask: np.ndarray | None = None
        self._polygons: list[np.ndarray] | None = None
        self._has_holes: bool | None = None
        self.height = height
        self.width = width
        if isinstance(mask_or_polygons, dict):
            rle = mask_or_polygons
            assert "counts" in rle, "an RLE needs 'counts' and 'size'"
            assert "size" in rle, "an RLE needs 'counts' and 'size'"
            if isinstance(rle["counts"], list):
                height_width = rle["size"]
                assert tuple(height_width) == (height, width), (height_width, (height, width))
                rle = mask_util.frPyObjects(rle, height, width)
            self._mask = mask_util.decode(rle)[:, :]
        elif isinstance(mask_or_polygons, list):
            self._polygons = [np.asarray(polygon).reshape(-1) for polygon in mask_or_polygons]
        elif isinstance(mask_or_polygons, np.ndarray):
            assert mask_or_polygons.ndim == 2, mask_or_polygons.shape
            assert mask_or_polygons.shape == (height, width), (
                f"mask shape: {mask_or_polygons.shape}, target dims: {height}, {width}"
            )
            self._mask = mask_or_polygons.astype("uint8")
        else:
            raise ValueError(
                f"GenericMask cannot handle object {mask_or_polygons} of type '{type(mask_or_polygons)}'"
            )

    @property
    def mask(self) -> np.ndarray:
        """``H W`` uint8 of 0 and 1."""
        if self._mask is None:
            self._mask = self.polygons_to_mask(self.polygons)
        return self._mask

    @property
    def polygons(self) -> list[np.ndarray]:
        """Outlines, each x0 y0 x1 y1 ...; those of holes included."""
        if self._polygons is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self.mask)
        return self._polygons

    @property
    def has_holes(self) -> bool:
        """Whether the outlines alone would not show the mask; polygons are taken to have no holes."""
        if self._has_holes is None:
            if self._mask is None:
                self._has_holes = False
            else:
                self._polygons, self._has_holes = self.mask_to_polygons(self._mask)
        return self._has_holes

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """Outlines of an ``H W`` mask through the centres of its border pixels, and whether it has holes."""
        cv2 = _cv2()
        contours, hierarchy = cv2.findContours(
            np.ascontiguousarray(mask, dtype=np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )[-2:]
        if hierarchy is None:  # nothing but zeros
            return [], False
        # hierarchy: next, previous, first child, parent; an outline with a parent is that of a hole
        has_holes = bool((hierarchy.reshape(-1, 4)[:, 3] >= 0).any())
        outlines = [np.asarray(contour).reshape(-1) for contour in contours]
        return [outline + 0.5 for outline in outlines if len(outline) >= 6], has_holes

    def polygons_to_mask(self, polygons: list[np.ndarray]) -> np.ndarray:
        """``H W`` uint8 mask of the union of polygons."""
        if not polygons:
            return np.zeros((self.height, self.width), dtype=np.uint8)
        rles = mask_util.frPyObjects([p.tolist() for p in polygons], self.height, self.width)
        return mask_util.decode(mask_util.merge(rles))

    def area(self) -> int:
        """Number of pixels."""
        return self.mask.sum()

    def bbox(self) -> np.ndarray:
        """(x0, y0, x1, y1)."""
        box = mask_util.toBbox(mask_util.encode(np.asfortranarray(self.mask)))
        box[2:] += box[:2]
        return box


class _PanopticPrediction:
    """A panoptic map taken apart into masks, largest first.

    Args:
        panoptic_seg: ``H W`` segment ids.
        segments_info: dicts with "id", "category_id" and "isthing"; None if the ids are class * label_divisor
            + instance (-1 for none).
        metadata: has "label_divisor" and "thing_dataset_id_to_contiguous_id" for that case.
    """

    def __init__(
        self, panoptic_seg: torch.Tensor, segments_info: list[dict] | None, metadata: Any = None
    ) -> None:
        if segments_info is None:
            assert metadata is not None, "metadata is needed to find out segments"
            things = set(metadata.thing_dataset_id_to_contiguous_id.values())
            segments_info = []
            for label in torch.unique(panoptic_seg).tolist():
                if label != -1:
                    category = label // metadata.label_divisor
                    segments_info.append(
                        {"id": label, "category_id": category, "isthing": category in things}
                    )
        self._seg = panoptic_seg
        self._sinfo = {segment["id"]: segment for segment in segments_info}
        ids, areas = torch.unique(panoptic_seg, sorted=True, return_counts=True)
        self._seg_ids = ids[torch.argsort(areas, descending=True, stable=True)].tolist()

    def non_empty_mask(self) -> np.ndarray:
        """``H W`` bool mask of the pixels that belong to a segment."""
        empty = [segment_id for segment_id in self._seg_ids if segment_id not in self._sinfo]
        mask = torch.ones_like(self._seg, dtype=torch.bool)
        for segment_id in empty:
            mask &= self._seg != segment_id
        return mask.numpy()

    def _masks(self, isthing: bool) -> Iterator[tuple[np.ndarray, dict]]:
        for segment_id in self._seg_ids:
            segment = self._sinfo.get(segment_id)
            if segment is not None and bool(segment["isthing"]) == isthing:
                yield (self._seg == segment_id).numpy(), segment

    def semantic_masks(self) -> Iterator[tuple[np.ndarray, dict]]:
        """Mask and segment of all stuff."""
        return self._masks(isthing=False)

    def instance_masks(self) -> Iterator[tuple[np.ndarray, dict]]:
        """Mask and segment of all things."""
        return self._masks(isthing=True)


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Any,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[Any] | None = None,
) -> list[str] | None:
    """Texts such as "person 98%" or "car|crowd".

    Args:
        classes: indices into ``class_names``.
        scores: in [0, 1].
        class_names: without them the indices are shown.
        is_crowd: whether to mark an instance as a crowd.

    Returns:
        One text per instance; None if there is nothing to say.
    """
    labels: list[str] | None = None
    if classes is not None:
        labels = [class_names[i] if class_names else str(i) for i in classes]
    if scores is not None:
        percents = [f"{score * 100:.0f}%" for score in scores]
        labels = percents if labels is None else [f"{a} {b}" for a, b in zip(labels, percents, strict=True)]
    if labels is not None and is_crowd is not None:
        labels = [text + ("|crowd" if crowd else "") for text, crowd in zip(labels, is_crowd, strict=True)]
    return labels


class VisImage:
    """A picture that can be drawn on.

    Args:
        img: ``H W 3`` RGB in [0, 255].
        scale: size of the output relative to ``img``.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        self.img = img
        self.scale = scale
        self.width = img.shape[1]
        self.height = img.shape[0]
        self._setup_figure(img)

    def _setup_figure(self, img: np.ndarray) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        # A figure of its own, without pyplot: works without a display and in threads.
        fig = Figure(frameon=False)
        self.dpi = fig.get_dpi()
        # A hundredth of a pixel more, so that truncation of inches * dpi cannot lose a pixel.
        fig.set_size_inches(
            (self.width * self.scale + 1e-2) / self.dpi, (self.height * self.scale + 1e-2) / self.dpi
        )
        self.canvas = FigureCanvasAgg(fig)
        ax = fig.add_axes((0.0, 0.0, 1.0, 1.0))
        ax.axis("off")
        self.fig = fig
        self.ax = ax
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Put an image (``H W 3``, [0, 255]) under what is drawn."""
        self.ax.imshow(img.astype("uint8"), extent=(0, self.width, self.height, 0), interpolation="nearest")

    def save(self, filepath: str) -> None:
        """Write the picture to a file; the extension gives the format."""
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """The picture as ``H*scale W*scale 3`` uint8 RGB."""
        buffer, (width, height) = self.canvas.print_to_buffer()
        rgba = np.frombuffer(buffer, dtype="uint8").reshape(height, width, 4)
        return rgba[:, :, :3].copy()


class Visualizer:
    """Draws annotations and predictions on one image.

    Methods named ``draw_*`` draw single things; :meth:`overlay_instances` and what calls it choose colours,
    order and places of labels. All return the :class:`VisImage`.

    Args:
        img_rgb: ``H W 3`` RGB in [0, 255].
        metadata: of the data set: class names and colours; None for those of nothing.
        scale: size of the output relative to the image.
        instance_mode: how instances are coloured.
        font_size_scale: factor on the size of all texts.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self.cpu_device = torch.device("cpu")
        size = math.sqrt(self.output.height * self.output.width)
        self._default_font_size = max(size // 90, 10 // scale) * font_size_scale
        self._instance_mode = instance_mode

    # ---- whole annotations and predictions

    def _class_colors(self, classes: Sequence[int]) -> list[tuple[float, ...]] | None:
        """Similar colours for instances of a class in SEGMENTATION mode, else None (= random ones)."""
        thing_colors = self.metadata.get("thing_colors")
        if self._instance_mode != ColorMode.SEGMENTATION or not thing_colors:
            return None
        return [self._jitter(_unit_color(thing_colors[c])) for c in classes]

    def draw_instance_predictions(self, predictions: Any, jittering: bool = True) -> VisImage:
        """Draw the predictions of an instance segmenter or detector.

        Args:
            predictions: Instances on the CPU with any of "pred_boxes", "pred_classes", "scores", "pred_masks"
                (``N H W``) and "pred_keypoints".
            jittering: whether colours of classes vary from instance to instance (in SEGMENTATION mode).
        """
        boxes = predictions.pred_boxes if predictions.has("pred_boxes") else None
        scores = predictions.scores if predictions.has("scores") else None
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        labels = _create_text_labels(classes, scores, self.metadata.get("thing_classes"))
        keypoints = predictions.pred_keypoints if predictions.has("pred_keypoints") else None
        masks = None
        if predictions.has("pred_masks"):
            masks = [
                GenericMask(np.asarray(mask), self.output.height, self.output.width)
                for mask in predictions.pred_masks
            ]
        alpha, colors = 0.5, None
        if classes is not None:
            colors = self._class_colors(classes)
            if colors is not None:
                alpha = 0.8
                if not jittering:
                    colors = [tuple(_unit_color(self.metadata.thing_colors[c])) for c in classes]
        if self._instance_mode == ColorMode.IMAGE_BW:
            drawn = None
            if predictions.has("pred_masks"):
                drawn = np.any([mask.mask for mask in masks or []], axis=0) if masks else None
            self.output.reset_image(self._create_grayscale_image(drawn))
            alpha = 0.3
        return self.overlay_instances(
            masks=masks,
            boxes=boxes,
            labels=labels,
            keypoints=keypoints,
            assigned_colors=colors,
            alpha=alpha,
        )

    def draw_sem_seg(self, sem_seg: Any, area_threshold: int | None = None, alpha: float = 0.8) -> VisImage:
        """Draw a semantic map.

        Args:
            sem_seg: ``H W`` classes; those without a name are not drawn.
            area_threshold: smaller parts (pixels) are not drawn.
            alpha: opacity.
        """
        if isinstance(sem_seg, torch.Tensor):
            sem_seg = sem_seg.numpy()
        names = self.metadata.stuff_classes
        labels, areas = np.unique(sem_seg, return_counts=True)
        for label in labels[np.argsort(-areas, kind="stable")].tolist():
            if label < len(names):
                self.draw_binary_mask(
                    (sem_seg == label).astype(np.uint8),
                    color=self._stuff_color(label),
                    edge_color=_OFF_WHITE,
                    text=names[label],
                    alpha=alpha,
                    area_threshold=area_threshold,
                )
        return self.output

    def _stuff_color(self, label: int) -> list[float] | None:
        colors = self.metadata.get("stuff_colors") or []
        return _unit_color(colors[label]) if label < len(colors) else None

    def draw_panoptic_seg(
        self,
        panoptic_seg: torch.Tensor,
        segments_info: list[dict] | None,
        area_threshold: int | None = None,
        alpha: float = 0.7,
    ) -> VisImage:
        """Draw a panoptic map.

        Args:
            panoptic_seg: ``H W`` segment ids, on the CPU.
            segments_info: dicts with "id", "category_id" (contiguous), "isthing" and perhaps "score"; None if
                the ids are class * label_divisor + instance.
            area_threshold: smaller parts (pixels) of stuff are not drawn.
            alpha: opacity.
        """
        pred = _PanopticPrediction(panoptic_seg, segments_info, self.metadata)
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.reset_image(self._create_grayscale_image(pred.non_empty_mask()))
        for mask, segment in pred.semantic_masks():
            category = segment["category_id"]
            self.draw_binary_mask(
                mask,
                color=self._stuff_color(category),
                edge_color=_OFF_WHITE,
                text=self.metadata.stuff_classes[category],
                alpha=alpha,
                area_threshold=area_threshold,
            )
        instances = list(pred.instance_masks())
        if not instances:
            return self.output
        segments = [segment for _, segment in instances]
        categories = [segment["category_id"] for segment in segments]
        scores = [s["score"] for s in segments] if all("score" in s for s in segments) else None
        labels = _create_text_labels(
            categories, scores, self.metadata.thing_classes, [s.get("iscrowd", 0) for s in segments]
        )
        thing_colors = self.metadata.get("thing_colors")
        colors = None
        if thing_colors:
            colors = [self._jitter(_unit_color(thing_colors[category])) for category in categories]
        return self.overlay_instances(
            masks=[mask for mask, _ in instances], labels=labels, assigned_colors=colors, alpha=alpha
        )

    draw_panoptic_seg_predictions = draw_panoptic_seg  # name of older versions

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draw what a data-set dict has: instances, semantic map, panoptic map."""
        annotations = dic.get("annotations")
        if annotations:
            self._draw_annotations(annotations)
        sem_seg = dic.get("sem_seg")
        if sem_seg is None and "sem_seg_file_name" in dic:
            with PathManager.open(dic["sem_seg_file_name"], "rb") as file:
                sem_seg = np.asarray(Image.open(file), dtype="uint8")
        if sem_seg is not None:
            self.draw_sem_seg(sem_seg, area_threshold=0, alpha=0.5)
        pan_seg = dic.get("pan_seg")
        if pan_seg is None and "pan_seg_file_name" in dic:
            from detectron2.evaluation.panoptic_quality import read_segment_ids

            with PathManager.open(dic["pan_seg_file_name"], "rb") as file:
                pan_seg = torch.from_numpy(read_segment_ids(file))
        if pan_seg is not None:
            self.draw_panoptic_seg(pan_seg, dic["segments_info"], area_threshold=0, alpha=0.5)
        return self.output

    def _draw_annotations(self, annotations: list[dict]) -> None:
        def field(name: str) -> list[Any] | None:
            return [a[name] for a in annotations] if name in annotations[0] else None

        keypoints = field("keypoints")
        classes = [annotation["category_id"] for annotation in annotations]
        self.overlay_instances(
            labels=_create_text_labels(
                classes,
                None,
                self.metadata.get("thing_classes"),
                [annotation.get("iscrowd", 0) for annotation in annotations],
            ),
            boxes=[
                BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
                if len(a["bbox"]) == 4
                else a["bbox"]
                for a in annotations
            ],
            masks=field("segmentation"),
            keypoints=None if keypoints is None else np.array(keypoints).reshape(len(annotations), -1, 3),
            assigned_colors=self._class_colors(classes),
        )

    # ---- many instances

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Any] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw instances, large ones first, each in its colour and with its label.

        Args:
            boxes: Boxes or ``N 4`` of (x0, y0, x1, y1); ``N 5`` of (x, y, w, h, angle) for rotated ones,
                which are drawn without masks and keypoints.
            labels: ``N`` texts.
            masks: PolygonMasks, BitMasks, a list of anything :class:`GenericMask` takes, or ``N H W``.
            keypoints: Keypoints or ``N K 3`` of (x, y, visibility).
            assigned_colors: ``N`` colours that matplotlib understands; random ones by default.
            alpha: opacity of masks.
        """
        boxes = None if boxes is None else self._convert_boxes(boxes)
        masks = None if masks is None else self._convert_masks(masks)
        keypoints = None if keypoints is None else self._convert_keypoints(keypoints)
        fields = {
            "boxes": boxes,
            "masks": masks,
            "keypoints": keypoints,
            "labels": labels,
            "colors": assigned_colors,
        }
        lengths = {name: len(field) for name, field in fields.items() if field is not None}
        num_instances = next((n for k, n in lengths.items() if k in ("boxes", "masks", "keypoints")), 0)
        if num_instances == 0:
            return self.output
        assert set(lengths.values()) == {num_instances}, f"different numbers of instances: {lengths}"
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in range(num_instances)]
        if boxes is not None and boxes.shape[1] == 5:
            return self.overlay_rotated_instances(boxes, labels=labels, assigned_colors=assigned_colors)

        for i in self._draw_order(boxes, masks, num_instances):
            color = assigned_colors[i]
            if boxes is not None:
                self.draw_box(boxes[i], edge_color=color)
            if masks is not None:
                self._draw_generic_mask(masks[i], color, alpha)
            if labels is not None:
                self._draw_label(
                    labels[i],
                    color,
                    None if boxes is None else boxes[i],
                    None if masks is None else masks[i],
                )
        for points in [] if keypoints is None else keypoints:
            self.draw_and_connect_keypoints(points)
        return self.output

    def _draw_generic_mask(self, mask: GenericMask, color: Any, alpha: float) -> None:
        """Fill and outline a mask; polygons cannot leave out holes, so these are filled pixel by pixel."""
        if mask.has_holes:
            self._draw_rgba(_to_rgb(color), (mask.mask == 1) * alpha)
        for polygon in mask.polygons:
            self.draw_polygon(polygon.reshape(-1, 2), color, alpha=0.0 if mask.has_holes else alpha)

    @staticmethod
    def _draw_order(boxes: Any, masks: Any, num_instances: int) -> list[int]:
        """Indices by falling area, so that small instances are not covered."""
        if boxes is not None:
            areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        elif masks is not None:
            areas = np.array([mask.area() for mask in masks], dtype=float)
        else:
            return list(range(num_instances))
        return np.argsort(-areas, kind="stable").tolist()

    def _draw_label(self, text: str, color: Any, box: Any, mask: GenericMask | None) -> None:
        """Put the label at the corner of the box or in the middle of the mask, below a small object."""
        if box is not None:
            x0, y0, x1, y1 = box
            position, alignment = (x0, y0), "left"
        elif mask is not None and len(mask.polygons) > 0:
            x0, y0, x1, y1 = mask.bbox()
            # the median of the pixels is more often inside the mask than their mean
            position, alignment = tuple(np.median(mask.mask.nonzero(), axis=1)[::-1]), "center"
        else:
            return
        small_area = _SMALL_OBJECT_AREA * self.output.scale
        if (y1 - y0) * (x1 - x0) < small_area or y1 - y0 < _SMALL_OBJECT_HEIGHT * self.output.scale:
            position = (x1, y0) if y1 >= self.output.height - 5 else (x0, y1)
        relative_height = (y1 - y0) / math.sqrt(self.output.height * self.output.width)
        factor = np.clip((relative_height - 0.02) / 0.08 + 1, 1.2, 2)
        self.draw_text(
            text,
            position,
            color=self._change_color_brightness(color, brightness_factor=0.7),
            horizontal_alignment=alignment,
            font_size=factor * 0.5 * self._default_font_size,
        )

    def overlay_rotated_instances(
        self,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        assigned_colors: Sequence[Any] | None = None,
    ) -> VisImage:
        """Draw rotated boxes.

        Args:
            boxes: ``N 5`` of (x_center, y_center, width, height, angle in degrees).
            labels: ``N`` texts.
            assigned_colors: ``N`` colours.
        """
        boxes = np.zeros((0, 5)) if boxes is None else self._convert_boxes(boxes)
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in range(len(boxes))]
        for i in np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable").tolist():
            self.draw_rotated_box_with_label(
                boxes[i],
                edge_color=assigned_colors[i],
                label=None if labels is None else labels[i],
            )
        return self.output

    def draw_and_connect_keypoints(self, keypoints: Any) -> VisImage:
        """Draw the keypoints of one instance, and the lines of the metadata's "keypoint_connection_rules".

        Args:
            keypoints: ``K 3`` of (x, y, probability).
        """
        names = self.metadata.get("keypoint_names")
        visible = {}
        for index, (x, y, probability) in enumerate(np.asarray(keypoints).tolist()):
            if probability > _KEYPOINT_THRESHOLD:
                self.draw_circle((x, y), color="r")
                if names:
                    visible[names[index]] = (x, y)
        for first, second, color in self.metadata.get("keypoint_connection_rules") or ():
            if first in visible and second in visible:
                (x0, y0), (x1, y1) = visible[first], visible[second]
                self.draw_line([x0, x1], [y0, y1], color=tuple(_unit_color(color)))
        return self.output

    # ---- single things

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Draw a text on a dark background.

        Args:
            text: what to write.
            position: (x, y) of the top of the text.
            font_size: in points at scale 1; None for one that fits the image.
            color: made brighter if it is too dark to read.
            horizontal_alignment: "left", "center" or "right" of the position.
            rotation: in degrees.
        """
        size = self._default_font_size if font_size is None else font_size
        readable = np.maximum(list(_to_rgb(color)), 0.2)
        readable[np.argmax(readable)] = max(0.8, readable.max())
        x, y = position
        self.output.ax.text(
            x,
            y,
            text,
            size=size * self.output.scale,
            family="sans-serif",
            bbox={"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"},
            verticalalignment="top",
            horizontalalignment=horizontal_alignment,
            color=readable,
            zorder=10,
            rotation=rotation,
        )
        return self.output

    def _line_width(self) -> float:
        return max(self._default_font_size / 4, 1) * self.output.scale

    def draw_box(
        self, box_coord: Any, alpha: float = 0.5, edge_color: Any = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw the outline of a box (x0, y0, x1, y1)."""
        from matplotlib.patches import Rectangle

        x0, y0, x1, y1 = box_coord
        self.output.ax.add_patch(
            Rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=edge_color,
                linewidth=self._line_width(),
                alpha=alpha,
                linestyle=line_style,
            )
        )
        return self.output

    def draw_rotated_box_with_label(
        self,
        rotated_box: Any,
        alpha: float = 0.5,
        edge_color: Any = "g",
        line_style: str = "-",
        label: str | None = None,
    ) -> VisImage:
        """Draw the outline of a box (x_center, y_center, width, height, angle in degrees) and its label."""
        cx, cy, w, h, angle = (float(value) for value in rotated_box)
        thin = w * h < _SMALL_OBJECT_AREA * self.output.scale
        line_width = self._line_width() / (3 if thin else 1)
        theta = math.radians(angle)
        corners = np.array([(-w / 2, h / 2), (-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2)])
        cos, sin = math.cos(theta), math.sin(theta)
        corners = corners @ np.array([[cos, -sin], [sin, cos]]) + (cx, cy)  # counter-clockwise to the eye
        for side in range(4):
            (x0, y0), (x1, y1) = corners[side], corners[(side + 1) % 4]
            # the side that was the top is dashed, so that the angle can be seen
            self.draw_line(
                [x0, x1],
                [y0, y1],
                color=edge_color,
                linestyle="--" if side == 1 else line_style,
                linewidth=line_width,
            )
        if label is not None:
            relative_height = h / math.sqrt(self.output.height * self.output.width)
            factor = np.clip((relative_height - 0.02) / 0.08 + 1, 1.2, 2)
            self.draw_text(
                label,
                corners[1],
                color=self._change_color_brightness(edge_color, brightness_factor=0.7),
                font_size=factor * 0.5 * self._default_font_size,
                rotation=angle,
            )
        return self.output

    def draw_circle(self, circle_coord: Sequence[float], color: Any, radius: int = 3) -> VisImage:
        """Draw a disc at (x, y)."""
        from matplotlib.patches import Circle

        x, y = circle_coord
        self.output.ax.add_patch(Circle((x, y), radius=radius, fill=True, color=color))
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Any,
        linestyle: Any = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through the points with the given x and y coordinates."""
        from matplotlib.lines import Line2D

        if linewidth is None:
            linewidth = self._default_font_size / 3
        self.output.ax.add_line(
            Line2D(
                x_data,
                y_data,
                linewidth=max(linewidth, 1) * self.output.scale,
                color=color,
                linestyle=linestyle,
            )
        )
        return self.output

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Any = None,
        *,
        edge_color: Any = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: int | None = 10,
    ) -> VisImage:
        """Draw a mask.

        Args:
            binary_mask: ``H W`` of 0 and 1.
            color: random by default.
            edge_color: of the outlines; by default that of the mask.
            text: written on the mask.
            alpha: opacity.
            area_threshold: parts smaller than this (pixels) are not drawn; None draws all.
        """
        color = _to_rgb(random_color(rgb=True, maximum=1) if color is None else color)
        binary_mask = binary_mask.astype("uint8")
        height, width = binary_mask.shape
        mask = GenericMask(binary_mask, height, width)
        drawn = False
        if not mask.has_holes:
            for polygon in mask.polygons:
                area = mask_util.area(mask_util.frPyObjects([polygon.tolist()], height, width)).sum()
                if area >= (area_threshold or 0):
                    drawn = True
                    self.draw_polygon(polygon.reshape(-1, 2), color, edge_color=edge_color, alpha=alpha)
        else:
            drawn = True
            self._draw_rgba(color, (mask.mask == 1) * alpha)
        if text is not None and drawn:
            self._draw_text_in_mask(binary_mask, text, self._change_color_brightness(color, 0.7))
        return self.output

    def draw_soft_mask(
        self, soft_mask: np.ndarray, color: Any = None, *, text: str | None = None, alpha: float = 0.5
    ) -> VisImage:
        """Draw a mask of values in [0, 1].

        Args:
            soft_mask: ``H W``; a value of 1 is drawn with opacity ``alpha``.
            color: random by default.
            text: written on the part above 0.5.
            alpha: opacity.
        """
        color = _to_rgb(random_color(rgb=True, maximum=1) if color is None else color)
        self._draw_rgba(color, soft_mask * alpha)
        if text is not None:
            binary_mask = (soft_mask > 0.5).astype("uint8")
            self._draw_text_in_mask(binary_mask, text, self._change_color_brightness(color, 0.7))
        return self.output

    def _draw_rgba(self, color: tuple[float, ...], opacity: np.ndarray) -> None:
        """Lay a colour over the image with an opacity (``H W``) for every pixel."""
        height, width = opacity.shape
        rgba = np.empty((height, width, 4), dtype=np.float32)
        rgba[..., :3] = color
        rgba[..., 3] = opacity
        self.output.ax.imshow(
            rgba, extent=(0, self.output.width, self.output.height, 0), interpolation="nearest"
        )

    def draw_polygon(
        self, segment: np.ndarray, color: Any, edge_color: Any = None, alpha: float = 0.5
    ) -> VisImage:
        """Draw a filled polygon.

        Args:
            segment: ``N 2`` of (x, y).
            color: of the area.
            edge_color: of the outline; by default that of the area, darker if the area is nearly opaque.
            alpha: opacity of the area.
        """
        from matplotlib.patches import Polygon

        if edge_color is None:
            edge_color = self._change_color_brightness(color, -0.7) if alpha > 0.8 else color
        self.output.ax.add_patch(
            Polygon(
                segment,
                fill=True,
                facecolor=(*_to_rgb(color), alpha),
                edgecolor=(*_to_rgb(edge_color), 1.0),
                linewidth=max(self._default_font_size // 15 * self.output.scale, 1),
            )
        )
        return self.output

    # ---- helpers

    def _jitter(self, color: Sequence[float]) -> tuple[float, ...]:
        """A colour (RGB in [0, 1]) near the given one."""
        offset = np.random.rand(3)
        # of length 0.5 at most, towards a random direction
        offset = offset / np.linalg.norm(offset) * 0.5 - 0.25
        return tuple(np.clip(np.asarray(color) + offset, 0.0, 1.0).tolist())

    def _create_grayscale_image(self, mask: np.ndarray | None = None) -> np.ndarray:
        """The image in grey, except where ``mask`` (``H W``) is set."""
        grey = self.img.astype("f4").mean(axis=2)
        image = np.repeat(grey[:, :, None], 3, axis=2)
        if mask is not None:
            chosen = mask.astype(bool)
            image[chosen] = self.img[chosen]
        return image

    def _change_color_brightness(self, color: Any, brightness_factor: float) -> tuple[float, ...]:
        """A lighter (factor in (0, 1]) or darker (factor in [-1, 0)) colour."""
        assert -1.0 <= brightness_factor <= 1.0, brightness_factor
        hue, lightness, saturation = colorsys.rgb_to_hls(*_to_rgb(color))
        lightness = min(max(lightness * (1 + brightness_factor), 0.0), 1.0)
        return tuple(min(max(v, 0.0), 1.0) for v in colorsys.hls_to_rgb(hue, lightness, saturation))

    def _convert_boxes(self, boxes: Any) -> np.ndarray:
        """Boxes in any form as an ``N 4`` or ``N 5`` array."""
        if isinstance(boxes, Boxes) or hasattr(boxes, "tensor"):
            return boxes.tensor.detach().numpy()
        return np.asarray(boxes)

    def _convert_masks(self, masks_or_polygons: Any) -> list[GenericMask]:
        """Masks in any form as :class:`GenericMask`."""
        masks = masks_or_polygons
        if isinstance(masks, PolygonMasks):
            masks = masks.polygons
        if isinstance(masks, BitMasks):
            masks = masks.tensor
        if isinstance(masks, torch.Tensor):
            masks = masks.numpy()
        return [
            m if isinstance(m, GenericMask) else GenericMask(m, self.output.height, self.output.width)
            for m in masks
        ]

    def _convert_keypoints(self, keypoints: Any) -> np.ndarray:
        """Keypoints in any form as an ``N K 3`` array."""
        return np.asarray(keypoints.tensor if isinstance(keypoints, Keypoints) else keypoints)

    def _draw_text_in_mask(self, binary_mask: np.ndarray, text: str, color: Any) -> None:
        """Write a text on the largest part of a mask, and on every other part that is very large."""
        num, labels, stats, _ = _cv2().connectedComponentsWithStats(binary_mask, 8)
        if num == 1:  # only background
            return
        areas = stats[1:, -1]
        for component in range(1, num):
            area = areas[component - 1]
            if component == np.argmax(areas) + 1 or area > _LARGE_COMPONENT_AREA:
                # the median of the pixels is more often inside the mask than their mean
                center = np.median((labels == component).nonzero(), axis=1)[::-1]
                self.draw_text(text, center, color=color)

    def get_output(self) -> VisImage:
        """The picture with everything drawn so far."""
        return self.output
