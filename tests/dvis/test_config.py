from __future__ import annotations

import json
from pathlib import Path

import pytest

import dvis
from tests.reference import DATA


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_file_with_bases_and_overrides(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "MODEL:\n  MASK_FORMER:\n    TEST:\n      MAX_NUM: 7\n      TASK: vps\n")
    write(tmp_path / "b.yaml", "MODEL:\n  MASK_FORMER:\n    TEST:\n      TASK: vss\n")
    path = write(tmp_path / "leaf.yaml", "_BASE_: [a.yaml, b.yaml]\nSEED: 3\n")
    cfg = dvis.load_config(
        path, ["MODEL.MASK_FORMER.TEST.WINDOW_SIZE", "5", "INPUT.AUGMENTATIONS", "['rotation']"]
    )
    test = cfg.MODEL.MASK_FORMER.TEST
    assert (test.MAX_NUM, test.TASK, test.WINDOW_SIZE, cfg.SEED) == (7, "vss", 5, 3)
    assert cfg.INPUT.AUGMENTATIONS == ["rotation"]


def test_defaults_are_the_published_ones() -> None:
    def check(expected: dict, node: dict, path: str) -> None:
        for key, value in expected.items():
            if isinstance(value, dict):
                check(value, node[key], f"{path}{key}.")
            else:
                actual = list(node[key]) if isinstance(node[key], tuple) else node[key]
                assert actual == value, f"{path}{key}"

    published = json.loads((DATA / "configs" / "DVIS.json").read_text())["_defaults"]
    flat = {}
    for key, value in published.items():
        *groups, leaf = key.split(".")
        node = flat
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    check(flat, dvis.load_config(), "")


def test_two_loads_share_nothing() -> None:
    first = dvis.load_config()
    first.INPUT.AUGMENTATIONS.append("rotation")
    assert dvis.load_config().INPUT.AUGMENTATIONS == []


@pytest.mark.parametrize(
    ("text", "error", "parts"),
    [
        ("MODEL:\n  MASK_FORMER:\n    NUM_QUERIES: 5\n", KeyError, ["MODEL.MASK_FORMER.NUM_QUERIES"]),
        (
            "MODEL:\n  TRAKCER:\n    DECODER_LAYERS: 5\n",
            KeyError,
            ["did you mean MODEL.TRACKER.DECODER_LAYERS"],
        ),
        ("MODEL:\n  META_ARCHITECTUR: MinVIS\n", KeyError, ["did you mean MODEL.META_ARCHITECTURE"]),
        ("TEST_TASK: vis\n", KeyError, ["TEST_TASK"]),
        ("MODEL: 5\n", ValueError, ["MODEL is a group"]),
        ("SEED: {A: 1}\n", KeyError, ["SEED.A"]),
        ("SEED: high\n", ValueError, ["SEED"]),
        ("MODEL: [unclosed\n", ValueError, ["not valid YAML", "line"]),
        ("- a\n- b\n", ValueError, ["KEY: value"]),
        ("", ValueError, ["KEY: value"]),
        ("SEED: !!python/object/apply:os.getpid []\n", ValueError, ["not valid YAML", "python"]),
        ("_BASE_: other.yaml\nSEED: 1\n", FileNotFoundError, ["other.yaml", "_BASE_ of"]),
        ("_BASE_: leaf.yaml\nSEED: 1\n", ValueError, ["bases of each other"]),
    ],
)
def test_bad_file(tmp_path: Path, text: str, error: type[Exception], parts: list[str]) -> None:
    path = write(tmp_path / "leaf.yaml", text)
    with pytest.raises(error) as caught:
        dvis.load_config(path)
    for part in ["leaf.yaml" if "other" not in text else "other.yaml", *parts]:
        assert part in str(caught.value)


def test_unknown_key_in_base_names_the_base(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "MODEL:\n  REFINER:\n    LAYERS: 3\n")
    path = write(tmp_path / "leaf.yaml", "_BASE_: base.yaml\n")
    with pytest.raises(
        KeyError, match=r"base\.yaml \(a _BASE_ of .*leaf\.yaml\): unknown key MODEL\.REFINER\.LAYERS"
    ):
        dvis.load_config(path)


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"config no/such\.yaml: no such file"):
        dvis.load_config("no/such.yaml")


@pytest.mark.parametrize(
    ("overrides", "error", "part"),
    [
        (["SEED"], ValueError, "pairs"),
        (["SEDE", 1], KeyError, "did you mean SEED"),
        (["MODEL.TRACKER", 1], KeyError, "unknown key MODEL.TRACKER"),
        (["MODEL.MASK_FORMER.TEST.WINDOW_SIZE", "many"], ValueError, "WINDOW_SIZE='many'"),
    ],
)
def test_bad_override(overrides: list, error: type[Exception], part: str) -> None:
    with pytest.raises(error, match=part):
        dvis.load_config(None, overrides)
