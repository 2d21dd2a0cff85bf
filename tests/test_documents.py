"""What the documents tell people to type is there and is understood.

Commands are parsed by the programs they name, configurations and keys are looked up, examples are compiled;
the programs' own tests run them.
"""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dvis
from dvis.config import flatten

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), ROOT / "datasets" / "README.md", *(ROOT / "docs").glob("*.md")])
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
# What stands for something of the reader's.
CONFIG = "configs/toy/MinVIS_toy.yaml"
PLACEHOLDERS = {"CONFIG": CONFIG, "my_data.yaml": CONFIG, "N": "2"}


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of fenced blocks, and ("", content) of indented ones."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^(?:    .*)?\n)*^    .*\n", rest, flags=re.MULTILINE)
    blocks = ("\n".join(line[4:] for line in block.splitlines()) for block in indented)
    return [*fences, *(("", block) for block in blocks)]


def commands(path: Path) -> list[list[str]]:
    """The words of every command in a document's blocks and between its backticks."""
    text = path.read_text(encoding="utf-8")
    lines: list[str] = []
    for language, block in code_blocks(text):
        if language in ("", "bash", "sh", "console"):
            lines += re.sub(r"\\\n\s*", " ", block).splitlines()
    lines += re.findall(r"`((?:python|torchrun|make|sh) [^`\n]+)`", text)
    found = []
    start = re.compile(r"(?:\w+=\S* )*(?=(?:python3?|torchrun|make|sh) )")  # variables may come before
    for line in lines:
        begin = start.match(line)
        if begin:
            words = shlex.split(line[begin.end() :].partition(" # ")[0])
            found.append([PLACEHOLDERS.get(word, word) for word in words])
    return found


def program_of(words: list[str]) -> list[str] | None:
    """Script and arguments of a command that starts a program of this project."""
    position = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    return None if position is None or "-c" in words[:position] else words[position:]


PROGRAMS = [
    pytest.param(program, id=f"{name}:{' '.join(program)[:70]}")
    for name, path in zip(IDS, DOCUMENTS, strict=True)
    for program in map(program_of, commands(path))
    if program is not None
]


class ParsedError(Exception):
    """Carries what a program has understood."""


def parsed(program: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace | None:
    """Start a program as far as its arguments are parsed; None if it takes none."""
    for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, _stopping(name))
    monkeypatch.setattr(subprocess, "Popen", _no_process)
    script, *arguments = program
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    if script == "tools/doctor.py":
        assert not arguments
        return None
    try:
        runpy.run_path(script, run_name="__main__")
    except ParsedError as result:
        return result.args[0]
    except SystemExit as stop:
        if stop.code in (0, None) and {"-h", "--help"} & set(arguments):
            return None
        pytest.fail(f"{' '.join(program)} is not understood")
    pytest.fail(f"{' '.join(program)} parses nothing")


def _stopping(name: str) -> Any:
    """A method of the parser that, called by a program, ends it with what was understood."""
    original = getattr(argparse.ArgumentParser, name)

    def parse(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if sys._getframe(1).f_globals["__name__"] == "argparse":
            return result
        raise ParsedError(result[0] if isinstance(result, tuple) else result)

    return parse


def _no_process(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a program has started another instead of parsing its arguments")


def test_there_are_commands() -> None:
    scripts = {parameter.values[0][0] for parameter in PROGRAMS}
    assert {"train_net_video.py", "demo/demo.py", "tools/evaluate.py", "tools/doctor.py"} <= scripts
    assert len(PROGRAMS) > 15


@pytest.mark.parametrize("program", PROGRAMS)
def test_commands_are_understood(program: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ROOT / program[0]).is_file()
    arguments = parsed(program, monkeypatch)
    config = getattr(arguments, "config_file", "")
    if config:
        assert (ROOT / config).is_file()
        # Of "KEY value ..." in a sentence the reader has to fill in the rest.
        opts = [word for word in getattr(arguments, "opts", []) if word != "..."]
        dvis.load_config(ROOT / config, opts)


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_make_targets_and_scripts_exist(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for words in commands(path):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets
        elif words[0] == "sh":
            assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_and_configurations_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target
    for name in re.findall(r"\bconfigs/[\w./-]+\.yaml", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`((?:tools|demo|dvis|mask2former|tests|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_keys_exist(path: Path) -> None:
    """Words such as SOLVER.BASE_LR, and groups such as DATASETS.CUSTOM."""
    keys = set(dict(flatten(dvis.load_config())))
    groups = {key.rsplit(".", n)[0] for key in keys for n in range(1, key.count(".") + 1)}
    tops = {key.split(".")[0] for key in keys if "." in key}
    for name in re.findall(r"\b[A-Z][A-Z_]+(?:\.[A-Z0-9_]+)+\b", path.read_text(encoding="utf-8")):
        if name.split(".")[0] in tops:
            assert name in keys | groups, name


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_python_examples(path: Path) -> None:
    """They compile, and what they take from the package is there."""
    for language, block in code_blocks(path.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "dvis"
            ):
                assert hasattr(dvis, node.attr), node.attr
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module or "", fromlist=["x"])
                assert all(hasattr(module, alias.name) for alias in node.names)
