#!/usr/bin/env python
"""The ablations of the DVIS paper on the toy world, as tables: trained, evaluated and written by one command.

    python tools/reproduce_toy_ablation.py --output output/ablation --seeds 0 1 2
    python tools/reproduce_toy_ablation.py --output output/ablation --only modes windows --seeds 0
    python tools/reproduce_toy_ablation.py --output output/ablation --dry-run         # what would be done
    python tools/reproduce_toy_ablation.py --segmenter checkpoints/toy/MinVIS_toy_occluded.pth # for all

It takes hours on a CPU and may be stopped at any time: the same command goes on where it stopped, finished
trainings and evaluations are kept, more seeds and tables can be added. Everything of a seed shares its
segmenter, variants of the refiner share its tracker. ablation.md and ablation.json are written again after
each evaluation, with what there is.

    <output>/seed<S>/<training>/model_final.pth     one folder per training, as tools/train_stages.py has it
    <output>/seed<S>/<evaluation>.json              scores, and what they are of
    <output>/frozen_segmenter                       its outputs for all trainings (3 GB per segmenter); may be
                                                    removed at any time
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dvis
from dvis.cli import clear_errors, positive
from dvis.data.datasets import get_spec
from dvis.data.errors import MissingDataError
from dvis.data.files import read_json, write_json
from dvis.data.toy import ToySettings, generate, toy_name
from dvis.evaluation.scoring import score_instances
from tools.train_stages import ROOT, is_finished, run_program

Runner = Callable[[list[str]], int]
LEVELS = ("occluded", "easy")  # that have configurations
METRICS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP_light": "AP light",
    "AP_medium_occ": "AP moderate",
    "AP_heavy": "AP heavy",
    "AR10": "AR10",
    "AR_light": "AR light",
    "AR_heavy": "AR heavy",
}


@dataclasses.dataclass(frozen=True)
class Training:
    """A model to train.

    Attributes:
        name: of its folder.
        stage: beginning of its configuration's name.
        changes: ``KEY, value, ...`` over the configuration.
        parent: what it starts from; None for the segmenter.
    """

    name: str
    stage: str
    changes: tuple[str, ...] = ()
    parent: Training | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table: a trained model, evaluated with some changes to its configuration."""

    title: str
    training: Training
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the evaluation's file; equal rows of several tables share it."""
        suffix = "".join(f"-{key.rpartition('.')[2].lower()}_{value}" for key, value in _pairs(self.changes))
        return self.training.name + suffix


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows, and which of them should be better: by the paper, or because they are the default.

    Attributes:
        title: of the table.
        rows: its lines.
        claims: titles of two rows, the better one first.
        judged_by: metrics that decide on the claims.
    """

    title: str
    rows: tuple[Row, ...]
    claims: tuple[tuple[str, str], ...] = ()
    judged_by: tuple[str, ...] = ("AP", "AR10")


def _pairs(changes: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from zip(changes[::2], changes[1::2], strict=True)


def build_tables() -> dict[str, Table]:
    """All tables by their name on the command line."""
    segmenter = Training("MinVIS", "MinVIS")
    online = Training("DVIS_Online", "DVIS_Online", (), segmenter)
    offline = Training("DVIS_Offline", "DVIS_Offline", (), online)

    def tracker(name: str, *changes: str) -> Training:
        return Training(f"DVIS_Online-{name}", "DVIS_Online", changes, segmenter)

    def refiner(name: str, *changes: str) -> Training:
        return Training(f"DVIS_Offline-{name}", "DVIS_Offline", changes, online)

    def without(title: str, switch: str) -> Row:
        return Row(title, refiner(f"no_{switch.lower()}", f"MODEL.REFINER.{switch}", "False"))

    modes = (Row("MinVIS", segmenter), Row("DVIS online", online), Row("DVIS offline", offline))
    starts = ("zero", "previous", "segmenter")
    window = ("MODEL.MASK_FORMER.TEST.REFINE_OVER", "window", "MODEL.MASK_FORMER.TEST.WINDOW_SIZE")
    windows = (1, 3, 6, 12)
    matched = Row("matched", online)
    components = (
        Row("no refiner (DVIS online)", online),
        without("without attention over time", "TIME_ATTENTION"),
        without("without convolutions over time", "TIME_CONV"),
        without("without attention among objects", "OBJECT_ATTENTION"),
        without("without cross attention", "CROSS_ATTENTION"),
        without("without weights over time", "CLASS_WEIGHTING"),
    )
    standard = ("MODEL.TRACKER.CROSS_ATTENTION", "standard")
    shuffled = ("MODEL.TRACKER.SHUFFLE_QUERIES", "True")
    return {
        "modes": Table(
            "MinVIS, online, offline (paper, table 5)",
            modes,
            (("DVIS online", "MinVIS"), ("DVIS offline", "DVIS online")),
            ("AP", "AP_heavy", "AR10", "AR_heavy"),
        ),
        "initial_value": Table(
            "Where the tracker's output starts (paper, table 6)",
            (
                *(Row(s, tracker(f"start_{s}", "MODEL.TRACKER.INITIAL_VALUE", s)) for s in starts),
                matched,
            ),
            tuple(("matched", start) for start in starts),
        ),
        "cross_attention": Table(
            "Cross attention of the tracker, and where its output starts (paper, table 7)",
            (
                *(
                    Row(
                        f"standard, {start}",
                        tracker(f"standard_{start}", *standard, "MODEL.TRACKER.INITIAL_VALUE", start),
                    )
                    for start in ("previous", "segmenter")
                ),
                Row("standard, matched", tracker("standard", *standard)),
                Row("referring, matched", online),
            ),
            tuple(
                ("referring, matched", f"standard, {start}") for start in ("previous", "segmenter", "matched")
            ),
        ),
        "shuffled": Table(
            "The same with the segmenter's queries shuffled in every frame",
            (
                *(
                    Row(
                        f"{attention}, segmenter",
                        tracker(
                            f"{attention}_segmenter_shuffled",
                            *("MODEL.TRACKER.CROSS_ATTENTION", attention),
                            *("MODEL.TRACKER.INITIAL_VALUE", "segmenter"),
                            *shuffled,
                        ),
                    )
                    for attention in ("standard", "referring")
                ),
                Row("standard, matched, shuffled only here", tracker("standard", *standard), shuffled),
                Row("referring, matched, shuffled only here", online, shuffled),
            ),
            (("referring, segmenter", "standard, segmenter"),),
        ),
        "matching": Table(
            "Permutation by which queries are put in order (published weights: inverse)",
            (
                Row("inverse", tracker("inverse", "MODEL.TRACKER.MATCHING", "inverse")),
                Row("forward", online),
            ),
        ),
        "refiner": Table(
            "Components of the refiner (paper, table 8)",
            (*components, Row("all", offline)),
            tuple(("all", row.title) for row in components),
        ),
        "windows": Table(
            "Frames that the refiner sees: semi-online (paper, appendix, table II)",
            (
                Row("no refiner (DVIS online)", online),
                *(Row(f"{n} frames", offline, (*window, str(n))) for n in windows),
                Row("whole video (DVIS offline)", offline),
            ),
            tuple(("whole video (DVIS offline)", f"{n} frames") for n in windows),
        ),
        "clips": Table(
            "Frames per training clip",
            (
                *(Row(f"tracker, {n}", tracker(f"clip{n}", *_clip(n))) for n in (3, 5)),
                Row("tracker, 9 (default)", online),
                *(Row(f"refiner, {n}", refiner(f"clip{n}", *_clip(n))) for n in (5, 9)),
                Row("refiner, 15 (default)", offline),
            ),
            (
                *(("tracker, 9 (default)", f"tracker, {n}") for n in (3, 5)),
                *(("refiner, 15 (default)", f"refiner, {n}") for n in (5, 9)),
            ),
        ),
    }


def _clip(num_frames: int) -> tuple[str, ...]:
    """Settings for clips of that many consecutive frames."""
    reach = str(num_frames // 2)
    return ("INPUT.SAMPLING_FRAME_NUM", str(num_frames), "INPUT.SAMPLING_FRAME_RANGE", reach)


class Ablation:
    """Trains and evaluates what the tables need, and keeps the results in a folder."""

    def __init__(
        self,
        output: Path,
        level: str = "occluded",
        scale: float = 1.0,
        changes: Sequence[str] = (),
        segmenter: Path | None = None,
        run: Runner = run_program,
    ) -> None:
        """
        Args:
            output: folder of all results.
            level: of the toy world.
            scale: factor on the number of iterations of every training.
            changes: ``KEY, value, ...`` for everything.
            segmenter: weights of a trained one that all seeds start from; None: each seed trains its own.
            run: runs a program and returns its exit code.

        Raises:
            ValueError: if the folder holds results of other settings.
        """
        self.output = output
        self.level = level
        self.scale = scale
        self.changes = tuple(changes)
        self.segmenter = segmenter
        self.run = run
        settings = {
            "level": level,
            "iterations_scale": scale,
            "changes": list(changes),
            "segmenter": None if segmenter is None else str(segmenter),
        }
        path = output / "settings.json"
        if path.exists() and read_json(path) != settings:
            raise ValueError(f"{path} has other settings; choose another --output")
        self._settings = settings

    def start(self) -> None:
        """Prepare data and folder."""
        write_json(self.output / "settings.json", self._settings, indent=1)
        spec = get_spec(f"{toy_name(self.level)}_vis_val")
        try:
            spec.check_files()
        except MissingDataError:
            generate(spec.annotation_path.parent, ToySettings(level=self.level))

    def config(self, training: Training) -> str:
        name = f"{training.stage}_{toy_name(self.level)}"
        # The levels come last in the names of configurations: MinVIS_toy_occluded.
        return str(ROOT / "configs" / "toy" / f"{name}.yaml")

    def settings(self, training: Training, seed: int) -> list[str]:
        """``KEY value`` pairs of a training, as its folder depends on nothing else."""
        solver = dvis.load_config(self.config(training), [*self.changes, *training.changes]).SOLVER
        scaled = {
            "MAX_ITER": max(2, round(solver.MAX_ITER * self.scale)),
            "WARMUP_ITERS": round(solver.WARMUP_ITERS * self.scale),
        }
        pairs = [item for key, value in scaled.items() for item in (f"SOLVER.{key}", str(value))]
        return [*self.changes, *training.changes, *pairs, "SEED", str(seed)]

    def _given(self, training: Training) -> Path | None:
        """Weights that were given and need no training; None for what is trained here."""
        return self.segmenter if training.parent is None else None

    def weights(self, training: Training, seed: int) -> Path:
        given = self._given(training)
        if given is not None:
            return given
        name = training.name.replace(training.stage, Path(self.config(training)).stem, 1)
        return self.output / f"seed{seed}" / name / "model_final.pth"

    def result_path(self, row: Row, seed: int) -> Path:
        return self.output / f"seed{seed}" / f"{row.name}.json"

    def trainings(self, row: Row) -> list[Training]:
        """What has to be trained for a row, each after what it starts from."""
        chain: list[Training] = []
        training: Training | None = row.training
        while training is not None and self._given(training) is None:
            chain.insert(0, training)
            training = training.parent
        return chain

    def is_trained(self, training: Training, seed: int) -> bool:
        settings = dict(_pairs(self.settings(training, seed)))
        return is_finished(self.weights(training, seed), int(settings["SOLVER.MAX_ITER"]))

    def train(self, training: Training, seed: int) -> int:
        """Train, or go on with it; returns the program's exit code."""
        weights = self.weights(training, seed)
        command = self._program(training, "--resume")
        command += [*self.settings(training, seed), "OUTPUT_DIR", str(weights.parent), "DATASETS.TEST", "()"]
        # All trainings see the same frames.
        command += ["MODEL.MASK_FORMER.FROZEN.CACHE_DIR", str(self.output / "frozen_segmenter")]
        if training.parent is not None:
            command += ["MODEL.WEIGHTS", str(self.weights(training.parent, seed))]
        return self.run(command)

    def evaluate(self, row: Row, seed: int) -> int:
        """Evaluate and write the scores; returns the program's exit code."""
        path = self.result_path(row, seed)
        folder = path.with_suffix("")
        weights = self.weights(row.training, seed)
        command = self._program(row.training, "--eval-only")
        command += [*self.settings(row.training, seed), *row.changes]
        command += ["OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", str(weights)]
        start = time.monotonic()
        code = self.run(command)
        if code:
            return code
        data = f"{toy_name(self.level)}_vis_val"
        truth = get_spec(data).annotation_path
        found = folder / "inference" / data / "results.json"
        result = score_instances(truth, read_json(truth), found, read_json(found), "ovis")
        content = {
            "title": row.title,
            "training": row.training.name,
            "config": Path(self.config(row.training)).name,
            "changes": [*self.settings(row.training, seed), *row.changes],
            "seed": seed,
            "seconds": round(time.monotonic() - start, 1),
            "stats": result.stats,
        }
        write_json(path, content, indent=1)
        return 0

    def _program(self, training: Training, option: str) -> list[str]:
        program = str(ROOT / "train_net_video.py")
        return [sys.executable, program, "--config-file", self.config(training), option]

    def results(self, row: Row, seeds: Sequence[int]) -> dict[int, dict[str, float]]:
        """Scores by seed, of the seeds that are finished."""
        paths = {seed: self.result_path(row, seed) for seed in seeds}
        return {seed: read_json(path)["stats"] for seed, path in paths.items() if path.exists()}

    def report(self, tables: Sequence[Table], seeds: Sequence[int]) -> str:
        """The tables as Markdown, with what there is so far."""
        lines = [
            f"# Ablations on the toy world, level {self.level}",
            "",
            f"Mean and standard deviation over the seeds ({', '.join(map(str, seeds))}) in percent, OVIS's "
            "metrics. All runs see the same data; a seed stands for initial weights and order of clips.",
        ]
        if self.segmenter is not None:
            lines += ["", "All seeds share one segmenter, so MinVIS has no spread of its own here."]
        if self.scale != 1:
            lines += ["", f"**Trainings have {self.scale:g} times the default number of iterations.**"]
        for table in tables:
            lines += ["", f"## {table.title}", "", "| | " + " | ".join(METRICS.values()) + " | seeds |"]
            lines += ["| --- |" + " ---: |" * (len(METRICS) + 1)]
            found = {row.title: self.results(row, seeds) for row in table.rows}
            for title, results in found.items():
                cells = [_mean_and_spread([r[key] for r in results.values()]) for key in METRICS]
                lines.append(f"| {title} | {' | '.join(cells)} | {len(results)} |")
            claims = [
                text
                for better, worse in table.claims
                for metric in table.judged_by
                if (text := _judge(found, better, worse, metric))
            ]
            lines += ["", *claims] if claims else []
        return "\n".join(line for line in lines if line is not None) + "\n"

    def write_report(self, tables: Sequence[Table], seeds: Sequence[int]) -> None:
        (self.output / "ablation.md").write_text(self.report(tables, seeds), encoding="utf-8")
        content = {
            table.title: {row.title: self.results(row, seeds) for row in table.rows} for table in tables
        }
        write_json(self.output / "ablation.json", content, indent=1)


def _mean_and_spread(values: Sequence[float]) -> str:
    values = [100 * value for value in values if value >= 0]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _judge(found: dict[str, dict[int, dict[str, float]]], better: str, worse: str, metric: str) -> str:
    """Whether a claim holds, seed against the same seed; empty if there is nothing to compare.

    Two seeds are too few for a verdict: half of all pairs of numbers have a mean above their spread.
    """
    seeds = found[better].keys() & found[worse].keys()
    gains = [100 * (found[better][seed][metric] - found[worse][seed][metric]) for seed in sorted(seeds)]
    if not gains:
        return ""
    mean = statistics.mean(gains)
    text = f"* {better} against {worse}, {METRICS[metric]}: {mean:+.1f}"
    if len(gains) < 2:
        return f"{text} (one seed, so nothing is known about the spread)"
    spread = statistics.stdev(gains)
    if len(gains) < 3:
        verdict = "too few seeds to tell"
    else:
        verdict = "holds" if mean > spread else "reversed" if mean < -spread else "within the spread"
    each = ", ".join(f"{gain:+.1f}" for gain in gains)
    return f"{text} ± {spread:.1f} over {len(gains)} seeds ({each}): **{verdict}**"


def main(arguments: list[str] | None = None, run: Runner = run_program) -> int:
    tables = build_tables()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/ablation"), help="folder of all results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(tables), default=list(tables), help="tables")
    parser.add_argument("--level", choices=LEVELS, default="occluded", help="of the toy world")
    parser.add_argument(
        "--iterations-scale", type=positive, default=1.0, help="factor on the length of every training"
    )
    parser.add_argument(
        "--segmenter",
        type=Path,
        metavar="PTH",
        help="weights of a trained segmenter for all seeds; if not given, each seed trains its own",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what is to be done")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY value pairs for everything, at the end"
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = [tables[name] for name in args.only]
    rows = list({row.name: row for table in chosen for row in table.rows}.values())
    with clear_errors():
        ablation = Ablation(args.output, args.level, args.iterations_scale, args.opts, args.segmenter, run)
        steps = list(plan(ablation, rows, args.seeds))
    if args.dry_run:
        for title, _ in steps:
            print(title)
        return 0
    if steps:
        ablation.start()
    begin = time.monotonic()
    for number, (title, work) in enumerate(steps, start=1):
        minutes = (time.monotonic() - begin) / 60
        print(f"[{number}/{len(steps)}, after {minutes:.0f} minutes] {title}", flush=True)
        code = work()
        if code:
            sys.stderr.write(f"error: {title} ended with code {code}; run the same command to continue\n")
            return code
        ablation.write_report(chosen, args.seeds)
    ablation.write_report(chosen, args.seeds)
    print(ablation.report(chosen, args.seeds))
    print(f"Written to {args.output / 'ablation.md'} and {args.output / 'ablation.json'}.")
    return 0


def plan(
    ablation: Ablation, rows: Sequence[Row], seeds: Sequence[int]
) -> Iterator[tuple[str, Callable[[], int]]]:
    """What is still to be done, in order: each with its title. A seed is finished before the next begins."""
    for seed in seeds:
        planned: set[Training] = set()
        for row in rows:
            if ablation.result_path(row, seed).exists():
                continue
            for training in ablation.trainings(row):
                if training not in planned and not ablation.is_trained(training, seed):
                    planned.add(training)
                    title = f"seed {seed}: train {training.name}"
                    yield title, functools.partial(ablation.train, training, seed)
            yield f"seed {seed}: evaluate {row.name}", functools.partial(ablation.evaluate, row, seed)


if __name__ == "__main__":
    sys.exit(main())
