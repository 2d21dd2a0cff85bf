"""How many mask logits of the golden videos keep their sign in bfloat16.

    python benchmarks/golden_precision.py

The golden models have random weights, which amplify any change. What bfloat16 does is therefore set beside
what rounding nothing but the segmenter's weights to bfloat16 does, with all arithmetic in float32. Prints
Markdown: shares of all queries' mask logits, frame by frame before linking and in the linked result.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone need not be installed

import dvis  # isort: skip  # noqa: F401  (first: it provides detectron2 where upstream is absent)

import torch
from torch import Tensor

from benchmarks.run import table
from tests.dvis.golden import build_golden_model
from tests.reference import load_golden

CASES = ("minvis_r50_ovis", "dvis_online_r50_ovis_vis", "dvis_offline_r50_ovis_vis")
SEGMENTER = ("backbone.", "sem_seg_head.")


@torch.no_grad()
def round_segmenter(model: Any) -> None:
    """Round the weights that take part in large products to what bfloat16 can hold."""
    for name, parameter in model.named_parameters():
        if name.startswith(SEGMENTER) and parameter.dim() > 1:
            parameter.copy_(parameter.bfloat16())


@torch.no_grad()
def positive_masks(case: str, *overrides: Any, rounded: bool = False) -> tuple[Tensor, Tensor]:
    """Where mask logits are positive: of each frame before linking, ``T Q h w``, and linked, ``Q T h w``."""
    meta, golden = load_golden(f"e2e_{case}")
    model: Any = build_golden_model(meta, overrides).eval()
    if rounded:
        round_segmenter(model)
    frames = [torch.from_numpy(frame) for frame in golden["images"]]
    segmented = model.segment(model.prepare(frames).frames, with_masks=True)
    with model.engine().run(frames) as prediction:
        slots = torch.arange(len(prediction.probabilities))
        linked = prediction.masks.read(slots, 0, len(frames))
    return segmented.masks[0].transpose(0, 1) > 0, linked > 0


def main() -> None:
    """Measure and print."""
    forms: Sequence[tuple[str, tuple[str, ...], bool]] = (
        ("bfloat16", ("MODEL.MASK_FORMER.TEST.PRECISION", "bfloat16"), False),
        ("weights rounded", (), True),
    )
    rows = []
    for case in CASES:
        expected = positive_masks(case)
        for name, overrides, rounded in forms:
            found = positive_masks(case, *overrides, rounded=rounded)
            shares = [f"{(a == b).float().mean():.1%}" for a, b in zip(expected, found, strict=True)]
            rows.append([case, name, *shares])
    print(table(rows, ["golden video", "form", "each frame", "linked"]))


if __name__ == "__main__":
    main()
