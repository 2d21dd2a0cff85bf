#!/usr/bin/env python
"""Evaluate the weights in checkpoints/toy and write their scores beside them, which a test compares with.

    python tools/score_shipped_weights.py             # writes checkpoints/toy/scores.json
    python tools/score_shipped_weights.py --check     # only compares

NAME.pth belongs to configs/toy/NAME.yaml. The validation videos are generated where they are missing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dvis  # isort: skip  (first: it provides detectron2 where upstream is absent)

from detectron2.modeling import build_model

from dvis.checkpoint import load_weights
from dvis.cli import clear_errors
from dvis.data.datasets import get_spec
from dvis.data.errors import MissingDataError
from dvis.data.files import read_json, write_json
from dvis.data.toy import LEVELS, ToySettings, generate, toy_name
from dvis.engine import VideoTrainer
from dvis.engine.launch import use_available_device

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "checkpoints" / "toy"
CONFIGS = ROOT / "configs" / "toy"
# Percent. Masks are thresholded, so another machine's rounding moves a score a little.
TOLERANCE = 0.5

Scores = dict[str, dict[str, float]]


def config_of(weights: Path) -> Path:
    """The configuration of a shipped file.

    Raises:
        FileNotFoundError: if there is none of its name.
    """
    path = CONFIGS / f"{weights.stem}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{weights} belongs to no configuration: there is no {path}")
    return path


def prepare_data(name: str) -> None:
    """Generate the videos of a toy data set's validation split, unless they are there."""
    spec = get_spec(name)
    try:
        spec.check_files()
    except MissingDataError:
        level = next(level for level in LEVELS if name.startswith(f"{toy_name(level)}_v"))
        # Validation videos do not depend on the number of training videos.
        root = spec.annotation_path
        while root.name != toy_name(level):
            root = root.parent
        generate(root, ToySettings(level=level, num_train=0))


def evaluate(weights: Path, overrides: list[str]) -> Scores:
    """Scores of a shipped file: task to metric to percent."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = dvis.load_config(config_of(weights), [*overrides, "OUTPUT_DIR", folder])
        use_available_device(cfg)
        for name in cfg.DATASETS.TEST:
            prepare_data(name)
        model: Any = build_model(cfg)
        load_weights(model, weights, complete=True)
        results = VideoTrainer.test(cfg, model)
    return {task: {key: float(value) for key, value in found.items()} for task, found in results.items()}


def differences(expected: Scores, found: Scores) -> list[str]:
    """What is not as expected, in words. Undefined scores (not a number) have to be so on both sides."""
    lines = []
    for task, numbers in expected.items():
        for key, value in numbers.items():
            other = found.get(task, {}).get(key, float("nan"))
            both_undefined = value != value and other != other
            if not both_undefined and not abs(value - other) <= TOLERANCE:
                lines.append(f"{task} {key}: {other:.2f} instead of {value:.2f}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the weights")
    parser.add_argument("--check", action="store_true", help="compare with scores.json, write nothing")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY value pairs, at the end")
    args = parser.parse_args(arguments)
    path = args.folder / "scores.json"
    files = sorted(args.folder.glob("*.pth"))
    if not files:
        sys.stderr.write(f"error: there are no weights in {args.folder}\n")
        return 2
    with clear_errors():
        found = {file.name: evaluate(file, args.opts) for file in files}
        expected = read_json(path) if args.check else found
    for name, scores in found.items():
        text = ", ".join(
            f"{key} {value:.1f}" for numbers in scores.values() for key, value in numbers.items()
        )
        print(f"{name}: {text}")
    wrong = [
        f"{name}: {line}" for name in expected for line in differences(expected[name], found.get(name, {}))
    ]
    if wrong:
        sys.stderr.write("\n".join(["error: scores differ", *wrong]) + "\n")
        return 1
    if not args.check:
        write_json(path, found, indent=1)
        print(f"Written to {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
