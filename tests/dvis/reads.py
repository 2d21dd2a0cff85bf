"""Configurations that note which of their keys are read."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode


class RecordingNode(CfgNode):
    """A configuration node that notes every value taken from it, also from its copies."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if "_reads" in self.__dict__ and not isinstance(value, CfgNode):
            self.__dict__["_reads"].add(f"{self.__dict__['_prefix']}{key}")
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> RecordingNode:
        copy = CfgNode({key: dict.__getitem__(self, key) for key in self})
        for name, value in self.__dict__.items():
            if name not in ("_reads", "_prefix"):
                copy.__dict__[name] = value
        return recording(copy, self.__dict__["_reads"], self.__dict__["_prefix"])


def recording(cfg: CfgNode, reads: set[str], prefix: str = "") -> Any:
    """Turn a configuration, in place, into one that adds the keys that are read to ``reads``."""
    object.__setattr__(cfg, "__class__", RecordingNode)
    cfg.__dict__.update(_reads=reads, _prefix=prefix)
    for key in cfg:
        value = dict.__getitem__(cfg, key)
        if isinstance(value, CfgNode):
            recording(value, reads, f"{prefix}{key}.")
    return cfg
