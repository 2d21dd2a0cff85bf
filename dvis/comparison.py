"""Several models on one video, side by side: scores, identity switches and pictures.

Letters: N objects of the ground truth, T frames.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_api
from PIL import Image, ImageDraw, ImageFont
from scipy.optimize import linear_sum_assignment

from dvis.api import VideoResult
from dvis.data.files import atomic_path, read_json
from dvis.data.rle import decode_rle, to_rle
from dvis.evaluation.metrics.video_ap import evaluate_video_ap
from dvis.rendering import best_label_per_object, draw_result, frame_masks

__all__ = ["Identities", "Truth", "compare_frames", "follow", "load_truth", "score", "write_gif"]

MIN_IOU = 0.5  # from which on a predicted mask counts as that of an object
MARKED_FRAMES = 4  # for which a switch stays marked
_MARK = (255, 32, 32)
_BAR = 22  # height of a title in pixels


@dataclass(frozen=True)
class Truth:
    """Ground truth of one video, in YouTube-VIS form.

    Attributes:
        video: entry of the annotation file.
        categories: entries of the annotation file.
        annotations: entries of the annotation file.
        codes: run-length code per object and frame, ``N T``; None where it is not visible.
    """

    video: dict[str, Any]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    codes: list[list[Any]] = field(repr=False)


@dataclass(frozen=True)
class Identities:
    """Which objects the tracks of a result followed.

    Attributes:
        switches: for each frame the objects (numbers in the ground truth) that go on under another identity
            there than before.
        color_ids: for each track the object that it followed for the longest time, or a number that is none,
            if another track followed that one for longer or it followed none.
        codes: as in `Truth`.
    """

    switches: list[list[int]]
    color_ids: dict[int, int]
    codes: list[list[Any]] = field(repr=False)

    @property
    def num_switches(self) -> int:
        return sum(map(len, self.switches))


def load_truth(path: str | os.PathLike[str], name: str) -> Truth:
    """Read the ground truth of a video.

    Args:
        path: annotation file in YouTube-VIS form.
        name: of the video, that is of the folder of its frames.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no such video, or no annotations.
    """
    content = read_json(path)
    videos = [v for v in content["videos"] if Path(v["file_names"][0]).parent.name == name]
    if not videos:
        raise ValueError(f"{path}: there is no video {name}")
    video = videos[0]
    annotations = [a for a in content.get("annotations") or [] if a["video_id"] == video["id"]]
    if not annotations:
        raise ValueError(f"{path}, video {name}: there are no annotations")
    codes = [
        [
            None if code is None else to_rle(code, video["height"], video["width"])
            for code in a["segmentations"]
        ]
        for a in annotations
    ]
    return Truth(video, content["categories"], annotations, codes)


def score(truth: Truth, result: VideoResult) -> dict[str, float]:
    """Rows of the benchmark's summary for this one video, by name; -1 where there is no such object.

    Class indices count the categories by their ids. Objects with occlusion labels are scored as in OVIS.
    """
    id_of_class = sorted(category["id"] for category in truth.categories)
    predictions = [
        {
            "video_id": truth.video["id"],
            "category_id": id_of_class[label],
            "score": value,
            "segmentations": masks,
        }
        for value, label, masks in zip(result.scores, result.labels, result.masks, strict=True)
    ]
    ground_truth = {
        "videos": [truth.video],
        "categories": truth.categories,
        "annotations": truth.annotations,
    }
    has_levels = all("occlusion" in annotation for annotation in truth.annotations)
    return evaluate_video_ap(ground_truth, predictions, "ovis" if has_levels else "ytvis").stats


def follow(truth: Truth, result: VideoResult, threshold: float = 0.3) -> Identities:
    """Find out which track followed which object, and where an object's identity changed.

    In each frame tracks and objects are assigned to each other so that their masks overlap most; pairs of an
    IoU below `MIN_IOU` are none. An object has switched if it is found by another track than the last time
    it was found.

    Args:
        truth: of the video.
        result: of the same video, task ``vis``, with run-length codes.
        threshold: tracks of a lower score are left out.

    Source: identity switches of CLEAR MOT, on masks; assignments are made anew in each frame.
    """
    kept = best_label_per_object(result, threshold)
    last: dict[int, int] = {}
    followed: Counter[tuple[int, int]] = Counter()
    switches: list[list[int]] = []
    for t in range(result.num_frames):
        changed = []
        for number, position in _pairs([codes[t] for codes in truth.codes], result, kept, t):
            track = result.ids[position]
            if last.get(number, track) != track:
                changed.append(number)
            last[number] = track
            followed[track, number] += 1
        switches.append(changed)
    color_ids: dict[int, int] = {}
    for (track, number), _ in followed.most_common():
        if track not in color_ids and number not in color_ids.values():
            color_ids[track] = number
    for track in (result.ids[position] for position in kept):
        color_ids.setdefault(track, len(truth.codes) + track)
    return Identities(switches, color_ids, truth.codes)


def _pairs(objects: list[Any], result: VideoResult, kept: list[int], t: int) -> Iterator[tuple[int, int]]:
    """Objects and positions in the result that have the same pixels in a frame."""
    present = [number for number, code in enumerate(objects) if code is not None]
    if not present or not kept:
        return
    masks = [result.masks[position][t] for position in kept]
    iou = np.asarray(mask_api.iou(masks, [objects[number] for number in present], [0] * len(present)))
    for row, column in zip(*linear_sum_assignment(-iou), strict=True):
        if iou[row, column] >= MIN_IOU:
            yield present[column], kept[row]


def compare_frames(
    frames: Iterable[np.ndarray],
    titles: Sequence[str],
    results: Sequence[VideoResult],
    identities: Sequence[Identities | None],
    threshold: float = 0.3,
    scale: int = 1,
) -> Iterator[np.ndarray]:
    """Pictures of all results side by side.

    Args:
        frames: of the video, ``H W 3`` RGB.
        titles: what to write over each result.
        results: of the models.
        identities: of each result; with them switches are marked, and tracks have the colours of the objects
            that they followed. None: each track its own.
        threshold: instances below this score are not drawn.
        scale: how many times the pictures are enlarged.
    """
    counts = [0] * len(results)
    for t, frame in zip(range(min(result.num_frames for result in results)), frames, strict=False):
        panels = []
        for i, (title, result, known) in enumerate(zip(titles, results, identities, strict=True)):
            colors = None if known is None else known.color_ids
            masks = frame_masks(result, t)
            panel = draw_result(frame, result, masks, threshold, scale, colors)
            if known is not None:
                counts[i] += len(known.switches[t])
                panel = _mark_switches(panel, known, t, scale)
                title = f"{title}: {counts[i]} id switch{'' if counts[i] == 1 else 'es'}"
            panels.append(_with_title(panel, title, alarm=known is not None and bool(known.switches[t])))
        gap = np.full((panels[0].shape[0], 4, 3), 255, dtype=np.uint8)
        yield np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def _mark_switches(panel: np.ndarray, known: Identities, t: int, scale: int) -> np.ndarray:
    """Frame every object that has switched a moment ago."""
    recent = {number for frame in known.switches[max(0, t - MARKED_FRAMES + 1) : t + 1] for number in frame}
    image = Image.fromarray(panel)
    pen = ImageDraw.Draw(image)
    for number in recent:
        code = known.codes[number][t]
        if code is None:
            continue
        ys, xs = np.nonzero(decode_rle(code))
        box = (xs.min() - 2, ys.min() - 2, xs.max() + 3, ys.max() + 3)
        pen.rectangle([int(side) * scale for side in box], outline=_MARK, width=max(2, scale))
    return np.asarray(image)


def _with_title(panel: np.ndarray, title: str, alarm: bool) -> np.ndarray:
    image = Image.new("RGB", (panel.shape[1], panel.shape[0] + _BAR), _MARK if alarm else (32, 32, 32))
    image.paste(Image.fromarray(panel), (0, _BAR))
    ImageDraw.Draw(image).text((6, 3), title, fill=(255, 255, 255), font=ImageFont.load_default(size=14))
    return np.asarray(image)


def write_gif(
    frames: Sequence[np.ndarray], path: str | os.PathLike[str], fps: float, max_bytes: int = 2_000_000
) -> None:
    """Write an endless GIF, as large and as colourful as fits.

    Args:
        frames: RGB, of one size; at least one.
        path: of the file.
        fps: frames per second; GIF knows hundredths of a second.
        max_bytes: the picture is made smaller, then frames are left out, until the file is not larger.

    Raises:
        ValueError: if there is no frame, or even the smallest file is too large.
    """
    if not frames:
        raise ValueError(f"{path}: a GIF needs a frame")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for step in (1, 2, 4, 8, 16):
        for width, num_colors in ((900, 128), (720, 96), (540, 64), (400, 48)):
            with atomic_path(path) as temporary:
                _write_gif(frames[::step], temporary, fps / step, width, num_colors)
            if path.stat().st_size <= max_bytes:
                return
    path.unlink()
    raise ValueError(f"{path}: {len(frames)} frames do not fit into {max_bytes} bytes")


def _write_gif(frames: Sequence[np.ndarray], path: Path, fps: float, width: int, num_colors: int) -> None:
    height = round(frames[0].shape[0] * min(1.0, width / frames[0].shape[1]))
    size = (min(width, frames[0].shape[1]), height)
    images = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in frames]
    # One palette for all: nothing flickers, and what stays the same is not written again.
    sample = Image.fromarray(np.concatenate([np.asarray(image) for image in images[:: -(-len(images) // 8)]]))
    palette = sample.quantize(num_colors)
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    duration = max(20, 10 * round(100 / fps))
    indexed[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=duration,
        loop=0,
        optimize=False,
    )
