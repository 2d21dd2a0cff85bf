#!/usr/bin/env python
"""How often a segmenter's queries stay with their object by themselves: matching them changes nothing then.

    python tools/measure_query_order.py configs/toy/MinVIS_toy_occluded.yaml \\
        MODEL.WEIGHTS checkpoints/toy/MinVIS_toy_occluded.pth

In the DATASETS.TEST videos each frame's queries are matched to those of the frame before. Printed is the
share of queries that are matched to the one of the same number: of all, and of those that are sure to see an
object.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dvis  # isort: skip  (first: it provides detectron2 where upstream is absent)

import torch
from detectron2.modeling import build_model
from torch import Tensor
from tqdm import tqdm

from dvis.checkpoint import load_weights
from dvis.cli import clear_errors
from dvis.engine import VideoTrainer
from dvis.engine.launch import use_available_device
from dvis.modeling.matching import match_frames


@torch.no_grad()
def kept_places(model: Any, frames: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Which queries keep their number from frame to frame.

    Args:
        model: a ``VideoModel`` in eval mode.
        frames: of one video, ``1 T 3 H W``, as ``model.preprocess`` gives them.
        threshold: class probability from which a query is sure.

    Returns:
        Two bool tensors ``T-1 Q`` for the frames after the first: same number, sure.
    """
    output = model.segment(frames)
    queries = output.queries
    pairs = torch.stack([queries[0, :-1], queries[0, 1:]], dim=1)  # T-1 2 Q C
    order = match_frames(pairs, None, inverse=False)[:, 1]
    is_sure = output.logits[0, 1:].softmax(-1)[..., :-1].amax(-1) >= threshold
    return order.to(is_sure.device) == torch.arange(order.shape[1], device=is_sure.device), is_sure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML file")
    parser.add_argument("--threshold", type=float, default=0.3, help="class probability of a sure query")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY value pairs")
    args = parser.parse_args(arguments)
    same, sure = [], []
    with clear_errors():
        cfg = dvis.load_config(args.config, args.opts)
        use_available_device(cfg)
        model: Any = build_model(cfg).eval()
        load_weights(model, cfg.MODEL.WEIGHTS, complete=True)
        for name in cfg.DATASETS.TEST:
            for (video,) in tqdm(VideoTrainer.build_test_loader(cfg, name), desc=name, disable=None):
                if len(video["image"]) > 1:
                    kept, is_sure = kept_places(model, model.preprocess([video]), args.threshold)
                    same.append(kept.flatten().cpu())
                    sure.append(is_sure.flatten().cpu())
    if not same:
        sys.stderr.write("error: no video has two frames\n")
        return 2
    kept, is_sure = torch.cat(same), torch.cat(sure)
    print(f"all queries: {kept.float().mean():.1%} of {len(kept)} keep their number")
    print(f"sure queries: {kept[is_sure].float().mean():.1%} of {int(is_sure.sum())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
