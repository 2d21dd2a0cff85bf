"""Config tree, files, versions and ``configurable``."""

from __future__ import annotations

import importlib.util
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import (
    CfgNode,
    configurable,
    downgrade_config,
    get_cfg,
    global_cfg,
    set_global_cfg,
    upgrade_config,
)
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, **files: str) -> dict[str, str]:
    paths = {}
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(text)
        paths[name] = str(path)
    return paths


def leaves(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
    return flat


# ------------------------------------------------------------------ defaults


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("VERSION", 2),
        ("MODEL.DEVICE", "cuda"),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
        ("MODEL.WEIGHTS", ""),
        ("MODEL.PIXEL_MEAN", [103.530, 116.280, 123.675]),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
        ("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
        ("MODEL.BACKBONE.FREEZE_AT", 2),
        ("MODEL.RESNETS.DEPTH", 50),
        ("MODEL.RESNETS.OUT_FEATURES", ["res4"]),
        ("MODEL.RESNETS.NORM", "FrozenBN"),
        ("MODEL.RESNETS.STRIDE_IN_1X1", True),
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", 64),
        ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 255),
        ("MODEL.SEM_SEG_HEAD.NORM", "GN"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 54),
        ("MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", 0.5),
        ("INPUT.MIN_SIZE_TRAIN", (800,)),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice"),
        ("INPUT.MAX_SIZE_TRAIN", 1333),
        ("INPUT.MIN_SIZE_TEST", 800),
        ("INPUT.RANDOM_FLIP", "horizontal"),
        ("INPUT.CROP.ENABLED", False),
        ("INPUT.CROP.TYPE", "relative_range"),
        ("INPUT.CROP.SIZE", [0.9, 0.9]),
        ("INPUT.FORMAT", "BGR"),
        ("INPUT.MASK_FORMAT", "polygon"),
        ("DATASETS.TRAIN", ()),
        ("DATALOADER.NUM_WORKERS", 4),
        ("DATALOADER.SAMPLER_TRAIN", "TrainingSampler"),
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
        ("SOLVER.MAX_ITER", 40000),
        ("SOLVER.BASE_LR", 0.001),
        ("SOLVER.MOMENTUM", 0.9),
        ("SOLVER.WEIGHT_DECAY", 0.0001),
        ("SOLVER.WEIGHT_DECAY_NORM", 0.0),
        ("SOLVER.WEIGHT_DECAY_BIAS", None),
        ("SOLVER.STEPS", (30000,)),
        ("SOLVER.WARMUP_FACTOR", 1.0 / 1000),
        ("SOLVER.WARMUP_ITERS", 1000),
        ("SOLVER.CHECKPOINT_PERIOD", 5000),
        ("SOLVER.IMS_PER_BATCH", 16),
        ("SOLVER.REFERENCE_WORLD_SIZE", 0),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", False),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 2.0),
        ("SOLVER.AMP.ENABLED", False),
        ("TEST.EVAL_PERIOD", 0),
        ("TEST.DETECTIONS_PER_IMAGE", 100),
        ("TEST.PRECISE_BN.NUM_ITER", 200),
        ("TEST.AUG.MIN_SIZES", (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)),
        ("OUTPUT_DIR", "./output"),
        ("SEED", -1),
        ("CUDNN_BENCHMARK", False),
        ("VIS_PERIOD", 0),
        ("GLOBAL.HACK", 1.0),
    ],
)
def test_default(key: str, value: Any) -> None:
    actual = leaves(get_cfg())[key]
    assert actual == value
    assert type(actual) is type(value)


def test_subset_has_every_default_of_the_installed_package() -> None:
    """Says something when upstream is installed, which is what the bundled tree has to equal."""
    path = ROOT / "detectron2_fallback" / "detectron2" / "config" / "defaults.py"
    spec = importlib.util.spec_from_file_location("detectron2.config._bundled_defaults", path)
    bundled = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bundled)
    ours = leaves(bundled._C)
    theirs = leaves(get_cfg())
    assert {key: ours.get(key, "missing") for key in theirs} == theirs


def test_get_cfg_gives_independent_copies() -> None:
    cfg = get_cfg()
    cfg.MODEL.PIXEL_MEAN[0] = 0.0
    cfg.SOLVER.BASE_LR = 1.0
    assert get_cfg().MODEL.PIXEL_MEAN[0] == 103.530
    assert cfg != get_cfg()
    assert get_cfg() == get_cfg().clone()


# ------------------------------------------------------------------ files


def test_base_is_merged_first(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, base="SOLVER:\n  BASE_LR: 0.5\n  STEPS: [1, 2]\nSEED: 3\nVERSION: 2\n")
    middle = write(tmp_path / "sub", middle="_BASE_: ../base.yaml\nSOLVER:\n  BASE_LR: 0.25\n")
    leaf = write(tmp_path / "sub", leaf=f"_BASE_: {middle['middle']}\nSOLVER:\n  MAX_ITER: 7\n")
    cfg = get_cfg()
    cfg.merge_from_file(leaf["leaf"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.25, 7, 3)
    assert cfg.SOLVER.STEPS == (1, 2)  # in the type of the default
    assert "_BASE_" not in cfg


def test_list_of_bases_later_wins(tmp_path: Path) -> None:
    paths = write(
        tmp_path,
        one="SOLVER:\n  BASE_LR: 0.5\n  MAX_ITER: 1\n",
        two="SOLVER:\n  BASE_LR: 0.25\nVERSION: 2\n",
        leaf="_BASE_: [one.yaml, two.yaml]\nSEED: 1\n",
    )
    cfg = get_cfg()
    cfg.merge_from_file(paths["leaf"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.25, 1, 1)


def test_home_folder_in_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(tmp_path, base="SEED: 5\nVERSION: 2\n")
    (tmp_path / "sub").mkdir()
    cfg = get_cfg()
    cfg.merge_from_file(write(tmp_path / "sub", leaf="_BASE_: ~/base.yaml\n")["leaf"])
    assert cfg.SEED == 5


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("SOLVER:\n  BASE_LRR: 0.5\nVERSION: 2\n", KeyError, "Non-existent config key: SOLVER.BASE_LRR"),
        ("SOLVER:\n  MAX_ITER: many\nVERSION: 2\n", ValueError, "SOLVER.MAX_ITER"),
        ("SOLVER:\n  STEPS: 4\nVERSION: 2\n", ValueError, "SOLVER.STEPS"),
        ("SOLVER: [1\nVERSION: 2\n", yaml.YAMLError, None),
        ("SOLVER:\n\tBASE_LR: 1\n", yaml.YAMLError, None),
        ("_BASE_: missing.yaml\n", FileNotFoundError, "missing.yaml"),
        ("VERSION: 3\n", AssertionError, "Cannot merge a v3 config into a v2 config."),
    ],
)
def test_broken_file(tmp_path: Path, text: str, error: type[Exception], message: str | None) -> None:
    with pytest.raises(error, match=message):
        get_cfg().merge_from_file(write(tmp_path, broken=text)["broken"])


def test_missing_file() -> None:
    with pytest.raises(AssertionError, match=r"Config file 'no/such\.yaml' does not exist!"):
        get_cfg().merge_from_file("no/such.yaml")


def test_base_of_another_kind_cannot_be_overridden(tmp_path: Path) -> None:
    paths = write(tmp_path, base="SOLVER: 3\n", leaf="_BASE_: base.yaml\nSOLVER:\n  BASE_LR: 1.0\n")
    with pytest.raises(AssertionError, match="Cannot inherit key 'SOLVER' from base!"):
        get_cfg().merge_from_file(paths["leaf"])


def test_python_tags_need_allow_unsafe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = '!!python/object/apply:eval ["[int(x * 64) for x in range(1, 3)]"]'
    text = f"INPUT:\n  MIN_SIZE_TRAIN: {sizes}\nVERSION: 2\n"
    path = write(tmp_path, tags=text)["tags"]
    with pytest.raises(yaml.constructor.ConstructorError):
        get_cfg().merge_from_file(path, allow_unsafe=False)
    cfg = get_cfg()
    with caplog.at_level(logging.WARNING):
        cfg.merge_from_file(path)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (64, 128)
    assert "yaml.unsafe_load" in caplog.text


def test_only_the_latest_version_takes_files(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.VERSION = 1
    with pytest.raises(AssertionError, match="config object of latest version"):
        cfg.merge_from_file(write(tmp_path, any="SEED: 1\nVERSION: 2\n")["any"])


def test_dump_can_be_merged_again(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 0.123
    cfg.DATASETS.TRAIN = ("a", "b")
    other = get_cfg()
    other.merge_from_file(write(tmp_path, dumped=cfg.dump())["dumped"])
    assert json.dumps(other) == json.dumps(cfg)  # not the trees: YAML has no tuples inside of tuples
    assert other.DATASETS.TRAIN == ("a", "b")
    assert cfg.dump(default_flow_style=True) != cfg.dump()


# ------------------------------------------------------------------ in memory


def test_merge_from_list() -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", "1e-4", "SOLVER.STEPS", "(5, 6)", "MODEL.WEIGHTS", "/a/b.pkl"])
    cfg.merge_from_list(
        ["DATASETS.TRAIN", "('x',)", "SOLVER.WEIGHT_DECAY_BIAS", 0.5, "TEST.AUG.FLIP", "False"]
    )
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.MODEL.WEIGHTS) == (1e-4, (5, 6), "/a/b.pkl")
    assert (cfg.DATASETS.TRAIN, cfg.SOLVER.WEIGHT_DECAY_BIAS, cfg.TEST.AUG.FLIP) == (("x",), 0.5, False)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["SOLVER.BASE_LR"], AssertionError, "odd length"),
        (["SOLVER.NO_SUCH", 1], AssertionError, "Non-existent key: SOLVER.NO_SUCH"),
        (["NO.SUCH", 1], AssertionError, "Non-existent key: NO.SUCH"),
        (["SOLVER.MAX_ITER", "abc"], ValueError, "SOLVER.MAX_ITER"),
        (["_BASE_", "a.yaml"], AssertionError, "can only be used in files"),
    ],
)
def test_broken_overrides(overrides: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get_cfg().merge_from_list(overrides)


def test_frozen_config_refuses_changes() -> None:
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError, match="BASE_LR"):
        cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.COMPUTED_STEPS = 3  # keys of this name may be inserted once, also then
    with pytest.raises(KeyError, match="COMPUTED_STEPS"):
        cfg.SOLVER.COMPUTED_STEPS = 4
    cfg.defrost()
    cfg.SOLVER.BASE_LR = 1.0
    assert cfg.is_frozen() is False


def test_deprecated_renamed_and_new_keys() -> None:
    cfg = CfgNode({"NEW": 1})
    cfg.register_deprecated_key("OLD")
    cfg.register_renamed_key("PAST", "NEW", message="It counts from 1 now.")
    cfg.merge_from_other_cfg(CfgNode({"OLD": 3}))
    assert "OLD" not in cfg
    with pytest.raises(KeyError, match=r"PAST was renamed to NEW.*It counts from 1 now\."):
        cfg.merge_from_other_cfg(CfgNode({"PAST": 3}))
    cfg.set_new_allowed(True)
    cfg.merge_from_other_cfg(CfgNode({"OTHER": {"A": 1}}))
    assert cfg.OTHER.A == 1


def test_missing_attribute_and_wrong_type() -> None:
    with pytest.raises(AttributeError, match="NO_SUCH"):
        _ = get_cfg().MODEL.NO_SUCH
    with pytest.raises(AssertionError, match="Invalid type"):
        get_cfg().MODEL.SOMETHING = object()


def test_pickle_and_global_config() -> None:
    cfg = get_cfg()
    cfg.SEED = 9
    assert pickle.loads(pickle.dumps(cfg)) == cfg
    previous = dict(global_cfg)
    set_global_cfg(cfg)
    assert global_cfg == cfg
    global_cfg.clear()
    global_cfg.update(previous)


# ------------------------------------------------------------------ versions


def test_downgrade_and_upgrade_are_inverse() -> None:
    cfg = get_cfg()
    cfg.USER_CUSTOM = 1
    before = cfg.clone()
    old = downgrade_config(cfg, to_version=0)
    assert old.VERSION == 0
    assert old.MODEL.WEIGHT == ""
    assert old.MODEL.RPN_HEAD.NAME == "StandardRPNHead"
    assert old.TEST.AUG_ON is False
    assert upgrade_config(old) == cfg == before


def test_retinanet_keeps_its_anchors() -> None:
    old = downgrade_config(get_cfg(), to_version=1)
    old.MODEL.META_ARCHITECTURE = "RetinaNet"
    old.MODEL.RETINANET.ANCHOR_SIZES = [[7]]
    assert upgrade_config(old).MODEL.ANCHOR_GENERATOR.SIZES == [[7]]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("MODEL:\n  RPN_HEAD:\n    NAME: TEST\nVERSION: 0\n", "MODEL.RPN.HEAD_NAME", "TEST"),
        ("MODEL:\n  WEIGHT: /path/to/weight\n", "MODEL.WEIGHTS", "/path/to/weight"),
        ("MODEL:\n  WEIGHTS: /path/to/weight\n", "MODEL.WEIGHTS", "/path/to/weight"),
    ],
)
def test_old_files_are_upgraded(tmp_path: Path, text: str, key: str, value: str) -> None:
    cfg = get_cfg()
    cfg.USER_CUSTOM = 1
    cfg.merge_from_file(write(tmp_path, old=text)["old"])
    assert leaves(cfg)[key] == value
    assert (cfg.VERSION, cfg.USER_CUSTOM) == (2, 1)


def test_versions_go_one_way() -> None:
    with pytest.raises(AssertionError, match="Cannot upgrade from v2 to v1!"):
        upgrade_config(get_cfg(), to_version=1)
    with pytest.raises(AssertionError, match="Cannot downgrade from v2 to v3!"):
        downgrade_config(get_cfg(), to_version=3)


# ------------------------------------------------------------------ configurable


class Plain(nn.Module):
    @configurable
    def __init__(self, width: int, depth, act=3):
        """The documentation stays."""
        super().__init__()
        self.values = (width, depth, act)

    @classmethod
    def from_config(cls, cfg):
        return {"width": cfg.WIDTH, "depth": cfg.DEPTH}


class WithShape(Plain):
    @configurable
    def __init__(self, input_shape, width, depth, act=3):
        super().__init__(width, depth, act)
        self.input_shape = input_shape

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg), "input_shape": input_shape}


class WithKeywords(WithShape):
    @classmethod
    def from_config(cls, cfg, input_shape, **kwargs):
        return {**super().from_config(cfg, input_shape), **kwargs}


class ShapeIsForwarded(Plain):
    """Its inherited ``from_config`` knows no ``input_shape``."""

    @configurable
    def __init__(self, input_shape, width, depth, act=3):
        super().__init__(width, depth, act)
        self.input_shape = input_shape


class LegacyChild(WithShape):
    def __init__(self, config, input_shape):
        super().__init__(config, input_shape)


class NewChild(WithShape):
    @configurable
    def __init__(self, input_shape, extra=4, **kwargs):
        super().__init__(input_shape, **kwargs)
        self.extra = extra


def make(width: int = 1, depth: int = 2) -> CfgNode:
    cfg = get_cfg()
    cfg.WIDTH, cfg.DEPTH = width, depth
    return cfg


def test_configurable_with_arguments() -> None:
    assert Plain(1, depth=2).values == (1, 2, 3)
    assert WithShape("shape", 1, 2).input_shape == "shape"
    assert ShapeIsForwarded("shape", width=1, depth=2).values == (1, 2, 3)
    assert Plain.__init__.__doc__ == "The documentation stays."
    assert Plain.__init__.__name__ == "__init__"


@pytest.mark.parametrize("kind", [WithShape, WithKeywords, ShapeIsForwarded, LegacyChild, NewChild])
def test_configurable_with_config(kind: type) -> None:
    built = kind(make(), input_shape="shape")
    assert built.values == (1, 2, 3)
    assert built.input_shape == "shape"
    assert Plain(make()).values == Plain(cfg=make()).values == (1, 2, 3)


@pytest.mark.parametrize("kind", [WithShape, WithKeywords, ShapeIsForwarded, NewChild])
def test_keywords_replace_the_config(kind: type) -> None:
    assert kind(make(depth=99), input_shape="shape", depth=2, act=5).values == (1, 2, 5)
    assert kind(cfg=make(depth=99), input_shape="shape", depth=2).values == (1, 2, 3)


@pytest.mark.parametrize("kind", [WithShape, WithKeywords, ShapeIsForwarded])
def test_wrong_keyword_is_refused(kind: type) -> None:
    with pytest.raises(TypeError):
        kind(make(), input_shape="shape", no_such=1)


def test_positional_arguments_reach_only_from_config() -> None:
    with pytest.raises(TypeError):
        ShapeIsForwarded(make(), "shape")


def test_from_config_has_to_fit() -> None:
    class Missing:
        @configurable
        def __init__(self, a=1):
            pass

    class NoClassmethod:
        @configurable
        def __init__(self, a=1):
            pass

        def from_config(self, cfg):
            pass

    class WrongName:
        @configurable
        def __init__(self, a=1):
            pass

        @classmethod
        def from_config(cls, config):
            return {}

    with pytest.raises(AttributeError, match="must have a 'from_config' classmethod"):
        Missing(a=1)
    with pytest.raises(TypeError, match="must have a 'from_config' classmethod"):
        NoClassmethod(a=1)
    with pytest.raises(TypeError, match="must take 'cfg' as the first argument"):
        WrongName(get_cfg())


@configurable(from_config=lambda cfg, b: {"a": cfg.A, "b": b, "c": cfg.C})
def function(a, b=2, c=3, d=4):
    return a, b, c, d


def test_configurable_function() -> None:
    cfg = CfgNode({"A": 10, "C": 30})
    assert function(1) == (1, 2, 3, 4)
    with pytest.raises(TypeError):
        function(cfg)
    assert function(cfg, b=2) == (10, 2, 30, 4)
    assert function(cfg, a=100, b=20, d=40) == (100, 20, 30, 40)
    assert callable(function.from_config)


def test_configurable_decorates_nothing_else() -> None:
    with pytest.raises(AssertionError):
        configurable(lambda x: x)
    with pytest.raises(AssertionError):
        configurable(from_config="cfg")


def test_configurable_accepts_omegaconf() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    assert Plain(omegaconf.OmegaConf.create({"WIDTH": 1, "DEPTH": 2})).values == (1, 2, 3)
