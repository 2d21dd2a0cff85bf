"""A key that nothing reads cannot be set unnoticed; which keys are read is found out by reading."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from detectron2.engine import default_setup
from detectron2.modeling import build_backbone, build_model
from torch import nn

import dvis
from dvis.config import flatten
from dvis.data import check_datasets, get_spec, use_custom_datasets
from dvis.data.mapper import clip_mapper_from_config
from dvis.data.toy import ToySettings, generate
from dvis.engine import VideoTrainer, build_optimizer
from dvis.engine.launch import use_available_device
from dvis.unread_keys import INERT, UNREAD, has_no_effect, is_unread
from tests.dvis.reads import recording
from tests.dvis.tiny import OVERRIDES
from tests.integration.conftest import CONFIG, TINY

CONFIGS = CONFIG.parents[1]

# Read only in a certain place, which the test does not go to.
ELSEWHERE = {
    # in a backbone of this name
    "MODEL.FPN.FUSE_TYPE", "MODEL.FPN.IN_FEATURES", "MODEL.FPN.NORM", "MODEL.FPN.OUT_CHANNELS",
    "TEST.PRECISE_BN.NUM_ITER",  # if TEST.PRECISE_BN.ENABLED
    "WANDB.PROJECT", "WANDB.NAME",  # if WANDB.ENABLED
    "CUDNN_BENCHMARK", "FLOAT32_PRECISION",  # by the host's default_setup, not by item
}  # fmt: skip
SWIN = {"DEPTHS": [1, 1, 1, 1], "EMBED_DIM": 12, "NUM_HEADS": [1, 1, 1, 1]}


def test_every_key_is_read_or_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    generate(tmp_path / "toy", ToySettings(num_train=1, num_val=1, height=64, width=80, length=3), workers=1)
    reads: set[str] = set()

    def config(path: Path | None, *overrides: Any) -> Any:
        usual = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path / "out")]
        return recording(dvis.load_config(path, [*usual, *overrides]), reads)

    cfg = config(CONFIG, *TINY, "SOLVER.MAX_ITER", "1")
    use_available_device(cfg)
    use_custom_datasets(cfg)
    check_datasets(cfg)
    default_setup(cfg, SimpleNamespace(config_file="", eval_only=True))
    trainer = VideoTrainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    tiny = [item for pair in OVERRIDES.items() for item in pair]
    coco = next((CONFIGS / "coco").rglob("maskformer2_R50*.yaml"))
    for path in (CONFIGS / "ovis/DVIS_Online_R50.yaml", CONFIGS / "ovis/DVIS_Offline_R50.yaml", coco):
        build_model(config(path, *tiny))
    swin = [item for key, value in SWIN.items() for item in (f"MODEL.SWIN.{key}", value)]
    build_backbone(config(CONFIGS / "ovis/swin/MinVIS_SwinL.yaml", *swin))
    for key in ("INPUT.LSJ_AUG", "INPUT.CROP", "INPUT.PSEUDO.CROP"):
        for kind in ("video_instance", "image_instance"):
            cfg = config(None, f"{key}.ENABLED", True)
            clip_mapper_from_config(cfg, kind, get_spec("toy_vis_train").reader())
    layer = nn.ModuleDict({"backbone": nn.Linear(2, 2)})
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"]
    for overrides in (["SOLVER.OPTIMIZER", "SGD"], clip):
        build_optimizer(config(None, *overrides), layer)
    for name in ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR", "WarmupStepWithFixedGammaLR"):
        cfg = config(None, "SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.MAX_ITER", 90000)
        VideoTrainer.build_lr_scheduler(cfg, torch.optim.SGD(layer.parameters(), 1.0))

    every = dict(flatten(dvis.load_config()))
    listed = {key for key in every if is_unread(key) or key in INERT}
    unlisted = every.keys() - reads - listed - ELSEWHERE
    assert not unlisted, "read these keys, or list them in dvis/unread_keys.py"
    wrongly_listed = reads & listed
    assert not wrongly_listed, "these keys are read"
    assert all(any(is_unread(key) and key.startswith(name) for key in every) for name in UNREAD)
    assert set(INERT) <= every.keys()


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("MODEL.ROI_HEADS.NUM_CLASSES", 25, "; did you mean MODEL.SEM_SEG_HEAD.NUM_CLASSES?"),
        ("SOLVER.NESTEROV", True, ""),
        ("MODEL.RPN.NMS_THRESH", "0.5", ""),
        ("TEST.AUG.MIN_SIZES", "(400, 500)", ""),
        ("TEST.AUG.MIN_SIZES", "all of them", ""),
    ],
)
def test_keys_that_nothing_reads(key: str, value: Any, hint: str, tmp_path: Path) -> None:
    message = f"{key} has no effect, nothing here reads this key of detectron2{hint}"
    with pytest.raises(KeyError) as error:
        dvis.load_config(None, [key, value])
    assert f"override: {message}" in str(error.value)
    content: Any = value
    for part in reversed(key.split(".")):
        content = {part: content}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "leaf.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(KeyError) as error:
        dvis.load_config(tmp_path / "leaf.yaml")
    assert message in str(error.value)
    assert "base.yaml (a _BASE_ of" in str(error.value)


def test_defaults_may_be_repeated(tmp_path: Path) -> None:
    """As in the configuration that every run writes into its folder."""
    cfg = dvis.load_config(CONFIG)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = dvis.load_config(tmp_path / "config.yaml")
    assert json.dumps(again) == json.dumps(cfg)  # to which tuples are lists
    defaults = dict(flatten(dvis.load_config()))
    assert not has_no_effect("TEST.AUG.MIN_SIZES", str(tuple(defaults["TEST.AUG.MIN_SIZES"])), defaults)


def test_unknown_keys_are_never_answered_with_one_that_has_no_effect() -> None:
    with pytest.raises(KeyError, match=r"did you mean MODEL\.SEM_SEG_HEAD\.NUM_CLASSES"):
        dvis.load_config(None, ["MODEL.HEADS.NUM_CLASSES", 3])
