"""The checkpointer of detection models: formats of the model zoo on top of fvcore's checkpointer."""

from __future__ import annotations

import logging
import os
import pickle
from typing import Any
from urllib.parse import parse_qs, urlsplit

import detectron2.utils.comm as comm
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer, _IncompatibleKeys
from torch import nn

from detectron2_fallback.safe_pickle import load_pickle, load_torch_file

from .c2_model_loading import align_and_update_state_dicts, convert_torchvision_names, is_torchvision_resnet

__all__ = ["DetectionCheckpointer"]

logger = logging.getLogger(__name__)


class DetectionCheckpointer(Checkpointer):
    """:class:`Checkpointer` that also reads the model zoo's ``.pkl`` files and foreign backbone weights.

    Files are never trusted: ``.pth`` is read with ``weights_only=True``, ``.pkl`` by a restricted unpickler.
    Appending ``?matching_heuristics=True`` to a path matches names by their longest common suffix.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """See :class:`Checkpointer`; ``save_to_disk`` defaults to True on the main process only."""
        super().__init__(
            model,
            save_dir,
            save_to_disk=comm.is_main_process() if save_to_disk is None else save_to_disk,
            **checkpointables,
        )
        self.path_manager = PathManager
        self._match_by_suffix = False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; see :meth:`Checkpointer.load`.

        Raises:
            ValueError: if the path has a query other than ``matching_heuristics``.
            pickle.UnpicklingError: if the file holds anything but tensors, arrays and plain data.
            RuntimeError: if the file is damaged.
        """
        path = os.fspath(path) if path else path
        if path and not os.path.exists(path):  # a "?" in the name of an existing file is part of the name
            url = urlsplit(path)
            query = parse_qs(url.query, keep_blank_values=True)
            self._match_by_suffix = query.pop("matching_heuristics", []) == ["True"]
            if query:
                raise ValueError(f"Unsupported query remaining: {sorted(query)}, original filename: {path}")
            path = url._replace(query="").geturl()
        try:
            return super().load(path, checkpointables)
        finally:
            self._match_by_suffix = False

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read ``filename`` into ``{"model": ..., ...}``; the format follows from its extension."""
        checkpoint = self._load_pkl(filename) if filename.endswith(".pkl") else load_torch_file(filename)
        if not isinstance(checkpoint, dict):
            raise RuntimeError(
                f"Checkpoint {filename} holds a {type(checkpoint).__name__}, not a dictionary of weights"
            )
        if filename.endswith(".pyth"):  # pycls
            state = checkpoint["model_state"] if "model_state" in checkpoint else checkpoint["model"]
            state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
            checkpoint = {"model": state, "__author__": "pycls", "matching_heuristics": True}
        if "model" not in checkpoint:
            checkpoint = {"model": checkpoint}
        if self._match_by_suffix:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_pkl(self, filename: str) -> dict[str, Any]:
        """Read a pickle of the zoo: ``{"model": ..., "__author__": ...}``, or Caffe2 blobs."""
        try:
            with PathManager.open(filename, "rb") as file:
                data = load_pickle(file)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(f"Checkpoint {filename} was refused: {error}") from error
        if isinstance(data, dict) and "model" in data and "__author__" in data:
            self.logger.info(f"Reading a file from '{data['__author__']}'")
            return data
        if not isinstance(data, dict):
            raise RuntimeError(
                f"Checkpoint {filename} holds a {type(data).__name__}, not a dictionary of weights"
            )
        blobs = data.get("blobs", data)
        blobs = {key: value for key, value in blobs.items() if not key.endswith("_momentum")}
        return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        """Load ``checkpoint["model"]``, renamed where the file asks for it or comes from torchvision."""
        self._convert_ndarray_to_tensor(checkpoint["model"])
        model_state = self.model.state_dict()
        if is_torchvision_resnet(checkpoint["model"]) and not is_torchvision_resnet(model_state):
            self.logger.warning(
                "These are torchvision ResNet weights: they expect RGB input, torchvision's pixel mean and "
                "standard deviation, and MODEL.RESNETS.STRIDE_IN_1X1 False."
            )
            checkpoint["model"] = convert_torchvision_names(checkpoint["model"])
            checkpoint["matching_heuristics"] = True
        if checkpoint.get("matching_heuristics", False):
            checkpoint["model"] = align_and_update_state_dicts(
                model_state, checkpoint["model"], c2_conversion=checkpoint.get("__author__") == "Caffe2"
            )
        incompatible = super()._load_model(checkpoint)

        # Old files lack what is now computed from the config, or hold anchors that models no longer store.
        buffers = dict(self.model.named_buffers(recurse=False))
        for key in ("pixel_mean", "pixel_std"):
            if key in buffers and key in incompatible.missing_keys:
                incompatible.missing_keys.remove(key)
        for key in list(incompatible.unexpected_keys):
            if "anchor_generator.cell_anchors" in key:
                incompatible.unexpected_keys.remove(key)
        return incompatible
