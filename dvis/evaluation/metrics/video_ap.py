"""Average precision and recall of video instance segmentation, as YouTube-VIS and OVIS define them.

Letters used here, besides those of the project:

    V videos   K categories   D predictions   G objects   S IoU thresholds (10)   R recall points (101)
    A area ranges (4)   O occlusion levels (1 for YouTube-VIS, 4 for OVIS)   M detection limits (3)

A *range* is a pair (area range, occlusion level). Objects outside of a range are ignored in it.

Source: YouTube-VIS and OVIS benchmark definitions (IoU of tubes, pooling per category, 101-point average
precision of COCO).
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from dvis.data.errors import BrokenDataError
from dvis.data.rle import Rle, rle_areas, to_rle
from dvis.evaluation.metrics.processes import map_in_processes, num_cores

logger = logging.getLogger(__name__)

Protocol = Literal["ytvis", "ovis"]
_Key = tuple[int, int]  # video id, category id
MANY_MASKS = 50_000  # predicted masks; with fewer, starting processes takes as long as the work

IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
RECALL_POINTS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = (1, 10, 100)
AREA_RANGES = {
    "all": (0.0, 1e10),
    "small": (0.0, 128.0**2),
    "medium": (128.0**2, 256.0**2),
    "large": (256.0**2, 1e10),
}
OCCLUSION_RANGES = {"all": (0.0, 1.0), "light": (0.0, 0.25), "medium_occ": (0.25, 0.5), "heavy": (0.5, 1.0)}
OCCLUSION_VALUES = {"no_occlusion": 0.0, "slight_occlusion": 0.25, "severe_occlusion": 0.75}


@dataclass(frozen=True)
class VideoAPResult:
    """Curves and summary of one evaluation.

    Attributes:
        protocol: ``"ytvis"`` or ``"ovis"``.
        category_ids: dataset ids in rising order, ``K``.
        category_names: names by dataset id.
        precision: ``S R K A M``, for OVIS ``S R K A O M``; -1 where a category has no counting object.
        recall: ``S K A M``, for OVIS ``S K A O M``; -1 likewise.
        scores: score at which each precision value is reached; same shape as ``precision``.
        stats: the summary rows in printed order, by name; fractions, -1 where nothing is defined.
        iou_matrices: tube IoU by (video id, category id), ``D G``: predictions by falling score, objects in
            file order. Only pairs of video and category with both sides are present.
        empty_pairs: how many pairs of prediction and object have an empty union (sizes that differ, only
            null), by (video id, category id).
        matches: what was matched in each video, by (video id, category id).
    """

    protocol: Protocol
    category_ids: list[int]
    category_names: dict[int, str]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: NDArray[np.float64]
    stats: dict[str, float]
    iou_matrices: dict[tuple[int, int], NDArray[np.float64]] = field(repr=False)
    empty_pairs: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)
    matches: dict[tuple[int, int], _VideoMatches] = field(default_factory=dict, repr=False)

    def restricted_to(self, video_ids: Collection[int]) -> VideoAPResult:
        """The result on a part of the videos, as if only they had been evaluated.

        Nothing is matched again, so parts (long videos, one video) cost little.
        """
        kept = set(video_ids)

        def part(table: dict[tuple[int, int], Any]) -> dict[tuple[int, int], Any]:
            return {key: value for key, value in table.items() if key[0] in kept}

        return _pool(
            self.protocol,
            self.category_names,
            part(self.matches),
            part(self.iou_matrices),
            part(self.empty_pairs),
        )

    @property
    def num_empty_pairs(self) -> int:
        return sum(self.empty_pairs.values())

    def per_category(self) -> dict[int, dict[str, float]]:
        """All summary rows of every category by dataset id; -1 where the category has no counting object."""
        axis = 2
        return {
            category_id: _summarise(
                self.protocol, self.precision.take([k], axis=axis), self.recall.take([k], axis=axis - 1)
            )
            for k, category_id in enumerate(self.category_ids)
        }

    def printed_rows(self) -> list[str]:
        """The summary in the wording of the official programs, three digits."""
        rows = []
        for name, kind, threshold, area, occlusion, limit in _summary_rows(self.protocol):
            title = "Average Precision" if kind == "AP" else "Average Recall"
            iou = "0.50:0.95" if threshold is None else f"{threshold:0.2f}"
            level = f" occ={occlusion.removesuffix('_occ'):>6s} |" if self.protocol == "ovis" else ""
            rows.append(
                f"{title:<18} ({kind}) @[ IoU={iou:<9} | area={area:>6s} |{level} maxDets={limit:>3d} ] = "
                f"{self.stats[name]:0.3f}"
            )
        return rows


def evaluate_video_ap(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    protocol: Protocol = "ytvis",
    workers: int | None = None,
) -> VideoAPResult:
    """Score predicted tubes against ground truth in YouTube-VIS or OVIS form.

    Args:
        ground_truth: decoded JSON with ``videos``, ``categories`` and ``annotations``. Segmentations may be
            compressed or uncompressed run-length codes, polygons or ``None``.
        results: decoded JSON list of ``{video_id, category_id, score, segmentations}``; category ids
            are those of the data set.
        protocol: ``"ytvis"``, or ``"ovis"`` for occlusion levels and strict tube lengths.
        workers: processes; None: one per core, if there is enough to do.

    Returns:
        The curves and rows. Without predictions every row with objects is 0; without objects it is -1.

    Raises:
        ValueError: for an unknown protocol.
        BrokenDataError: for a missing field, an unknown video, a broken mask, or (OVIS) a tube length that
            differs from the video; names video and annotation or prediction. What runs of compressed codes
            add up to is not looked at, see `check_ground_truth`.

    Source: YouTube-VIS and OVIS benchmark definitions.
    """
    if protocol not in ("ytvis", "ovis"):
        raise ValueError(f"protocol must be 'ytvis' or 'ovis', got {protocol!r}")
    if not ground_truth.get("annotations"):
        logger.warning("The ground truth has no annotations; every row is undefined (-1).")
    elif not results:
        logger.warning("There are no predictions; every row that has objects is 0.")

    video_ids = {video["id"] for video in ground_truth["videos"]}
    category_ids = {category["id"] for category in ground_truth["categories"]}
    inputs = _Inputs(
        protocol,
        {video["id"]: video for video in ground_truth["videos"]},
        _group_objects(ground_truth, protocol),
        _group_predictions(results, video_ids, category_ids),
    )
    if workers is None:
        workers = num_cores() if inputs.num_masks >= MANY_MASKS else 1
    found = map_in_processes(inputs.evaluate, inputs.keys, workers)
    evaluated = dict(zip(inputs.keys, found, strict=True))

    iou_matrices = {key: iou for key, (_, iou, _) in evaluated.items() if iou is not None}
    empty_pairs = {key: empty for key, (_, _, empty) in evaluated.items() if empty}
    if empty_pairs:
        logger.warning(
            "%d pairs of prediction and object have no pixel in common frames of equal size; their IoU is 0.",
            sum(empty_pairs.values()),
        )
    matches = {key: match for key, (match, _, _) in evaluated.items()}
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    return _pool(protocol, names, matches, iou_matrices, empty_pairs)


def _occlusion_ranges(protocol: Protocol) -> dict[str, tuple[float, float]]:
    return OCCLUSION_RANGES if protocol == "ovis" else {"all": OCCLUSION_RANGES["all"]}


def _pool(
    protocol: Protocol,
    category_names: dict[int, str],
    matches: dict[tuple[int, int], _VideoMatches],
    iou_matrices: dict[tuple[int, int], NDArray[np.float64]],
    empty_pairs: dict[tuple[int, int], int],
) -> VideoAPResult:
    """Curves and rows over all videos that ``matches`` holds, by (video id, category id) in rising order."""
    category_ids = sorted(category_names)
    num_levels = len(_occlusion_ranges(protocol))
    num_ranges = len(AREA_RANGES) * num_levels
    shape = (len(IOU_THRESHOLDS), len(RECALL_POINTS), len(category_ids), num_ranges, len(MAX_DETECTIONS))
    precision = np.full(shape, -1.0)
    scores = np.full(shape, -1.0)
    recall = np.full(shape[:1] + shape[2:], -1.0)
    of_category: dict[int, list[_VideoMatches]] = defaultdict(list)
    for (_, category_id), match in matches.items():
        of_category[category_id].append(match)
    for k, category_id in enumerate(category_ids):
        if category_id in of_category:
            curves = _accumulate(of_category[category_id], num_ranges)
            precision[:, :, k], recall[:, k], scores[:, :, k] = curves

    if protocol == "ovis":
        split = (len(AREA_RANGES), num_levels, len(MAX_DETECTIONS))
        precision = precision.reshape(*shape[:3], *split)
        scores = scores.reshape(*shape[:3], *split)
        recall = recall.reshape(shape[0], shape[2], *split)
    return VideoAPResult(
        protocol=protocol,
        category_ids=category_ids,
        category_names=category_names,
        precision=precision,
        recall=recall,
        scores=scores,
        stats=_summarise(protocol, precision, recall),
        iou_matrices=iou_matrices,
        empty_pairs=empty_pairs,
        matches=matches,
    )


def occlusion_score(labels: Sequence[str | None]) -> float:
    """Mean of the larger half, ceil(n / 2) of n values, of an object's occlusion labels that are not null.

    Raises:
        ValueError: if no label is given or one is unknown.

    Source: OVIS benchmark, occlusion levels.
    """
    unknown = {label for label in labels if label is not None} - OCCLUSION_VALUES.keys()
    if unknown:
        raise ValueError(
            f"unknown occlusion labels {sorted(unknown)}; allowed are {sorted(OCCLUSION_VALUES)} and null"
        )
    values = sorted((OCCLUSION_VALUES[label] for label in labels if label is not None), reverse=True)
    if not values:
        raise ValueError("all occlusion labels are null")
    half = values[: math.ceil(len(values) / 2)]
    return sum(half) / len(half)


@dataclass
class _Objects:
    """Ground truth of one category in one video, in file order."""

    masks: list[list[Rle | None]]  # G lists of T
    frame_areas: list[NDArray[np.float64]]  # G times T, pixels of the masks
    areas: NDArray[np.float64]  # G, mean visible area by the JSON
    occlusions: NDArray[np.float64]  # G
    crowd: NDArray[np.bool_]  # G
    counts_as_match: NDArray[np.bool_]  # G; see _read_objects


@dataclass
class _Tubes:
    """Predictions of one category in one video by falling score, at most the largest detection limit."""

    masks: list[list[Rle | None]]  # D lists of T
    frame_areas: list[NDArray[np.float64]]  # D times T, pixels of the masks
    areas: NDArray[np.float64]  # D, mean of the frame areas that are not 0
    scores: NDArray[np.float64]  # D


@dataclass
class _VideoMatches:
    """Matching of one category in one video."""

    scores: NDArray[np.float64]  # D
    matched: NDArray[np.bool_]  # A*O S D
    ignored: NDArray[np.bool_]  # A*O S D
    num_counting: NDArray[np.int64]  # A*O


def _mean_of_nonzero(values: Iterable[float | None]) -> float:
    kept = [value for value in values if value]
    return float(np.array(kept).mean()) if kept else 0.0


@dataclass
class _Inputs:
    """Everything by (video id, category id), as it is in the files."""

    protocol: Protocol
    videos: dict[int, Mapping[str, Any]]
    objects: dict[_Key, list[Mapping[str, Any]]]
    predictions: dict[_Key, list[tuple[int, Mapping[str, Any]]]]  # with their numbers in the list of results

    @property
    def keys(self) -> list[_Key]:
        return sorted(self.objects.keys() | self.predictions.keys())

    @property
    def num_masks(self) -> int:
        return sum(len(result["segmentations"]) for items in self.predictions.values() for _, result in items)

    def evaluate(self, key: _Key) -> tuple[_VideoMatches, NDArray[np.float64] | None, int]:
        """Match one category in one video.

        Returns:
            the matches; where both sides are present, the tube IoU ``D G`` and the number of empty unions.
        """
        objects = tubes = iou = None
        empty = 0
        if key in self.objects:
            objects = _read_objects(self.objects[key], self.videos[key[0]], key, self.protocol)
        if key in self.predictions:
            tubes = _read_predictions(self.predictions[key], key)
        if objects is not None and tubes is not None:
            iou, empty = _tube_iou(tubes, objects, key, self.protocol)
        levels = list(_occlusion_ranges(self.protocol).values())
        return _match_video(tubes, objects, iou, levels), iou, empty


def _group_objects(
    ground_truth: Mapping[str, Any], protocol: Protocol
) -> dict[_Key, list[Mapping[str, Any]]]:
    """Objects by (video id, category id), in file order, with all that is needed."""
    videos = {video["id"] for video in ground_truth["videos"]}
    grouped: dict[_Key, list[Mapping[str, Any]]] = defaultdict(list)
    required = ["id", "video_id", "category_id", "iscrowd", "segmentations", "areas"]
    if protocol == "ovis":
        required.append("occlusion")
    for annotation in ground_truth.get("annotations") or []:
        for name in required:
            if name not in annotation:
                raise BrokenDataError(
                    f"video {annotation.get('video_id', '?')}, annotation {annotation.get('id', '?')} of the "
                    f"ground truth: no field {name!r}"
                )
        if annotation["video_id"] not in videos:
            raise BrokenDataError(
                f"video {annotation['video_id']}, annotation {annotation['id']} of the ground truth: there "
                "is no such video"
            )
        grouped[annotation["video_id"], annotation["category_id"]].append(annotation)
        if annotation["id"] == 0:
            logger.warning(
                "An annotation of the ground truth has id 0. The official programs take a match with it "
                "for no match; so does this one. Number annotations from 1."
            )
    return dict(grouped)


def _read_objects(
    members: Sequence[Mapping[str, Any]], video: Mapping[str, Any], key: _Key, protocol: Protocol
) -> _Objects:
    """Objects of one group, masks as compressed codes."""
    masks, occlusions = [], []
    for annotation in members:
        where = f"video {key[0]}, annotation {annotation['id']} of the ground truth"
        masks.append(_to_rles(annotation["segmentations"], video["height"], video["width"], where))
        try:
            occlusions.append(occlusion_score(annotation["occlusion"]) if protocol == "ovis" else 0.0)
        except ValueError as error:
            raise BrokenDataError(f"{where}: {error}") from error
    return _Objects(
        masks=masks,
        frame_areas=_frame_areas(masks, f"an object of video {key[0]}, category {key[1]}"),
        areas=np.array([_mean_of_nonzero(annotation["areas"]) for annotation in members]),
        occlusions=np.array(occlusions),
        crowd=np.array([bool(annotation["iscrowd"]) for annotation in members]),
        # The official programs store the matched object's id and read 0 as "not matched".
        counts_as_match=np.array([annotation["id"] != 0 for annotation in members]),
    )


def _to_rles(segmentations: Sequence[Any], height: int, width: int, where: str) -> list[Rle | None]:
    rles = []
    for t, segmentation in enumerate(segmentations):
        try:
            rles.append(to_rle(segmentation, height, width))
        except (ValueError, TypeError) as error:
            raise BrokenDataError(f"{where}, frame {t}: {error}") from error
    return rles


def _group_predictions(
    results: Sequence[Mapping[str, Any]], video_ids: set[int], category_ids: set[int]
) -> dict[_Key, list[tuple[int, Mapping[str, Any]]]]:
    """Predictions by (video id, category id), in file order, with their places in the file."""
    grouped: dict[_Key, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    unknown_categories: set[int] = set()
    for index, result in enumerate(results):
        for name in ("video_id", "category_id", "score", "segmentations"):
            if name not in result:
                raise BrokenDataError(f"prediction {index} has no field {name!r}")
        if result["video_id"] not in video_ids:
            raise BrokenDataError(
                f"prediction {index} belongs to video {result['video_id']!r}, unknown to the ground truth"
            )
        if result["category_id"] in category_ids:
            grouped[result["video_id"], result["category_id"]].append((index, result))
        else:
            unknown_categories.add(result["category_id"])
    if unknown_categories:
        logger.warning(
            "Predictions of categories unknown to the ground truth are dropped: %s", unknown_categories
        )

    return dict(grouped)


def _read_predictions(items: Sequence[tuple[int, Mapping[str, Any]]], key: _Key) -> _Tubes:
    """Predictions of one group, sorted by score, cut to the largest detection limit."""
    order = np.argsort([-float(result["score"]) for _, result in items], kind="stable")
    items = [items[i] for i in order[: MAX_DETECTIONS[-1]]]
    masks = [
        _to_rles(result["segmentations"], 0, 0, f"prediction {index} of video {key[0]}")
        for index, result in items
    ]
    frame_areas = _frame_areas(masks, f"a prediction of video {key[0]}, category {key[1]}")
    return _Tubes(
        masks=masks,
        frame_areas=frame_areas,
        areas=np.array([_mean_of_nonzero(areas) for areas in frame_areas]),
        scores=np.array([float(result["score"]) for _, result in items]),
    )


def _frame_areas(masks: list[list[Rle | None]], where: str) -> list[NDArray[np.float64]]:
    """Pixels of every frame of every tube, 0 where there is no mask; one pass over all codes of the group."""
    present = [mask for tube in masks for mask in tube if mask]
    try:
        areas = iter(rle_areas(present).tolist())
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenDataError(f"{where} has a broken mask: {error}") from error
    return [np.array([next(areas) if mask else 0.0 for mask in tube]) for tube in masks]


def _tube_iou(
    tubes: _Tubes, objects: _Objects, key: tuple[int, int], protocol: Protocol
) -> tuple[NDArray[np.float64], int]:
    """IoU of every prediction with every object, ``D G``, and how many pairs have an empty union.

    Frames are taken one by one with a single call for all pairs. The call is asked for intersection over the
    prediction's area, which gives the intersection back exactly.
    """
    lengths_d = np.array([len(tube) for tube in tubes.masks])
    lengths_g = np.array([len(tube) for tube in objects.masks])
    if protocol == "ovis" and (lengths_d[:, None] != lengths_g[None]).any():
        raise BrokenDataError(
            f"video {key[0]}, category {key[1]}: predictions have {sorted(set(lengths_d.tolist()))} frames, "
            f"the ground truth {sorted(set(lengths_g.tolist()))}; OVIS wants one entry per frame"
        )
    num_frames = min(lengths_d.max(), lengths_g.max())
    codes_d, codes_g = _by_frame(tubes.masks, None), _by_frame(objects.masks, None)
    areas_d = np.array(_by_frame(tubes.frame_areas, 0.0))[:num_frames]
    areas_g = np.array(_by_frame(objects.frame_areas, 0.0))[:num_frames]
    fraction = np.zeros((num_frames, len(lengths_d), len(lengths_g)))
    counted = np.arange(num_frames)[:, None, None] < np.minimum(lengths_d[:, None], lengths_g[None])
    as_crowd = np.ones(len(lengths_g), dtype=np.uint8)
    sizes = {tuple(code["size"]) for tube in (*tubes.masks, *objects.masks) for code in tube if code}
    for t in range(num_frames):
        present_d = [d for d, code in enumerate(codes_d[t]) if code]
        present_g = [g for g, code in enumerate(codes_g[t]) if code]
        if not present_d or not present_g:
            continue
        if len(sizes) > 1:
            counted[t] &= _same_size(codes_d[t], codes_g[t])
        fraction[t][np.ix_(present_d, present_g)] = mask_utils.iou(
            [codes_d[t][d] for d in present_d], [codes_g[t][g] for g in present_g], as_crowd[: len(present_g)]
        )
    # NaN where a mask has no pixels, -1 where sizes differ.
    inter = np.rint(np.nan_to_num(fraction).clip(min=0) * areas_d[:, :, None])
    union = areas_d[:, :, None] + areas_g[:, None, :] - inter
    inter, union = (inter * counted).sum(axis=0), (union * counted).sum(axis=0)
    iou = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou, int((union == 0).sum())


def _by_frame(tubes: Iterable[Iterable[Any]], fill: float | None) -> list[tuple[Any, ...]]:
    """Transpose tubes of different lengths to frames, with ``fill`` after a tube's end."""
    return list(itertools.zip_longest(*tubes, fillvalue=fill))


def _same_size(codes_d: Sequence[Rle | None], codes_g: Sequence[Rle | None]) -> NDArray[np.bool_]:
    """Whether two masks can be compared, ``D G``: true unless both are there and their sizes differ."""
    sizes_d, sizes_g = (
        np.array([code["size"] if code else (0, 0) for code in codes]) for codes in (codes_d, codes_g)
    )
    absent = (sizes_d == 0).all(axis=1)[:, None] | (sizes_g == 0).all(axis=1)[None]
    return absent | (sizes_d[:, None] == sizes_g[None]).all(axis=-1)


def _match_video(
    tubes: _Tubes | None,
    objects: _Objects | None,
    iou: NDArray[np.float64] | None,
    occlusion_ranges: Sequence[tuple[float, float]],
) -> _VideoMatches:
    """Greedy matching by score for all ranges and thresholds at once."""
    area_low, area_high = np.array(list(AREA_RANGES.values())).T  # A
    occ_low, occ_high = np.array(occlusion_ranges).T  # O
    num_areas, num_levels, num_thresholds = len(area_low), len(occ_low), len(IOU_THRESHOLDS)
    num_ranges = num_areas * num_levels

    if objects is None:
        ignored_g = np.zeros((num_ranges, 0), dtype=bool)
    else:
        bad_area = (objects.areas < area_low[:, None]) | (objects.areas > area_high[:, None])  # A G
        bad_level = (objects.occlusions < occ_low[:, None]) | (objects.occlusions > occ_high[:, None])  # O G
        ignored_g = objects.crowd | (bad_area[:, None] | bad_level[None]).reshape(num_ranges, -1)
    num_counting = (~ignored_g).sum(axis=1)
    if tubes is None:
        empty = np.zeros((num_ranges, num_thresholds, 0), dtype=bool)
        return _VideoMatches(np.zeros(0), empty, empty, num_counting)

    num_tubes = len(tubes.scores)
    matched = np.zeros((num_ranges, num_thresholds, num_tubes), dtype=bool)
    ignored = np.zeros_like(matched)
    if objects is not None and iou is not None:
        _match_greedily(iou, objects, ignored_g, matched, ignored)
    outside = (tubes.areas < area_low[:, None]) | (tubes.areas > area_high[:, None])  # A D
    outside = np.repeat(outside, num_levels, axis=0)[:, None]  # A*O 1 D
    ignored |= ~matched & outside
    return _VideoMatches(tubes.scores, matched, ignored, num_counting)


def _match_greedily(
    iou: NDArray[np.float64],
    objects: _Objects,
    ignored_g: NDArray[np.bool_],
    matched: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
) -> None:
    """Fill ``matched`` and ``ignored`` (both ``A*O S D``) prediction by prediction, best score first."""
    num_tubes, num_objects = iou.shape
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    free = np.ones((len(ignored_g), len(limits), num_objects), dtype=bool)
    # Preference of an object: larger IoU first, later in the file among equals, counting before ignored ones.
    preference = np.argsort(np.argsort(iou, axis=1, kind="stable"), axis=1)  # D G
    bonus = np.where(ignored_g, 0, num_objects)[:, None]  # A*O 1 G
    range_index, threshold_index = np.ogrid[: len(ignored_g), : len(limits)]
    for d in range(num_tubes):
        reaches = iou[d] >= limits[:, None]  # S G
        if not reaches.any():
            continue
        candidate = reaches & (free | objects.crowd)
        rank = np.where(candidate, preference[d] + bonus, -1)
        best = rank.argmax(axis=-1)  # A*O S
        found = candidate[range_index, threshold_index, best]
        free[range_index, threshold_index, best] &= ~found
        matched[:, :, d] = found & objects.counts_as_match[best]
        ignored[:, :, d] = found & ignored_g[range_index, best]


def _accumulate(
    matches: Sequence[_VideoMatches], num_ranges: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Pool the videos of a category.

    Returns:
        precision ``S R A*O M``, recall ``S A*O M``, scores ``S R A*O M``.
    """
    shape = (len(IOU_THRESHOLDS), len(RECALL_POINTS), num_ranges, len(MAX_DETECTIONS))
    precision, scores = np.full(shape, -1.0), np.full(shape, -1.0)
    recall = np.full((shape[0], *shape[2:]), -1.0)
    num_counting = np.sum([match.num_counting for match in matches], axis=0)  # A*O
    kept = np.flatnonzero(num_counting)
    for m, limit in enumerate(MAX_DETECTIONS):
        pooled_scores = np.concatenate([match.scores[:limit] for match in matches])
        order = np.argsort(-pooled_scores, kind="stable")
        pooled_scores = pooled_scores[order]
        matched = np.concatenate([match.matched[kept, :, :limit] for match in matches], axis=-1)[..., order]
        ignored = np.concatenate([match.ignored[kept, :, :limit] for match in matches], axis=-1)[..., order]
        true_positives = np.cumsum(matched & ~ignored, axis=-1, dtype=np.float64)
        false_positives = np.cumsum(~matched & ~ignored, axis=-1, dtype=np.float64)
        recalls = true_positives / num_counting[kept, None, None]
        precisions = true_positives / (false_positives + true_positives + np.spacing(1))
        envelope = np.maximum.accumulate(precisions[..., ::-1], axis=-1)[..., ::-1]
        for row, c in enumerate(kept):
            for s in range(len(IOU_THRESHOLDS)):
                index = np.searchsorted(recalls[row, s], RECALL_POINTS, side="left")
                reached = index[index < len(pooled_scores)]
                precision[s, :, c, m] = 0.0
                scores[s, :, c, m] = 0.0
                precision[s, : len(reached), c, m] = envelope[row, s, reached]
                scores[s, : len(reached), c, m] = pooled_scores[reached]
                recall[s, c, m] = recalls[row, s, -1] if len(pooled_scores) else 0.0
    return precision, recall, scores


_Row = tuple[str, Literal["AP", "AR"], float | None, str, str, int]


def _summary_rows(protocol: Protocol) -> list[_Row]:
    """Name, kind, IoU threshold (None: all), area range, occlusion level, limit; in printed order."""
    areas = [name for name in AREA_RANGES if name != "all"]
    levels = [name for name in OCCLUSION_RANGES if name != "all"] if protocol == "ovis" else []
    limit = MAX_DETECTIONS[-1]
    rows: list[_Row] = [("AP", "AP", None, "all", "all", limit)]
    rows += [(f"AP{round(100 * value)}", "AP", value, "all", "all", limit) for value in (0.5, 0.75)]
    rows += [(f"AP_{area}", "AP", None, area, "all", limit) for area in areas]
    rows += [(f"AP_{level}", "AP", None, "all", level, limit) for level in levels]
    rows += [(f"AR{count}", "AR", None, "all", "all", count) for count in MAX_DETECTIONS]
    rows += [(f"AR_{area}", "AR", None, area, "all", limit) for area in areas]
    rows += [(f"AR_{level}", "AR", None, "all", level, limit) for level in levels]
    return rows


def _summarise(
    protocol: Protocol, precision: NDArray[np.float64], recall: NDArray[np.float64]
) -> dict[str, float]:
    """Means over the entries that are defined, -1 where there are none."""
    stats = {}
    for name, kind, threshold, area, occlusion, limit in _summary_rows(protocol):
        a, m = list(AREA_RANGES).index(area), MAX_DETECTIONS.index(limit)
        last = (a, list(OCCLUSION_RANGES).index(occlusion), m) if protocol == "ovis" else (a, m)
        values = (precision if kind == "AP" else recall)[(..., *last)]
        if threshold is not None:
            values = values[np.isclose(IOU_THRESHOLDS, threshold)]
        values = values[values > -1]
        stats[name] = float(values.mean()) if values.size else -1.0
    return stats
