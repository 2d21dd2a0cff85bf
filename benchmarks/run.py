"""Time and memory of the models, stage by stage: inference, end to end, training, and pairs to compare.

    python benchmarks/run.py inference                           seconds per frame of each stage
    python benchmarks/run.py memory --frames 20 120              peak memory by length of the video
    python benchmarks/run.py end-to-end --input clip.mp4         from video file to run-length codes
    python benchmarks/run.py training                            seconds of one step of each training stage
    python benchmarks/run.py pair inference --b OP=pytorch       the C++ op against the plain one
    python benchmarks/run.py pair inference --b REVISION=main~9  this revision against an earlier one

Every measurement runs in a process of its own (so peak memory is its own), on synthetic frames with random
weights, after a warm-up; printed are medians over --repeats. ``pair`` runs two variants in turn (A B A B),
so that a machine that becomes slower does so for both. A variant is ``KEY=VALUE`` words:
``OP=pytorch|cpp|cuda``, ``REVISION=<commit>``, ``THREADS=<n>``, and any configuration key
(``MODEL.MASK_FORMER.TEST.WINDOW_SIZE=1``).

Prints Markdown with the machine, and writes everything measured as JSON (--json).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone need not be installed

from benchmarks.machine import processor

ROOT = Path(__file__).resolve().parents[1]
GIT = ("git", "-C", str(ROOT))
MODES = {"minvis": "MinVIS_R50", "online": "DVIS_Online_R50", "offline": "DVIS_Offline_R50"}
STAGES = (
    "backbone",
    "pixel decoder",
    "transformer decoder",
    "linking",
    "refiner",
    "post-processing",
    "other",
)
CPU = "processor time"  # of all threads together: what a shared machine disturbs least
CLIP_FRAMES = {"minvis": 1, "online": 5, "offline": 21}  # of one training step
# Seconds per frame of the published implementation: R50, 360 x 640, 2 CPU threads with AVX-512, float32. Not
# measured here and on another machine; the frame pass that serves the refiner is part of "refiner" there and
# of "linking" here.
PUBLISHED = {
    "minvis": {"backbone": 0.28, "pixel decoder": 1.13, "transformer decoder": 0.24, "total": 1.67},
    "online": {"backbone": 0.24, "pixel decoder": 1.08, "transformer decoder": 0.23, "total": 1.65},
    "offline": {"backbone": 0.26, "pixel decoder": 1.20, "transformer decoder": 0.25, "total": 1.96},
}
PUBLISHED_TRAINING = {"minvis": 6.9, "online": 11.1, "offline": 63.0}  # seconds per step, likewise


# ---- what runs in a process of its own


class StageClock:
    """Time spent in each stage; a stage that runs inside another one counts for itself only."""

    def __init__(self, cuda: bool) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._cuda = cuda
        self._running: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        """Book the time since the last switch for the stage that was running."""
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Time every call of a method of this one object."""
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        setattr(owner, method, timed)


def peak_gigabytes() -> float:
    """Largest resident memory of this process so far (Linux: kilobytes; macOS: bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1024**3


def build(spec: dict[str, Any]) -> tuple[Any, Any]:
    """Model and configuration of a measurement."""
    import dvis  # isort: skip  (first: it provides detectron2 where upstream is absent)

    import torch
    from detectron2.modeling import build_model

    from mask2former.modeling.pixel_decoder.ops.modules import MSDeformAttn

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pairs = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, *spec["opts"]]
    cfg = dvis.load_config(ROOT / f"configs/ovis/{MODES[spec['mode']]}.yaml", pairs)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            module.backend = spec.get("op")
    return model, cfg


def make_frames(count: int, size: tuple[int, int]) -> list[Any]:
    """Smooth random frames ``3 H W`` uint8 that differ from each other."""
    import torch

    frames = []
    for t in range(count):
        coarse = torch.rand(1, 3, 9, 16, generator=torch.Generator().manual_seed(t % 50)) * 255
        frames.append(torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].byte())
    return frames


def clocked(model: Any, clock: StageClock) -> None:
    """Let the parts of a model report to the clock."""
    if hasattr(model, "extract_features"):
        clock.wrap(model, "extract_features", "backbone")
    else:  # earlier revisions
        clock.wrap(model.backbone, "forward", "backbone")
    clock.wrap(model.sem_seg_head.pixel_decoder, "forward_features", "pixel decoder")
    clock.wrap(model.sem_seg_head.predictor, "forward", "transformer decoder")
    clock.wrap(model, "link", "linking")
    clock.wrap(model, "refine", "refiner")
    clock.wrap(model, "postprocess", "post-processing")


def measure_inference(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds per frame by stage: frames in memory to run-length codes of the kept masks."""
    import torch

    model, _ = build(spec)
    model.eval()
    clock = StageClock(model.device.type == "cuda")
    clocked(model, clock)
    size = tuple(spec["size"])
    warmup = make_frames(model.inference.window_size, size)
    model([{"image": warmup, "height": size[0], "width": size[1], "mask_format": "rle"}])
    clock.seconds.clear()
    # Synthetic frames are made one by one, as a reader would; making them is not counted.
    frames = make_frames(spec["frames"], size) if spec["frames"] <= 50 else FrameMaker(spec["frames"], size)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begin, cpu = time.perf_counter(), time.process_time()
    with clock.stage("other"):
        model([{"image": frames, "height": size[0], "width": size[1], "mask_format": "rle"}])
    totals = {"total": time.perf_counter() - begin, CPU: time.process_time() - cpu}
    times = {**{name: clock.seconds[name] for name in STAGES}, **totals}
    return {**{name: seconds / spec["frames"] for name, seconds in times.items()}, **peaks()}


class FrameMaker(Sequence[Any]):
    """Many synthetic frames that are never all in memory."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.num_frames = count
        self.frames = make_frames(50, size)

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, t: Any) -> Any:
        if not 0 <= t < self.num_frames:
            raise IndexError(t)
        return self.frames[t % len(self.frames)]


def measure_end_to_end(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds per frame from a video file to run-length codes, reading and resizing included."""
    from dvis.api import VideoSegmenter

    model, cfg = build(spec)
    segmenter = VideoSegmenter(
        model.eval(), min_size=cfg.INPUT.MIN_SIZE_TEST, max_size=cfg.INPUT.MAX_SIZE_TEST
    )
    begin, cpu = time.perf_counter(), time.process_time()
    result = segmenter.segment_video(spec["input"], mask_format="rle")
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {"total": seconds / result.num_frames, CPU: cpu / result.num_frames, **peaks()}


def measure_training(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the forward and the backward pass of one training step."""
    import torch
    from detectron2.structures import BitMasks, Instances

    model, _ = build(spec)
    model.train()
    size, length = tuple(spec["size"]), spec["frames"]
    objects = []
    for t in range(length):
        masks = torch.zeros(4, *size, dtype=torch.bool)
        for n in range(4):
            masks[n, 40 * n : 40 * n + 80, 60 * n + 2 * t : 60 * n + 2 * t + 120] = True
        instances = Instances(size)
        instances.gt_classes, instances.gt_ids = torch.arange(4), torch.arange(4)
        instances.gt_masks = BitMasks(masks)
        objects.append(instances)
    batch = [{"image": make_frames(length, size), "instances": objects, "height": size[0], "width": size[1]}]
    wait = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    times = []
    for _ in range(spec["steps"] + 1):
        model.zero_grad(set_to_none=True)
        wait()
        begin, cpu = time.perf_counter(), time.process_time()
        loss = sum(model(batch).values())
        wait()
        middle = time.perf_counter()
        loss.backward()
        wait()
        times.append((middle - begin, time.perf_counter() - middle, time.process_time() - cpu))
    forward, backward, cpu = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return {"forward": forward, "backward": backward, "total": forward + backward, CPU: cpu, **peaks()}


def peaks() -> dict[str, float]:
    """Peak memory of this process in gigabytes."""
    import torch

    found = {"peak RSS, GB": peak_gigabytes()}
    if torch.cuda.is_available():
        found["peak device, GB"] = torch.cuda.max_memory_allocated() / 1024**3
    return found


MEASURES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "inference": measure_inference,
    "memory": measure_inference,
    "end-to-end": measure_end_to_end,
    "training": measure_training,
}


def worker(spec: dict[str, Any]) -> None:
    """Measure once, with the code of ``spec["root"]``, and leave the result in a file."""
    sys.path.insert(0, spec["root"])
    os.chdir(spec["root"])
    import torch

    if spec.get("threads"):
        torch.set_num_threads(int(spec["threads"]))
    result = MEASURES[spec["what"]](spec)
    Path(spec["result"]).write_text(json.dumps(result))


# ---- what the user calls


def run_once(spec: dict[str, Any]) -> dict[str, Any]:
    """Run one measurement in a new process.

    Raises:
        SystemExit: with the end of its output if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        spec = {"root": str(ROOT), **spec, "result": f"{folder}/result.json"}
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(spec)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"a measurement failed ({spec}):\n{done.stderr[-3000:]}")
        return json.loads(Path(spec["result"]).read_text())


def median_of(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {key: statistics.median(r[key] for r in results) for key in results[0]}


@contextmanager
def variant(words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What ``KEY=VALUE`` words change in a measurement; an earlier revision is checked out meanwhile."""
    change: dict[str, Any] = {"opts": []}
    with tempfile.TemporaryDirectory() as folder:
        tree = None
        for word in words:
            key, separator, value = word.partition("=")
            if not separator:
                raise SystemExit(f"{word!r} is not KEY=VALUE")
            if key == "OP":
                change["op"] = value
            elif key == "THREADS":
                change["threads"] = int(value)
            elif key == "REVISION":
                tree = f"{folder}/tree"
                subprocess.run(
                    ["git", "-C", str(ROOT), "worktree", "add", "--detach", "--quiet", tree, value],
                    check=True,
                )
                change["root"] = tree
            else:
                change["opts"] += [key, value]
        try:
            yield change
        finally:
            if tree is not None:
                subprocess.run([*GIT, "worktree", "remove", "--force", tree], check=True)


def machine() -> dict[str, Any]:
    """Where and with what the numbers were measured."""
    import torch

    from mask2former.modeling.pixel_decoder.ops.functions import available_backends

    commit = subprocess.run(
        [*GIT, "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "op back ends": available_backends(),
        "revision": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def base_spec(args: argparse.Namespace, mode: str) -> dict[str, Any]:
    what = args.what
    frames = args.frames[0] if args.frames else {"training": CLIP_FRAMES[mode]}.get(what, 6)
    return {
        "what": what,
        "mode": mode,
        "frames": frames,
        "size": args.size,
        "steps": args.steps,
        "input": str(Path(args.input).resolve()) if args.input else None,
    }


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    for row in rows:
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(args: argparse.Namespace, modes: Sequence[str]) -> list[dict[str, Any]]:
    """Measure every mode (and, for memory, every length) and print a table."""
    measured = []
    with variant(args.a) as change:
        jobs = []
        for mode in modes:
            lengths = (args.frames or [20, 120]) if args.what == "memory" else [None]
            for length in lengths:
                spec = {**base_spec(args, mode), **change}
                if length is not None:
                    spec["frames"] = length
                jobs.append(spec)
        for spec in tqdm(jobs, desc=args.what, unit="job", disable=None):
            results = [run_once(spec) for _ in range(args.repeats)]
            measured.append({"mode": spec["mode"], "frames": spec["frames"], **median_of(results)})
    keys = [key for key in measured[0] if key not in ("mode", "frames")]
    rows: list[list[Any]] = [[m["mode"], m["frames"], *(m[key] for key in keys)] for m in measured]
    header = ["mode", "frames", *keys]
    published = {
        "inference": {mode: times["total"] for mode, times in PUBLISHED.items()},
        "training": PUBLISHED_TRAINING,
    }.get(args.what)
    if published and tuple(args.size) == (360, 640):
        header += ["published total (another machine)", "times faster"]
        for row, m in zip(rows, measured, strict=True):
            row += [published[m["mode"]], published[m["mode"]] / m["total"]]
    print(table(rows, header))
    return measured


def compare(args: argparse.Namespace, modes: Sequence[str]) -> list[dict[str, Any]]:
    """Measure two variants in turn and print both and their ratio."""
    measured = []
    with variant(args.a) as a, variant(args.b) as b:
        for mode in modes:
            results: dict[str, list[dict[str, Any]]] = {"A": [], "B": []}
            for _ in tqdm(range(args.repeats), desc=mode, unit="round", disable=None):
                for name, change in (("A", a), ("B", b)):
                    results[name].append(run_once({**base_spec(args, mode), **change}))
            median = {name: median_of(found) for name, found in results.items()}
            measured.append({"mode": mode, **median})
            rows = [
                [key, value, median["B"][key], median["B"][key] / value if value else "-"]
                for key, value in median["A"].items()
            ]
            print(f"\n{mode}\n")
            header = [f"A: {' '.join(args.a) or 'as it is'}", f"B: {' '.join(args.b) or 'as it is'}"]
            print(table(rows, ["seconds", *header, "B / A"]))
    return measured


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=(*MEASURES, "pair"))
    parser.add_argument("what", nargs="?", choices=tuple(MEASURES), help="of a pair")
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), default=list(MODES))
    parser.add_argument("--frames", nargs="+", type=int, help="length of the video or clip")
    parser.add_argument("--size", nargs=2, type=int, default=[360, 640], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--input", help="video file of end-to-end")
    parser.add_argument("--steps", type=int, default=2, help="training steps after the first")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--a", nargs="+", default=[], metavar="KEY=VALUE", help="first variant")
    parser.add_argument("--b", nargs="+", default=[], metavar="KEY=VALUE", help="second variant of a pair")
    parser.add_argument("--json", help="file for everything that was measured")
    args = parser.parse_args()
    if args.command == "pair" and args.what is None:
        parser.error("pair needs what to measure: " + ", ".join(MEASURES))
    is_pair = args.command == "pair"
    args.what = args.what if is_pair else args.command
    if args.what == "end-to-end" and not args.input:
        parser.error("end-to-end needs --input VIDEO")
    where = machine()
    print("; ".join(f"{key} {value}" for key, value in where.items()) + "\n")
    measured = (compare if is_pair else report)(args, args.modes)
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": where, "measured": measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
