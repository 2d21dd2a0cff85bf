#!/usr/bin/env python
"""Train several stages one after the other, each from the weights of the one before.

    python tools/train_stages.py configs/toy/MinVIS_toy.yaml configs/toy/DVIS_Online_toy.yaml \\
        configs/toy/DVIS_Offline_toy.yaml --output output/toy --num-gpus 1

Run the same command again to continue where it stopped: finished stages are skipped, the current one resumes.
Unknown arguments go to train_net_video.py as they are (--num-gpus ..., KEY value pairs for every stage).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import dvis
from dvis.cli import clear_errors

ROOT = Path(__file__).resolve().parents[1]
Runner = Callable[[list[str]], int]


def split_arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Return our own arguments, those of train_net_video.py, and the ``KEY value`` pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="YAML", help="one configuration per stage, in order")
    parser.add_argument(
        "--output", metavar="DIR", help="write each stage to DIR/<name>, not to its OUTPUT_DIR"
    )
    args, rest = parser.parse_known_args(arguments)
    configs = [name for name in args.configs if name.endswith((".yaml", ".yml"))]
    pairs = [name for name in args.configs if name not in configs]
    args.configs = configs
    # train_net_video.py takes its options first and the pairs last.
    options = []
    while rest and rest[0].startswith("-"):
        options.append(rest.pop(0))
        if rest and not rest[0].startswith("-") and "=" not in options[-1]:
            options.append(rest.pop(0))
    return args, options, [*rest, *pairs]


def is_finished(weights: Path, max_iter: int) -> bool:
    """Whether ``weights`` is the last checkpoint of a run of ``max_iter`` iterations."""
    if not weights.is_file():
        return False
    state = torch.load(weights, map_location="cpu", weights_only=True)
    return int(state.get("iteration", -1)) + 1 >= max_iter


def run_program(command: list[str]) -> int:
    return subprocess.run(command, check=False).returncode


def main(arguments: Sequence[str] | None = None, run: Runner = run_program) -> int:
    args, options, pairs = split_arguments(arguments)
    if not args.configs:
        sys.stderr.write("error: give one YAML file per stage\n")
        return 2
    previous: Path | None = None
    with clear_errors():
        configs = [dvis.load_config(path, pairs) for path in args.configs]
    for number, (path, cfg) in enumerate(zip(args.configs, configs, strict=True), start=1):
        folder = Path(args.output) / Path(path).stem if args.output else Path(cfg.OUTPUT_DIR)
        weights = folder / "model_final.pth"
        title = f"stage {number} of {len(configs)}: {path}"
        if is_finished(weights, cfg.SOLVER.MAX_ITER):
            print(f"{title} is finished: {weights}")
        else:
            print(f"{title} -> {folder}", flush=True)
            command = [sys.executable, str(ROOT / "train_net_video.py"), "--config-file", path, "--resume"]
            command += [*options, *pairs, "OUTPUT_DIR", str(folder)]
            if previous is not None:
                command += ["MODEL.WEIGHTS", str(previous)]
            code = run(command)
            if code:
                sys.stderr.write(f"error: {title} ended with code {code}; run the same command to continue\n")
                return code
        previous = weights
    print(f"all stages are finished; the last weights are {previous}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
