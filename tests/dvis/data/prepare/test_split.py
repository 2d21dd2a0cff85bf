"""Own splits: every video once, categories on both sides, the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvis.data.prepare.split import choose_validation
from tests.scripts import load_script

split_videos = load_script("datasets/split_videos.py")


def write_source(path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    videos = [{"id": i, "width": 4, "height": 4, "file_names": [f"{i}/0.jpg"]} for i in range(1, 21)]
    annotations = [
        {"id": n, "video_id": int(video), "category_id": int(category), "iscrowd": 0}
        for n, (video, category) in enumerate(
            zip(rng.integers(1, 21, 60), rng.integers(1, 8, 60), strict=True), start=1
        )
    ]
    content = {
        "videos": videos,
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in range(1, 8)],
    }
    path.write_text(json.dumps(content))
    return content


def test_both_parts_together_are_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "train.json"
    content = write_source(source)
    split_videos.main([str(source), "--num-val", "6"])
    assert "train_own_train.json: 14 videos" in capsys.readouterr().out
    parts = [json.loads((tmp_path / f"train_own_{name}.json").read_text()) for name in ("train", "val")]
    assert [len(part["videos"]) for part in parts] == [14, 6]
    for key in ("videos", "annotations"):
        assert sorted(parts[0][key] + parts[1][key], key=lambda e: e["id"]) == content[key]
    for part in parts:
        assert part["categories"] == content["categories"]
        ids = {video["id"] for video in part["videos"]}
        assert {a["video_id"] for a in part["annotations"]} <= ids
        assert {a["category_id"] for a in part["annotations"]} == set(range(1, 8))
    split_videos.main([str(source), "--num-val", "6", "--val", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text()) == parts[1]


@given(
    st.dictionaries(st.integers(0, 30), st.frozensets(st.integers(0, 5)), min_size=2, max_size=30),
    st.data(),
)
def test_number_and_training_side(categories: dict[int, frozenset[int]], data: st.DataObject) -> None:
    num_val = data.draw(st.integers(1, len(categories) - 1))
    chosen = choose_validation(categories, num_val, seed=3)
    assert len(chosen) == num_val
    assert chosen <= set(categories)
    assert chosen == choose_validation(categories, num_val, seed=3)


def test_what_cannot_be_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "train.json"
    content = write_source(source)
    messages = {}
    for name, change, number in (
        ("too many", {}, "20"),
        ("no annotations", {"annotations": None}, "3"),
        ("unknown video", {"annotations": [{"id": 5, "video_id": 99, "category_id": 1}]}, "3"),
    ):
        source.write_text(json.dumps({**content, **change}))
        with pytest.raises(SystemExit):
            split_videos.main([str(source), "--num-val", number])
        messages[name] = capsys.readouterr().err
    assert "has 20 videos; 20 cannot be set aside" in messages["too many"]
    assert "has no annotations" in messages["no annotations"]
    assert "annotation 5: there is no video 99" in messages["unknown video"]
