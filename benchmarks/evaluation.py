"""Time of the video metrics against plain programs that follow the definitions, in one run.

    python benchmarks/evaluation.py                     the sizes of the targets, in minutes on two cores
    python benchmarks/evaluation.py --scale 0.1         a tenth of the videos

Both halves work on the same files and must agree. The plain half sees one video (or a twentieth of them) and
is extrapolated by the number of frames and windows. Rounds alternate (plain, ours, plain, ours, ...). Prints
Markdown: medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone need not be installed

from benchmarks import plain_metrics
from benchmarks.machine import processor
from dvis.data.categories import load_categories
from dvis.data.colors import SegmentColors, color_to_id
from dvis.data.label_images import write_png
from dvis.data.rle import encode_mask
from dvis.evaluation.metrics.video_ap import evaluate_video_ap
from dvis.evaluation.scoring import VPQ_WINDOWS, score_video_panoptic, score_video_semantic
from tests.dvis.evaluation.metrics import plain_video_ap

PANOPTIC = (8, 30, 720, 1280)  # videos, frames, height, width: 240 frames
INSTANCES = (140, 60, 720, 1280)
SEMANTIC = (12, 40, 480, 854)
SEGMENTS = 16  # per panoptic and semantic video
OBJECTS, PREDICTIONS = 5, 20  # per video of instances
PLAIN_FRAMES = 12  # of the panoptic video that the plain half sees


def regions(rng: np.random.Generator, frames: int, height: int, width: int, number: int) -> np.ndarray:
    """Label maps ``T H W`` (uint8, from 0) of regions with wobbly borders that drift."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = rng.uniform(20, 60, (2, 3))
    x = x + sum(5 * np.sin(y / wave + rng.uniform(0, 6)) for wave in waves[0])
    y = y + sum(5 * np.sin(x / wave + rng.uniform(0, 6)) for wave in waves[1])
    centres = rng.uniform(0, 1, (number, 2)) * [height, width]
    speed = rng.normal(0, 4, (number, 2))
    labels = np.zeros((frames, height, width), np.uint8)
    for t in range(frames):
        best = np.full((height, width), np.inf, np.float32)
        for k, (cy, cx) in enumerate(centres + t * speed):
            distance = (y - cy) ** 2 + (x - cx) ** 2
            nearer = distance < best
            best[nearer] = distance[nearer]
            labels[t][nearer] = k
    return labels


def shifted(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A prediction: the same regions, displaced a little differently in every frame."""
    return np.stack([np.roll(frame, rng.integers(-12, 13, 2), (0, 1)) for frame in labels])


def write_panoptic(root: Path, videos: int, frames: int, height: int, width: int) -> None:
    categories = load_categories("vipseg_vspw")
    truth: dict[str, Any] = {"categories": categories, "videos": [], "annotations": []}
    predicted: dict[str, Any] = {"annotations": []}
    for v in range(videos):
        rng = np.random.default_rng(v)
        chosen = rng.choice(len(categories), SEGMENTS, replace=False)
        labels = regions(rng, frames, height, width, SEGMENTS)
        for content, folder, maps in (
            (truth, "gt/panomasksRGB", labels),
            (predicted, "pred/pan_pred", shifted(labels, rng)),
        ):
            colors = SegmentColors(categories, v)
            palette = np.array([colors.take(int(k)) for k in chosen], np.uint8)
            if content is truth:
                palette[0] = 0  # void
            annotations = []
            for t, frame in enumerate(maps):
                path = root / folder / f"v{v}" / f"{t:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_png(path, palette[frame])
                areas = np.bincount(frame.ravel(), minlength=SEGMENTS)
                segments = [
                    {
                        "id": color_to_id(tuple(palette[k].tolist())),
                        "category_id": int(chosen[k]),
                        "area": int(area),
                    }
                    for k, area in enumerate(areas)
                    if area and palette[k].any()
                ]
                annotations.append({"file_name": path.name, "image_id": path.stem, "segments_info": segments})
            content["annotations"].append({"video_id": f"v{v}", "annotations": annotations})
    write_panoptic_json(root, truth, predicted)


def write_panoptic_json(root: Path, truth: dict[str, Any], predicted: dict[str, Any]) -> None:
    (root / "gt" / "panoptic_gt.json").write_text(json.dumps(truth))
    (root / "pred" / "pred.json").write_text(json.dumps(predicted))
    # The plain half sees the beginning of the first video.
    for folder, name, content in (("gt", "panoptic_gt.json", truth), ("pred", "pred.json", predicted)):
        part = root / "part" / folder
        part.mkdir(parents=True)
        first = content["annotations"][0]
        short = {**first, "annotations": first["annotations"][:PLAIN_FRAMES]}
        (part / name).write_text(json.dumps({**content, "annotations": [short]}))
        masks = {"gt": "panomasksRGB", "pred": "pan_pred"}[folder]
        (part / masks).symlink_to(root / folder / masks)


def score_panoptic(root: Path) -> dict[str, Any]:
    gt, pred = root / "gt", root / "pred"
    return score_video_panoptic(
        gt / "panoptic_gt.json", gt / "panomasksRGB", pred / "pred.json", pred / "pan_pred"
    )


def windowed_frames(frames: int) -> int:
    """How many frames the windows of all lengths look at."""
    return sum(window * max(frames - window + 1, 0) for window in VPQ_WINDOWS)


def bench_panoptic(root: Path, scale: float, rounds: int) -> list[tuple[str, float, float]]:
    videos, frames, height, width = PANOPTIC
    videos = max(1, round(videos * scale))
    write_panoptic(root, videos, frames, height, width)
    part = root / "part"
    times: dict[str, list[float]] = {"vpq": [], "stq": [], "ours": []}
    for _ in range(rounds):
        plain_vpq = timed(times["vpq"], lambda: plain_metrics.vpq(part / "gt", part / "pred", VPQ_WINDOWS))
        plain_stq = timed(times["stq"], lambda: plain_metrics.stq(part / "gt", part / "pred"))
        timed(times["ours"], lambda: score_panoptic(root))
    ours = score_panoptic(part)
    for window, value in plain_vpq.items():
        assert abs(value - ours["vpq"][str(window)]["all"]["pq"]) < 1e-9, "the two halves disagree"
    assert abs(plain_stq - ours["stq"]["STQ"]) < 1e-9, "the two halves disagree"
    median = {name: statistics.median(values) for name, values in times.items()}
    vpq = median["vpq"] * videos * windowed_frames(frames) / windowed_frames(PLAIN_FRAMES)
    stq = median["stq"] * videos * frames / PLAIN_FRAMES
    return [(f"VPQ (5 windows) + STQ, {videos * frames} frames of 720p", vpq + stq, median["ours"])]


def instance_results(videos: int, frames: int, height: int, width: int) -> tuple[dict[str, Any], list[Any]]:
    """Tubes from a pool of drifting blobs: per object its ground truth and four worse versions."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 200)

    def tube(seed: int) -> list[list[Any]]:
        own = np.random.default_rng(seed)
        centre, speed = own.uniform(0.2, 0.8, 2) * [height, width], own.normal(0, 3, 2)
        radius = own.uniform(40, 160, 2)
        versions: list[list[Any]] = [[] for _ in range(1 + PREDICTIONS // OBJECTS)]
        for t in range(frames):
            for version, codes in enumerate(versions):
                cy, cx = centre + t * speed + own.normal(0, 6 * version, 2)
                reach = 1 + 0.2 * np.sin(5 * angle + t / 9) + 0.05 * np.sin(23 * angle)
                outline = np.stack(
                    [cx + radius[1] * reach * np.cos(angle), cy + radius[0] * reach * np.sin(angle)], axis=1
                )
                mask = cv2.fillPoly(np.zeros((height, width), np.uint8), [outline.astype(np.int32)], (1,))
                codes.append(encode_mask(mask) if mask.any() else None)
        return versions

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        pool = list(workers.map(tube, range(4 * OBJECTS)))
    areas = [[None if c is None else 1e4 for c in versions[0]] for versions in pool]
    gt: dict[str, Any] = {
        "videos": [
            {"id": v, "height": height, "width": width, "file_names": [""] * frames}
            for v in range(1, videos + 1)
        ],
        "categories": [{"id": k, "name": str(k)} for k in range(1, 26)],
        "annotations": [],
    }
    results = []
    for v in range(1, videos + 1):
        category = {int(k): int(rng.integers(1, 26)) for k in rng.choice(len(pool), OBJECTS, replace=False)}
        first = min(category.values())  # half of the objects are of one category, as in a herd
        category = {k: first if i % 2 else c for i, (k, c) in enumerate(category.items())}
        for k, label in category.items():
            gt["annotations"].append(
                {
                    "id": len(gt["annotations"]) + 1,
                    "video_id": v,
                    "category_id": label,
                    "iscrowd": 0,
                    "segmentations": pool[k][0],
                    "areas": areas[k],
                }
            )
            for codes in pool[k][1:]:
                score = float(rng.random())
                results.append({"video_id": v, "category_id": label, "score": score, "segmentations": codes})
    return gt, results


def bench_instances(scale: float, rounds: int) -> list[tuple[str, float, float]]:
    videos, frames, height, width = INSTANCES
    videos = max(20, round(videos * scale))
    gt, results = instance_results(videos, frames, height, width)
    kept = videos // 20
    part = {
        **gt,
        "videos": gt["videos"][:kept],
        "annotations": [a for a in gt["annotations"] if a["video_id"] <= kept],
    }
    part_results = [r for r in results if r["video_id"] <= kept]
    plain_times: list[float] = []
    our_times: list[float] = []
    for _ in range(rounds):
        precision, _ = timed(plain_times, lambda: plain_video_ap.evaluate(part, part_results))
        timed(our_times, lambda: evaluate_video_ap(gt, results))
    assert np.allclose(evaluate_video_ap(part, part_results).precision, precision, atol=1e-12)
    plain = statistics.median(plain_times) * videos / kept
    name = f"video AP, {videos} videos x {frames} frames x {PREDICTIONS} predictions"
    return [(name, plain, statistics.median(our_times))]


def bench_semantic(root: Path, scale: float, rounds: int) -> list[tuple[str, float, float]]:
    videos, frames, height, width = SEMANTIC
    videos = max(1, round(videos * scale))
    names = [f"v{v}" for v in range(videos)]
    for v, name in enumerate(names):
        rng = np.random.default_rng(v)
        labels = regions(rng, frames, height, width, SEGMENTS)
        classes = rng.choice(124, SEGMENTS, replace=False).astype(np.uint8)
        for folder, maps in (
            (root / "data" / name / "mask", labels),
            (root / "pred" / name, shifted(labels, rng)),
        ):
            folder.mkdir(parents=True)
            for t, frame in enumerate(maps):
                write_png(folder / f"{t:05d}.png", classes[frame])
    plain_times: list[float] = []
    our_times: list[float] = []
    for _ in range(rounds):
        plain = timed(plain_times, lambda: plain_metrics.semantic(root / "data", root / "pred", names[:1]))
        timed(our_times, lambda: score_video_semantic(root / "data", names, root / "pred"))
    ours = score_video_semantic(root / "data", names[:1], root / "pred")
    for key, value in plain.items():
        assert abs(value - ours[key]) < 1e-9, "the two halves disagree"
    name = f"mIoU, VC8, VC16, {videos * frames} frames of 480p"
    return [(name, statistics.median(plain_times) * videos, statistics.median(our_times))]


def timed(times: list[float], function: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    result = function()
    times.append(time.perf_counter() - begin)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the videos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("panoptic", "instances", "semantic"))
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.only in (None, "panoptic"):
            rows += bench_panoptic(root / "panoptic", args.scale, args.rounds)
        if args.only in (None, "semantic"):
            rows += bench_semantic(root / "semantic", args.scale, args.rounds)
        if args.only in (None, "instances"):
            rows += bench_instances(args.scale, args.rounds)
    print(
        f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}; numpy {np.__version__}"
    )
    print(
        f"\nload average {os.getloadavg()[0]:.1f}; {args.rounds} rounds" if hasattr(os, "getloadavg") else ""
    )
    print("\n| metric | plain, s | ours, s | times faster |")
    print("| --- | --- | --- | --- |")
    for name, plain, ours in rows:
        print(f"| {name} | {plain:.3g} | {ours:.3g} | {plain / ours:.1f} |")


if __name__ == "__main__":
    main()
