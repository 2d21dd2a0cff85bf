"""Images of different sizes in one padded tensor.

Annotations are written for TorchScript, which reads neither ``X | Y`` nor postponed ones reliably.
"""

from typing import Any, Dict, List, Optional, Tuple  # noqa: UP035  (TorchScript)

import torch
from detectron2.layers.wrappers import move_device_like, shapes_to_tensor
from torch import device
from torch.nn import functional as F

# ruff: noqa: UP006, UP045  (TorchScript)


class ImageList:
    """``N`` images, padded at the right and at the bottom to one size.

    Attributes:
        tensor: ``N H W`` or ``N C_1 ... C_k H W`` with k >= 1.
        image_sizes: ``(height, width)`` of each image before padding; tensors of two while tracing.
    """

    def __init__(self, tensor: torch.Tensor, image_sizes: List[Tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx) -> torch.Tensor:
        """Return image ``idx`` without padding: ``H W`` or ``C_1 ... C_k H W``."""
        size = self.image_sizes[idx]
        return self.tensor[idx, ..., : size[0], : size[1]]

    @torch.jit.unused
    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """Return a list whose tensor went through ``to(*args, **kwargs)``."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: List[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Optional[Dict[str, int]] = None,
    ) -> "ImageList":
        """Pad images to the largest height and width among them.

        Args:
            tensors: each ``H W`` or ``C_1 ... C_k H W`` with the same leading dimensions.
            size_divisibility: if above 1, the common height and width are rounded up to a multiple of it.
            pad_value: value of the padding.
            padding_constraints: ``{"square_size": s}`` pads to ``s x s``; ``{"size_divisibility": d}`` goes
                before the argument of that name.

        Raises:
            AssertionError: if there is no image, or the leading dimensions differ.
        """
        assert len(tensors) > 0
        assert isinstance(tensors, (tuple, list))
        for t in tensors:
            assert isinstance(t, torch.Tensor), type(t)
            assert t.shape[:-2] == tensors[0].shape[:-2], t.shape

        image_sizes = [(im.shape[-2], im.shape[-1]) for im in tensors]
        image_sizes_tensor = [shapes_to_tensor([im.shape[-2], im.shape[-1]]) for im in tensors]
        max_size = torch.stack(image_sizes_tensor).max(0).values

        if padding_constraints is not None:
            square_size = padding_constraints.get("square_size", 0)
            if square_size > 0:
                max_size = torch.full_like(max_size, square_size)
            if "size_divisibility" in padding_constraints:
                size_divisibility = padding_constraints["size_divisibility"]
        if size_divisibility > 1:
            stride = size_divisibility
            max_size = (max_size + (stride - 1)).div(stride, rounding_mode="floor") * stride

        if torch.jit.is_scripting():
            max_size: List[int] = max_size.to(dtype=torch.long).tolist()  # type: ignore[no-redef]
        elif torch.jit.is_tracing():
            image_sizes = image_sizes_tensor  # type: ignore[assignment]

        if len(tensors) == 1:
            # One image in a batch is common in tracing and testing; padding it needs no extra copy.
            height, width = tensors[0].shape[-2], tensors[0].shape[-1]
            padding_size = [0, max_size[-1] - width, 0, max_size[-2] - height]
            batched_imgs = F.pad(tensors[0], padding_size, value=pad_value).unsqueeze_(0)  # type: ignore[arg-type]
        else:
            batch_shape = [len(tensors)] + list(tensors[0].shape[:-2]) + list(max_size)  # noqa: RUF005
            # A traced constant would hold the device of the tracing.
            device = None if torch.jit.is_scripting() else ("cpu" if torch.jit.is_tracing() else None)
            batched_imgs = tensors[0].new_full(batch_shape, pad_value, device=device)
            batched_imgs = move_device_like(batched_imgs, tensors[0])
            for i, img in enumerate(tensors):
                # The index is written out: tracing does not follow in-place changes of zipped views.
                batched_imgs[i, ..., : img.shape[-2], : img.shape[-1]].copy_(img)
        return ImageList(batched_imgs.contiguous(), image_sizes)
