"""A run that was stopped, in whatever way, and resumed is to the last bit one that never was."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dvis.engine.random_state import get_random_state, preserved_random_state, set_random_state
from tests.dvis.engine.training import arguments, final_state, read_losses, start, train

MODES = ["minvis", "online", "offline"]


def same_run(first: Path, second: Path) -> None:
    """Compare all losses, weights and states of the optimiser of two finished runs."""
    losses, others = read_losses(first), read_losses(second)
    assert list(losses) == sorted(losses)
    assert losses == {step: others[step] for step in losses}
    states, other_states = final_state(first), final_state(second)
    assert states.keys() == other_states.keys()
    assert all(torch.equal(states[name], other_states[name]) for name in states)


def stop_after(step: int) -> Any:
    def after(done: int) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return after


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, toy_root: Path) -> Callable[[str], Path]:
    """Gives the folder of a training of a stage that nothing has stopped."""

    @cache
    def run(mode: str) -> Path:
        folder = tmp_path_factory.mktemp(mode)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DETECTRON2_DATASETS", str(toy_root))
            train(arguments(mode, folder))
        return folder

    return run


@pytest.mark.parametrize("mode", MODES)
def test_in_pieces_as_in_one_go(mode: str, whole: Callable[[str], Path], tmp_path: Path) -> None:
    # The matching is guided for three steps: one piece ends before, one after that.
    for step in (1, 2):
        with pytest.raises(SystemExit, match="143"):
            train(arguments(mode, tmp_path / "pieces", "--resume"), stop_after(step))
    train(arguments(mode, tmp_path / "pieces", "--resume"))
    same_run(whole(mode), tmp_path / "pieces")
    assert len(read_losses(whole(mode))) == 6


@pytest.mark.parametrize("mode", MODES)
def test_deterministic_algorithms(mode: str, tmp_path: Path) -> None:
    settings = {"SOLVER.MAX_ITER": 2}
    torch.use_deterministic_algorithms(True)
    try:
        for name in ("first", "second"):
            train(arguments(mode, tmp_path / name, settings=settings))
    finally:
        torch.use_deterministic_algorithms(False)
    same_run(tmp_path / "first", tmp_path / "second")


def wait_for(process: Any, seconds: float = 120) -> int:
    """Exit code of a process, negative for a signal."""
    process.join(seconds)
    assert not process.is_alive(), "still running"
    return process.exitcode


def wait_for_steps(process: Any, output: Path, steps: int, seconds: float = 120) -> None:
    """Wait until a process has done so many steps, or has ended."""
    end = time.monotonic() + seconds
    file = output / "losses.txt"
    while process.is_alive() and (not file.exists() or file.read_text().count("\n") < steps):
        assert time.monotonic() < end, "no progress"
        time.sleep(0.02)


def temporary_files(output: Path) -> list[str]:
    return [path.name for path in output.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("moment", ["half", "untagged"])
def test_killed_in_the_middle_of_a_save(moment: str, whole: Callable[[str], Path], tmp_path: Path) -> None:
    pieces = tmp_path
    assert wait_for(start(arguments("online", pieces), kill=(moment, 2))) == -signal.SIGKILL
    assert temporary_files(pieces) or moment != "half"
    assert list(read_losses(pieces)) == [0, 1, 2, 3]
    assert wait_for(start(arguments("online", pieces, "--resume"))) == 0
    assert temporary_files(pieces) == []
    steps = [int(line.split()[0]) for line in (pieces / "losses.txt").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5]
    same_run(whole("online"), pieces)


def killed_again_and_again(
    mode: str, pieces: Path, kills: int, seed: int, settings: dict[str, Any] | None = None
) -> int:
    """Kill a training at random moments and resume it each time; returns how many kills it survived."""
    rng = random.Random(seed)
    survived = 0
    while survived < kills:
        done = (pieces / "losses.txt").read_text().count("\n") if (pieces / "losses.txt").exists() else 0
        process = start(arguments(mode, pieces, "--resume", settings=settings))
        wait_for_steps(process, pieces, done + rng.randint(0, 3))
        time.sleep(rng.random() * 0.4)
        if not process.is_alive():
            assert process.exitcode == 0
            break  # it has come to its end in spite of all
        os.kill(process.pid, signal.SIGKILL)
        assert wait_for(process) == -signal.SIGKILL
        survived += 1
    assert wait_for(start(arguments(mode, pieces, "--resume", settings=settings))) == 0
    return survived


def test_killed_at_random_moments(whole: Callable[[str], Path], tmp_path: Path) -> None:
    assert killed_again_and_again("minvis", tmp_path, 2, seed=1) == 2
    same_run(whole("minvis"), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("mode", MODES)
def test_killed_many_times_at_random_moments(mode: str, tmp_path: Path) -> None:
    settings = {"SOLVER.MAX_ITER": 60, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.CHECKPOINT_KEEP": 2}
    assert wait_for(start(arguments(mode, tmp_path / "whole", settings=settings))) == 0
    survived = killed_again_and_again(mode, tmp_path / "pieces", 20, seed=2, settings=settings)
    same_run(tmp_path / "whole", tmp_path / "pieces")
    losses = sum(map(len, read_losses(tmp_path / "whole").values()))
    print(f"{mode}: {survived} kills survived, {losses} losses equal")  # noqa: T201
    assert survived >= 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(number: signal.Signals, tmp_path: Path) -> None:
    settings = {"SOLVER.MAX_ITER": 1000, "SOLVER.CHECKPOINT_PERIOD": 10000}
    process = start(arguments("minvis", tmp_path, settings=settings))
    wait_for_steps(process, tmp_path, 2)
    os.killpg(process.pid, number)  # as a terminal or a scheduler does: also to the loading processes
    assert wait_for(process) == 128 + number
    last = max(read_losses(tmp_path))
    assert (tmp_path / "last_checkpoint").read_text() == f"model_{last:07d}.pth"
    log = (tmp_path / "log.txt").read_text()
    assert f"Stopped by a signal after step {last}; --resume continues from there." in log


def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    settings = {"SOLVER.MAX_ITER": 1000, "DATALOADER.NUM_WORKERS": 0}
    process = start(arguments("minvis", tmp_path, settings=settings), kill=("wait", 1))
    wait_for_steps(process, tmp_path, 2)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.5)
    assert process.is_alive(), "a stop waits for the checkpoint"
    os.kill(process.pid, signal.SIGINT)
    assert wait_for(process, 10) == -signal.SIGINT


def test_random_state_round_trip(tmp_path: Path) -> None:
    torch.save(get_random_state(), tmp_path / "state.pth")

    def draw() -> tuple[Any, ...]:
        return random.random(), float(np.random.normal()), float(torch.rand(()))

    with preserved_random_state():
        first = draw()
    assert draw() == first
    set_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert draw() == first
