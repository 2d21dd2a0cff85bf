"""Start-up of one process, several on one machine, or several machines."""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.utils import comm

from dvis.cli import INPUT_ERROR
from dvis.engine.stopping import SIGNALS, TrainingStopped, exit_code, passed_on_signals

logger = logging.getLogger(__name__)


def launch_program(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` in every process that is asked for.

    Under ``torchrun`` (its variables ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` are set) this process is one of
    them already and joins the others; otherwise detectron2's ``launch`` starts ``args.num_gpus`` processes on
    each of ``args.num_machines`` machines. Without CUDA they compute on the CPU and talk through gloo.

    A training that signals have stopped (see ``dvis.engine.stopping``) ends the program with 128 plus the
    signal's number.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return _launch(main, args)
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    use_cuda = torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(local_rank)
    _join_torchrun("nccl" if use_cuda else "gloo")
    comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    comm.synchronize()
    result = run_until_stopped(main, args)
    # Only after success: torn down by a failing process, the group fails the others first, and their
    # "connection closed" hides the reason.
    leave_process_groups()
    return result


def _join_torchrun(backend: str) -> None:
    """Join the other processes that torchrun has started.

    Its store outlives a restart of the processes: without names of their own, new ones would now and then
    find the addresses of dead ones in it. Machines do not count restarts alike; with several of them each
    start needs a store of its own (``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``, see GETTING_STARTED.md).
    """
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        dist.init_process_group(backend)
        return
    store, rank, world_size = next(dist.rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        backend, store=dist.PrefixStore(f"attempt {attempt}", store), rank=rank, world_size=world_size
    )


def _launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Start the processes of this machine, if more than one is asked for, and wait for them."""
    if args.num_gpus * args.num_machines <= 1:
        return main(args)
    try:
        with passed_on_signals():
            return launch(
                functools.partial(run_until_stopped, main),
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    except torch.multiprocessing.ProcessExitedException as error:
        # Which said why they ended.
        if error.exit_code in (INPUT_ERROR, *map(exit_code, SIGNALS)):
            raise SystemExit(error.exit_code) from error
        raise


def run_until_stopped(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` in one of several processes; if all stop together, they also leave together."""
    try:
        return main(args)
    except TrainingStopped:
        leave_process_groups()
        raise


def leave_process_groups() -> None:
    """Leave the other processes, together with them.

    Nobody leaves while another still talks, and the groups, with their threads, are gone before the
    interpreter ends: a thread of gloo that lives until then can abort the process.
    """
    comm.synchronize()
    comm._LOCAL_PROCESS_GROUP = None  # the last reference, which would keep the threads
    dist.destroy_process_group()
    gc.collect()


def use_available_device(cfg: CfgNode) -> None:
    """Fall back to the CPU in place, with one line that says so, if the configuration wants CUDA in vain.

    Mixed precision goes with it: float16 autocast is a matter of CUDA.
    """
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return
    amp = " and SOLVER.AMP.ENABLED to False" if cfg.SOLVER.AMP.ENABLED else ""
    logger.warning("No CUDA device: running on the CPU. Set MODEL.DEVICE to 'cpu'%s.", amp)
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.AMP.ENABLED = False
