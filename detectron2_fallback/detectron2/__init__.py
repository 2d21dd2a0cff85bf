"""A self-written subset of detectron2 with the interface of version 0.6."""

from .utils.env import setup_environment

setup_environment()

__version__ = "0.6"
