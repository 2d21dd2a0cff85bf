"""Several processes, or several parts of a batch, do what one process does with the whole of it."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dvis.engine import launch_program
from dvis.engine.accumulation import split
from tests.dvis.engine.processes import evaluate_each, fail_in_one, several, train_and_evaluate, train_each
from tests.dvis.engine.training import ROOT, TINY, arguments, final_state, read_losses

MODES = ["minvis", "online", "offline"]
# What makes the losses of a batch a mean over its clips: each clip is normalised by itself, batch
# normalisation is frozen as in all published models, and no clip is padded to the size of another.
# Plain steps of gradient descent, as Adam's first ones are the same for a gradient of 1 and of 1e-6.
EXACT: dict[str, Any] = {
    "SOLVER.LOSS_PER_CLIP": True,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 3,
    "DATALOADER.NUM_WORKERS": 0,
}


def runs(folder: Path, **settings: Any) -> list[Any]:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return [arguments(mode, folder / mode, settings={**EXACT, **named}) for mode in MODES]


def close_runs(first: Path, second: Path) -> int:
    """Compare losses and weights of two trainings within rounding; returns the number of losses."""
    ours, theirs = read_losses(first), read_losses(second)
    assert ours.keys() == theirs.keys()
    for step, losses in ours.items():
        values = {name: float.fromhex(value) for name, value in losses.items()}
        others = {name: float.fromhex(value) for name, value in theirs[step].items()}
        assert values == pytest.approx(others, rel=2e-5, abs=1e-6), f"step {step}"
    state, other = final_state(first), final_state(second)
    for name, value in state.items():
        if torch.is_tensor(value) and value.is_floating_point() and not name.startswith("optimizer"):
            # Sums in another order: up to 7e-5 of the largest weight where the op is not compiled. Biases
            # start at zero and hardly move.
            atol = 1e-5 + 5e-4 * float(value.abs().max())
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=atol, msg=name)
    return sum(map(len, ours.values()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, toy_root: Path) -> Path:
    """Trainings of all stages by one process with the whole batch at once."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(toy_root))
        train_each(several(1, runs=runs(folder)))
    return folder


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts: int, whole: Path, tmp_path: Path) -> None:
    train_each(several(1, runs=runs(tmp_path, SOLVER__ACCUMULATION_STEPS=parts)))
    assert sum(close_runs(whole / mode, tmp_path / mode) for mode in MODES) == 45


def evaluation(folder: Path, num_processes: int) -> argparse.Namespace:
    """Evaluations on sets of 2 and of 3 videos, with scores in ``scores.json``."""
    evaluations = {
        name: arguments("minvis", folder / name, settings={"DATASETS.TEST": f"('{name}',)"})
        for name in ("toy_vis_val", "toy_vis_train")
    }
    return several(num_processes, runs=evaluations, file=folder / "scores.json")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, toy_root: Path) -> Path:
    """The trainings by two processes, with their clips at once and in two parts; and evaluations by them."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(toy_root))
        training = [
            *runs(folder / "at_once"),
            *runs(folder / "in_parts", SOLVER__ACCUMULATION_STEPS=2),
        ]
        tasks = several(2, training=several(2, runs=training), evaluation=evaluation(folder, 2))
        launch_program(train_and_evaluate, tasks)
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_with_two_clips_each(mode: str, whole: Path, two: Path) -> None:
    close_runs(whole / mode, two / "at_once" / mode)
    close_runs(whole / mode, two / "in_parts" / mode)


def test_one_two_and_three_processes_have_the_same_scores(two: Path, tmp_path: Path) -> None:
    # 2 and 3 videos: of three processes one has none of the 2.
    for number in (1, 3):
        launch_program(evaluate_each, evaluation(tmp_path / str(number), number))
    files = [tmp_path / "1" / "scores.json", two / "scores.json", tmp_path / "3" / "scores.json"]
    one, by_two, by_three = (json.loads(file.read_text()) for file in files)
    assert one == by_two == by_three
    assert all(1 < one[name]["segm"]["AP"] < 99 for name in one), "not a test of trivial scores"


def test_parts_of_a_batch() -> None:
    assert split([1, 2, 3, 4, 5], 2) == [[1, 2, 3], [4, 5]]
    assert split([1, 2, 3, 4], 4) == [[1], [2], [3], [4]]
    assert split([1], 2) == [[1]]


def test_a_failing_process_ends_all_with_its_traceback() -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException) as caught:
        launch_program(fail_in_one, several(2))
    assert "ZeroDivisionError: the second process is broken" in str(caught.value)
    assert "in fail_in_one" in str(caught.value)


def program(*options: str) -> subprocess.Popen[str]:
    """Start ``python ...`` in the root of the repository, in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str]:
    """Exit code and output; the whole group is killed if it does not end."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def training(output: Path, *options: str, **settings: Any) -> list[str]:
    """Command line of a tiny MinVIS training that writes its losses down."""
    named = {name.replace("__", "."): value for name, value in settings.items()}
    pairs = {**TINY, "OUTPUT_DIR": output, **named}
    words = [str(word) for pair in pairs.items() for word in pair]
    return ["--config-file", "configs/toy/MinVIS_toy.yaml", *options, *words]


def wait_for_steps(output: Path, steps: int, process: subprocess.Popen[str], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    file = output / "losses.txt"
    while not file.exists() or file.read_text().count("\n") < steps:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < end, "no progress"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True], ids=["to the launcher", "to all"])
def test_a_signal_saves_and_ends_two_processes(to_all: bool, tmp_path: Path) -> None:
    settings = {"SOLVER__MAX_ITER": 1000, "SOLVER__CHECKPOINT_PERIOD": 10000}
    command = training(tmp_path, "--num-gpus", "2", "--dist-url", "auto", **settings)
    process = program("-m", "tests.dvis.engine.training", *command)
    wait_for_steps(tmp_path, 2, process)
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
    code, output = finish(process)
    assert code == 128 + signal.SIGTERM, output
    last = max(read_losses(tmp_path))
    assert (tmp_path / "last_checkpoint").read_text() == f"model_{last:07d}.pth"
    content = torch.load(tmp_path / f"model_{last:07d}.pth", weights_only=True)
    first, second = content["random"]
    assert not torch.equal(first["torch"], second["torch"])


TORCHRUN = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
TORCHRUN += ["--rdzv-endpoint", "localhost:0"]


def workers_of(torchrun: int) -> list[int]:
    """Process ids of the training processes that an agent of torchrun has started."""
    found = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(torchrun)], capture_output=True, text=True, check=True
    )
    lines = [line.split(None, 1) for line in found.stdout.splitlines()]
    return sorted(int(pid) for pid, command in lines if "tests.dvis.engine.training" in command)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_restarts_from_the_last_checkpoint(victim: int, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    settings = {"SOLVER__MAX_ITER": 40, "SOLVER__CHECKPOINT_PERIOD": 5}
    module = ["-m", "tests.dvis.engine.training"]
    code, output = finish(program(*TORCHRUN, *module, *training(whole, **settings)), 280)
    assert code == 0, output
    process = program(*TORCHRUN, "--max-restarts", "2", *module, *training(pieces, **settings))
    wait_for_steps(pieces, 8, process)
    os.kill(workers_of(process.pid)[victim], signal.SIGKILL)
    code, output = finish(process, 280)
    assert code == 0, output
    log = (pieces / "log.txt").read_text()
    starts = [int(step) for step in re.findall(r"Starting training from iteration (\d+)", log)]
    assert len(starts) == 2
    assert starts[0] == 0
    assert starts[1] >= 5
    assert read_losses(pieces) == read_losses(whole)


@pytest.mark.slow
def test_a_failing_process_ends_torchrun_with_its_traceback(tmp_path: Path) -> None:
    source = "import detectron2_fallback\nfrom dvis.engine import launch_program\n"
    source += "from tests.dvis.engine.processes import fail_in_one, several\n"
    source += "launch_program(fail_in_one, several(2))\n"
    (tmp_path / "program.py").write_text(source)
    code, output = finish(program(*TORCHRUN, str(tmp_path / "program.py")))
    assert code != 0
    assert "ZeroDivisionError: the second process is broken" in output
