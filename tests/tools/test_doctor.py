"""The doctor says what is there, and what to do where something is missing."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from tools import doctor


def test_complete_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    output = capsys.readouterr().out
    for word in ("torch", "detectron2", "op cpp", "op cuda", "op pytorch", "H.264", "data"):
        assert word in output
    assert output.rstrip().endswith("OK")


def test_missing_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = builtins.__import__

    def without_scipy(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "scipy":
            raise ImportError("No module named 'scipy'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    assert doctor.main() == 1
    output = capsys.readouterr().out
    assert "TO DO: scipy cannot be imported: pip install -r requirements.txt" in output
    assert "OK" not in output.splitlines()
