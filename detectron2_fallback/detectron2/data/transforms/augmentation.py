"""Random augmentations: policies that look at the data and return a deterministic transform."""

from __future__ import annotations

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "StandardAugInput",
    "TransformGen",
    "apply_augmentations",
    "apply_transform_gens",
]


def _check_img_dtype(img: Any) -> None:
    assert isinstance(img, np.ndarray), f"[Augmentation] Needs an numpy array, but got a {type(img)}!"
    assert not np.issubdtype(img.dtype, np.integer) or img.dtype == np.uint8, (
        f"[Augmentation] Got image of type {img.dtype}, use uint8 or floating points instead!"
    )
    assert img.ndim in (2, 3), f"[Augmentation] Needs an image of 2 or 3 dimensions, got shape {img.shape}"


def _get_aug_input_args(aug: Augmentation, aug_input: Any) -> list[Any]:
    """The attributes of ``aug_input`` that ``aug.get_transform`` asks for by its argument names."""
    if aug.input_args is None:
        parameters = inspect.signature(aug.get_transform).parameters
        if len(parameters) == 1:
            # The single argument of old augmentations may have any name.
            names: tuple[str, ...] = ("image",)
        else:
            for name, parameter in parameters.items():
                if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                    raise TypeError(
                        f"The default __call__ of {type(aug)} cannot fill the argument '{name}' of "
                        "get_transform: give all arguments a name, or override __call__."
                    )
            names = tuple(parameters)
        aug.input_args = names

    values = []
    for name in aug.input_args:
        try:
            values.append(getattr(aug_input, name))
        except AttributeError as error:
            raise AttributeError(
                f"{type(aug)}.get_transform needs input attribute '{name}', "
                f"but it is not an attribute of {type(aug_input)}!"
            ) from error
    return values


class Augmentation:
    """A random policy. ``get_transform`` draws the random numbers and returns what to do.

    The names of the arguments of ``get_transform`` say which attributes of the :class:`AugInput` it needs to
    see, for instance ``get_transform(self, image, sem_seg)``. To apply the same choice to other data, keep
    the returned transform.
    """

    input_args: tuple[str, ...] | None = None
    """Attributes of the input that ``get_transform`` takes; None reads them from its signature."""

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Turn the arguments of a constructor (its ``locals()``) into attributes."""
        for key, value in (params or {}).items():
            if key != "self" and not key.startswith("_"):
                setattr(self, key, value)

    def get_transform(self, *args: Any) -> Transform:
        """Return the transform for the given data (usually an image); overridden by every policy."""
        raise NotImplementedError

    def __call__(self, aug_input: Any) -> Transform:
        """Draw a transform, apply it to ``aug_input`` in place and return it."""
        transform = self.get_transform(*_get_aug_input_args(self, aug_input))
        assert isinstance(transform, (Transform, TransformList)), (
            f"{type(self)}.get_transform must return an instance of Transform! Got {type(transform)} instead."
        )
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Uniform random number(s): in [0, low) if only ``low`` is given, else in [low, high)."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        """``Name(argument=value, ...)`` with the arguments that differ from their defaults."""
        arguments = []
        for name, parameter in inspect.signature(self.__init__).parameters.items():  # type: ignore[misc]
            variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            if parameter.kind in variadic or not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            if value is parameter.default:
                continue
            text = pprint.pformat(value)
            arguments.append(f"{name}={'...' if chr(10) in text else text}")
        return f"{type(self).__name__}({', '.join(arguments)})"

    __str__ = __repr__


class _TransformToAug(Augmentation):
    """A deterministic transform in the place of a policy."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __call__(self, aug_input: Any) -> Transform:
        aug_input.transform(self.tfm)
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def _transform_to_aug(tfm_or_aug: Augmentation | Transform) -> Augmentation:
    """Wrap a transform as an augmentation; an augmentation is returned as it is."""
    assert isinstance(tfm_or_aug, (Transform, Augmentation)), (
        f"expected a Transform or an Augmentation, got {type(tfm_or_aug)}"
    )
    return tfm_or_aug if isinstance(tfm_or_aug, Augmentation) else _TransformToAug(tfm_or_aug)


class AugmentationList(Augmentation):
    """Several augmentations, one after the other; each sees the data as the previous one left it.

    Args:
        augs: augmentations and transforms.
    """

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        super().__init__()
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(str(aug) for aug in self.augs)}]"

    __str__ = __repr__


class AugInput:
    """The data that augmentations look at and change; a subclass may hold more.

    Args:
        image: ``H W`` or ``H W C``, uint8 in [0, 255] or floating point.
        boxes: ``N 4``, (x0, y0, x1, y1) in pixels.
        sem_seg: ``H W`` uint8 labels.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        _check_img_dtype(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply ``tfm`` to everything held, in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """Apply a list of augmentations in place and return what they did."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: np.ndarray | AugInput
) -> tuple[Any, TransformList]:
    """Apply augmentations to an image or an :class:`AugInput`.

    Returns:
        The changed image (if one was given) or the changed input, and the transforms that were applied.
    """
    if isinstance(inputs, np.ndarray):
        image_input = AugInput(inputs)
        transforms = image_input.apply_augmentations(augmentations)
        return image_input.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)


# Names of older versions.
apply_transform_gens = apply_augmentations
StandardAugInput = AugInput
TransformGen = Augmentation
