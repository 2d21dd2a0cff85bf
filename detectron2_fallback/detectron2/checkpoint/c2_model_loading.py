"""Match the names of foreign checkpoints (Caffe2, torchvision, bare backbones) with those of a model."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

import torch
from tabulate import tabulate

__all__ = [
    "align_and_update_state_dicts",
    "convert_basic_c2_names",
    "convert_c2_detectron_names",
    "convert_torchvision_names",
    "is_torchvision_resnet",
]

logger = logging.getLogger(__name__)

# Applied in this order to a Caffe2 blob name whose underscores have become dots.
_C2_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^pred\.", "linear."),
        (r"\.b$", ".bias"),
        (r"\.w$", ".weight"),
        (r"\bbn\.(s|gamma)$", "norm.weight"),
        (r"\bbn\.(bias|beta)$", "norm.bias"),
        (r"\bbn\.(rm|running\.mean)$", "norm.running_mean"),
        (r"\bbn\.(riv|running\.var)$", "norm.running_var"),
        (r"\bgn\.s$", "norm.weight"),
        (r"\bgn\.bias$", "norm.bias"),
        (r"^res\.conv1\.norm\.", "conv1.norm."),
        (r"^conv1\.", "stem.conv1."),
        (r"\.branch1\.", ".shortcut."),
        (r"\.branch2a\.", ".conv1."),
        (r"\.branch2b\.", ".conv2."),
        (r"\.branch2c\.", ".conv3."),
    )
)
_C2_FPN_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^fpn\.inner\.res(\d)\.\d+\.sum(?:\.lateral)?\.", r"fpn_lateral\1."),
        (r"^fpn\.res(\d)\.\d+\.sum\.", r"fpn_output\1."),
        (r"^fpn\.([67])\.", r"top_block.p\1."),
    )
)
_TORCHVISION_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(conv1|bn1)\.", r"stem.\1."),
        (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
        (r"\bbn(\d)\.", r"conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
    )
)


def _rename(key: str, rules: Iterable[tuple[re.Pattern[str], Any]]) -> str:
    for pattern, replacement in rules:
        key = pattern.sub(replacement, key)
    return key


def convert_basic_c2_names(original_keys: list[str]) -> list[str]:
    """Caffe2 blob names of a ResNet in our spelling (``res2_0_branch2a_w`` -> ``res2.0.conv1.weight``).

    Args:
        original_keys: blob names; the result has the same order.
    """
    return [_rename(key.replace("_", "."), _C2_RULES) for key in original_keys]


def convert_c2_detectron_names(weights: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Rename the blobs of a Caffe2 Detectron model: ResNet backbone and feature pyramid.

    Args:
        weights: blob name -> array or tensor.

    Returns:
        Weights under their new names, and the map from new to original names.

    Raises:
        ValueError: if two blobs get the same name.
    """
    logger.info("Renaming Caffe2 weights ......")
    new_weights: dict[str, Any] = {}
    original_names: dict[str, str] = {}
    for original, key in zip(weights, convert_basic_c2_names(list(weights)), strict=True):
        key = _rename(key, _C2_FPN_RULES)
        if key in new_weights:
            raise ValueError(f"Caffe2 weights {original_names[key]!r} and {original!r} both become {key!r}")
        new_weights[key] = weights[original]
        original_names[key] = original
    return new_weights, original_names


def is_torchvision_resnet(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a torchvision ResNet (bottleneck or basic)."""
    return {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.0.conv1.weight"} <= set(keys)


def convert_torchvision_names(weights: dict[str, Any]) -> dict[str, Any]:
    """Rename a torchvision ResNet's weights (``layer1.0.bn1.weight`` -> ``res2.0.conv1.norm.weight``)."""
    return {_rename(key, _TORCHVISION_RULES): value for key, value in weights.items()}


def _longest_suffix(key: str, candidates: set[str]) -> str | None:
    """The longest candidate that equals ``key`` or ends it after a dot, or None."""
    while key not in candidates:
        _, dot, key = key.partition(".")
        if not dot:
            return None
    return key


def align_and_update_state_dicts(
    model_state_dict: dict[str, torch.Tensor],
    ckpt_state_dict: dict[str, torch.Tensor],
    c2_conversion: bool = True,
) -> dict[str, torch.Tensor]:
    """Rename a checkpoint's keys to the model's: each model key takes the longest key that is its suffix.

    So a checkpoint of a bare backbone (``res2.0.conv1.weight``) fills
    ``backbone.bottom_up.res2.0.conv1.weight``.

    Args:
        model_state_dict: the model's state dict; only names and shapes are used.
        ckpt_state_dict: the checkpoint's.
        c2_conversion: rename Caffe2 names first.

    Returns:
        The checkpoint under the model's names; what matched nothing keeps its own name. Matches whose shapes
        differ are left out of the match with a warning.

    Raises:
        ValueError: if one checkpoint key fits several model keys.
    """
    originals = {key: key for key in ckpt_state_dict}
    if c2_conversion:
        ckpt_state_dict, originals = convert_c2_detectron_names(ckpt_state_dict)
    candidates = set(ckpt_state_dict)

    result: dict[str, torch.Tensor] = {}
    matched: dict[str, str] = {}  # checkpoint key -> model key
    for model_key in sorted(model_state_dict):
        ckpt_key = _longest_suffix(model_key, candidates)
        if ckpt_key is None:
            continue
        value = ckpt_state_dict[ckpt_key]
        if value.shape != model_state_dict[model_key].shape:
            logger.warning(
                f"Shape of {originals[ckpt_key]} in checkpoint is {tuple(value.shape)}, while shape of "
                f"{model_key} in model is {tuple(model_state_dict[model_key].shape)}. {originals[ckpt_key]} "
                "will not be loaded. Please double check and see if this is desired."
            )
            continue
        if ckpt_key in matched:
            raise ValueError(
                "Cannot match one checkpoint key to multiple keys in the model: "
                f"{originals[ckpt_key]} fits {matched[ckpt_key]} and {model_key}"
            )
        matched[ckpt_key] = model_key
        result[model_key] = value

    if not matched:
        logger.warning("No weights in checkpoint matched with model.")
        return ckpt_state_dict
    rows = [(model_key, originals[key], tuple(result[model_key].shape)) for key, model_key in matched.items()]
    table = tabulate(rows, headers=["Names in Model", "Names in Checkpoint", "Shapes"], tablefmt="pipe")
    logger.info(f"Following weights matched with the model:\n{table}")
    result.update((key, value) for key, value in ckpt_state_dict.items() if key not in matched)
    return result
