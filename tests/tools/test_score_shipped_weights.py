"""Scores of shipped weights: the program on tiny models, and the files that are shipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.modeling import build_model

import dvis
from dvis.checkpoint import load_weights
from tests.integration.conftest import CONFIG, TINY
from tests.integration.conftest import data_root as data_root
from tests.integration.conftest import random_weights as random_weights
from tests.integration.conftest import tiny_data as tiny_data
from tools import score_shipped_weights as program

SHIPPED = sorted(program.FOLDER.glob("*.pth"))


def test_scores_are_written_and_compared(
    tmp_path: Path, random_weights: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(random_weights(CONFIG)).parent
    arguments = ["--folder", str(folder), "--opts", *TINY]
    assert program.main(arguments) == 0
    scores = json.loads((folder / "scores.json").read_text())
    assert list(scores) == ["MinVIS_toy.pth"]
    assert "AP50" in scores["MinVIS_toy.pth"]["segm"]
    assert program.main(["--check", *arguments]) == 0

    scores["MinVIS_toy.pth"]["segm"]["AP50"] += 1
    (folder / "scores.json").write_text(json.dumps(scores))
    capsys.readouterr()
    assert program.main(["--check", *arguments]) == 1
    assert "MinVIS_toy.pth: segm AP50: " in capsys.readouterr().err


def test_differences() -> None:
    nan = float("nan")
    assert not program.differences({"segm": {"AP": 3.0, "APl": nan}}, {"segm": {"AP": 3.4, "APl": nan}})
    lines = program.differences({"segm": {"AP": 3.0, "APl": nan}}, {"segm": {"AP": 4.0, "APl": 2.0}})
    assert lines == ["segm AP: 4.00 instead of 3.00", "segm APl: 2.00 instead of nan"]
    assert program.differences({"vps": {"VPQ": 1.0}}, {})


def test_unknown_weights_and_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--folder", str(tmp_path)]) == 2
    assert "there are no weights in" in capsys.readouterr().err
    (tmp_path / "mystery.pth").touch()
    with pytest.raises(SystemExit):
        program.main(["--folder", str(tmp_path)])
    assert "belongs to no configuration" in capsys.readouterr().err


def test_shipped_files_are_small_and_load() -> None:
    assert SHIPPED
    assert sum(path.stat().st_size for path in SHIPPED) < 20e6
    scores = json.loads((program.FOLDER / "scores.json").read_text())
    assert sorted(scores) == [path.name for path in SHIPPED]
    for path in SHIPPED:
        cfg = dvis.load_config(program.config_of(path), ["MODEL.DEVICE", "cpu"])
        load_weights(build_model(cfg), path, complete=True)


def test_model_zoo_names_the_scores_that_are_shipped() -> None:
    scores = json.loads((program.FOLDER / "scores.json").read_text())
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in (program.ROOT / "MODEL_ZOO.md").read_text().splitlines()
        if line.startswith("|")
    ]
    named, header = set(), rows[0]
    for row in rows:
        if row[0] == "weights":
            header = row
        elif f"{row[0]}.pth" in scores:
            (expected,) = scores[f"{row[0]}.pth"].values()
            columns = {"AP heavily occluded" if key == "APho" else key: v for key, v in expected.items()}
            found = {title: cell for title, cell in zip(header, row, strict=True) if title in columns}
            assert len(found) >= 2
            assert found == {title: f"{columns[title]:.1f}" for title in found}
            named.add(f"{row[0]}.pth")
    assert named == set(scores)


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights_reproduce_their_scores(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.getbasetemp() / "shipped"))
    expected = json.loads((program.FOLDER / "scores.json").read_text())[path.name]
    assert not program.differences(expected, program.evaluate(path, ["MODEL.DEVICE", "cpu"]))
