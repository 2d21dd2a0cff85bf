"""The doctor says what is there, and what to do where something is missing."""

from __future__ import annotations

import builtins
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dvis.data.toy import ToySettings, generate
from tools import doctor

ROOT = Path(__file__).resolve().parents[2]


def run_doctor() -> str:
    """In a process of its own: other tests leave data sets of theirs in the catalogue."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/doctor.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_complete_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))  # whatever data lie in the clone
    output = run_doctor()
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


def test_every_requirement_is_looked_at() -> None:
    found = dict(doctor.requirements())
    assert {"torch", "numpy", "av", "opencv-python-headless"} <= found.keys()
    assert found["torch"] == "2.4"


def test_old_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "9.5.1" if name == "pillow" else original(name)
    )
    assert doctor.main() == 1
    assert "TO DO: pillow 9.5.1 is older than 10.1: pip install --upgrade" in capsys.readouterr().out


def test_what_is_used_and_where_data_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(tmp_path / "toy", ToySettings(num_train=1, num_val=1, height=32, width=40, length=2), workers=1)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    output = run_doctor()
    assert "op used" in output
    assert f"{tmp_path} (set by DETECTRON2_DATASETS)" in output
    assert "toy_vis_train" in output
    shutil.rmtree(tmp_path / "toy" / "train" / "JPEGImages")
    assert doctor.main() == 1
    assert "TO DO: toy_vis_train has annotations, but lacks images" in capsys.readouterr().out


def test_data_root_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    assert doctor.main() == 1
    assert "nowhere, which does not exist: create or correct it" in capsys.readouterr().out
