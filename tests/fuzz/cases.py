"""How fuzz tests are run, and what they are fed with.

Each test has a short form in the default run and a long one, marked slow. Whatever goes in, a function may
only answer or raise the errors it documents; anything else is a bug.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy

SLOW_TO_MAKE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


def sizes(short: int, long: int) -> Any:
    """Run a test, which takes ``examples``, with so many generated cases."""
    return pytest.mark.parametrize(
        "examples", [short, pytest.param(long, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
    )


def fuzz(examples: int, check: Callable[..., None], *strategies: SearchStrategy[Any]) -> None:
    """Call ``check`` with generated arguments."""

    def run(*arguments: Any) -> None:
        check(*arguments)

    run.__qualname__ = run.__name__ = getattr(check, "__qualname__", "check").replace("<locals>.", "")
    tested = given(st.tuples(*strategies))(lambda arguments: run(*arguments))
    settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples < 1000,
        suppress_health_check=SLOW_TO_MAKE, print_blob=False,
    )(tested)()  # fmt: skip


def json_values(max_leaves: int = 6) -> SearchStrategy[Any]:
    """Anything that a JSON file may hold, with a liking for the extreme."""
    numbers = st.one_of(
        st.integers(-3, 3),
        st.integers(),
        st.sampled_from([2**31 - 1, 2**31, 2**32, 2**63, 10**30]),
        st.floats(),
    )
    leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=6))
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=max_leaves,
    )


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = [] if not path else [path]
    for key, value in items:
        found += places(value, (*path, key))
    return found


def mutated(data: DataObject, content: Any, changes: int = 3) -> Any:
    """A copy of a JSON value in which a few things are replaced, deleted, repeated or exchanged."""
    result = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, changes))):
        paths = places(result)
        if not paths:
            break
        *parents, key = data.draw(st.sampled_from(paths))
        node = result
        for parent in parents:
            node = node[parent]
        change = data.draw(st.sampled_from(["replace", "replace", "delete", "repeat", "exchange"]))
        if change == "replace":
            node[key] = data.draw(json_values())
        elif change == "delete":
            del node[key]
        elif change == "repeat" and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            other = content
            for parent in data.draw(st.sampled_from(places(content))):
                other = other[parent]
            node[key] = copy.deepcopy(other)
    return result


def mutated_bytes(data: DataObject, content: bytes) -> bytes:
    """A copy of a file's content that was cut, flipped, overwritten, or had something put in."""
    result = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        size = len(result)
        place = data.draw(st.integers(0, max(size - 1, 0)))
        change = data.draw(st.sampled_from(["flip", "flip", "cut", "remove", "insert", "zero", "head"]))
        if change == "flip" and size:
            result[place] ^= data.draw(st.integers(1, 255))
        elif change == "cut":
            del result[place:]
        elif change == "remove":
            del result[place : place + data.draw(st.integers(1, 64))]
        elif change == "insert":
            result[place:place] = data.draw(st.binary(max_size=64))
        elif change == "zero":
            result[place : place + 64] = bytes(len(result[place : place + 64]))
        elif change == "head":  # where containers and decoders look first
            head = data.draw(st.integers(0, min(size, 200)))
            result[head : head + 1] = data.draw(st.binary(min_size=1, max_size=1))
    return bytes(result)
