"""Training loops, hooks, start-up of processes, and the defaults of a usual run."""

from . import defaults, hooks
from .defaults import *  # noqa: F403
from .hooks import *  # noqa: F403
from .launch import DEFAULT_TIMEOUT, launch
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "DEFAULT_TIMEOUT",
    "AMPTrainer",
    "HookBase",
    "SimpleTrainer",
    "TrainerBase",
    "launch",
    *defaults.__all__,
    *hooks.__all__,
]
