"""What the command-line programs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from dvis.cli import finite, positive, positive_int


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(finite, "-1.5", -1.5), (finite, "0", 0.0), (positive, "1e-3", 1e-3), (positive_int, "2", 2)],
)
def test_numbers(kind: Callable[[str], float], text: str, value: float) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (finite, "nan", "nan is not a finite number"),
        (positive, "inf", "inf is not a finite number"),
        (positive, "0", "0 is not positive"),
        (positive_int, "-1", "-1 is not positive"),
        (positive_int, "1.5", "invalid positive_int value: '1.5'"),
        (finite, "many", "invalid finite value: 'many'"),
    ],
)
def test_wrong_numbers_are_named(
    kind: Callable[[str], float], text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--value", type=kind)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([f"--value={text}"])
    assert stop.value.code == 2
    assert f"argument --value: {message}" in capsys.readouterr().err
