"""Time of multi-scale deformable attention per back end, at the sizes of the R50 pixel decoder's encoder.

    python benchmarks/ms_deform_attn.py                        the CPU, or the GPU if there is one
    python benchmarks/ms_deform_attn.py --sizes 360p 720p --dtypes float32 bfloat16 --rounds 20

All back ends run in turn (A B C A B C ...), so that a machine that becomes slower does so for all of them.
Prints Markdown: medians over the rounds, the best round in brackets, and how many times faster than the
first back end, normally ``reference``, the plain ``grid_sample`` form. Last the bytes that have to move at
least (every input read once, every output written once) per second; on a GPU also what a plain copy reaches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone need not be installed

from benchmarks.machine import processor
from mask2former.modeling.pixel_decoder.ops.functions import (
    available_backends,
    backend_report,
    ms_deform_attn,
    ms_deform_attn_reference,
)

SIZES = {"360p": (360, 640), "480p": (480, 854), "720p": (720, 1280)}
STRIDES = (8, 16, 32)
HEADS, CHANNELS, POINTS = 8, 32, 4
OFFSET_PIXELS = 2.0  # standard deviation of a sample's distance from its query


def encoder_inputs(height: int, width: int, batch: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """What an encoder layer gives to the operator: every pixel of every level looks around itself."""
    torch.manual_seed(0)
    levels = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    centres = []
    for rows, columns in levels:
        y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
        centres.append(
            torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], dim=-1).view(-1, 2)
        )
    queries = torch.cat(centres)
    samples = (batch, len(queries), HEADS, len(levels), POINTS)
    shapes = torch.tensor(levels)
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
    offsets = torch.randn(*samples, 2) * OFFSET_PIXELS / shapes.flip(-1)[:, None]
    locations = queries[:, None, None, None] + offsets
    attention = torch.rand(*samples).flatten(3).softmax(-1).view(samples)
    value = torch.randn(batch, len(queries), HEADS, CHANNELS)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = [value.to(dtype), shapes, starts, locations.to(precise), attention.to(precise)]
    return [t.to(device).contiguous() for t in tensors]


def seconds(function: Callable[[], object], device: str, calls: int) -> float:
    """Time of one call; ``calls`` of them are timed together."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / calls
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - begin) / calls


def passes(name: str, inputs: list[Tensor]) -> dict[str, Callable[[], object]]:
    """The forward pass without gradients and the backward pass of one back end, ready to be called."""

    def function(
        value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, attention: Tensor
    ) -> Tensor:
        if name == "reference":
            precise = value.to(locations.dtype)
            return ms_deform_attn_reference(precise, shapes, starts, locations, attention).to(value.dtype)
        return ms_deform_attn(value, shapes, starts, locations, attention, backend=name)

    def forward() -> Tensor:
        with torch.inference_mode():
            return function(*inputs)

    recorded = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    output = function(*recorded)
    grad_output = torch.randn_like(output)
    wanted = [t for t in recorded if t.requires_grad]

    def backward() -> object:
        return torch.autograd.grad(output, wanted, grad_output, retain_graph=True)

    return {"forward": forward, "backward": backward}


def least_bytes(inputs: list[Tensor], direction: str) -> int:
    """Every input read once, every output written once."""
    size = [t.numel() * t.element_size() for t in inputs]
    output = inputs[0].numel() * inputs[0].element_size()  # queries are pixels: as large as the value
    read = sum(size) + output
    return read if direction == "forward" else read + size[0] + size[3] + size[4]


def copy_ceiling() -> float:
    """Bytes per second, read and written, of a device-to-device copy."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    rates = [2 * source.numel() / seconds(lambda: target.copy_(source), "cuda", 10) for _ in range(5)]
    return statistics.median(rates)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["360p"])
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32"], help="of the values: float32, bfloat16, ..."
    )
    parser.add_argument("--batch", type=int, default=1, help="frames")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, help="calls per timing; default 1 on a CPU, 20 on a GPU")
    parser.add_argument("--backends", nargs="+", help="default: reference and all that run there")
    args = parser.parse_args()
    other = {"cpu": "cuda", "cuda": "cpp"}[args.device]
    names = args.backends or ["reference", *(b for b in reversed(available_backends()) if b != other)]
    calls = args.calls or (20 if args.device == "cuda" else 1)

    where = torch.cuda.get_device_name() if args.device == "cuda" else processor()
    print(f"{where}; PyTorch {torch.__version__}; {torch.get_num_threads()} threads", end="")
    print(f"; load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "")
    for name, state in backend_report().items():
        print(f"- {name}: {state}")
    if args.device == "cuda":
        print(f"- copy: {copy_ceiling() / 1e12:.2f} TB/s")
    print("\n| size | values | pass | back end | ms, median (best) | times faster | least GB/s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in args.sizes:
        for dtype in args.dtypes:
            inputs = encoder_inputs(*SIZES[size], args.batch, getattr(torch, dtype), args.device)
            ready = {name: passes(name, inputs) for name in names}
            for direction in ("forward", "backward"):
                for name in names:
                    ready[name][direction]()  # warm-up
                times: dict[str, list[float]] = {name: [] for name in names}
                for _ in range(args.rounds):
                    for name in names:
                        times[name].append(seconds(ready[name][direction], args.device, calls))
                slowest = statistics.median(times[names[0]])
                for name in names:
                    median, best = statistics.median(times[name]), min(times[name])
                    rate = least_bytes(inputs, direction) / median / 1e9
                    print(f"| {size} | {dtype} | {direction} | {name}", end=" | ")
                    print(f"{median * 1e3:.3g} ({best * 1e3:.3g}) | {slowest / median:.1f} | {rate:.3g} |")


if __name__ == "__main__":
    main()
