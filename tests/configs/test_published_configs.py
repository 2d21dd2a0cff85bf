"""Every published configuration resolves to the published hyper-parameters.

``tests/data/configs/<project>.json`` holds, for each published YAML, the fully resolved keys that differ from
detectron2's own defaults: the project's defaults once (``_defaults``), then per file what differs from those.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg

import dvis
from tests.reference import DATA

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
PROJECTS = {
    name: json.loads((DATA / "configs" / f"{name}.json").read_text())
    for name in ("DVIS", "MinVIS", "Mask2Former")
}

# Intended differences, and why: key -> (which published files, reason).
INTENDED: dict[str, tuple[Callable[[str, str], bool], str]] = {
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (
        lambda project, name: Path(name).name.startswith("Base-"),
        "the base files keep detectron2's 54 classes, which fit none of the data sets; ours have the set's",
    ),
    "SEED": (
        lambda project, name: project != "DVIS",
        "one project, one default: DVIS's fixed seed 42 instead of a random one",
    ),
}
# MinVIS's own base files carry the same names as DVIS's; DVIS's are the ones at the published path.
SHADOWED = {name for name in PROJECTS["MinVIS"] if Path(name).name.startswith("Base-")}

PUBLISHED = [
    (project, name)
    for project, files in PROJECTS.items()
    for name in files
    if name != "_defaults" and not (project == "MinVIS" and name in SHADOWED)
]
LEAVES = sorted(p for p in CONFIGS.rglob("*.yaml") if "_base_" not in p.parts)


def flatten(node: CfgNode | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"A.B.C": value}`` with tuples as lists."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


@pytest.fixture(scope="module")
def host_defaults() -> dict[str, Any]:
    return flatten(get_cfg())


@pytest.fixture(scope="module")
def our_defaults() -> dict[str, Any]:
    return flatten(dvis.load_config(None))


@pytest.mark.parametrize(("project", "name"), PUBLISHED, ids=lambda value: value)
def test_resolves_to_published_values(
    project: str, name: str, host_defaults: dict[str, Any], our_defaults: dict[str, Any]
) -> None:
    resolved = flatten(dvis.load_config(CONFIGS / f"{name}.yaml"))
    published = {**host_defaults, **PROJECTS[project]["_defaults"], **PROJECTS[project][name]}
    intended = {key for key, (applies, _) in INTENDED.items() if applies(project, name)}
    different = {
        key: (resolved.get(key), value)
        for key, value in published.items()
        if resolved.get(key) != value and key not in intended
    }
    assert not different, f"(ours, published): {different}"
    if project != "DVIS":
        return
    # Keys that only our project has keep their default in a published configuration.
    new_keys = {key for key in resolved if key not in published}
    changed = {key: resolved[key] for key in new_keys if resolved[key] != our_defaults[key]}
    assert not changed


def test_every_published_file_is_there() -> None:
    missing = [name for _, name in PUBLISHED if not (CONFIGS / f"{name}.yaml").is_file()]
    assert not missing


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_leaf_says_only_what_differs(path: Path) -> None:
    """A value that the bases already give is noise; it hides what the file is about."""
    import yaml

    own = yaml.safe_load(path.read_text())
    bases = own.pop("_BASE_")
    merged: dict[str, Any] = flatten(dvis.load_config(None))
    for base in [bases] if isinstance(bases, str) else bases:
        merged.update(flatten(CfgNode.load_yaml_with_base(str(path.parent / base))))
    repeated = [key for key, value in flatten(own).items() if merged.get(key) == value]
    assert not repeated
