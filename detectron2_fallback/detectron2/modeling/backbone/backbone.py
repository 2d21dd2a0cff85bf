"""What every backbone offers."""

from abc import ABCMeta, abstractmethod
from typing import Any

from detectron2.layers import ShapeSpec
from torch import nn

__all__ = ["Backbone"]


class Backbone(nn.Module, metaclass=ABCMeta):
    """Base class of networks that map an image batch to named feature maps.

    Subclasses set ``_out_features`` (names), ``_out_feature_channels`` and ``_out_feature_strides`` (name ->
    int), or override :meth:`output_shape`.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return a dictionary from feature name (``"res2"``) to an ``N C H W`` tensor."""

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this; 0 means that any size will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Like :attr:`size_divisibility`, with keys ``size_divisibility`` and ``square_size`` (pixels)."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map that :meth:`forward` returns."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
