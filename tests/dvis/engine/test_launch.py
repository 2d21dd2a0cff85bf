"""Start-up: the device that there is, torchrun and several processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dvis
from dvis.engine.launch import use_available_device

ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
import argparse, sys
import dvis
from detectron2.utils import comm
from dvis.engine import launch_program

def main(args):
    ranks = comm.all_gather((comm.get_rank(), comm.get_local_rank(), comm.get_world_size()))
    if comm.is_main_process():
        print("ranks", sorted(ranks))

if __name__ == "__main__":
    args = argparse.Namespace(num_gpus=int(sys.argv[1]), num_machines=1, machine_rank=0, dist_url="auto")
    launch_program(main, args)
"""


FAILING_PROGRAM = PROGRAM.replace(
    "def main(args):",
    """from dvis.cli import clear_errors

@clear_errors()
def main(args):
    raise ValueError(f"broken.json, seen by {comm.get_rank()}")""",
)


def test_input_errors_of_several_processes_end_in_their_message(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(FAILING_PROGRAM)
    command = [sys.executable, str(program), "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error: broken.json, seen by " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_cpu_instead_of_cuda_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    cfg = dvis.load_config(None, ["SOLVER.AMP.ENABLED", True])
    with caplog.at_level(logging.WARNING):
        use_available_device(cfg)
        use_available_device(cfg)
    assert (cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED) == ("cpu", False)
    assert len(caplog.records) == 1
    assert "No CUDA device: running on the CPU" in caplog.text


@pytest.mark.parametrize("start", ["launch", "torchrun"])
def test_two_processes(tmp_path: Path, start: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *(torchrun if start == "torchrun" else []), str(program), "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "ranks [(0, 0, 2), (1, 1, 2)]" in done.stdout
