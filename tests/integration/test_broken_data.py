"""Broken annotations end training and evaluation with one line that names file, video and annotation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.engine import default_argument_parser

import train_net_video
from dvis.data.label_images import read_class_map, read_segment_ids, segment_ids_to_rgb, write_png
from tests.integration.conftest import CONFIG, TINY

Edit = Callable[[dict[str, Any]], Any]

CUT = {"size": [64, 80], "counts": "abc"}
SMALL = {"size": [32, 80], "counts": [32 * 80]}


@pytest.fixture
def toy(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the toy world that may be broken."""
    shutil.copytree(tiny_data, tmp_path / "data")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return tmp_path / "data" / "toy"


def edit_json(path: Path, edit: Edit) -> dict[str, Any]:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return content


def replace_masks(mask: Any) -> Edit:
    """Every object gets this mask in every frame, so that any clip has it."""

    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["segmentations"] = [mask] * len(annotation["segmentations"])
            annotation["bboxes"] = [[0, 0, 1, 1]] * len(annotation["segmentations"])

    return edit


def last_line(output: Path, capsys: pytest.CaptureFixture[str], *options: str, config: Path = CONFIG) -> str:
    """What the program says at the end, after it failed with code 2."""
    flags = [option for option in options if option.startswith("--")]
    overrides = [*TINY, "OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", "3", *options[len(flags) :]]
    args = default_argument_parser().parse_args(["--config-file", str(config), *flags, *overrides])
    with pytest.raises(SystemExit) as stop:
        train_net_video.main(args)
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("mask", "message"), [(CUT, "broken mask: "), (SMALL, "the mask has (32, 80) pixels, the frame (64, 80)")]
)
def test_masks_found_broken_while_training(
    mask: Any, message: str, workers: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(toy / "train.json", replace_masks(mask))
    line = last_line(tmp_path / "out", capsys, "DATALOADER.NUM_WORKERS", workers)
    assert f"{toy / 'train.json'}" in line
    assert "video 1" in line or "video 2" in line
    assert ", annotation " in line
    assert message in line


def test_annotations_found_broken_while_loading(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third = edit_json(toy / "train.json", lambda c: c["annotations"][0].update(category_id=99))["annotations"]
    place = f"{toy / 'train.json'}, video {third[0]['video_id']}, annotation {third[0]['id']}"
    assert f"{place}: category 99" in last_line(tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("mask", "message"), [(CUT, "broken mask: "), (SMALL, "the mask has (32, 80) pixels, the frame (64, 80)")]
)
def test_masks_found_broken_while_scoring(
    mask: Any,
    message: str,
    toy: Path,
    tmp_path: Path,
    random_weights: Callable[[Path], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = edit_json(toy / "val.json", replace_masks(mask))["annotations"][0]
    line = last_line(tmp_path / "out", capsys, "--eval-only", "MODEL.WEIGHTS", random_weights(CONFIG))
    place = f"{toy / 'val.json'}, video {first['video_id']}, annotation {first['id']}, frame 0"
    assert line.startswith(f"error: {place}: {message}")
    # What the model found is not lost.
    assert (tmp_path / "out/inference/toy_vis_val/results.json").is_file()


def no_such_category(toy: Path) -> str:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["annotations"][0]["segments_info"][0]["category_id"] = 99

    path = toy / "vipseg/panoptic_gt_val.json"
    video = edit_json(path, edit)["annotations"][0]
    segment = video["annotations"][0]["segments_info"][0]["id"]
    return f"{path}, video {video['video_id']}, 00000.png, segment {segment}: category 99"


def small_panoptic(toy: Path) -> str:
    path = toy / "vipseg/panomasksRGB/val_0001/00002.png"
    write_png(path, segment_ids_to_rgb(read_segment_ids(path)[:20]))
    return str(path)


def cut_panoptic(toy: Path) -> str:
    path = toy / "vipseg/panomasksRGB/val_0001/00002.png"
    path.write_bytes(path.read_bytes()[:20])
    return str(path)


def small_semantic(toy: Path) -> str:
    path = toy / "vspw/data/val_0000/mask/00001.png"
    write_png(path, read_class_map(path)[:, :20])
    return str(path)


@pytest.mark.parametrize(
    ("task", "break_it"),
    [
        ("vps", no_such_category),
        ("vps", small_panoptic),
        ("vps", cut_panoptic),
        ("vss", small_semantic),
    ],
)
def test_segments_found_broken_while_scoring(
    task: str,
    break_it: Callable[[Path], str],
    toy: Path,
    tmp_path: Path,
    random_weights: Callable[[Path], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = break_it(toy)
    config = CONFIG.with_name(f"MinVIS_toy_{task}.yaml")
    options = ["--eval-only", "MODEL.WEIGHTS", random_weights(config)]
    assert place in last_line(tmp_path / "out", capsys, *options, config=config)


def test_a_broken_frame_is_named(
    toy: Path, tmp_path: Path, random_weights: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    frame = toy / "val/JPEGImages/val_0001/00002.jpg"
    frame.write_bytes(frame.read_bytes()[:100])
    line = last_line(tmp_path / "out", capsys, "--eval-only", "MODEL.WEIGHTS", random_weights(CONFIG))
    assert f"video 2 of {toy / 'val.json'}, frame 2" in line
    assert f"cannot read {frame}" in line
