"""Training: optimiser, trainer, start-up of one or many processes."""

from dvis.engine.launch import launch_program
from dvis.engine.optimizer import build_optimizer
from dvis.engine.trainer import VideoTrainer

__all__ = ["VideoTrainer", "build_optimizer", "launch_program"]
