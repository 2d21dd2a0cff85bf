"""Keypoint annotations of instances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["Keypoints"]


class Keypoints:
    """``K`` keypoints of each of ``N`` instances.

    Attributes:
        tensor: float32, ``N K 3``: x, y and visibility (0 not labelled, 1 labelled but hidden, 2 visible).
    """

    def __init__(self, keypoints: torch.Tensor | np.ndarray | list[list[float]]) -> None:
        """
        Raises:
            AssertionError: if the shape is not ``N K 3``.
        """
        place = keypoints.device if isinstance(keypoints, torch.Tensor) else torch.device("cpu")
        keypoints = torch.as_tensor(keypoints, dtype=torch.float32, device=place)
        assert keypoints.dim() == 3, keypoints.shape
        assert keypoints.shape[2] == 3, keypoints.shape
        self.tensor = keypoints

    def __len__(self) -> int:
        return self.tensor.size(0)

    def to(self, *args: Any, **kwargs: Any) -> Keypoints:
        """Return keypoints whose tensor went through ``to(*args, **kwargs)``."""
        return type(self)(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | list[int] | torch.Tensor) -> Keypoints:
        """Index instances; an int gives one."""
        if isinstance(item, int):
            return Keypoints(self.tensor[item][None])
        return Keypoints(self.tensor[item])

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield ``K 3`` for each instance."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self.tensor)})"

    @staticmethod
    def cat(keypoints_list: list[Keypoints]) -> Keypoints:
        """Concatenate the keypoints of several sets of instances.

        Raises:
            AssertionError: if the list is empty or holds anything else.
        """
        assert isinstance(keypoints_list, (list, tuple))
        assert len(keypoints_list) > 0
        assert all(isinstance(keypoints, Keypoints) for keypoints in keypoints_list)
        return type(keypoints_list[0])(torch.cat([kpts.tensor for kpts in keypoints_list], dim=0))
