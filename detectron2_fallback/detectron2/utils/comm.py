"""Communication between processes; everything works, and does little, without ``torch.distributed``."""

from __future__ import annotations

import functools
import gc
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

__all__ = [
    "all_gather",
    "create_local_process_group",
    "gather",
    "get_local_process_group",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "is_main_process",
    "reduce_dict",
    "shared_random_seed",
    "synchronize",
]

_LOCAL_PROCESS_GROUP: dist.ProcessGroup | None = None
_MISSING_LOCAL_PG_ERROR = (
    "Local process group is not yet created! Please use detectron2's `launch()` to start processes and "
    "initialize pytorch process group. If you need to start processes in other ways, please call "
    "comm.create_local_process_group(num_workers_per_machine) after calling "
    "torch.distributed.init_process_group()."
)


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _initialized() else 1


def get_rank() -> int:
    """Return the number of this process."""
    return dist.get_rank() if _initialized() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make a group of the processes on each machine, which the functions named ``local`` use.

    Every process has to call it once after ``init_process_group``. Ranks on one machine must be consecutive.

    Args:
        num_workers_per_machine: number of processes on each machine.

    Raises:
        AssertionError: if it was called before, or the processes do not divide evenly.
    """
    global _LOCAL_PROCESS_GROUP
    assert _LOCAL_PROCESS_GROUP is None, "The local process group exists already."
    world_size = get_world_size()
    assert world_size % num_workers_per_machine == 0, (world_size, num_workers_per_machine)
    for first in range(0, world_size, num_workers_per_machine):
        ranks = list(range(first, first + num_workers_per_machine))
        group = dist.new_group(ranks)  # a collective call, also for the groups of other machines
        if get_rank() in ranks:
            _LOCAL_PROCESS_GROUP = group


def _leave_process_groups() -> None:
    """Take leave of the others after success, for :func:`detectron2.engine.launch`.

    Nobody leaves while another still talks, and the groups, with their threads, are gone before the
    interpreter ends: a thread of gloo that lives until then can abort the process.
    """
    global _LOCAL_PROCESS_GROUP
    synchronize()
    _LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()
    gc.collect()


def get_local_process_group() -> dist.ProcessGroup:
    """Return the group of the processes on this machine.

    Raises:
        AssertionError: if :func:`create_local_process_group` was not called.
    """
    assert _LOCAL_PROCESS_GROUP is not None, _MISSING_LOCAL_PG_ERROR
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Return the number of this process on its machine."""
    return dist.get_rank(group=get_local_process_group()) if _initialized() else 0


def get_local_size() -> int:
    """Return the number of processes on this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _initialized() else 1


def is_main_process() -> bool:
    """Return whether this is process 0."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until all processes are here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        # Without the device NCCL guesses one from the rank.
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.lru_cache(maxsize=1)
def _gloo_group_of(world: dist.ProcessGroup) -> dist.ProcessGroup:
    return dist.new_group(backend="gloo") if dist.get_backend(world) == "nccl" else world


def _object_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The group to send pickled objects in: on the CPU, where they need no GPU memory."""
    return _gloo_group_of(dist.group.WORLD) if group is None else group


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return the ``data`` of every process, in the order of ranks.

    Args:
        data: any picklable object.
        group: by default all processes, through gloo.
    """
    if get_world_size() == 1:
        return [data]
    group = _object_group(group)
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return [data]
    output: list[Any] = [None] * world_size
    dist.all_gather_object(output, data, group=group)
    return output


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return the ``data`` of every process on rank ``dst``, and an empty list on the others.

    Args:
        data: any picklable object.
        dst: rank that receives.
        group: by default all processes, through gloo.
    """
    if get_world_size() == 1:
        return [data]
    group = _object_group(group)
    world_size = dist.get_world_size(group=group)
    if world_size == 1:
        return [data]
    if dist.get_rank(group=group) != dst:
        dist.gather_object(data, None, dst=dst, group=group)
        return []
    output: list[Any] = [None] * world_size
    dist.gather_object(data, output, dst=dst, group=group)
    return output


def shared_random_seed() -> int:
    """Return a random number that is the same in all processes, all of which have to call.

    It is drawn from numpy's generator of rank 0.
    """
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sum up or average scalars over all processes.

    Args:
        input_dict: scalar tensors on one device, the same keys in every process.
        average: divide by the number of processes.

    Returns:
        A dict with the same keys; only that of rank 0 has the result.
    """
    world_size = get_world_size()
    if world_size < 2:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)
        values = torch.stack([input_dict[name] for name in names], dim=0)
        dist.reduce(values, dst=0)
        if dist.get_rank() == 0 and average:
            values /= world_size
        return dict(zip(names, values, strict=True))
