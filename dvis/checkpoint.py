"""Weights into models: says what was loaded, and refuses what cannot be right; and safe checkpoint files.

No file is ever trusted: ``.pth`` is read with ``weights_only=True``, ``.pkl`` by a restricted unpickler,
``.safetensors`` holds nothing but tensors.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor, nn

import detectron2_fallback
from detectron2_fallback.safe_pickle import load_pickle, load_torch_file
from dvis.data.files import atomic_path

__all__ = ["VideoCheckpointer", "load_weights", "read_weights", "save_weights"]

logger = logging.getLogger(__name__)

# What reading a damaged, incomplete or foreign file ends in.
UNREADABLE = (RuntimeError, ValueError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)

# Which model a checkpoint belongs to, by the last part that is in it; each stage starts from the one before.
STAGE_OF_PART = {
    "backbone": "MinVIS",
    "sem_seg_head": "MinVIS",
    "tracker": "DVIS_online",
    "refiner": "DVIS_offline",
}


class VideoCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer that refuses weights which do not belong to the model.

    Refused are weights of which nothing fits; weights of a later stage; and weights that leave a frozen
    part of the model, which no training would repair, at its random start. Tensors of another number of
    classes are skipped with a warning elsewhere, and parts that the weights do not have are named.

    Files are written so that a kill at any moment leaves the old ones as they are. Besides detectron2's
    formats, ``.safetensors`` files are read.
    """

    _intact: tuple[str, dict[str, Any]] | None = None  # a file that has been read already, and its content

    def save(self, name: str, **kwargs: Any) -> None:
        """Write the model, what belongs to it and ``kwargs`` to ``name.pth``, and tag that as the last."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", path)
        with atomic_path(path) as temporary:
            torch.save(data, temporary)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Say which checkpoint a resumed run goes on from; see :meth:`resume`."""
        with atomic_path(Path(self.save_dir) / "last_checkpoint") as temporary:
            temporary.write_text(last_filename_basename)

    def steps(self) -> dict[int, str]:
        """Periodic checkpoints in the folder, by the step after which they were saved."""
        files = {_step_of(file): file for file in self.get_all_checkpoint_files()}
        return {step: file for step, file in files.items() if step is not None}

    def resume(self) -> dict[str, Any] | None:
        """Load the last intact checkpoint of the folder into the model and all that belongs to it.

        Every process has to call it. Checkpoints that are damaged are passed over with a warning each.

        Returns:
            What else is in the checkpoint; None if there is no checkpoint.

        Raises:
            RuntimeError: if there are checkpoints, but all are damaged.
            FileNotFoundError: if other processes do not find the file that the main process has chosen.
            ValueError: if it belongs to another model.
        """
        path = comm.all_gather(self._last_intact() if comm.is_main_process() else "")[0]
        if not path:
            return None
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such file here; all machines must share OUTPUT_DIR")
        try:
            return self.load(path)
        except ValueError as error:
            raise ValueError(f"checkpoint {path}: {error}") from error

    def _last_intact(self) -> str:
        """Path of the last checkpoint that can be read completely; empty if there is none at all."""
        for rest in Path(self.save_dir).glob(".*.tmp"):  # of a process that was killed while it wrote
            rest.unlink(missing_ok=True)
        damaged = []
        for path in self._candidates():
            try:
                _check_sums(path)
                self._intact = (path, self._load_file(path))
            except UNREADABLE as error:
                logger.warning(
                    "Checkpoint %s is damaged or missing, trying the one before it: %s", path, error
                )
                damaged.append(path)
            else:
                return path
        if damaged:
            names = ", ".join(map(os.path.basename, damaged))
            raise RuntimeError(
                f"no checkpoint in {self.save_dir} can be read ({names}); "
                "start without --resume, or in another OUTPUT_DIR"
            )
        return ""

    def _candidates(self) -> Iterator[str]:
        """The tagged checkpoint, then those of earlier steps, the latest first."""
        if not self.has_checkpoint():
            return
        tagged = self.get_checkpoint_file()
        yield tagged
        limit = _step_of(tagged)
        steps = self.steps()
        yield from (steps[step] for step in sorted(steps, reverse=True) if limit is None or step < limit)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if self._intact is not None and self._intact[0] == filename:
            content, self._intact = self._intact[1], None
            return content
        if filename.endswith(".safetensors"):
            return {"model": _read_safetensors(filename)}
        if not detectron2_fallback.is_bundled():
            _refuse_programs(filename)
        return _with_base(super()._load_file(filename), filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        num_given = len(checkpoint["model"])
        report = super()._load_model(checkpoint)
        check_report(
            self.model,
            num_given=num_given,
            missing=report.missing_keys,
            unexpected=report.unexpected_keys,
            mismatched={key: (given, expected) for key, given, expected in report.incorrect_shapes},
        )
        return report


def load_weights(model: nn.Module, path: str | os.PathLike[str], *, complete: bool = False) -> None:
    """Load a checkpoint (``.pth``, ``.safetensors`` or the model zoo's ``.pkl``) for training or inference.

    Args:
        model: what ``build_model`` returned.
        path: a file, or a URL that detectron2 knows; empty: the model stays as it is.
        complete: refuse also weights that lack any tensor of the model, as is right for inference.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the weights do not belong to the model; names the right kind.
    """
    name = os.fspath(path)
    if not name:
        logger.warning("MODEL.WEIGHTS is empty: the model stays as it was initialised.")
        return
    if "://" not in name and not os.path.isfile(name.partition("?")[0]):
        raise FileNotFoundError(f"MODEL.WEIGHTS: no such file: {name}")
    checkpointer = _ReportingCheckpointer(model)
    try:
        checkpointer.load(name)
    except ValueError as error:
        raise ValueError(f"weights {name}: {error}") from error
    lacking = sorted(key for key in checkpointer.missing if not _is_computed(key))
    if complete and lacking:
        raise ValueError(
            f"weights {name}: {len(lacking)} tensors of {type(model).__name__} are missing or have another "
            f"shape: {_shortened(lacking)}"
        )


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a model in a checkpoint that this project wrote (``.pth``), with those of its base.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such checkpoint.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"no such file: {name}")
    content = load_torch_file(name)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{name} is no checkpoint of this project: it has no `model`")
    return _with_base(content, name)["model"]


def save_weights(
    weights: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str], *, base: str = ""
) -> None:
    """Write the tensors of a model, and nothing else, to a ``.safetensors`` or ``.pth`` file.

    Args:
        weights: a model or its state dict.
        path: the file; its suffix says which kind.
        base: name of a ``.pth`` file in the same folder that has the tensors which are not in ``weights``.

    Raises:
        ValueError: for another suffix, or a base that is no file name.
        ImportError: if safetensors is needed and not installed.
    """
    path = Path(path)
    if base and (path.suffix != ".pth" or not _is_file_name(base)):
        raise ValueError(f"{path}: the base of a .pth file is a file in its folder, got {base!r}")
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    # Copies, as safetensors refuses tensors that share memory.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    if path.suffix == ".safetensors":
        data = _safetensors().save(tensors, metadata={"format": "pt"})
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    elif path.suffix == ".pth":
        with atomic_path(path) as temporary:
            torch.save({"model": tensors, "base": base} if base else {"model": tensors}, temporary)
    else:
        raise ValueError(f"{path}: weights are written as .safetensors or .pth")


def _with_base(content: dict[str, Any], path: str) -> dict[str, Any]:
    """A checkpoint's content with the tensors that it leaves to another file of its folder."""
    base = content.get("base")
    if not base:
        return content
    # No path: a checkpoint from elsewhere must not choose which files are opened.
    if not isinstance(base, str) or not _is_file_name(base):
        raise ValueError(f"{path} names {base!r} as its base, which is no file name")
    other = os.path.join(os.path.dirname(path), base)
    if base == os.path.basename(path) or not os.path.isfile(other):
        raise FileNotFoundError(f"{path} needs {base} beside it")
    return {**content, "model": {**read_weights(other), **content["model"]}}


def _is_file_name(name: str) -> bool:
    return os.path.basename(name) == name and name.endswith(".pth")


def _step_of(path: str) -> int | None:
    """The step after which a periodic checkpoint was saved, by its name; None for any other file."""
    found = re.fullmatch(r"model_(\d+)\.pth", os.path.basename(path))
    return int(found[1]) if found else None


def _check_sums(path: str) -> None:
    """Raise an error if the content of a file that ``torch.save`` wrote is not what was written.

    PyTorch itself does not look at the check sums: of a few changed bytes it would make other weights.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"wrong check sum of {broken}")


def _refuse_programs(path: str) -> None:
    """Raise ``pickle.UnpicklingError`` for a file that asks for more than tensors, arrays and plain data.

    Upstream detectron2 reads ``.pkl`` files, and on older versions of PyTorch all others, without any
    restriction.
    """
    if path.endswith(".pkl"):
        with open(path, "rb") as file:
            load_pickle(file)
    else:
        load_torch_file(path)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("safetensors files need a package: pip install safetensors") from error
    return safetensors.torch


def _read_safetensors(path: str) -> dict[str, Tensor]:
    module = _safetensors()
    from safetensors import SafetensorError

    try:
        return module.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


class _ReportingCheckpointer(VideoCheckpointer):
    """Remembers which tensors the checkpoint did not fill."""

    missing: tuple[str, ...] = ()

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        report = super()._load_model(checkpoint)
        self.missing = tuple(report.missing_keys)
        return report


def check_report(
    model: nn.Module,
    *,
    num_given: int,
    missing: Sequence[str],
    unexpected: Sequence[str],
    mismatched: dict[str, tuple[Any, Any]],
) -> None:
    """Log what a checkpoint filled, and refuse it where that cannot be right.

    Args:
        model: the model, already filled.
        num_given: number of tensors in the checkpoint.
        missing: the model's tensors that were not filled, those of a wrong shape included.
        unexpected: tensors of the checkpoint that the model does not have.
        mismatched: tensors of a wrong shape, with (given, expected) shapes.

    Raises:
        ValueError: see :class:`VideoCheckpointer`.
    """
    kind = type(model).__name__
    lacking = [key for key in missing if not _is_computed(key)]
    total = sum(not _is_computed(key) for key in model.state_dict())
    # Not from what is missing: some modules make up statistics that old files do not have.
    if num_given <= len(unexpected) + len(mismatched):
        shapes = "; ".join(f"{k}: {g} instead of {e}" for k, (g, e) in list(mismatched.items())[:3])
        raise ValueError(
            f"nothing fits {kind}: "
            + (shapes or f"its tensors are named {_shortened(lacking)}, those given {_shortened(unexpected)}")
        )
    later = [part for part in _parts(unexpected) if part in STAGE_OF_PART and not hasattr(model, part)]
    if later:
        right = STAGE_OF_PART[max(later, key=list(STAGE_OF_PART).index)]
        raise ValueError(
            f"these are weights of {right} (they have {', '.join(later)}), but the model is {kind}; "
            f"set MODEL.META_ARCHITECTURE to {right}, or give weights of {kind}"
        )
    for part in getattr(model, "frozen_parts", ()):
        broken = [key for key in lacking if key.startswith(f"{part}.")]
        if not broken:
            continue
        wrong = [
            f"{key} is {mismatched[key][0]}, not {mismatched[key][1]}" for key in broken if key in mismatched
        ]
        reason = wrong[0] if wrong else f"{len(broken)} tensors are missing, such as {broken[0]}"
        raise ValueError(
            f"{kind} does not train its {part}, which these weights do not fill ({reason}); "
            f"start from weights of {STAGE_OF_PART.get(part, 'the stage before')} for the same data set"
        )
    spoiled = [key for key, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if spoiled:
        raise ValueError(
            f"{len(spoiled)} tensors hold NaN or infinity, such as {_shortened(spoiled)}: the training that "
            "saved them had diverged; start from earlier weights"
        )
    for key, (given, expected) in mismatched.items():
        logger.warning("%s is skipped: its shape is %s, the model's is %s", key, given, expected)
    fresh = ", ".join(f"{part} ({count} tensors)" for part, count in _parts(lacking).items())
    logger.info(
        "Loaded %d of %d tensors; freshly initialised: %s", total - len(lacking), total, fresh or "nothing"
    )


def _is_computed(key: str) -> bool:
    """Whether a tensor follows from the configuration; a checkpoint need not have it."""
    return key.endswith(
        ("empty_weight", "relative_position_index", "num_batches_tracked", "pixel_mean", "pixel_std")
    )


def _parts(keys: Iterable[str]) -> Counter[str]:
    """Number of tensors per top-level module."""
    return Counter(key.partition(".")[0] for key in keys)


def _shortened(keys: Iterable[str]) -> str:
    names = list(keys)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
