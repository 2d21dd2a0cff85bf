"""Time and memory of the models, stage by stage: inference, end to end, training, and pairs to compare.

    python benchmarks/run.py inference                           seconds per frame of each stage
    python benchmarks/run.py memory --frames 20 120              peak memory by length of the video
    python benchmarks/run.py end-to-end --input clip.mp4         from video file to run-length codes
    python benchmarks/run.py training                            seconds of one step of each training stage
    python benchmarks/run.py data --input clip.mp4               training clips per second of one process
    python benchmarks/run.py profile inference --modes online    share of each operator (CUDA: kernel)
    python benchmarks/run.py complexity --plot complexity.png    by length, queries, results, resolution
    python benchmarks/run.py pair inference --b OP=pytorch       the C++ op against the plain one
    python benchmarks/run.py pair inference --b REVISION=main~9  this revision against an earlier one

Every measurement runs in a process of its own (so peak memory is its own), on synthetic frames with random
weights, after a warm-up; printed are medians over --repeats. ``pair`` runs two variants in turn (A B A B),
so that a machine that becomes slower does so for both. A variant is ``KEY=VALUE`` words:
``OP=pytorch|cpp|cuda``, ``REVISION=<commit>``, ``THREADS=<n>``, ``PLAIN=masks,points,segmenter`` (slow forms,
see ``plain_training.py``), and any configuration key (``MODEL.MASK_FORMER.TEST.PRECISION=auto``).

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
from itertools import islice
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
TRAINING_STAGES = ("segmenter", "tracker", "refiner", "matching", "losses", "other")  # of the forward pass
TOP_KERNELS = 20
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
    if "plain" in spec:
        from benchmarks.plain_training import use_plain

        use_plain(model, spec["plain"])
    return model, cfg


def make_frames(count: int, size: tuple[int, int]) -> list[Any]:
    """Smooth random frames ``3 H W`` uint8 that differ from each other."""
    import torch

    frames = []
    for t in range(count):
        coarse = torch.rand(1, 3, 9, 16, generator=torch.Generator().manual_seed(t % 50)) * 255
        frames.append(torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].byte())
    return frames


def make_clip(length: int, size: tuple[int, int]) -> dict[str, Any]:
    """A training clip with four moving rectangles."""
    import dvis  # isort: skip  # noqa: F401  (first: it provides detectron2 where upstream is absent)

    import torch
    from detectron2.structures import BitMasks, Instances

    (H, W), objects = size, []
    for t in range(length):
        masks = torch.zeros(4, H, W, dtype=torch.bool)
        for n in range(4):
            top, left = n * H // 9, 3 * n * W // 32 + 2 * t
            masks[n, top : top + 2 * H // 9, left : left + 3 * W // 16] = True
        instances = Instances(size)
        instances.gt_classes, instances.gt_ids = torch.arange(4), torch.arange(4)
        instances.gt_masks = BitMasks(masks)
        objects.append(instances)
    return {"image": make_frames(length, size), "instances": objects, "height": H, "width": W}


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
    """Seconds per frame from a video file to run-length codes, reading and resizing included; then those of
    drawing the result on a frame.
    """
    from dvis.api import VideoSegmenter
    from dvis.rendering import draw_result, frame_masks
    from dvis.video_io import open_video

    model, cfg = build(spec)
    segmenter = VideoSegmenter(
        model.eval(), min_size=cfg.INPUT.MIN_SIZE_TEST, max_size=cfg.INPUT.MAX_SIZE_TEST
    )
    begin, cpu = time.perf_counter(), time.process_time()
    result = segmenter.segment_video(spec["input"], mask_format="rle")
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    drawing = 0.0
    for t, frame in enumerate(open_video(spec["input"])):
        begin = time.perf_counter()
        draw_result(frame, result, frame_masks(result, t), threshold=0.0)
        drawing += time.perf_counter() - begin
    times = {"total": seconds, CPU: cpu, "drawing": drawing}
    per_frame = {name: value / result.num_frames for name, value in times.items()}
    return {"frames": result.num_frames, **per_frame, **peaks()}


def measure_training(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the forward and the backward pass of one training step, the forward pass also by part."""
    import torch

    model, _ = build(spec)
    model.train()
    batch = [make_clip(spec["frames"], tuple(spec["size"]))]
    cuda = model.device.type == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    clock = StageClock(cuda)
    clock_training(model, clock)
    steps = []
    for _ in range(spec["steps"] + 1):
        model.zero_grad(set_to_none=True)
        clock.seconds.clear()
        wait()
        begin, cpu = time.perf_counter(), time.process_time()
        with clock.stage("other"):
            loss = sum(model(batch).values())
        wait()
        middle = time.perf_counter()
        loss.backward()
        wait()
        end, cpu = time.perf_counter(), time.process_time() - cpu
        parts = {name: clock.seconds[name] for name in TRAINING_STAGES}
        steps.append(
            {**parts, "forward": middle - begin, "backward": end - middle, "total": end - begin, CPU: cpu}
        )
    return {**median_of(steps[1:]), **peaks()}


def clock_training(model: Any, clock: StageClock) -> None:
    """Let the parts of a training step report to the clock."""
    clock.wrap(model, "segment", "segmenter")
    if hasattr(model, "tracker"):
        clock.wrap(model.tracker, "forward", "tracker")
        clock.wrap(model.tracker, "frame_forward", "tracker")
    if hasattr(model, "refiner"):
        clock.wrap(model.refiner, "forward", "refiner")
    clock.wrap(model.criterion, "forward", "losses")
    clock.wrap(model.criterion, "matcher", "matching")


def measure_data(spec: dict[str, Any]) -> dict[str, Any]:
    """Training clips per second of one loading process: reading, decoding, masks and augmentation."""
    import dvis  # isort: skip  (first: it provides detectron2 where upstream is absent)

    import numpy as np

    from dvis.data.mapper import clip_mapper_from_config
    from dvis.data.readers import read_instances

    length = spec["frames"]
    clip = ["INPUT.SAMPLING_FRAME_NUM", length, "INPUT.SAMPLING_FRAME_RANGE", length]
    cfg = dvis.load_config(ROOT / f"configs/ovis/{MODES[spec['mode']]}.yaml", [*clip, *spec["opts"]])
    with tempfile.TemporaryDirectory() as folder:
        record = write_video_record(Path(folder), 2 * length, tuple(spec["size"]), spec["input"])
        mapper = clip_mapper_from_config(cfg, "video_instance", read_instances)
        mapper(record, np.random.default_rng(0))
        count = spec["steps"] * 4
        begin, cpu = time.perf_counter(), time.process_time()
        for seed in range(count):
            mapper(record, np.random.default_rng(seed))
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {"clips per second": count / seconds, "total": seconds / count, CPU: cpu / count, **peaks()}


def write_video_record(
    folder: Path, length: int, size: tuple[int, int], source: str | None
) -> dict[str, Any]:
    """Frames as JPEG files, of a video file if there is one, and a record of them: four objects."""
    import cv2

    from dvis.data.rle import encode_mask
    from dvis.video_io import open_video

    if source is None:
        frames = [frame.permute(1, 2, 0).numpy() for frame in make_frames(length, size)]
    else:
        frames = [cv2.resize(frame, size[::-1]) for frame in islice(open_video(source), length)]
    names = [str(folder / f"{t:05d}.jpg") for t in range(len(frames))]
    for name, frame in zip(names, frames, strict=True):
        cv2.imwrite(name, frame[:, :, ::-1])
    masks = [frame.gt_masks.tensor.numpy() for frame in make_clip(len(frames), size)["instances"]]
    annotations = [
        {
            "id": n + 1,
            "category_id": n,
            "iscrowd": 0,
            "segmentations": [encode_mask(frame[n]) if frame[n].any() else None for frame in masks],
        }
        for n in range(4)
    ]
    return {
        "video_id": 1,
        "source": str(folder),
        "file_names": names,
        "height": size[0],
        "width": size[1],
        "length": len(names),
        "annotations": annotations,
    }


def measure_profile(spec: dict[str, Any]) -> dict[str, Any]:
    """Share of each operator (on CUDA: kernel) in the time of inference or of a training step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    model, _ = build(spec)
    cuda = model.device.type == "cuda"
    size = tuple(spec["size"])
    if spec["part"] == "training":
        model.train()
        clip = [make_clip(spec["frames"], size)]

        def run() -> None:
            model.zero_grad(set_to_none=True)
            sum(model(clip).values()).backward()

    else:
        model.eval()
        frames = make_frames(spec["frames"], size)

        def run() -> None:
            model([{"image": frames, "height": size[0], "width": size[1], "mask_format": "rle"}])

    run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled:
        run()
        if cuda:
            torch.cuda.synchronize()
    rows = [
        (event.key, event.self_device_time_total if cuda else event.self_cpu_time_total, event.count)
        for event in profiled.key_averages()
        # On CUDA only what runs there: operators would count the time of their kernels once more.
        if not cuda or event.device_type == torch.autograd.DeviceType.CUDA
    ]
    total = sum(row[1] for row in rows) or 1.0
    return {
        "total": total / 1e6,
        "shares": [[name, t / total, n] for name, t, n in sorted(rows, key=lambda r: -r[1])[:TOP_KERNELS]],
        **peaks(),
    }


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
    "data": measure_data,
    "profile": measure_profile,
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
            if key in ("OP", "PLAIN"):
                change[key.lower()] = value
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
    in_clips = what in ("training", "data") or (what == "profile" and args.part == "training")
    frames = args.frames[0] if args.frames else (CLIP_FRAMES[mode] if in_clips else 6)
    return {
        "what": what,
        "part": args.part,
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


def report_profile(args: argparse.Namespace, modes: Sequence[str]) -> list[dict[str, Any]]:
    """Print the operators or kernels that take most of the time."""
    measured = []
    with variant(args.a) as change:
        for mode in modes:
            result = run_once({**base_spec(args, mode), **change})
            measured.append({"mode": mode, "part": args.part, **result})
            print(f"\n{mode}, {args.part}: {result['total']:.3g} s in all\n")
            rows = [[name, f"{share:.1%}", count] for name, share, count in result["shares"]]
            print(table(rows, ["operator or kernel", "share", "calls"]))
    return measured


def report_complexity(args: argparse.Namespace, modes: Sequence[str]) -> list[dict[str, Any]]:
    """Time and memory of inference when one of length, queries, results and resolution changes."""
    height, width = args.size
    lengths = args.frames or [20, 60, 200]
    axes: dict[str, list[tuple[float, dict[str, Any]]]] = {
        "frames": [(length, {"frames": length}) for length in lengths],
        "queries": [(q, {"opts": ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", q]}) for q in args.queries],
        "instances": [(n, {"opts": ["MODEL.MASK_FORMER.TEST.MAX_NUM", n]}) for n in args.instances],
        "megapixels": [
            (height * width * scale**2 / 1e6, {"size": [round(height * scale), round(width * scale)]})
            for scale in args.scales
        ],
    }
    jobs = [
        (mode, axis, value, change)
        for mode in modes
        for axis, points in axes.items()
        for value, change in points
    ]
    measured = []
    with variant(args.a) as common:
        for mode, axis, value, change in tqdm(jobs, desc="complexity", unit="job", disable=None):
            spec = {**base_spec(args, mode), "frames": lengths[0], **common, **change}
            spec["what"] = "inference"
            spec["opts"] = [*common["opts"], *change.get("opts", [])]
            found = median_of([run_once(spec) for _ in range(args.repeats)])
            video = {"seconds per video": found["total"] * spec["frames"]}
            measured.append({"mode": mode, "axis": axis, "value": value, **found, **video})
    keys = ["total", CPU, *(key for key in measured[0] if key.startswith("peak"))]
    rows = [[m["mode"], m["axis"], m["value"], *(m[key] for key in keys)] for m in measured]
    print(table(rows, ["mode", "axis", "value", "seconds per frame", CPU, *keys[2:]]))
    if args.plot:
        plot_complexity(measured, Path(args.plot))
    return measured


def plot_complexity(measured: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw time and memory against each axis, one line per mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    memory = "peak device, GB" if "peak device, GB" in measured[0] else "peak RSS, GB"
    axes = list(dict.fromkeys(m["axis"] for m in measured))
    figure, panels = pyplot.subplots(2, len(axes), figsize=(4 * len(axes), 6), squeeze=False)
    for column, axis in enumerate(axes):
        for row, (key, label) in enumerate((("total", "seconds per frame"), (memory, memory))):
            panel = panels[row][column]
            for mode in dict.fromkeys(m["mode"] for m in measured):
                points = [(m["value"], m[key]) for m in measured if (m["mode"], m["axis"]) == (mode, axis)]
                panel.plot(*zip(*points, strict=True), marker="o", label=mode)
            panel.set(xlabel=axis, ylabel=label, ylim=(0, 1.05 * panel.get_ylim()[1]))
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=(*MEASURES, "complexity", "pair"))
    parser.add_argument("what", nargs="?", choices=tuple(MEASURES), help="of a pair or a profile")
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), default=list(MODES))
    parser.add_argument("--frames", nargs="+", type=int, help="length of the video or clip")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="default 360 640; data 720 1280; complexity 96 160",
    )
    parser.add_argument("--input", help="video file of end-to-end and data")
    parser.add_argument("--steps", type=int, default=2, help="training steps after the first")
    parser.add_argument("--queries", nargs="+", type=int, default=[50, 100, 200], help="of complexity")
    parser.add_argument("--instances", nargs="+", type=int, default=[5, 20, 80], help="likewise: results")
    parser.add_argument("--scales", nargs="+", type=float, default=[1, 1.5, 2], help="likewise: of --size")
    parser.add_argument("--plot", help="PNG file of complexity")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--a", nargs="+", default=[], metavar="KEY=VALUE", help="first variant")
    parser.add_argument("--b", nargs="+", default=[], metavar="KEY=VALUE", help="second variant of a pair")
    parser.add_argument("--json", help="file for everything that was measured")
    args = parser.parse_args()
    is_pair = args.command == "pair"
    if is_pair and args.what in (None, "profile"):
        parser.error("pair needs what to measure: " + ", ".join(m for m in MEASURES if m != "profile"))
    args.part = "training" if args.what == "training" else "inference"
    args.what = args.what if is_pair else args.command
    sizes = {"data": [720, 1280], "complexity": [96, 160]}
    args.size = args.size or sizes.get(args.what, [360, 640])
    if args.what == "end-to-end" and not args.input:
        parser.error("end-to-end needs --input VIDEO")
    # Said now and not after the measurement, or by a process of its own.
    numbers = [*(args.frames or ()), *args.size, args.steps, *args.queries, *args.instances, args.repeats]
    if min([*numbers, *args.scales]) <= 0:
        parser.error("lengths, sizes and counts are positive")
    if args.input and not Path(args.input).is_file():
        parser.error(f"{args.input}: no such file")
    for file in filter(None, (args.plot, args.json)):
        if not Path(file).absolute().parent.is_dir():
            parser.error(f"{file}: there is no such folder")
    where = machine()
    print("; ".join(f"{key} {value}" for key, value in where.items()) + "\n")
    special = {"profile": report_profile, "complexity": report_complexity}
    measured = (compare if is_pair else special.get(args.what, report))(args, args.modes)
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": where, "measured": measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
