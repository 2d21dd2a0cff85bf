"""Building the compiled back ends: in a copy of the sources, and what happens where it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mask2former.modeling.pixel_decoder.ops import build_ops
from mask2former.modeling.pixel_decoder.ops.build_ops import OPS
from mask2former.modeling.pixel_decoder.ops.functions import backends

CUDA_SOURCES = OPS / "src" / "cuda"
CHECK = """
import torch
from mask2former.modeling.pixel_decoder.ops.functions import (
    available_backends, backend_report, ms_deform_attn, ms_deform_attn_reference
)

print(backend_report())
assert "cpp" in available_backends(), backend_report()
shapes, starts = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
torch.manual_seed(0)
inputs = [torch.randn(2, 26, 2, 19), torch.rand(2, 5, 2, 2, 3, 2) * 1.4 - 0.2, torch.rand(2, 5, 2, 2, 3)]
results = []
for function in (lambda *t: ms_deform_attn(*t, backend="cpp"), ms_deform_attn_reference):
    value, locations, attention = (t.double().requires_grad_() for t in inputs)
    output = function(value, shapes, starts, locations, attention)
    results.append([output, *torch.autograd.grad(output.square().sum(), (value, locations, attention))])
for ours, right in zip(*results):
    torch.testing.assert_close(ours, right, rtol=0, atol=1e-12)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources alone in an otherwise empty package, as after a fresh clone; returns its ``ops`` folder."""
    ops = tmp_path.joinpath("a folder", *build_ops.PACKAGE.split("."))
    shutil.copytree(OPS, ops, ignore=shutil.ignore_patterns("build", "*.so", "__pycache__"))
    for parent in list(ops.parents)[:3]:
        (parent / "__init__.py").touch()
    return ops


def make(ops: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Run make.sh from another folder; exit code and lines printed."""
    result = subprocess.run(
        ["/bin/sh", str(ops / "make.sh"), *arguments],
        cwd="/",
        env={**os.environ, "PYTHON": sys.executable, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout.splitlines()


def run_python(ops: Path, code: str) -> str:
    """Run code that imports the copied package; returns what it printed."""
    root = ops.parents[len(build_ops.PACKAGE.split(".")) - 1]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
def test_build_and_use_the_cpp_back_end(copy: Path) -> None:
    stale = copy / build_ops.library_names("cpp")[0].replace(".so", "0.so")
    stale.write_bytes(b"built from sources of last week")
    code, lines = make(copy, "--strict", "cpp")
    assert code == 0, lines
    assert len(lines) == 1
    assert lines[0].startswith("ms_deform_attn: cpp built in")
    libraries = list(copy.glob("*.so"))
    assert [library.name for library in libraries] == build_ops.library_names("cpp")[:1]
    assert not list(copy.glob("build/*.failed"))
    assert str(libraries[0]) in run_python(copy, CHECK)


def test_failing_compiler_gives_one_line_and_the_program_goes_on(copy: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "broken-c++"
    compiler.write_text(
        """#!/bin/sh
case "$1" in -v|--version|-dump*) echo 12.2.0; exit 0 ;; esac
echo 'ops.cpp:1:1: error: out of luck' >&2
exit 1
"""
    )
    compiler.chmod(0o755)
    code, lines = make(copy, "cpp", CXX=str(compiler), CC=str(compiler))
    assert code == 0
    assert len(lines) == 1
    assert "cpp not built: ops.cpp:1:1: error: out of luck" in lines[0]
    assert "uses PyTorch" in lines[0]
    assert (copy / "build" / "cpp.log").is_file()
    code = """
from mask2former.modeling.pixel_decoder.ops.functions import backend_report
print(backend_report()["cpp"])
"""
    assert "the last build failed: ops.cpp:1:1: error: out of luck" in run_python(copy, code)


def test_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_ops, "OPS", tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    expected = (
        "ms_deform_attn: cpp not built: no C++ compiler found (looked for no-such-compiler). "
        "The program uses PyTorch instead.\n"
    )
    assert build_ops.main(["cpp"]) == 0
    assert capsys.readouterr().out == expected
    assert build_ops.main(["--strict", "cpp"]) == 1
    assert capsys.readouterr().out == expected


def test_no_python_with_pytorch(copy: Path, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    (empty / "dirname").symlink_to(str(shutil.which("dirname")))
    code, lines = make(copy, PYTHON="", PATH=str(empty))
    assert code == 0
    assert len(lines) == 1
    assert "nothing built" in lines[0]
    assert "PyTorch" in lines[0]
    assert make(copy, "--strict", PYTHON="", PATH=str(empty))[0] == 1


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has CUDA")
def test_pytorch_without_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_ops, "OPS", tmp_path)
    monkeypatch.setenv("CXX", sys.executable)  # any program: it does not come to compiling
    assert build_ops.main(["cuda"]) == 0
    assert f"cuda not built: PyTorch {torch.__version__} has no CUDA" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("[1/2] c++ x.cpp\nx.cpp:7: fatal error: no y.h\nError: z\n", "x.cpp:7: fatal error: no y.h"),
        (
            "Traceback:\n  raise Error(TEXT)\nRuntimeError: \nThe CUDA version 13.0\nmismatches 12.1.\n",
            "The CUDA version 13.0 mismatches 12.1.",
        ),
        ("Killed\n", "Killed"),
        ("", "the compiler stopped without a word"),
    ],
)
def test_reason_for_a_failure(log: str, reason: str) -> None:
    assert build_ops._reason(log) == reason


def test_unknown_back_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        build_ops.main(["rocm"])
    assert "unknown back end 'rocm', known are cpp, cuda" in capsys.readouterr().err


def test_a_broken_library_is_a_reason_not_a_crash(copy: Path) -> None:
    (copy / build_ops.library_names("cpp")[0]).write_bytes(b"this is no library")
    code = """
import torch
from mask2former.modeling.pixel_decoder.ops.functions import backend_report, ms_deform_attn
print(backend_report()["cpp"])
value, locations = torch.ones(1, 6, 1, 2), torch.full((1, 1, 1, 1, 1, 2), 0.5)
print(ms_deform_attn(value, torch.tensor([[2, 3]]), torch.tensor([0]), locations, torch.ones(1, 1, 1, 1, 1)))
"""
    printed = run_python(copy, code)
    assert "not available" in printed
    assert "cannot be loaded" in printed
    assert "tensor([[[1., 1.]]])" in printed


def test_a_library_for_another_pytorch_or_from_other_sources_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_ops, "OPS", tmp_path)
    name = build_ops.library_names("cpp")[0]
    (tmp_path / name.replace("torch", "torch0.")).write_bytes(b"")
    (tmp_path / name.replace(".so", "0.so")).write_bytes(b"")  # other sources
    reason = backends._load.__wrapped__("cpp")
    assert f"not built for PyTorch {torch.__version__} (run: sh " in reason


def test_machines_load_only_what_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"AVX512": ["avx512", "avx2", "default"], "AVX2": ["avx2", "default"], "SVE256": ["default"]}
    for capability, expected in kinds.items():
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability
        )
        names = build_ops.library_names("cpp")
        assert [name.split("-")[2] for name in names] == expected


# CUDA, without a GPU ----------


def cuda_home() -> Path | None:
    try:
        return build_ops.find_cuda_home()
    except build_ops.CannotBuildError:
        return None


needs_cuda_toolkit = pytest.mark.skipif(cuda_home() is None, reason="needs the CUDA toolkit")


def compile_cleanly(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "warning" not in result.stderr + result.stdout


@needs_cuda_toolkit
@pytest.mark.parametrize("architecture", [pytest.param("75", marks=pytest.mark.slow), "90"])
def test_nvcc_compiles_the_kernels(tmp_path: Path, architecture: str) -> None:
    compile_cleanly(
        [
            str(Path(str(cuda_home()), "bin", "nvcc")),
            "-c",
            "-std=c++17",
            f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
            str(CUDA_SOURCES / "ms_deform_attn_kernels.cu"),
            "-o",
            str(tmp_path / "kernels.o"),
        ]
    )


@needs_cuda_toolkit
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_binding_compiles(tmp_path: Path) -> None:
    """Also with a PyTorch without CUDA: its headers lack only a generated file, which the macro replaces."""
    include = Path(torch.__file__).parent / "include"
    compile_cleanly(
        [
            str(shutil.which("g++")),
            "-fsyntax-only",
            "-std=c++20",
            "-DC10_USING_CUSTOM_GENERATED_MACROS",
            f"-I{include}",
            f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}",
            f"-I{Path(str(cuda_home()), 'include')}",
            str(CUDA_SOURCES / "ms_deform_attn_cuda.cpp"),
        ]
    )
