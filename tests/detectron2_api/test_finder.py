"""Which detectron2 an ``import detectron2`` finds. Each case runs in an interpreter of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUBSET = ROOT / "detectron2_fallback" / "detectron2"

pytestmark = pytest.mark.skipif(
    os.environ.get("DVIS_DETECTRON2", "") != "", reason="the cases set DVIS_DETECTRON2 themselves"
)

FIND = "import detectron2_fallback, importlib.util as u; print(u.find_spec('detectron2').origin)"

# Cases that want no upstream must not find one that happens to be installed.
HIDE = """
import sys, importlib.machinery as m
class Hide(m.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "detectron2" else m.PathFinder.find_spec(name, path, target)
sys.meta_path = [Hide if f is m.PathFinder else f for f in sys.meta_path if "editable" not in repr(f).lower()]
"""


def run(
    code: str, cwd: Path, *path: Path, choice: str | None = None, root: Path = ROOT
) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, root]))}
    if choice is not None:
        env["DVIS_DETECTRON2"] = choice
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def output(*args, **kwargs) -> str:
    result = run(*args, **kwargs)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A folder with a package that looks like an installed detectron2."""
    package = tmp_path / "site" / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '9.9'\n")
    (package / "config.py").write_text("whose = 'upstream'\n")
    return package


def test_subset_answers_when_nothing_else_does(tmp_path: Path) -> None:
    code = (
        HIDE
        + """
import importlib, logging
import detectron2_fallback
import detectron2.config.config, detectron2.structures, detectron2.layers, detectron2.utils.events
cfg = detectron2.config.get_cfg()
importlib.reload(detectron2_fallback)
import detectron2_fallback, detectron2.utils.comm
assert detectron2_fallback.is_bundled()
assert sum(type(f).__name__ == "SubsetFinder" for f in sys.meta_path) == 1
assert isinstance(cfg, detectron2.config.CfgNode)
assert "torchvision" not in sys.modules and not logging.getLogger().handlers
print(detectron2_fallback.which())
"""
    )
    assert output(code, tmp_path) == f"bundled subset 0.6 at {SUBSET}"


def test_installed_upstream_wins(tmp_path: Path, upstream: Path) -> None:
    code = """
import detectron2_fallback, detectron2.config
assert detectron2.config.whose == "upstream" and not detectron2_fallback.is_bundled()
print(detectron2_fallback.which())
"""
    assert output(code, tmp_path, upstream.parent) == f"upstream 9.9 at {upstream}"


def test_variable_forces_subset(tmp_path: Path, upstream: Path) -> None:
    assert output(FIND, tmp_path, upstream.parent, choice="fallback") == str(SUBSET / "__init__.py")
    assert output(FIND, tmp_path, upstream.parent, choice="") == str(upstream / "__init__.py")


@pytest.mark.parametrize("when", ["before", "after"])
def test_editable_upstream_wins(tmp_path: Path, upstream: Path, when: str) -> None:
    """setuptools installs a package in development as a finder at the end of ``sys.meta_path``."""
    editable = f"""
import sys, importlib.util as u
class Editable:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "detectron2":
            return u.spec_from_file_location(name, {str(upstream / "__init__.py")!r})
sys.meta_path.append(Editable)
"""
    parts = [HIDE, editable, "import detectron2_fallback"]
    if when == "after":
        parts = [HIDE, "import detectron2_fallback", editable]
    code = "\n".join([*parts, "import detectron2.config; print(detectron2_fallback.which())"])
    assert output(code, tmp_path) == f"upstream 9.9 at {upstream}"


def test_clone_of_upstream_in_the_working_folder_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "detectron2" / "configs").mkdir(parents=True)
    # Without HIDE, because PathFinder itself reports such a folder, as a namespace package without a file.
    assert output(FIND, tmp_path).endswith("__init__.py")
    assert output(FIND, tmp_path, choice="fallback") == str(SUBSET / "__init__.py")


def test_unknown_value_of_the_variable_is_refused(tmp_path: Path) -> None:
    result = run("import detectron2_fallback", tmp_path, choice="bundled")
    assert result.returncode != 0
    assert "ValueError: Environment variable DVIS_DETECTRON2 is 'bundled'; allowed are" in result.stderr


def test_forcing_comes_too_late_after_an_import(tmp_path: Path, upstream: Path) -> None:
    result = run("import detectron2, detectron2_fallback", tmp_path, upstream.parent, choice="fallback")
    assert result.returncode != 0
    assert f"but {upstream / '__init__.py'} is already imported" in result.stderr


def test_installed_copy_serves_spawned_processes(tmp_path: Path) -> None:
    """A spawned process unpickles objects of detectron2 before it runs any code of ours."""
    site = tmp_path / "site"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "detectron2_fallback", site / "detectron2_fallback", ignore=skip)
    code = """
import multiprocessing, sys
import detectron2_fallback
from detectron2.config import CfgNode
from detectron2.utils.registry import locate
context = multiprocessing.get_context("spawn")
process = context.Process(target=CfgNode.freeze, args=(CfgNode({"A": 1}),))
process.start()
process.join()
assert process.exitcode == 0
with context.Pool(1) as pool:
    node = pool.apply(CfgNode, ({"A": 1},))
print(type(node) is CfgNode, detectron2_fallback.which())
"""
    expected = f"True bundled subset 0.6 at {site / 'detectron2_fallback' / 'detectron2'}"
    assert output(code, tmp_path, choice="fallback", root=site) == expected
