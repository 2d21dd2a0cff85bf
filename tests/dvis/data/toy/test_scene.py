"""What a rendered toy video promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dvis.data.toy.scene import LEVELS, STUFF, THINGS, VOID, ToyLevel, ToyVideo, render_video

LEVEL = ToyLevel()


def render(seed: int, height: int = 48, width: int = 64, length: int = 12, **changes: object) -> ToyVideo:
    level = dataclasses.replace(LEVEL, **changes)  # type: ignore[arg-type]
    return render_video(np.random.default_rng(seed), height, width, length, level)


def test_same_seed_same_pixels() -> None:
    first, second, other = render(0), render(0), render(1)
    for field in ("frames", "labels", "instances", "hidden"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    assert (first.frames != other.frames).any()


@pytest.mark.parametrize("seed", range(6))
def test_maps_agree(seed: int) -> None:
    video = render(seed, height=37, width=51, length=5)
    assert video.frames.shape == (5, 37, 51, 3)
    num_labels = len(STUFF) + len(THINGS)
    assert set(np.unique(video.labels)) <= {*range(num_labels), VOID}
    for number, thing in enumerate(video.classes, start=1):
        assert (video.labels[video.instances == number] == len(STUFF) + thing).all()
    is_thing = (video.labels >= len(STUFF)) & (video.labels != VOID)
    np.testing.assert_array_equal(is_thing, video.instances > 0)
    hidden = video.hidden[~np.isnan(video.hidden)]
    assert ((hidden >= 0) & (hidden <= 1)).all()
    outside = np.isnan(video.hidden)
    for i, t in np.argwhere(outside):
        assert not (video.instances[t] == i + 1).any()


def test_world_has_what_it_promises() -> None:
    """Over some videos: all classes and stuff, occlusion, objects that leave and return, similar ones."""
    videos = [render(seed, length=20) for seed in range(30)]
    assert {thing for video in videos for thing in video.classes} == set(range(len(THINGS)))
    assert {int(label) for video in videos for label in np.unique(video.labels)} >= set(range(len(STUFF)))
    assert any(len(set(video.classes)) < len(video.classes) for video in videos)
    hidden = np.concatenate([video.hidden.ravel() for video in videos])
    assert 0.05 < np.nanmean(hidden > 0.5) < 0.4
    returns = 0
    for video in videos:
        for i in range(len(video.classes)):
            present = (video.instances == i + 1).any(axis=(1, 2)).astype(int)
            returns += int((np.diff(present) == 1).any() and present[0])
    assert returns >= 3


def test_levels_change_the_scene() -> None:
    assert len(render(3, objects=(7, 7)).classes) == 7
    assert len(set(render(3, objects=(5, 5), species=(1, 1)).classes)) == 1
    still = render(3, pan=0.0, zoom=0.0, tilt=0.0, objects=(0, 0), distractors=(0, 0), posts=(0, 0))
    np.testing.assert_array_equal(still.labels, np.broadcast_to(still.labels[0], still.labels.shape))
    assert not still.instances.any()
    assert not (still.labels == VOID).any()


@pytest.mark.parametrize("name", LEVELS)
def test_each_level_can_be_rendered_again(name: str) -> None:
    first, second = (
        render_video(np.random.default_rng(4), 32, 48, min(LEVELS[name].length, 12), LEVELS[name])
        for _ in range(2)
    )
    for field in ("frames", "labels", "instances", "hidden"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


def severe_share(level: ToyLevel, num_videos: int = 12) -> float:
    """Share of an object's frames in which more than half of it is hidden."""
    hidden = [
        render_video(np.random.default_rng(seed), 48, 64, level.length, level).hidden.ravel()
        for seed in range(num_videos)
    ]
    return float(np.nanmean(np.concatenate(hidden) > 0.5))


def test_occluded_level_hides_more_than_the_easy_one() -> None:
    assert severe_share(LEVELS["occluded"]) > 0.15
    assert severe_share(LEVELS["easy"]) < 0.12


def test_low_frame_rate_shows_some_frames_of_the_same_scene() -> None:
    slow = dataclasses.replace(LEVEL, frame_step=3)
    whole = render_video(np.random.default_rng(7), 48, 64, 12, LEVEL)
    some = render_video(np.random.default_rng(7), 48, 64, 4, slow)
    np.testing.assert_array_equal(some.labels, whole.labels[::3])
    np.testing.assert_array_equal(some.instances, whole.instances[::3])


def test_crowded_and_long_are_what_they_say() -> None:
    crowd = render_video(np.random.default_rng(0), 48, 64, 1, LEVELS["crowded"])
    assert len(crowd.classes) >= 6
    assert LEVELS["long"].length >= 4 * LEVELS["easy"].length


def test_one_frame_and_too_small() -> None:
    assert render(0, length=1).frames.shape == (1, 48, 64, 3)
    with pytest.raises(ValueError, match="16 x 16"):
        render(0, height=8)
    with pytest.raises(ValueError, match="a frame"):
        render(0, length=0)
