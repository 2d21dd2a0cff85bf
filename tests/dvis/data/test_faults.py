"""Broken training data: named, counted, replaced the same way every time, and never beyond the budget."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from torch.utils.data import get_worker_info

import dvis
from dvis.data import BrokenDataError, build_train_loader, faults, mapper
from dvis.data.faults import FAULTS_KEY, FaultTolerantLoader, TooManyFaultsError, WorkerBoard, first_intact

KINDS = {
    "vis": ("video_instance", 6, "train/JPEGImages/*", "train.json"),
    "vps": ("video_panoptic", 11, "vipseg/images/*", "vipseg/panoptic_gt_train.json"),
    "vss": ("video_semantic", 11, "vspw/data/*/origin", "vspw/train.txt"),
}


@pytest.fixture
def data(toy_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the toy world that a test may break."""
    shutil.copytree(toy_root / "toy", tmp_path / "toy")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path / "toy"


def config(task: str = "vis", *overrides: Any) -> CfgNode:
    kind, num_classes, *_ = KINDS[task]
    base = [
        "DATASETS.TRAIN", (f"toy_{task}_train",), "DATASETS.DATASET_TYPE", [kind],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", num_classes,
        "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.SAMPLING_FRAME_NUM", 2, "SOLVER.IMS_PER_BATCH", 2,
        "DATALOADER.NUM_WORKERS", 0, "DATALOADER.MAX_FAULTS", 20,
    ]  # fmt: skip
    return dvis.load_config(overrides=[*base, *overrides])


def draw(cfg: CfgNode, count: int, start_iter: int = 0) -> tuple[list[list[tuple]], FaultTolerantLoader]:
    """The content of some batches, and the loader they come from."""
    loader: Any = build_train_loader(cfg, start_iter)
    try:
        batches = list(itertools.islice(loader, count))
    finally:
        loader.close()
    assert all(FAULTS_KEY not in clip for batch in batches for clip in batch)
    content = [
        [
            (clip["video_id"], clip["frame_indices"], torch.stack(clip["image"]).numpy().tobytes())
            for clip in batch
        ]
        for batch in batches
    ]
    return content, loader


def one_video(data: Path, pattern: str) -> Path:
    """Folder with the images of one training video."""
    return sorted(path for path in data.glob(pattern) if path.is_dir())[0]


def corrupt_jpeg(data: Path, task: str) -> str:
    for image in one_video(data, KINDS[task][2]).glob("*.jpg"):
        image.write_bytes(image.read_bytes()[:200])
    return ".jpg"


def missing_frames(data: Path, task: str) -> str:
    for image in one_video(data, KINDS[task][2]).glob("*.jpg"):
        image.unlink()
    # Semantic data have no list of frames: a video without any shows when the list is read.
    return "no images in" if task == "vss" else "is missing"


def no_image(data: Path, task: str) -> str:
    for image in one_video(data, KINDS[task][2]).glob("*.jpg"):
        image.write_bytes(b"<html>404 Not Found</html>")
    return "cannot identify"


def truncated_video(data: Path, task: str) -> str:
    """Fewer annotated frames than images."""
    path = data / KINDS[task][3]
    content = json.loads(path.read_text())
    if task == "vis":
        video = content["videos"][0]["id"]
        for annotation in content["annotations"]:
            if annotation["video_id"] == video:
                annotation["segmentations"].pop()
        message = "segmentations and"
    else:
        content["annotations"][0]["annotations"].pop()
        message = "annotated frames"
    path.write_text(json.dumps(content))
    return message


def broken_rle(data: Path, task: str) -> str:
    path = data / KINDS[task][3]
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        if annotation["video_id"] == content["videos"][0]["id"]:
            for mask in filter(None, annotation["segmentations"]):
                mask["counts"] = mask["counts"][:-1]
    path.write_text(json.dumps(content))
    return "broken mask"


def unknown_class(data: Path, task: str) -> str:
    path = data / KINDS[task][3]
    content = json.loads(path.read_text())
    if task == "vis":
        video = content["videos"][0]["id"]
        next(a for a in content["annotations"] if a["video_id"] == video)["category_id"] = 777
    else:
        content["annotations"][0]["annotations"][1]["segments_info"][0]["category_id"] = 777
    path.write_text(json.dumps(content))
    return "category 777 is not one of"


def label_image_of_wrong_size(data: Path, task: str) -> str:
    from PIL import Image

    pattern = {"vps": "vipseg/panomasksRGB/*", "vss": "vspw/data/*/mask"}[task]
    for path in one_video(data, pattern).glob("*.png"):
        with Image.open(path) as image:
            smaller = image.resize((8, 8), Image.Resampling.NEAREST)
        smaller.save(path)
    return "8 x 8"


FAULTS = [
    (corrupt_jpeg, "vis"), (corrupt_jpeg, "vps"), (corrupt_jpeg, "vss"),
    (missing_frames, "vis"), (missing_frames, "vps"), (missing_frames, "vss"),
    (no_image, "vis"), (truncated_video, "vis"), (truncated_video, "vps"),
    (broken_rle, "vis"), (unknown_class, "vis"), (unknown_class, "vps"),
    (label_image_of_wrong_size, "vps"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "task"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_broken_clips_are_named_counted_and_replaced(
    damage: Callable[[Path, str], str], task: str, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    intact, _ = draw(config(task), 6)
    message = damage(data, task)
    with caplog.at_level(logging.WARNING, "dvis"):
        content, loader = draw(config(task), 6)
    assert loader.faults
    logged = [record.getMessage() for record in caplog.records]
    assert any("Fault 1 of at most 20 (DATALOADER.MAX_FAULTS)" in line and message in line for line in logged)
    assert any("val" not in fault and "video" in fault for fault in loader.faults)
    assert message in loader.summary()
    # Every clip of an intact video is what it was.
    flat = [
        (before, after)
        for pair in zip(intact, content, strict=True)
        for before, after in zip(*pair, strict=True)
    ]
    replaced = [(before, after) for before, after in flat if before != after]
    assert replaced
    assert len({before[0] for before, _ in replaced}) == 1, "only the broken video's clips"
    assert {before[0] for before, _ in replaced}.isdisjoint(after[0] for _, after in flat)
    # The same clips in a run that is continued, and with other processes loading them.
    assert draw(config(task), 4, start_iter=2)[0] == content[2:]
    assert draw(config(task, "DATALOADER.NUM_WORKERS", 2), 6)[0] == content


@pytest.mark.parametrize("workers", [0, 2])
def test_by_default_training_stops_at_the_first_fault(data: Path, workers: int) -> None:
    assert dvis.load_config().DATALOADER.MAX_FAULTS == 0
    broken_rle(data, "vis")
    with pytest.raises(
        TooManyFaultsError, match=r"(?s)train\.json.*annotation.*DATALOADER\.MAX_FAULTS N"
    ) as e:
        draw(config("vis", "DATALOADER.MAX_FAULTS", 0, "DATALOADER.NUM_WORKERS", workers), 20)
    assert isinstance(e.value, BrokenDataError)
    assert "\n" not in str(e.value)


def test_without_a_budget_broken_annotations_show_before_training(data: Path) -> None:
    unknown_class(data, "vis")
    with pytest.raises(BrokenDataError, match="category 777"):
        build_train_loader(config("vis", "DATALOADER.MAX_FAULTS", 0))


def test_beyond_the_budget_training_stops_with_a_summary(data: Path) -> None:
    corrupt_jpeg(data, "vis")
    _, loader = draw(config(), 40)
    assert len(loader.faults) > 3
    with pytest.raises(TooManyFaultsError) as error:
        draw(config("vis", "DATALOADER.MAX_FAULTS", 3), 40)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("DATALOADER.MAX_FAULTS is 3, and ")
    assert lines[1] == "4 faults in the training data:"
    assert len(lines) == 6
    assert all(".jpg" in line for line in lines[2:])


def test_the_same_fault_counts_once(data: Path) -> None:
    unknown_class(data, "vis")
    _, loader = draw(config("vis", "DATALOADER.MAX_FAULTS", 1), 12)
    ((_, count),) = loader.faults.items()
    assert count > 2
    assert f"({count} times)" in loader.summary()


def test_data_of_which_nothing_is_intact(data: Path) -> None:
    for image in data.glob("train/JPEGImages/*/*.jpg"):
        image.unlink()
    with pytest.raises(TooManyFaultsError, match="is missing"):
        draw(config("vis", "DATALOADER.MAX_FAULTS", 2), 3)
    # Fewer different faults than the budget, but nothing to train on either.
    content = json.loads((data / "train.json").read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 777
    (data / "train.json").write_text(json.dumps(content))
    with pytest.raises(TooManyFaultsError, match="no clip could be made in place"):
        draw(config("vis", "DATALOADER.MAX_FAULTS", 50), 3)


def test_negative_budget(data: Path) -> None:
    with pytest.raises(ValueError, match=r"DATALOADER\.MAX_FAULTS must not be negative, got -1"):
        build_train_loader(config("vis", "DATALOADER.MAX_FAULTS", -1))


def test_other_errors_are_not_data_faults() -> None:
    def make(video: int, rng: np.random.Generator) -> dict[str, Any]:
        raise AttributeError("a mistake in the program")

    with pytest.raises(AttributeError, match="mistake"):
        first_intact(make, 0, 5, (1, 2), budget=3)


@pytest.fixture
def killer(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], None]:
    """Makes loading processes kill themselves at the first clips of one video, so many times."""
    make_clip = mapper.ClipMapper.__call__
    # How long the training process waits before it looks after the others: 5 seconds.
    iterator = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    monkeypatch.setattr(iterator._try_get_data, "__defaults__", (0.3,))

    def install(times: int) -> None:
        videos = json.loads((data / "train.json").read_text())["videos"]

        def deadly(self: Any, record: Any, rng: np.random.Generator) -> dict[str, Any]:
            kills = sorted(tmp_path.glob("killed_*"))
            if record["video_id"] == videos[0]["id"] and get_worker_info() is not None and len(kills) < times:
                (tmp_path / f"killed_{len(kills)}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return make_clip(self, record, rng)

        monkeypatch.setattr(mapper.ClipMapper, "__call__", deadly)

    return install


def test_a_process_that_dies_is_started_again(
    killer: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    intact, _ = draw(config(), 4)
    killer(1)
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "dvis"):
        content, loader = draw(config("vis", "DATALOADER.NUM_WORKERS", 1), 4)
    assert content == intact, "nothing is lost, nothing comes twice"
    assert torch.equal(torch.get_rng_state(), state), "the model's random numbers do not change"
    (fault,) = loader.faults
    assert "died while it read video 1 of" in fault
    assert "train.json" in fault
    assert fault in caplog.text


def test_a_clip_that_kills_again_and_again_is_replaced(killer: Callable[[int], None]) -> None:
    intact, _ = draw(config(), 4)
    killer(100)
    content, loader = draw(config("vis", "DATALOADER.NUM_WORKERS", 1), 4)
    assert 1 in {clip[0] for batch in intact for clip in batch}
    assert 1 not in {clip[0] for batch in content for clip in batch}
    assert sum("died while" in fault for fault in loader.faults) == 2
    assert any("two processes died on it" in fault for fault in loader.faults)


def test_without_a_budget_a_death_stops_the_run(killer: Callable[[int], None]) -> None:
    killer(1)
    with pytest.raises(TooManyFaultsError, match=r"died while it read video 1 of .*train\.json"):
        draw(config("vis", "DATALOADER.NUM_WORKERS", 1, "DATALOADER.MAX_FAULTS", 0), 4)


def test_errors_of_the_loader_itself_pass() -> None:
    def load(start: int) -> Any:
        raise_at_once = (item for item in [[{"a": 1}]])
        yield from raise_at_once
        raise RuntimeError("out of luck")

    loader = FaultTolerantLoader(load, 0, 5, WorkerBoard(0), lambda d, v: "", lambda d, v: None)
    batches = iter(loader)
    assert next(batches) == [{"a": 1}]
    with pytest.raises(RuntimeError, match="out of luck"):
        next(batches)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_process_that_dies_with_a_batch_on_the_way(error: Exception) -> None:
    def load(start: int) -> Any:
        yield from [[{"number": number}] for number in range(start, 2)]
        if start == 0:
            raise error
        yield [{"number": 2}]

    loader = FaultTolerantLoader(load, 0, 1, WorkerBoard(0), lambda d, v: "", lambda d, v: None)
    assert list(loader) == [[{"number": 0}], [{"number": 1}], [{"number": 2}]]
    (fault,) = loader.faults
    assert "data-loading process (unknown) died" in fault


def test_a_process_that_an_error_does_not_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    board = WorkerBoard(1)
    monkeypatch.setattr(faults, "get_worker_info", lambda: SimpleNamespace(id=0))

    def note_and_die() -> None:
        board.note(0, 7)
        os.kill(os.getpid(), signal.SIGKILL)

    def load(start: int) -> Any:
        process = multiprocessing.get_context("fork").Process(target=note_and_die)
        process.start()
        while board.of_processes([process.pid]) == []:
            time.sleep(0.01)
        raise EOFError
        yield

    given_up: list[tuple[int, int]] = []
    loader = FaultTolerantLoader(
        load, 0, 1, board, lambda d, v: f"video {v}", lambda d, v: given_up.append((d, v))
    )
    with pytest.raises(TooManyFaultsError):
        next(iter(loader))
    assert all("died while it read video 7" in fault for fault in loader.faults)
    assert given_up == [(0, 7)]


def test_a_broken_connection_in_a_process_is_no_death() -> None:
    def load(start: int) -> Any:
        raise ConnectionResetError("Caught ConnectionResetError in DataLoader worker process 0.")
        yield

    loader = FaultTolerantLoader(load, 0, 1, WorkerBoard(0), lambda d, v: "", lambda d, v: None)
    with pytest.raises(ConnectionResetError):
        next(iter(loader))
