#!/usr/bin/env python
"""Say what this installation has and what it lacks; ends with OK (exit code 0) or with what to do (1)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Where the name to import is not that of the package.
MODULES = {"pillow": "PIL", "opencv-python-headless": "cv2"}
OPTIONAL = {"safetensors": "weights in .safetensors", "wandb": "metrics on Weights & Biases (WANDB.ENABLED)"}


def requirements() -> Iterator[tuple[str, str]]:
    """Package and oldest version of every line of requirements.txt."""
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        found = re.match(r"([\w.-]+)(?:>=([\w.]+))?", line)
        if found:
            yield found[1], found[2] or "0"


def show(name: str, text: str) -> None:
    print(f"{name:<22} {text}")


def check_packages() -> list[str]:
    """Print versions; return what to do about packages that are missing or too old."""
    show("Python", f"{platform.python_version()} on {platform.platform()}")
    todo = []
    for name, oldest in requirements():
        try:
            loaded = __import__(MODULES.get(name, name))
        except ImportError as error:
            show(name, f"missing ({error})")
            todo.append(f"{name} cannot be imported: pip install -r requirements.txt")
            continue
        version = _version_of(name, loaded)
        show(name, version)
        if _numbers(version) < _numbers(oldest):
            todo.append(f"{name} {version} is older than {oldest}: pip install --upgrade '{name}>={oldest}'")
    for name, purpose in OPTIONAL.items():
        try:
            show(name, f"{importlib.metadata.version(name)} (optional)")
        except importlib.metadata.PackageNotFoundError:
            show(name, f"not installed; optional, for {purpose}")
    return todo


def _version_of(name: str, module: object) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # such as opencv-python in place of the headless one
        return str(getattr(module, "__version__", "0"))


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()


def check_host() -> None:
    import detectron2_fallback

    forced = os.environ.get("DVIS_DETECTRON2")
    show("detectron2", detectron2_fallback.which() + (f" (DVIS_DETECTRON2={forced})" if forced else ""))


def check_devices() -> None:
    import torch

    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        show("device", f"CPU, {torch.get_num_threads()} threads (PyTorch built {built})")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        show("device", f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def check_op() -> list[str]:
    """Print each back end of the deformable attention op, why it is missing if so, and which one is used.

    Returns what to do if none works.
    """
    import torch

    from mask2former.modeling.pixel_decoder.ops.functions import backend_report, ms_deform_attn
    from mask2former.modeling.pixel_decoder.ops.functions.backends import choose_backend

    for name, state in backend_report().items():
        show(f"op {name}", state)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    value = torch.ones(1, 4, 1, 2, device=device)
    try:
        chosen = choose_backend(value, None)
        shapes, starts = torch.tensor([[2, 2]]), torch.tensor([0])
        locations = torch.full((1, 1, 1, 1, 1, 2), 0.5, device=device)
        ms_deform_attn(value, shapes, starts, locations, torch.ones(1, 1, 1, 1, 1, device=device))
    except RuntimeError as error:
        return [f"the deformable attention op fails ({error}): build it again, or delete its built libraries"]
    show("op used", f"{chosen} on {device}")
    return []


def check_video() -> list[str]:
    """Print what videos can be read and written."""
    import av
    import cv2

    codecs = av.codecs_available
    show("video", f"FFmpeg through PyAV {av.__version__}")
    for name, codec in (
        ("H.264", "h264"),
        ("HEVC", "hevc"),
        ("VP9", "vp9"),
        ("AV1", "av1"),
        ("MPEG-4", "mpeg4"),
    ):
        show(f"  read {name}", "yes" if codec in codecs else "no")
    has_h264 = "libx264" in codecs
    show("  write H.264", "yes" if has_h264 else "no")
    backends = [cv2.videoio_registry.getBackendName(b) for b in cv2.videoio_registry.getCameraBackends()]
    show("  cameras", ", ".join(backends) or "no")
    return [] if has_h264 else ["PyAV lacks libx264 and cannot write videos: pip install --upgrade av"]


def check_data() -> list[str]:
    """Print which data sets are there; a root that is set but missing is something to do."""
    from dvis.data import DATASETS
    from dvis.data.datasets import ROOT_VARIABLE, data_root
    from dvis.data.errors import MissingDataError

    root = data_root()
    where = (
        f"set by {ROOT_VARIABLE}" if os.environ.get(ROOT_VARIABLE) else f"default; {ROOT_VARIABLE} is not set"
    )
    show("data root", f"{root.resolve()} ({where}){'' if root.is_dir() else ', does not exist'}")
    complete, partial = [], []
    for name, spec in sorted(DATASETS.items()):
        try:
            spec.check_files()
        except MissingDataError:
            if spec.annotation_path.is_file():
                partial.append(name)
        else:
            complete.append(name)
    show("data sets", ", ".join(complete) or "none yet; see datasets/README.md")
    todo = []
    for name in partial:
        show("  incomplete", name)
        todo.append(f"{name} has annotations, but lacks images or masks: see datasets/README.md")
    if os.environ.get(ROOT_VARIABLE) and not root.is_dir():
        todo.append(
            f"{ROOT_VARIABLE} is {os.environ[ROOT_VARIABLE]}, which does not exist: create or correct it"
        )
    return todo


def main() -> int:
    todo = check_packages()
    if not todo:
        check_host()
        check_devices()
        todo = [*check_op(), *check_video(), *check_data()]
    for line in todo:
        print(f"TO DO: {line}")
    if not todo:
        print("OK")
    return 1 if todo else 0


if __name__ == "__main__":
    sys.exit(main())
