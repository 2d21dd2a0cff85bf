"""The table of costs: the paper's parameters come out, and what is counted agrees with counting by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dvis
from mask2former.modeling.pixel_decoder.ops.functions import ms_deform_attn
from tools import analyze_model
from tools.analyze_model import _Part, count_macs

ROOT = Path(__file__).resolve().parents[2]
TOY = str(ROOT / "configs/toy/DVIS_Offline_toy.yaml")


def parameters(config: str) -> dict[str, int]:
    """Of each part, in numbers, without counting anything else."""
    cfg = dvis.load_config(str(ROOT / "configs" / config), ["MODEL.DEVICE", "cpu"])
    model: Any = analyze_model.build_model(cfg)
    count = analyze_model.count_parameters
    return {
        "segmenter": count([model.backbone, model.sem_seg_head]),
        "tracker": count([model.tracker]),
        "refiner": count([model.refiner]),
    }


def test_parameters_of_r50_are_the_papers() -> None:
    found = parameters("ovis/DVIS_Offline_R50.yaml")
    # Paper, table 9: 43.95, 9.68 and 14.41 million; it cuts the first one off.
    assert found == {"segmenter": 43_956_122, "tracker": 9_677_082, "refiner": 14_411_291}


@pytest.mark.slow
def test_parameters_of_swin_large() -> None:
    found = parameters("ovis/swin/DVIS_Offline_SwinL.yaml")
    assert found == {"segmenter": 215_507_854, "tracker": 9_677_082, "refiner": 14_411_291}


def macs(module: nn.Module, *shape: int) -> float:
    return count_macs(_Part("part", (module,), module, torch.randn(*shape), 1))


def test_macs_equal_those_counted_by_hand() -> None:
    assert macs(nn.Conv2d(3, 8, 3, padding=1, bias=False), 1, 3, 10, 12) == 10 * 12 * 8 * 3 * 9
    assert macs(nn.Linear(16, 4), 2, 5, 16) == 2 * 5 * 16 * 4


def test_macs_of_attention() -> None:
    keys = torch.randn(2, 3, 7, 4)  # B S Lk D
    part = _Part(
        "part", (), lambda q: F.scaled_dot_product_attention(q, keys, keys), torch.randn(2, 3, 5, 4), 1
    )
    assert count_macs(part) == 2 * (2 * 3 * 5 * 7 * 4)


def test_macs_of_deformable_attention() -> None:
    B, Lq, M, D, L, P = 2, 9, 4, 6, 2, 3
    shapes = torch.tensor([[4, 5], [2, 3]])
    value = torch.randn(B, 26, M, D)
    locations, weights = torch.rand(B, Lq, M, L, P, 2), torch.rand(B, Lq, M, L, P)
    part = _Part(
        "part", (), lambda v: ms_deform_attn(v, shapes, torch.tensor([0, 20]), locations, weights), value, 1
    )
    assert count_macs(part) == 5 * B * Lq * M * L * P * D


def test_products_that_nobody_counts_are_an_error() -> None:
    other = torch.randn(3, 4, 5)
    with pytest.raises(NotImplementedError, match=r"part: no count for aten::.*dot"):
        count_macs(_Part("part", (), lambda x: torch.vdot(x, other.flatten()), torch.randn(60), 1))


def test_command_line_prints_the_parts_and_their_sums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "costs.json"
    options = ["--size", "64x96", "--frames", "3", "--repeats", "1", "--json", str(output)]
    assert analyze_model.main([TOY, *options]) == 0
    printed = capsys.readouterr().out
    assert "| **refiner** |" in printed
    assert "multiply-adds" in printed
    content = json.loads(output.read_text())
    parts = {part["part"]: part for part in content["models"][TOY]["parts"]}
    assert list(parts) == [
        "backbone", "pixel decoder", "transformer decoder", "segmenter", "masks", "tracker",
        "tracker, second pass", "refiner", "all",
    ]  # fmt: skip
    single = [name for name in parts if name not in ("segmenter", "all")]
    for key in ("parameters", "macs", "seconds"):
        assert parts["all"][key] == pytest.approx(sum(parts[name][key] for name in single))
    assert all(parts[name]["macs"] > 0 for name in parts)


def test_models_without_tracker_have_no_such_parts_and_a_larger_picture_costs_more() -> None:
    cfg = dvis.load_config(str(ROOT / "configs/toy/MinVIS_toy.yaml"), ["MODEL.DEVICE", "cpu"])
    small, padded = analyze_model.analyze(cfg, (32, 40), repeats=0)
    large, _ = analyze_model.analyze(cfg, (64, 64), repeats=0)
    assert padded == (32, 64)
    assert [cost.part for cost in small][-1] == "all"
    assert "tracker" not in {cost.part for cost in small}
    assert all(cost.seconds is None for cost in small)
    backbones = [costs[0].macs or 0 for costs in (small, large)]
    assert backbones[1] == pytest.approx(2 * backbones[0])


@pytest.mark.parametrize("size", ["large", "0x3", "4"])
def test_sizes_are_checked(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        analyze_model.main([TOY, "--size", size])
    assert "HEIGHTxWIDTH" in capsys.readouterr().err
