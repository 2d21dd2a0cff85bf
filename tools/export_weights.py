#!/usr/bin/env python
"""Make a small file of a training checkpoint: weights only, in half precision, ready to be given away.

    python tools/export_weights.py output/model_final.pth checkpoints/minvis.pth
    python tools/export_weights.py output_online/model_final.pth checkpoints/online.pth \\
        --base checkpoints/minvis.pth

A model casts the weights back to float32 when it loads them. With --base, tensors that are the same in an
already exported file of the same folder are left out and read from there: a later stage then needs only what
it has trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import dvis  # noqa: F401  isort: skip  (first: it provides detectron2 where upstream is absent)

from dvis.checkpoint import read_weights, save_weights
from dvis.cli import clear_errors

# Half precision may change a value by this share of itself; a tensor that loses more stays as it is.
MAX_RELATIVE_ERROR = 2.0**-10


def to_half(tensor: Tensor) -> Tensor:
    """The tensor in half precision, or as it is where it holds no floats or values beyond its range."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    # Values below the smallest normal half lose digits, but are as good as zero in a weight.
    error = (half.double() - tensor.double()).abs()
    allowed = MAX_RELATIVE_ERROR * tensor.double().abs() + 2.0**-24
    return half if bool((error <= allowed).all()) else tensor


def without_base(weights: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Only the tensors that the base does not have, or not with these values."""
    return {
        key: value
        for key, value in weights.items()
        if key not in base or base[key].dtype != value.dtype or not torch.equal(base[key], value)
    }


def export(source: Path, target: Path, base: Path | None = None) -> tuple[int, int]:
    """Write the weights of a checkpoint to a small file.

    Args:
        source: what a training wrote.
        target: the file, ``.pth``.
        base: an exported file in the same folder, whose tensors need not be written again.

    Returns:
        How many tensors the model has, and how many were written.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if ``base`` lies elsewhere, or has tensors that the source has not.
    """
    weights = {key: to_half(value) for key, value in read_weights(source).items()}
    kept = weights
    if base is not None:
        if base.resolve().parent != target.resolve().parent:
            raise ValueError(f"{base} must lie in the folder of {target}")
        known = read_weights(base)
        foreign = sorted(known.keys() - weights.keys())
        if foreign:
            raise ValueError(f"{base} is no earlier stage of {source}: only it has {', '.join(foreign[:3])}")
        kept = without_base(weights, known)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_weights(kept, target, base="" if base is None else base.name)
    return len(weights), len(kept)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="checkpoint of a training")
    parser.add_argument("target", type=Path, help="file to write, .pth")
    parser.add_argument("--base", type=Path, help="exported file of the stage before, in the target's folder")
    args = parser.parse_args(arguments)
    with clear_errors():
        total, written = export(args.source, args.target, args.base)
    size = args.target.stat().st_size / 1e6
    print(f"{args.target}: {written} of {total} tensors, {size:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
