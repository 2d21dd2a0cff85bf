#!/usr/bin/env python
"""Draw losses, scores and speed of one or several trainings as a PNG.

    python tools/plot_metrics.py output/metrics.json --output loss.png
    python tools/plot_metrics.py a/metrics.json b/metrics.json --output both.png --metrics total_loss segm/AP

Every metric is a panel, every file a line. A training that was resumed has some iterations twice: the later
line of the file counts.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dvis.cli import clear_errors, positive_int

# What is drawn by default, where it is there: patterns of names.
DEFAULT = [
    "total_loss",
    "loss_*[!0-9]",
    "*/AP",
    "*/PQ",
    "*/VPQ",
    "*/mIoU",
    "lr",
    "images_per_second",
    "peak_memory_mb",
]

Curves = dict[str, dict[int, float]]  # metric -> iteration -> value


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="metrics.json")
    parser.add_argument("--output", required=True, metavar="PNG")
    parser.add_argument(
        "--metrics", nargs="+", default=DEFAULT, metavar="NAME", help="names or patterns such as 'loss_*'"
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the lines; default: the folders'")
    parser.add_argument(
        "--smooth", type=positive_int, default=1, metavar="N", help="mean of N points (default 1: none)"
    )
    args = parser.parse_args(arguments)
    if args.names and len(args.names) != len(args.files):
        parser.error(f"{len(args.files)} files, but {len(args.names)} names")
    return args


def read_curves(path: Path) -> Curves:
    """The metrics of a file with one JSON object per line; a last line that was cut off is left out.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if there is anything else in it, or no number; names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    curves: Curves = {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            iteration = int(row["iteration"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # a run that was killed while it wrote
                break
            raise ValueError(f"{path}, line {number}: not a line of metrics ({error!r})") from error
        for name, value in row.items():
            if name != "iteration" and isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name, {})[iteration] = float(value)
    if not curves:
        raise ValueError(f"{path}: no metrics in it")
    return curves


def choose(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names that match one of the patterns, in the order of these, each once."""
    found = [name for pattern in patterns for name in sorted(names) if fnmatch.fnmatchcase(name, pattern)]
    return list(dict.fromkeys(found))


def smoothed(values: Sequence[float], size: int) -> list[float]:
    """The mean of each value and up to ``size - 1`` before it."""
    return [sum(values[max(0, i + 1 - size) : i + 1]) / min(size, i + 1) for i in range(len(values))]


def plot(curves: dict[str, Curves], metrics: Sequence[str], output: Path, smooth: int = 1) -> None:
    """Draw one panel per metric with a line per training.

    Args:
        curves: metrics of each training, by its name.
        metrics: which to draw.
        output: the picture.
        smooth: see `smoothed`.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    for position, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(rows, columns, position)
        for name, training in curves.items():
            points = sorted(training.get(metric, {}).items())
            if points:
                iterations, values = zip(*points, strict=True)
                marker = "o" if len(points) < 20 else None
                axes.plot(
                    iterations, smoothed(values, smooth), label=name, marker=marker, markersize=3, linewidth=1
                )
        axes.set_title(metric, fontsize=10)
        axes.set_xlabel("iteration", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110, format="png")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    with clear_errors():
        files = [Path(file) for file in args.files]
        names = args.names or [file.parent.name or str(file) for file in files]
        if len(set(names)) < len(names):
            names = [str(file) for file in files]
        curves = {name: read_curves(file) for name, file in zip(names, files, strict=True)}
        every = {metric for training in curves.values() for metric in training}
        metrics = choose(sorted(every), args.metrics)
        if not metrics:
            raise ValueError(
                f"no metric is called {' or '.join(args.metrics)}; there are {', '.join(sorted(every))}"
            )
    plot(curves, metrics, Path(args.output), args.smooth)
    print(f"{args.output}: {', '.join(metrics)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
