"""Compiles the C++ and CUDA back ends of multi-scale deformable attention in place; ``sh make.sh`` runs it.

What cannot be built here is named with one reason and left out: the program then goes on in PyTorch. The
libraries are loaded with ``torch.ops.load_library`` and contain nothing of Python, so one build serves every
Python version. File names carry what they do depend on: PyTorch's version, vector instructions and a digest
of the sources, so that nothing stale is ever loaded.

``extension`` and ``builder`` are also what a ``setup.py`` uses to put the libraries into a wheel.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from setuptools import Extension

OPS = Path(__file__).resolve().parent
BACKENDS = ("cpp", "cuda")
SOURCES = {
    "cpp": ["src/cpu/ms_deform_attn_cpu.cpp"],
    "cuda": ["src/cuda/ms_deform_attn_cuda.cpp", "src/cuda/ms_deform_attn_kernels.cu"],
}
# Best first, as PyTorch calls them; x86 only, elsewhere the compiler's defaults are good.
VECTOR_FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
    "AVX2": ["-mavx2", "-mfma"],
    "DEFAULT": [],
}
# What to compile for when no GPU is here to ask: Turing to Hopper, and newer ones through PTX.
DEFAULT_CUDA_ARCHITECTURES = "7.5;8.0;8.6;9.0+PTX"
PACKAGE = "mask2former.modeling.pixel_decoder.ops"


class CannotBuildError(Exception):
    """A back end cannot be built here; the message is the reason, one line long."""


def vector_instructions() -> list[str]:
    """The keys of ``VECTOR_FLAGS`` that this processor can run, best first."""
    names = list(VECTOR_FLAGS)
    best = torch.backends.cpu.get_cpu_capability()
    return names[names.index(best) :] if best in names else ["DEFAULT"]


def library_names(backend: str) -> list[str]:
    """File names of libraries that this machine can load for ``backend`` (cpp or cuda), best first."""
    version = re.sub(r"[^0-9A-Za-z.]", "_", torch.__version__)
    instructions = vector_instructions() if backend == "cpp" else ["DEFAULT"]
    return [f"_{backend}-torch{version}-{name.lower()}-{_source_digest()}.so" for name in instructions]


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(OPS.joinpath("src").rglob("*.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def failure_note(backend: str) -> Path:
    """Where the reason of the last failed build is kept; absent after a build that succeeded."""
    return OPS / "build" / f"{backend}.failed"


def find_cxx() -> str:
    """The C++ compiler: ``$CXX``, or the first one on the path.

    Raises:
        CannotBuildError: if there is none.
    """
    names = [shlex.split(os.environ["CXX"])[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        if shutil.which(name):
            return name
    raise CannotBuildError(f"no C++ compiler found (looked for {', '.join(names)})")


def find_cuda_home() -> Path:
    """The CUDA toolkit, a folder with compiler and headers (an ``nvcc`` on the path may be a mere link).

    Raises:
        CannotBuildError: if there is none.
    """
    candidates = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates += [str(Path(nvcc).parents[1]), str(Path(nvcc).resolve().parents[1])]
    candidates = list(dict.fromkeys([*candidates, "/usr/local/cuda"]))
    for home in map(Path, candidates):
        if Path(home, "bin", "nvcc").is_file() and Path(home, "include", "cuda_runtime.h").is_file():
            return home
    raise CannotBuildError(f"no CUDA toolkit found (looked in {', '.join(candidates)}; set CUDA_HOME)")


def build_environment(backend: str) -> dict[str, str]:
    """Environment variables for compiling ``backend``.

    Raises:
        CannotBuildError: if something that it needs is missing.
    """
    cxx = find_cxx()
    environment = {**os.environ, "CXX": os.environ.get("CXX") or cxx}
    if importlib.util.find_spec("setuptools") is None:
        raise CannotBuildError("setuptools is not installed (pip install setuptools)")
    if backend == "cuda":
        if torch.version.cuda is None:
            raise CannotBuildError(f"PyTorch {torch.__version__} has no CUDA")
        environment["CUDA_HOME"] = str(find_cuda_home())
        if not torch.cuda.is_available():
            environment.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHITECTURES)
    return environment


def _openmp_flags() -> tuple[list[str], list[str]]:
    """Flags to compile and to link with.

    GCC's code is left to find the OpenMP runtime that PyTorch has loaded: with one of its own it would not
    follow ``torch.set_num_threads``.
    """
    if platform.system() != "Linux":
        return [], []
    version = subprocess.run([find_cxx(), "--version"], capture_output=True, text=True, check=True).stdout
    return ["-fopenmp"], ["-fopenmp"] if "clang" in version else []


def extension(backend: str) -> Extension:
    """The setuptools extension of ``backend``; its sources are relative to the current folder."""
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    name = f"{PACKAGE}._{backend}"
    sources = [os.path.relpath(OPS / source) for source in SOURCES[backend]]
    compile_openmp, link_openmp = _openmp_flags()
    cxx = ["-O3", *compile_openmp]
    if backend == "cpp":
        cxx += VECTOR_FLAGS[vector_instructions()[0]]
        return CppExtension(name, sources, extra_compile_args={"cxx": cxx}, extra_link_args=link_openmp)
    return CUDAExtension(name, sources, extra_compile_args={"cxx": ["-O3"], "nvcc": ["-O3"]})


def builder() -> type[Any]:
    """The ``build_ext`` command that names libraries as the loader expects them."""
    from torch.utils.cpp_extension import BuildExtension

    class OpsBuilder(BuildExtension):
        def get_ext_filename(self, ext_name: str) -> str:
            folder, _, name = ext_name.rpartition(".")
            return os.path.join(*folder.split("."), library_names(name.removeprefix("_"))[0])

    return OpsBuilder


def _compile(backend: str, into: Path) -> None:
    """Compile one back end; runs in a process of its own, whose output is the log."""
    from setuptools import setup

    os.chdir(OPS)
    setup(
        name=f"dvis-ops-{backend}",
        ext_modules=[extension(backend)],
        cmdclass={"build_ext": builder()},
        script_args=["build_ext", f"--build-lib={into}", f"--build-temp={into / 'objects'}"],
    )


def build(backend: str) -> Path:
    """Compile ``backend`` and put its library beside this file.

    Raises:
        CannotBuildError: with the reason; the whole output is in ``build/<backend>.log``.
    """
    environment = build_environment(backend)
    work = OPS / "build" / backend
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    log = work.with_suffix(".log")
    command = [sys.executable, str(Path(__file__).resolve()), "--compile", backend, "--into", str(work)]
    with log.open("w") as output:
        result = subprocess.run(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    name = library_names(backend)[0]
    built = work.joinpath(*PACKAGE.split("."), name)
    if result.returncode != 0 or not built.is_file():
        raise CannotBuildError(f"{_reason(log.read_text(errors='replace'))} (all of it: {log})")
    target = OPS / name
    for stale in OPS.glob(f"{name.rpartition('-')[0]}-*.so"):
        stale.unlink()
    os.replace(built, target)
    shutil.rmtree(work)
    return target


def _reason(log: str) -> str:
    """The part of a build's output that tells most: a compiler's first error, or the last exception."""
    compiler = re.search(r"^.*\b(fatal )?error: .*$", log, re.MULTILINE)
    if compiler:
        return compiler.group().strip()
    exceptions = re.split(r"^[\w.]*(?:Error|Exception)\b:?", log, flags=re.MULTILINE)
    words = " ".join(exceptions[-1].split())
    return textwrap.shorten(words, width=300) or "the compiler stopped without a word"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what this machine allows; one line per back end.

    Returns:
        0; with ``--strict`` 1 if a back end that was asked for is not built.
    """
    parser = argparse.ArgumentParser(
        description="Build the compiled back ends of multi-scale deformable attention."
    )
    parser.add_argument(
        "backends", nargs="*", default=[], help=f"which of {', '.join(BACKENDS)}; default: all"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if one of them is not built")
    parser.add_argument("--compile", choices=BACKENDS, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.compile:
        _compile(args.compile, args.into)
        return 0
    unknown = sorted(set(args.backends) - set(BACKENDS))
    if unknown:
        parser.error(f"unknown back end {unknown[0]!r}, known are {', '.join(BACKENDS)}")
    failed = False
    for backend in args.backends or BACKENDS:
        note = failure_note(backend)
        started = time.monotonic()
        try:
            library = build(backend)
        except (CannotBuildError, OSError) as error:
            failed = True
            _say(f"ms_deform_attn: {backend} not built: {error}. The program uses PyTorch instead.")
            with contextlib.suppress(OSError):  # the folder may be read-only
                note.parent.mkdir(exist_ok=True)
                note.write_text(str(error))
        else:
            note.unlink(missing_ok=True)
            _say(f"ms_deform_attn: {backend} built in {time.monotonic() - started:.0f} s: {library}")
    return 1 if failed and args.strict else 0


if __name__ == "__main__":
    sys.exit(main())
