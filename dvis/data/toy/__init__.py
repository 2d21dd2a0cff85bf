"""A synthetic video data set for all three tasks, small enough to learn on a CPU."""

from dvis.data.toy.scene import LEVELS, ToyLevel, ToyVideo, render_video, toy_name
from dvis.data.toy.writer import ToySettings, generate

__all__ = ["LEVELS", "ToyLevel", "ToySettings", "ToyVideo", "generate", "render_video", "toy_name"]
