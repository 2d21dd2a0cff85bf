"""One evaluation of result files, from paths to everything that a report shows.

The numbers are those of ``dvis.evaluation.scoring``; here they get names, per-category rows, charts and
per-video scores. A score is a fraction; None where nothing is defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dvis.data.categories import load_categories
from dvis.data.files import read_json
from dvis.evaluation import layout
from dvis.evaluation.metrics.video_ap import (
    IOU_THRESHOLDS,
    RECALL_POINTS,
    Protocol,
    VideoAPResult,
)
from dvis.evaluation.scoring import (
    VPQ_WINDOWS,
    check_ground_truth,
    instance_numbers,
    none_if_nan,
    score_instances,
    score_panoptic_images,
    score_semantic_images,
    score_video_panoptic,
    semantic_numbers,
    semantic_scores,
)
from dvis.evaluation.strips import StripMaker, instance_strips, panoptic_strips, semantic_strips

__all__ = ["TASKS", "Chart", "Evaluation", "Options", "VideoScore", "evaluate_files", "length_groups"]

Score = float | None
NUM_LENGTH_GROUPS = 4
TABLES = ("vipseg_vspw", "toy_vps")  # with ids as in masks of VSS


@dataclass(frozen=True)
class VideoScore:
    """How good one video's result is, and its length in frames."""

    name: str
    num_frames: int
    score: Score


@dataclass(frozen=True)
class Chart:
    """Lines (``x`` are numbers) or bars (``x`` are names); every series has one value per ``x``."""

    title: str
    x: Sequence[float] | Sequence[str]
    series: Mapping[str, Sequence[Score]]
    x_label: str = ""
    y_label: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What is known about a result.

    Attributes:
        title: the task in words.
        numbers: for the JSON file, under the names of the official programs.
        summary: the rows that papers report.
        printed: the summary in the wording of the official programs, if they print one.
        categories: per category its ``id``, ``name`` and scores; all rows have the same keys.
        video_metric: what the score of a video is.
        videos: score of every video, where the task has videos.
        charts: in the order of the report.
        strips: draws a video by its name, if the frames are there.
    """

    title: str
    numbers: dict[str, Any]
    summary: list[tuple[str, Score]]
    categories: list[dict[str, Any]]
    charts: list[Chart]
    printed: list[str] = field(default_factory=list)
    video_metric: str = ""
    videos: list[VideoScore] = field(default_factory=list)
    strips: StripMaker | None = None


@dataclass(frozen=True)
class Options:
    """Settings of an evaluation.

    Attributes:
        images: folder of the frames, for strips.
        windows: VPS: window lengths of VPQ; empty: those of the public script.
        raw_masks: VSS: whether ground truth is coded as VSPW ships it.
        categories: VSS: name of the category table, or a JSON file with a list of {id, name}.
        frames: VIS: shortest and longest video (frames) to evaluate; None: no limit.
        details: VIS: whether charts and scores of single videos are made, which takes as long as the rest.
    """

    images: Path | None = None
    windows: Sequence[int] = ()
    raw_masks: bool = False
    categories: str = "vipseg_vspw"
    frames: tuple[int | None, int | None] = (None, None)
    details: bool = True


def evaluate_files(task: str, gt: Path, pred: Path, options: Options = Options()) -> Evaluation:
    """Evaluate result files.

    Args:
        task: one of ``TASKS``.
        gt, pred: any path of the published layout, see ``dvis.evaluation.layout``.
        options: see `Options`.

    Raises:
        ValueError: for an unknown task, or files that are broken or do not fit each other; names them.
        FileNotFoundError: if a file is missing.
        KeyError: if an annotation lacks a field; names both.
    """
    if task not in TASKS:
        raise ValueError(f"the task must be one of {', '.join(TASKS)}, not {task!r}")
    return TASKS[task](gt, pred, options)


def length_groups(lengths: Mapping[Any, int]) -> dict[str, list[Any]]:
    """Split videos by length into at most four groups of about equal size.

    Args:
        lengths: number of frames by video.

    Returns:
        videos by a text such as ``"12-20"``, shortest first.
    """
    distinct = sorted(set(lengths.values()))
    if len(distinct) > NUM_LENGTH_GROUPS:
        cuts = np.quantile(sorted(lengths.values()), np.linspace(0, 1, NUM_LENGTH_GROUPS + 1)[1:-1])
        edges = sorted({0.0, *cuts.tolist()})
    else:
        edges = [length - 0.5 for length in distinct]
    groups: dict[str, list[Any]] = {}
    for low, high in zip(edges, [*edges[1:], float("inf")], strict=True):
        members = [video for video, length in lengths.items() if low < length <= high]
        if members:
            present = [lengths[video] for video in members]
            first, last = min(present), max(present)
            groups[str(first) if first == last else f"{first}-{last}"] = members
    return groups


# ---- instances


def _evaluate_instances(protocol: Protocol, gt: Path, pred: Path, options: Options) -> Evaluation:
    gt_file, pred_file = layout.find_vis_ground_truth(gt), layout.find_vis_results(pred)
    ground_truth, results = read_json(gt_file), read_json(pred_file)
    _require_keys(ground_truth, ("videos", "categories"), gt_file)
    if not isinstance(results, list):
        raise ValueError(f"{pred_file}: expected a list of predictions")
    if not ground_truth.get("annotations"):
        raise ValueError(f"{gt_file} has no annotations: the ground truth of this split is not public")
    check_ground_truth(gt_file, ground_truth)
    result = score_instances(gt_file, ground_truth, pred_file, results, protocol)
    lengths = {video["id"]: len(video["file_names"]) for video in ground_truth["videos"]}
    shortest, longest = options.frames
    if shortest is not None or longest is not None:
        lengths = {
            video: length
            for video, length in lengths.items()
            if (shortest or 0) <= length <= (longest or length)
        }
        if not lengths:
            raise ValueError(
                f"{gt_file}: no video has {shortest or 0} to {longest or 'any number of'} frames"
            )
        result = result.restricted_to(lengths)
    per_category = result.per_category()
    return Evaluation(
        title="Video instance segmentation" + (" (OVIS)" if protocol == "ovis" else " (YouTube-VIS)"),
        numbers=instance_numbers(result),
        summary=[(name, _defined(value)) for name, value in result.stats.items()],
        printed=result.printed_rows(),
        categories=[
            {
                "id": category_id,
                "name": result.category_names[category_id],
                **{name: _defined(value) for name, value in rows.items()},
            }
            for category_id, rows in per_category.items()
        ],
        charts=_instance_charts(result, lengths) if options.details else [],
        video_metric="AP",
        videos=[
            VideoScore(str(video), length, _defined(result.restricted_to([video]).stats["AP"]))
            for video, length in lengths.items()
            if options.details
        ],
        strips=instance_strips(ground_truth, results, options.images) if options.images else None,
    )


def _instance_charts(result: VideoAPResult, lengths: Mapping[int, int]) -> list[Chart]:
    stats, names = result.stats, result.category_names
    # S R K at area "all", occlusion "all", the largest number of detections
    curves = (
        result.precision[:, :, :, 0, -1]
        if result.precision.ndim == 5
        else result.precision[:, :, :, 0, 0, -1]
    )
    curves = curves[:, :, (curves > -1).all(axis=(0, 1))]
    charts = []
    if curves.size:
        picked = {"IoU 0.50": curves[0], "IoU 0.75": curves[np.isclose(IOU_THRESHOLDS, 0.75)][0]}
        picked["mean of 0.50 to 0.95"] = curves.mean(axis=0)
        series = {name: curve.mean(axis=-1).tolist() for name, curve in picked.items()}
        charts.append(
            Chart(
                "Precision and recall",
                RECALL_POINTS.tolist(),
                series,
                "recall",
                "precision, mean of categories",
            )
        )
    by_category = {names[k]: _defined(rows["AP"]) for k, rows in result.per_category().items()}
    charts.append(_bars("AP by category", by_category, "AP"))
    if result.protocol == "ovis":
        levels = {"light": "AP_light", "medium": "AP_medium_occ", "heavy": "AP_heavy"}
        by_level = {name: _defined(stats[row]) for name, row in levels.items()}
        charts.append(_bars("AP by occlusion", by_level, "AP", sort=False))
    by_area = {area: _defined(stats[f"AP_{area}"]) for area in ("small", "medium", "large")}
    charts.append(_bars("AP by mean area", by_area, "AP", sort=False))
    by_length = {
        group: _defined(result.restricted_to(videos).stats["AP"])
        for group, videos in length_groups(lengths).items()
    }
    charts.append(_bars("AP by length (frames)", by_length, "AP", sort=False))
    return charts


# ---- panoptic


def _evaluate_video_panoptic(gt: Path, pred: Path, options: Options) -> Evaluation:
    truth, result = layout.find_video_panoptic(gt), layout.find_video_panoptic_prediction(pred)
    windows = options.windows or VPQ_WINDOWS
    numbers = score_video_panoptic(truth.json, truth.masks, result.json, result.masks, windows)
    ground_truth = read_json(truth.json)
    vpq, stq = numbers["vpq"], numbers["stq"]
    summary: list[tuple[str, Score]] = []
    for key in [key for key in numbers if key.startswith("mean_vpq")]:
        title = f"VPQ, mean of windows {key.removeprefix('mean_vpq_windows_').replace('_', ' ')}"
        summary += [(f"{title}: {group}", numbers[key][group]) for group in ("all", "thing", "stuff")]
    summary += [(f"VPQ, window {window}", table["all"]["pq"]) for window, table in vpq.items()]
    summary += [("STQ", stq["STQ"]), ("AQ", stq["AQ"]), ("SQ", stq["IoU"])]
    categories = []
    for category in ground_truth["categories"]:
        row = {key: category[key] for key in ("id", "name", "isthing")}
        tables = {window: table["per_class"].get(str(category["id"]), {}) for window, table in vpq.items()}
        row["PQ"] = _mean(table.get("pq") for table in tables.values())
        for window, table in tables.items():
            row |= {
                f"{name}_{window}": table.get(name) for name in ("pq", "sq", "rq", "iou", "tp", "fp", "fn")
            }
        categories.append(row)
    videos = [
        VideoScore(name, length, score)
        for name, length, score in zip(
            numbers["stq_video_order"], stq["Length_per_seq"], stq["STQ_per_seq"], strict=True
        )
    ]
    by_window = {group: [table[group]["pq"] for table in vpq.values()] for group in ("all", "thing", "stuff")}
    return Evaluation(
        title="Video panoptic segmentation (VIPSeg)",
        numbers=numbers,
        summary=summary,
        categories=categories,
        charts=[
            Chart("VPQ by window", list(vpq), by_window, "frames", "VPQ"),
            _bars("PQ by category, mean of windows", {row["name"]: row["PQ"] for row in categories}, "PQ"),
            _by_length("Mean STQ by length (frames)", videos, "STQ"),
        ],
        video_metric="STQ",
        videos=videos,
        strips=panoptic_strips(
            ground_truth, truth.masks, read_json(result.json), result.masks, options.images
        )
        if options.images
        else None,
    )


def _evaluate_panoptic_images(gt: Path, pred: Path, options: Options) -> Evaluation:
    truth, result = layout.find_panoptic_images(gt, "gt"), layout.find_panoptic_images(pred, "pred")
    numbers = score_panoptic_images(truth.json, truth.masks, result.json, result.masks)
    categories = [
        {
            **{key: category[key] for key in ("id", "name", "isthing")},
            **numbers["per_class"][str(category["id"])],
        }
        for category in read_json(truth.json)["categories"]
    ]
    return Evaluation(
        title="Panoptic segmentation of images (COCO)",
        numbers=numbers,
        summary=[
            (f"{metric.upper()}, {group.lower()}", numbers[group][metric])
            for group in ("All", "Things", "Stuff")
            for metric in ("pq", "sq", "rq")
        ],
        categories=categories,
        charts=[_bars("PQ by category", {row["name"]: row["pq"] for row in categories}, "PQ")],
    )


# ---- semantic


def _evaluate_video_semantic(gt: Path, pred: Path, options: Options) -> Evaluation:
    truth = layout.find_semantic_videos(gt)
    pred_root = layout.find_semantic_prediction(pred, truth.videos)
    names = _class_names(options.categories)
    scores = list(semantic_scores(truth.root, truth.videos, pred_root, options.raw_masks, len(names)))
    numbers = semantic_numbers(scores)
    iou = numbers["iou_per_class_with_ground_truth"]
    categories = [{"id": k, "name": name, "IoU": iou.get(str(k))} for k, name in enumerate(names)]
    videos = [
        VideoScore(score.name, score.num_frames, none_if_nan(score.confusion.summary()["mIoU"]))
        for score in scores
    ]
    return Evaluation(
        title="Video semantic segmentation (VSPW)",
        numbers=numbers,
        summary=[
            (title, numbers[key])
            for title, key in (
                ("mIoU", "mIoU"),
                ("weighted IoU", "fwIoU"),
                ("pixel accuracy", "Acc"),
                ("mean class accuracy", "Acc_class"),
                ("VC8", "VC8"),
                ("VC16", "VC16"),
            )
        ],
        categories=categories,
        charts=[
            _bars("IoU by category", {row["name"]: row["IoU"] for row in categories}, "IoU"),
            _by_length("Mean of the videos' mIoU by length (frames)", videos, "mIoU"),
        ],
        video_metric="mIoU",
        videos=videos,
        strips=semantic_strips(truth.root, pred_root, options.raw_masks, names, options.images)
        if options.images
        else None,
    )


def _evaluate_semantic_images(gt: Path, pred: Path, options: Options) -> Evaluation:
    gt_root, pred_root = layout.find_label_folder(gt, "gt"), layout.find_label_folder(pred, "pred")
    meta_file = gt_root.parent / "meta.json"
    if not meta_file.is_file():
        raise FileNotFoundError(f"{meta_file}: no such file; it holds the class names (stuff_classes)")
    meta = read_json(meta_file)
    _require_keys(meta, ("stuff_classes",), meta_file)
    names = meta["stuff_classes"]
    numbers = score_semantic_images(gt_root, pred_root, names, meta.get("ignore_label", 255))
    columns = {
        "IoU": "IoU",
        "BoundaryIoU": "BoundaryIoU",
        "min_IoU_BoundaryIoU": "min(IoU, B-Iou)",
        "ACC": "ACC",
    }
    categories = [
        {
            "id": k,
            "name": name,
            **{column: _fraction(numbers[f"{key}-{name}"]) for column, key in columns.items()},
        }
        for k, name in enumerate(names)
    ]
    return Evaluation(
        title="Semantic segmentation of images",
        numbers=numbers,
        summary=[(name, _fraction(numbers[name])) for name in ("mIoU", "fwIoU", "mACC", "pACC")],
        categories=categories,
        charts=[_bars("IoU by category", {row["name"]: row["IoU"] for row in categories}, "IoU")],
    )


TASKS: Mapping[str, Callable[[Path, Path, Options], Evaluation]] = {
    "ytvis": lambda gt, pred, options: _evaluate_instances("ytvis", gt, pred, options),
    "ovis": lambda gt, pred, options: _evaluate_instances("ovis", gt, pred, options),
    "vps": _evaluate_video_panoptic,
    "vss": _evaluate_video_semantic,
    "panoptic": _evaluate_panoptic_images,
    "semseg": _evaluate_semantic_images,
}


def _defined(value: float) -> Score:
    """The official programs of video AP write -1 where nothing is defined."""
    return value if value > -1 else None


def _fraction(percent: Score) -> Score:
    return None if percent is None else percent / 100


def _mean(values: Iterable[Score]) -> Score:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _bars(title: str, values: Mapping[str, Score], label: str, sort: bool = True) -> Chart:
    """Bars of what is defined, by default the largest first."""
    rows = [(name, value) for name, value in values.items() if value is not None]
    if sort:
        rows.sort(key=lambda row: -row[1])
    return Chart(title, [name for name, _ in rows], {label: [value for _, value in rows]}, "", label)


def _by_length(title: str, videos: Sequence[VideoScore], label: str) -> Chart:
    score_of = {video.name: video.score for video in videos}
    groups = length_groups({video.name: video.num_frames for video in videos})
    means = {group: _mean(score_of[name] for name in names) for group, names in groups.items()}
    return _bars(title, means, label, sort=False)


def _class_names(categories: str) -> list[str]:
    """Names of a table by its name, or of the user's own JSON file, in the order of the ids 0, 1, 2, ..."""
    if Path(categories).suffix == ".json":
        content = read_json(categories)
        rows = content.get("categories") if isinstance(content, dict) else content
    elif categories in TABLES:
        rows = load_categories(categories)
    else:
        raise ValueError(f"categories are a JSON file or one of {', '.join(TABLES)}, not {categories!r}")
    if not rows or not all(isinstance(row, dict) and {"id", "name"} <= row.keys() for row in rows):
        raise ValueError(f"{categories}: expected a list of {{id, name}}")
    rows = sorted(rows, key=lambda row: row["id"])
    if [row["id"] for row in rows] != list(range(len(rows))):
        raise ValueError(f"{categories}: ids must be 0, 1, 2, ..., got {[row['id'] for row in rows]}")
    return [row["name"] for row in rows]


def _require_keys(content: Any, keys: Sequence[str], file: Path) -> None:
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{file}: {', '.join(missing)} missing")
