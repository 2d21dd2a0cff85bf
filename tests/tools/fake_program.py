"""Stands for train_net_video.py where a tool runs it."""

from __future__ import annotations

from pathlib import Path

import torch


def option(command: list[str], key: str) -> str:
    return command[command.index(key) + 1]


class FakeProgram:
    """Notes its commands and leaves the final checkpoint of a training, or fails."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.commands: list[list[str]] = []
        self.fail_at = fail_at

    def __call__(self, command: list[str]) -> int:
        self.commands.append(command)
        if len(self.commands) - 1 == self.fail_at:
            return 3
        self.run(command, Path(option(command, "OUTPUT_DIR")))
        return 0

    def run(self, command: list[str], folder: Path) -> None:
        folder.mkdir(parents=True)
        iterations = int(option(command, "SOLVER.MAX_ITER"))
        torch.save({"model": {}, "iteration": iterations - 1}, folder / "model_final.pth")
