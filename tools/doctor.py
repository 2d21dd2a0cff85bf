#!/usr/bin/env python
"""Say what this installation has and what it lacks; ends with OK (exit code 0) or with what to do (1)."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

REQUIRED = {"torch": "torch", "numpy": "numpy", "scipy": "scipy", "Pillow": "PIL", "av": "av", "cv2": "cv2"}
REQUIRED |= {
    "pycocotools": "pycocotools",
    "fvcore": "fvcore",
    "iopath": "iopath",
    "yacs": "yacs",
    "einops": "einops",
}


def check_packages() -> list[str]:
    """Print versions; return what to do about the missing ones."""
    print(f"Python      {platform.python_version()} on {platform.platform()}")
    todo = []
    for name, module in REQUIRED.items():
        try:
            loaded = __import__(module)
        except ImportError as error:
            print(f"{name:<11} missing ({error})")
            todo.append(f"{name} cannot be imported: pip install -r requirements.txt")
            continue
        version = getattr(loaded, "__version__", None) or importlib.metadata.version(name)
        print(f"{name:<11} {version}")
    return todo


def check_host() -> None:
    import detectron2_fallback

    print(f"detectron2  {detectron2_fallback.which()}")


def check_devices() -> None:
    import torch

    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        print(f"device      CPU, {torch.get_num_threads()} threads (PyTorch built {built})")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"device      cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def check_op() -> None:
    from mask2former.modeling.pixel_decoder.ops.functions import backend_report

    for name, state in backend_report().items():
        print(f"op {name:<8} {state}")


def check_video() -> list[str]:
    import av

    has_h264 = "libx264" in av.codecs_available
    print(f"video       FFmpeg through PyAV {av.__version__}, H.264 {'there' if has_h264 else 'missing'}")
    return [] if has_h264 else ["PyAV lacks libx264 and cannot write videos: pip install --upgrade av"]


def check_data() -> None:
    from dvis.data import DATASETS
    from dvis.data.datasets import data_root

    found = sorted(name for name, spec in DATASETS.items() if spec.annotation_path.is_file())
    print(
        f"data        {data_root().resolve()}: {', '.join(found) or 'no data set yet (datasets/README.md)'}"
    )


def main() -> int:
    todo = check_packages()
    if not todo:
        check_host()
        check_devices()
        check_op()
        todo = check_video()
        check_data()
    for line in todo:
        print(f"TO DO: {line}")
    if not todo:
        print("OK")
    return 1 if todo else 0


if __name__ == "__main__":
    sys.exit(main())
