"""Conversion of configs between versions.

A config of version k becomes one of version k + 1 by renaming keys. The present version is 2.
"""

from __future__ import annotations

import logging

from .config import CfgNode
from .defaults import _C

__all__ = ["downgrade_config", "upgrade_config"]

_RENAMED_IN = {
    1: [("MODEL.RPN_HEAD.NAME", "MODEL.RPN.HEAD_NAME")],
    2: [
        ("MODEL.WEIGHT", "MODEL.WEIGHTS"),
        ("MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE", "MODEL.RPN.LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE", "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.COMBINE_ON", "MODEL.PANOPTIC_FPN.COMBINE.ENABLED"),
        ("MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD", "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH"),
        ("MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT", "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT"),
        (
            "MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD",
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
        ),
        ("MODEL.ROI_HEADS.SCORE_THRESH", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
        ("MODEL.ROI_HEADS.NMS", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
        ("MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD", "MODEL.RETINANET.SCORE_THRESH_TEST"),
        ("MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES", "MODEL.RETINANET.TOPK_CANDIDATES_TEST"),
        ("MODEL.RETINANET.INFERENCE_NMS_THRESHOLD", "MODEL.RETINANET.NMS_THRESH_TEST"),
        ("TEST.DETECTIONS_PER_IMG", "TEST.DETECTIONS_PER_IMAGE"),
        ("TEST.AUG_ON", "TEST.AUG.ENABLED"),
        ("TEST.AUG_MIN_SIZES", "TEST.AUG.MIN_SIZES"),
        ("TEST.AUG_MAX_SIZE", "TEST.AUG.MAX_SIZE"),
        ("TEST.AUG_FLIP", "TEST.AUG.FLIP"),
    ],
}
"""Version -> (old name, new name) of the keys that got a new name in it."""


def upgrade_config(cfg: CfgNode, to_version: int | None = None) -> CfgNode:
    """Return ``cfg`` converted to a newer version, by default the latest; the argument stays as it is.

    Raises:
        AssertionError: if ``cfg`` is newer than that.
    """
    cfg = cfg.clone()
    if to_version is None:
        to_version = _C.VERSION
    assert to_version >= cfg.VERSION, f"Cannot upgrade from v{cfg.VERSION} to v{to_version}!"
    for version in range(cfg.VERSION + 1, to_version + 1):
        for old, new in _RENAMED_IN[version]:
            _move(cfg, old, new)
        if version == 2:
            _merge_anchors(cfg)
        cfg.VERSION = version
    return cfg


def downgrade_config(cfg: CfgNode, to_version: int) -> CfgNode:
    """Return ``cfg`` converted to an older version, so that an old file can be merged into it.

    What a newer version cannot express in the old names is lost. The argument stays as it is.

    Raises:
        AssertionError: if ``cfg`` is older than that.
    """
    cfg = cfg.clone()
    assert to_version <= cfg.VERSION, f"Cannot downgrade from v{cfg.VERSION} to v{to_version}!"
    for version in range(cfg.VERSION, to_version, -1):
        for old, new in _RENAMED_IN[version]:
            _move(cfg, new, old)
        if version == 2:
            _split_anchors(cfg)
        cfg.VERSION = version - 1
    return cfg


def guess_version(cfg: CfgNode, filename: str) -> int:
    """Guess the version of a (partial) config that states none, and log the guess.

    Args:
        cfg: what the file says.
        filename: its name, for the log.
    """
    logger = logging.getLogger(__name__)
    if any(_has(cfg, key) for key in ("MODEL.WEIGHT", "TEST.AUG_ON")):
        logger.warning("Config '%s' has no VERSION. Assuming it to be v1.", filename)
        return 1
    logger.warning(
        "Config '%s' has no VERSION. Assuming it to be compatible with latest v%s.", filename, _C.VERSION
    )
    return _C.VERSION


def _has(cfg: CfgNode, name: str) -> bool:
    node = cfg
    for part in name.split("."):
        if part not in node:
            return False
        node = node[part]
    return True


def _move(cfg: CfgNode, source: str, target: str) -> None:
    """Give the value at ``source`` the name ``target``; nodes are made, and removed when empty, as needed."""
    *path, key = source.split(".")
    nodes = [cfg]
    for part in path:
        nodes.append(nodes[-1][part])
    value = nodes[-1].pop(key)
    for parent, part in zip(reversed(nodes[:-1]), reversed(path), strict=True):
        if not parent[part]:
            del parent[part]
    node = cfg
    *path, key = target.split(".")
    for part in path:
        node = node.setdefault(part, CfgNode())
    node[key] = value


def _merge_anchors(cfg: CfgNode) -> None:
    """Version 2 has one anchor generator where RPN and RetinaNet had their own anchors."""
    used, unused = (
        ("RETINANET", "RPN") if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else ("RPN", "RETINANET")
    )
    for name in ("ASPECT_RATIOS", "SIZES"):
        _move(cfg, f"MODEL.{used}.ANCHOR_{name}", f"MODEL.ANCHOR_GENERATOR.{name}")
        del cfg.MODEL[unused][f"ANCHOR_{name}"]
    del cfg.MODEL.RETINANET["ANCHOR_STRIDES"]


def _split_anchors(cfg: CfgNode) -> None:
    for name in ("ASPECT_RATIOS", "SIZES"):
        _move(cfg, f"MODEL.ANCHOR_GENERATOR.{name}", f"MODEL.RPN.ANCHOR_{name}")
        cfg.MODEL.RETINANET[f"ANCHOR_{name}"] = cfg.MODEL.RPN[f"ANCHOR_{name}"]
    cfg.MODEL.RETINANET.ANCHOR_STRIDES = []
