#!/usr/bin/env python
"""Parameters, multiply-adds and time of each part of a model, as a Markdown table (DVIS paper, table 9).

    python tools/analyze_model.py configs/ovis/DVIS_Offline_R50.yaml
    python tools/analyze_model.py configs/ovis/DVIS_Offline_R50.yaml \\
        configs/ovis/swin/DVIS_Offline_SwinL.yaml --size 480x864 --json analysis.json
    python tools/analyze_model.py configs/toy/DVIS_Offline_toy.yaml --opts MODEL.REFINER.TIME_CONV False

Weights are random: neither number depends on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

import dvis  # isort: skip  (first: it provides detectron2 where upstream is absent)

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis

from dvis.cli import clear_errors, positive_int
from dvis.data.files import write_json
from dvis.modeling.meta_arch.base import VideoModel
from dvis.modeling.structures import predict_masks

WHAT_IS_COUNTED = """\
MACs are multiply-adds per frame as fvcore counts them: convolutions, linear layers, matrix products and
einsum, and an elementwise share for norms and interpolations. Added are scaled dot-product attention (both
products) and deformable attention (5 per channel of a sampled point: 4 for the bilinear weights, 1 for the
attention weight). Softmax, activations, additions and the Hungarian matching are not counted. The
transformer decoder includes the masks that its masked attention needs; "masks" are the final ones of all
queries, of which inference makes only those it keeps. The tracker's second pass prepares what the refiner
looks at.
"""


@dataclasses.dataclass(frozen=True)
class PartCost:
    """What a part of a model costs.

    Attributes:
        part: its name.
        parameters: number of learned values (statistics of frozen batch norms are not among them).
        macs: multiply-adds per frame; None if not counted.
        seconds: median time per frame; None if not measured.
    """

    part: str
    parameters: int
    macs: float | None
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class _Part:
    name: str
    modules: tuple[nn.Module, ...]
    run: Callable[[Tensor], Any]
    tensor: Tensor  # what `run` takes
    num_frames: int  # that one run is for


class _Traceable(nn.Module):
    """A function as a module; it owns the modules that the function uses, as tracing demands."""

    def __init__(self, part: _Part) -> None:
        super().__init__()
        self.owned = nn.ModuleList(part.modules)
        self.run = part.run

    def forward(self, tensor: Tensor) -> list[Tensor]:
        return list(_tensors(self.run(tensor)))


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts and data classes."""
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, item.name) for item in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _shape(value: Any) -> list[int]:
    sizes = value.type().sizes()
    assert sizes is not None, f"the trace does not know the shape of {value}"
    return sizes


def _product(numbers: Sequence[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """``Q K^T`` and the product with V, of ``... Lq D``, ``... Lk D`` and ``... Lk Dv``."""
    query, key, value = (_shape(item) for item in inputs[:3])
    return _product(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _deformable_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Value ``B S M D``, locations ``B Lq M L P 2``: 5 per channel of each sampled point."""
    return 5 * _product(_shape(inputs[3])[:-1]) * _shape(inputs[0])[-1]


def _fused_deformable_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """The same from value ``B S M D`` and logits ``B Lq M*L*P``; offsets and softmax are part of the op."""
    return 5 * _product(_shape(inputs[5])) * _shape(inputs[0])[-1]


def _batched_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """``baddbmm(bias, B n k, B k m)``."""
    return _product(_shape(inputs[1])) * _shape(inputs[2])[-1]


HANDLES = {
    "aten::scaled_dot_product_attention": _attention_macs,
    "aten::baddbmm": _batched_macs,
    "dvis::ms_deform_attn": _deformable_macs,
    "dvis::ms_deform_attn_cpp_from_offsets": _fused_deformable_macs,
}
# Words in the name of an operator that has products; one of these must not go uncounted.
_PRODUCTS = ("mm", "matmul", "conv", "linear", "einsum", "attention", "attn", "bilinear", "dot")


def count_macs(part: _Part) -> float:
    """Multiply-adds of a part per frame, as fvcore's FlopCountAnalysis counts them; see ``WHAT_IS_COUNTED``.

    Raises:
        NotImplementedError: if the part has products that nobody counts; names the operators.
    """
    analysis = FlopCountAnalysis(_Traceable(part).eval(), (part.tensor,))
    analysis.set_op_handle(**HANDLES)
    analysis.uncalled_modules_warnings(False)
    analysis.unsupported_ops_warnings(False)
    analysis.tracer_warnings("none")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        total = float(analysis.total())
    missed = [name for name in analysis.unsupported_ops() if any(word in name for word in _PRODUCTS)]
    if missed:
        raise NotImplementedError(f"{part.name}: no count for {', '.join(sorted(missed))}")
    return total / part.num_frames


def measure_seconds(part: _Part, repeats: int) -> float:
    """Median time of a part per frame, after one run that does not count."""
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            _wait(part.tensor)
            start = time.perf_counter()
            part.run(part.tensor)
            _wait(part.tensor)
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) / part.num_frames


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def count_parameters(modules: Sequence[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def split_model(model: VideoModel, size: tuple[int, int], num_frames: int) -> list[_Part]:
    """The parts of a video model with an input for each.

    Args:
        model: in eval mode.
        size: height and width of a frame after padding.
        num_frames: length of the video that tracker and refiner see.
    """
    head: Any = model.sem_seg_head
    frame = torch.randn(1, 3, *size, device=model.device)
    with torch.no_grad():
        features = model.backbone(frame)
        mask_features, _, scales = head.pixel_decoder.forward_features(features)
        segmented = model.segment(frame[:, None])
        embeds = segmented.mask_embeds
        assert embeds is not None
        # Frames of a real video differ; with equal ones the matching could be easier than it is.
        queries = segmented.queries.expand(1, num_frames, -1, -1)
        queries = queries + 0.1 * torch.randn_like(queries)
    parts = [
        _Part("backbone", (model.backbone,), model.backbone, frame, 1),
        _Part(
            "pixel decoder",
            (head.pixel_decoder,),
            # The tracer follows the tensor it is given: let every feature map be the product of it.
            lambda one: head.pixel_decoder.forward_features({k: v * one for k, v in features.items()}),
            torch.ones(1, device=model.device),
            1,
        ),
        _Part(
            "transformer decoder",
            (head.predictor,),
            lambda one: head.predictor(
                [scale * one for scale in scales], mask_features * one, with_masks=False, with_aux=False
            ),
            torch.ones(1, device=model.device),
            1,
        ),
        _Part("masks", (), lambda m: predict_masks(embeds, m), segmented.mask_features, 1),
    ]
    tracker: Any = getattr(model, "tracker", None)
    refiner: Any = getattr(model, "refiner", None)
    if tracker is not None:
        parts.append(_Part("tracker", (tracker,), tracker, queries, num_frames))
    if refiner is not None:
        parts.append(_Part("tracker, second pass", (), tracker.frame_forward, queries, num_frames))
        parts.append(_Part("refiner", (refiner,), lambda q: refiner(q, queries), queries, num_frames))
    return parts


def analyze(
    cfg: CfgNode, size: tuple[int, int] | None = None, num_frames: int = 10, repeats: int = 3
) -> tuple[list[PartCost], tuple[int, int]]:
    """Costs of a model's parts, with the segmenter and the whole as sums.

    Args:
        cfg: of a video model; it is built with random weights.
        size: height and width of a frame; None: short side as in evaluation, 16 : 9.
        num_frames: length of the video that tracker and refiner see; the refiner's attention over time grows
            with it.
        repeats: timed runs per part; 0: no times.

    Returns:
        The costs, and the size after padding.
    """
    model = build_model(cfg).eval()
    if not isinstance(model, VideoModel):
        raise ValueError(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, not a video model")
    height, width = size or (cfg.INPUT.MIN_SIZE_TEST, round(cfg.INPUT.MIN_SIZE_TEST * 16 / 9))
    divisor = max(model.size_divisibility, 1)
    padded = (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
    costs = [
        PartCost(
            part.name,
            count_parameters(part.modules),
            count_macs(part),
            measure_seconds(part, repeats) if repeats else None,
        )
        for part in split_model(model, padded, num_frames)
    ]
    costs.insert(3, _sum("segmenter", costs[:3]))
    costs.append(_sum("all", costs[3:]))
    return costs, padded


def _sum(name: str, costs: Sequence[PartCost]) -> PartCost:
    times = [cost.seconds for cost in costs if cost.seconds is not None]
    return PartCost(
        name,
        sum(cost.parameters for cost in costs),
        sum(cost.macs or 0.0 for cost in costs),
        sum(times) if times else None,
    )


def as_markdown(costs: Sequence[PartCost]) -> str:
    lines = ["| part | parameters (M) | MACs (G) per frame | ms per frame |", "| --- | ---: | ---: | ---: |"]
    for cost in costs:
        bold = "**" if cost.part in ("segmenter", "tracker", "refiner", "all") else ""
        seconds = "" if cost.seconds is None else f"{1000 * cost.seconds:.1f}"
        parameters = f"{cost.parameters / 1e6:.2f}" if cost.parameters else ""
        macs = "" if cost.macs is None else f"{cost.macs / 1e9:.2f}"
        lines.append(f"| {bold}{cost.part}{bold} | {parameters} | {macs} | {seconds} |")
    return "\n".join(lines)


def parse_size(text: str) -> tuple[int, int]:
    """``480x864`` -> (480, 864), height first."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"a size is HEIGHTxWIDTH, for instance 480x864, not {text!r}")
    return int(parts[0]), int(parts[1])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="YAML")
    parser.add_argument(
        "--size", type=parse_size, help="HEIGHTxWIDTH of a frame; if not given, as in evaluation, 16 : 9"
    )
    parser.add_argument(
        "--frames", type=positive_int, default=10, help="of the video for tracker and refiner (10)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed runs, 0 for no times (3)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY value pairs, last on the line"
    )
    args = parser.parse_args(arguments)
    if args.repeats < 0:
        parser.error("--repeats is at least 0")
    results = {}
    for path in args.configs:
        with clear_errors():
            cfg = dvis.load_config(path, ["MODEL.DEVICE", args.device, *args.opts])
            costs, padded = analyze(cfg, args.size, args.frames, args.repeats)
        title = f"{Path(path).stem}, {padded[0]} x {padded[1]} (padded), video of {args.frames} frames"
        print(f"**{title}**\n\n{as_markdown(costs)}\n", flush=True)
        results[path] = {"size": padded, "parts": [dataclasses.asdict(cost) for cost in costs]}
    print(WHAT_IS_COUNTED)
    if args.repeats:
        print(f"Times: {_machine(args.device)}, float32, median of {args.repeats}.")
    if args.json:
        write_json(args.json, {"frames": args.frames, "machine": _machine(args.device), "models": results})
    return 0


def _machine(device: str) -> str:
    name = (
        torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else f"CPU with {torch.get_num_threads()} threads ({platform.machine()})"
    )
    return f"{name}, PyTorch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
