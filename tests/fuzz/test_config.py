"""Configurations with mistakes: each is read or answered with an error that names it."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy

import dvis
from dvis.config import flatten
from tests.fuzz.cases import fuzz, json_values, mutated_bytes, sizes

CONFIGS = Path(__file__).parents[2] / "configs"
LEAF = (
    "_BASE_: base.yaml\n"
    + (CONFIGS / "toy" / "MinVIS_toy.yaml").read_text(encoding="utf-8").partition("\n")[2]
)


@cache
def keys() -> tuple[str, ...]:
    return tuple(dict(flatten(dvis.load_config())))


def any_key() -> SearchStrategy[str]:
    known = st.sampled_from(keys())
    groups = known.map(lambda key: key.rpartition(".")[0] or key)
    # One letter more, less or another one.
    near = st.tuples(known, st.integers(0, 40), st.sampled_from(["", "X", ".", "_"])).map(
        lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + 1 :]
    )
    return st.one_of(known, near, groups, st.text(max_size=8))


def nested(key: str, value: Any) -> Any:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def load(path: Path | None, overrides: Any = ()) -> None:
    """Load, and check what every configuration has to be, or that an error says where."""
    try:
        cfg = dvis.load_config(path, overrides)
    except (FileNotFoundError, KeyError, ValueError) as error:
        message = str(error)
        assert "config" in message or "override" in message, message
        if "did you mean " in message:
            assert difflib.get_close_matches(message.split("did you mean ")[1].rstrip("?'\""), keys())
        return
    assert tuple(dict(flatten(cfg))) == keys(), "no key appears or is lost"
    yaml.safe_load(cfg.dump())


@sizes(250, 4000)
def test_overrides(examples: int) -> None:
    values = st.one_of(
        json_values(), st.text(max_size=12), st.sampled_from(["(1,", "[]", "None", "1e400", "{}"])
    )
    pairs = st.lists(st.tuples(any_key(), values).map(list), max_size=3)

    def check(pairs: list[list[Any]], odd: bool) -> None:
        flat = [item for pair in pairs for item in pair]
        load(None, flat[:-1] if odd else flat)

    fuzz(examples, check, pairs, st.booleans())


@sizes(150, 3000)
def test_files(examples: int, tmp_path: Path) -> None:
    def check(key: str, value: Any, base: Any, style: bool | None) -> None:
        content = nested(key, value)
        if base is not None:
            content["_BASE_"] = base
        try:
            text = yaml.safe_dump(content, default_flow_style=style)
        except yaml.YAMLError:  # cannot even be written
            return
        path = tmp_path / "leaf.yaml"
        path.write_text(text, encoding="utf-8")
        load(path)

    bases = st.one_of(st.none(), st.sampled_from(["leaf.yaml", "", ".", "/", []]), json_values(3))
    fuzz(examples, check, any_key(), json_values(), bases, st.sampled_from([None, True, False]))


@sizes(150, 4000)
def test_damaged_files(examples: int, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        (CONFIGS / "_base_/models/video_r50.yaml").read_text().split("_BASE_")[0] or "SEED: 1\n"
    )

    def check(data: DataObject) -> None:
        path = tmp_path / "damaged.yaml"
        path.write_bytes(mutated_bytes(data, LEAF.encode()))
        load(path)

    fuzz(examples, check, st.data())
