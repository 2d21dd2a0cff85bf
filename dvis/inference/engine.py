"""One inference loop for every mode: segment a window, link it, maybe refine, store, and postprocess last."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from dvis.modeling.structures import LinkedOutput, RefinedOutput, SegmenterOutput


class Linker(Protocol):
    """Links the frames of a window to each other and to the frames seen before.

    ``state`` is None at the start of a video; afterwards it is what the previous call returned (MinVIS: the last
    frame's queries; tracker: a ``TrackerState``). It is a frozen dataclass and is never modified in place. Calling
    once with T frames or T times with one frame gives the same result.
    """

    def __call__(self, segmented: SegmenterOutput, state: Any | None) -> tuple[LinkedOutput, Any]: ...


class Refiner(Protocol):
    """Corrects linked objects with all frames it is given.

    Args:
        queries: linked instance queries, ``B T Q C`` (``LinkedOutput.queries``).
        frame_queries: what the cross-attention looks at, ``B T Q C`` (``LinkedOutput.frame_queries``).
    """

    def __call__(self, queries: Tensor, frame_queries: Tensor) -> RefinedOutput: ...
