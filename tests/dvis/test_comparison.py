"""Identity switches counted on made-up tracks, scores of one video, pictures and GIF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dvis.api import VideoResult
from dvis.comparison import compare_frames, follow, load_truth, score, write_gif
from dvis.data.files import write_json
from dvis.data.rle import encode_mask

SIZE = (20, 30)


def box(x: int | None, y: int = 2) -> np.ndarray:
    """A mask of 6 x 6 pixels; None: an empty one."""
    mask = np.zeros(SIZE, dtype=bool)
    if x is not None:
        mask[y : y + 6, x : x + 6] = True
    return mask


def codes(masks: list[np.ndarray]) -> list[Any]:
    return [encode_mask(mask) for mask in masks]


def result(tracks: dict[int, list[np.ndarray]], scores: dict[int, float] | None = None) -> VideoResult:
    """One object per track, all of class 0."""
    scores = scores or dict.fromkeys(tracks, 0.9)
    return VideoResult(
        task="vis",
        size=SIZE,
        num_frames=len(next(iter(tracks.values()))),
        scores=[scores[track] for track in tracks],
        labels=[0] * len(tracks),
        ids=list(tracks),
        masks=[codes(masks) for masks in tracks.values()],
        class_names=["disc"],
    )


LEFT = [box(1), box(2), box(3), box(4)]
RIGHT = [box(21, 12), box(20, 12), box(19, 12), box(18, 12)]
EMPTY = [box(None)] * 4


def truth_file(path: Path, hidden: bool = False) -> Path:
    """Two objects; if ``hidden``, the second one is not visible in the third frame."""
    tracks = [codes(LEFT), codes(RIGHT)]
    if hidden:
        tracks[1][2] = None
    labels = [["no_occlusion" if code else None for code in track] for track in tracks]
    content = {
        "videos": [
            {
                "id": 7,
                "height": SIZE[0],
                "width": SIZE[1],
                "length": 4,
                "file_names": [f"cats/{t}.jpg" for t in range(4)],
            }
        ],
        "categories": [{"id": 3, "name": "disc"}],
        "annotations": [
            {
                "id": i + 1,
                "video_id": 7,
                "category_id": 3,
                "iscrowd": 0,
                "segmentations": track,
                "areas": [36 if code else None for code in track],
                "bboxes": [[0, 0, 6, 6] if code else None for code in track],
                "occlusion": labels[i],
            }
            for i, track in enumerate(tracks)
        ],
    }
    write_json(path, content)
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Any:
    return load_truth(truth_file(tmp_path / "truth.json"), "cats")


def test_no_switch_where_tracks_stay(truth: Any) -> None:
    known = follow(truth, result({4: LEFT, 9: RIGHT}))
    assert known.switches == [[], [], [], []]
    assert known.color_ids == {4: 0, 9: 1}


def test_swapped_tracks_are_two_switches(truth: Any) -> None:
    swapped = {4: [*LEFT[:1], *RIGHT[1:]], 9: [*RIGHT[:1], *LEFT[1:]]}
    known = follow(truth, result(swapped))
    assert [sorted(frame) for frame in known.switches] == [[], [0, 1], [], []]
    assert known.num_switches == 2
    assert known.color_ids == {4: 1, 9: 0}  # what they followed for longer


def test_a_gap_is_no_switch_but_a_new_track_after_it_is(tmp_path: Path) -> None:
    truth = load_truth(truth_file(tmp_path / "truth.json", hidden=True), "cats")
    back = {4: LEFT, 9: [RIGHT[0], RIGHT[1], box(None), RIGHT[3]]}
    assert follow(truth, result(back)).num_switches == 0
    new = {4: LEFT, 9: [*RIGHT[:2], *EMPTY[:2]], 12: [*EMPTY[:3], RIGHT[3]]}
    known = follow(truth, result(new))
    assert known.switches == [[], [], [], [1]]
    assert known.color_ids == {4: 0, 9: 1, 12: 2 + 12}


def test_bad_masks_and_low_scores_follow_nothing(truth: Any) -> None:
    assert follow(truth, result({4: [box(5), box(6), box(7), box(8)]})).color_ids == {4: 2 + 4}  # IoU 1/5
    known = follow(truth, result({4: LEFT, 9: LEFT[::-1]}, {4: 0.2, 9: 0.2}), threshold=0.3)
    assert (known.num_switches, known.color_ids) == (0, {})


def test_scores_are_those_of_the_benchmark(truth: Any) -> None:
    assert score(truth, result({4: LEFT, 9: RIGHT}))["AP"] == pytest.approx(1.0)
    half = score(truth, result({4: LEFT, 9: EMPTY}))
    assert 0.4 < half["AP"] < 0.6
    assert half["AP_heavy"] == -1


def test_pictures_have_a_panel_per_model_and_mark_switches(truth: Any) -> None:
    swapped = result({4: [*LEFT[:1], *RIGHT[1:]], 9: [*RIGHT[:1], *LEFT[1:]]})
    good = result({4: LEFT, 9: RIGHT})
    frames = [np.full((*SIZE, 3), 90, dtype=np.uint8)] * 4
    known = [follow(truth, swapped), follow(truth, good)]
    pictures = list(compare_frames(frames, ["one", "two"], [swapped, good], known, scale=3))
    assert len(pictures) == 4
    assert pictures[0].shape == (60 + 22, 2 * 90 + 4, 3)
    red = [[(half == (255, 32, 32)).all(-1).sum() for half in (p[:, :90], p[:, 94:])] for p in pictures]
    assert red[0][0] == 0
    assert all(bad > 100 for bad, _ in red[1:])
    assert not any(fine for _, fine in red)
    plain = next(compare_frames(frames, ["one"], [good], [None], scale=1))
    assert plain.shape == (20 + 22, 30, 3)


def test_truth_must_be_there(tmp_path: Path) -> None:
    path = truth_file(tmp_path / "truth.json")
    with pytest.raises(ValueError, match=r"truth.json: there is no video dogs"):
        load_truth(path, "dogs")
    with pytest.raises(FileNotFoundError):
        load_truth(tmp_path / "none.json", "cats")
    empty = tmp_path / "empty.json"
    videos = [{"id": 1, "height": 2, "width": 2, "file_names": ["cats/0.jpg"]}]
    write_json(empty, {"videos": videos, "categories": []})
    with pytest.raises(ValueError, match="video cats: there are no annotations"):
        load_truth(empty, "cats")


def frames_of(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1)


def test_gif_fits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (60, 80, 3), np.uint8) for _ in range(9)]
    write_gif(noise, tmp_path / "large.gif", 10)
    with Image.open(tmp_path / "large.gif") as image:
        assert (frames_of(image), image.size, image.info["duration"]) == (9, (80, 60), 100)
    limit = (tmp_path / "large.gif").stat().st_size // 2
    write_gif(noise, tmp_path / "small.gif", 10, max_bytes=limit)
    assert (tmp_path / "small.gif").stat().st_size <= limit
    with Image.open(tmp_path / "small.gif") as image:
        assert frames_of(image) < 9
    with pytest.raises(ValueError, match="do not fit into 10 bytes"):
        write_gif(noise, tmp_path / "none.gif", 10, max_bytes=10)
    assert not (tmp_path / "none.gif").exists()
    with pytest.raises(ValueError, match="needs a frame"):
        write_gif([], tmp_path / "none.gif", 10)
