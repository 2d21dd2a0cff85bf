"""Access to the reference data that the tests compare with (copied below ``tests/data``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"


def load_golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return ``(meta, arrays)`` of ``tests/data/golden/<name>.npz``."""
    with np.load(DATA / "golden" / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files if key != "meta"}
        return json.loads(str(archive["meta"])), arrays


def load_manifest(name: str) -> dict[str, Any]:
    """Return ``tests/data/manifests/<name>.json`` (state-dict keys, shapes, frozen prefixes)."""
    return json.loads((DATA / "manifests" / f"{name}.json").read_text())


def unpack_bits(golden: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Undo ``numpy.packbits`` of entry ``name``; its shape is in ``<name without _bits>_shape``."""
    shape = tuple(golden[name.removesuffix("_bits") + "_shape"])
    return np.unpackbits(golden[name])[: int(np.prod(shape))].reshape(shape).astype(bool)


def relative_error(actual: Any, expected: np.ndarray) -> float:
    """Largest absolute difference relative to the largest magnitude of ``expected``."""
    actual = np.asarray(actual, dtype=np.float64)
    expected = np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    return (
        float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12)) if expected.size else 0.0
    )
