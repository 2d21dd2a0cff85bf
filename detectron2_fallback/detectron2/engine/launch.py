"""Start-up of one or several processes on one or several machines."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)
"""How long collective operations wait for other processes."""


def _find_free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        # Port 0 lets the system choose. Another program may take the port before we do; that is rare.
        sock.bind(("", 0))
        return sock.getsockname()[1]


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> Any:
    """Run ``main_func(*args)`` in ``num_machines * num_gpus_per_machine`` processes that can communicate.

    With one process it is called directly. To be called on every machine.

    Args:
        main_func: the program; must be importable by its name, as new processes are spawned.
        num_gpus_per_machine: processes per machine, one per GPU. On a machine without CUDA, so many processes
            that compute on the CPU and communicate through gloo.
        num_machines: number of machines.
        machine_rank: number of this machine, from 0.
        dist_url: where processes meet, as ``tcp://host:port`` or ``file:///path``; "auto" picks a free port
            on this machine; None reads the environment's ``MASTER_ADDR`` and ``MASTER_PORT``.
        args: arguments of ``main_func``.
        timeout: of collective operations.

    Returns:
        With one process, what ``main_func`` returns, else None.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the traceback of the first process that failed.
        AssertionError: if there are fewer GPUs than processes, or "auto" is used with several machines.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        return main_func(*args)
    if dist_url == "auto":
        assert num_machines == 1, "dist_url=auto not supported in multi-machine jobs."
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    if num_machines > 1 and dist_url is not None and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning(
            "file:// is not a reliable init_method in multi-machine jobs. Prefer tcp://"
        )
    mp.start_processes(
        _distributed_worker,
        nprocs=num_gpus_per_machine,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout),
        daemon=False,
        start_method="spawn",
    )
    return None


def _distributed_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    num_processes_per_machine: int,
    machine_rank: int,
    dist_url: str | None,
    args: tuple[Any, ...],
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Join the others, run ``main_func``, leave."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        assert num_processes_per_machine <= torch.cuda.device_count(), (
            f"{num_processes_per_machine} processes need as many GPUs, but this machine has "
            f"{torch.cuda.device_count()}"
        )
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group(
            backend="nccl" if has_gpu else "gloo",
            init_method=dist_url,
            world_size=world_size,
            rank=machine_rank * num_processes_per_machine + local_rank,
            timeout=timeout,
        )
    except Exception:
        logging.getLogger(__name__).error(f"Process group URL: {dist_url}")
        raise
    comm.create_local_process_group(num_processes_per_machine)
    # Without this, a process may run into a collective operation before the others have joined.
    comm.synchronize()
    main_func(*args)
    # Not after an exception: the others would fail for want of a connection and hide the reason.
    comm._leave_process_groups()
