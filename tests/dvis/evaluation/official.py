"""The official cases and how our numbers are compared with theirs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.reference import DATA

CASES = DATA / "evaluation"


def case_names(task: str) -> list[str]:
    return sorted(path.name for path in (CASES / task).iterdir() if path.is_dir())


def expected_of(task: str, case: str) -> dict[str, Any]:
    return json.loads((CASES / task / case / "expected.json").read_text())


def assert_same(actual: Any, expected: Any, where: str = "") -> None:
    """Compare nested results: counts exactly, fractions to 1e-9 relative; a crash there is None here."""
    if isinstance(expected, dict) and "raises" in expected:
        assert all(value is None for key, value in actual.items() if key != "n"), where
        return
    if isinstance(expected, dict):
        # No window of this length anywhere: the official script has no per-class table then, ours is empty.
        assert set(actual) - {"per_class"} == set(expected) - {"per_class"}, where
        assert "per_class" in expected or not actual.get("per_class"), where
        for key, value in expected.items():
            assert_same(actual[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for index, value in enumerate(expected):
            assert_same(actual[index], value, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12), where
    else:
        assert actual == expected, where
