"""The ablation program: what it runs in which order, what it keeps, and how it counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dvis.data.datasets import get_spec
from tests.integration.conftest import TINY
from tests.integration.conftest import data_root as data_root
from tests.integration.conftest import tiny_data as tiny_data
from tests.tools.fake_program import FakeProgram, option
from tools import reproduce_toy_ablation as ablation


class FakeEvaluation(FakeProgram):
    """Also evaluates: finds the objects of the ground truth, or some of them."""

    def run(self, command: list[str], folder: Path) -> None:
        if "--eval-only" in command:
            self.evaluate(command, folder)
        else:
            super().run(command, folder)

    def evaluate(self, command: list[str], folder: Path) -> None:
        truth = json.loads(get_spec("toy_vis_val").annotation_path.read_text())
        keys = ("video_id", "category_id", "segmentations")
        # MinVIS finds only the first half of the objects.
        share = 2 if "MinVIS" in option(command, "MODEL.WEIGHTS") else 1
        found = truth["annotations"][: len(truth["annotations"]) // share]
        results = [{**{key: entry[key] for key in keys}, "score": 0.9} for entry in found]
        path = folder / "inference" / "toy_vis_val" / "results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(results))

    @property
    def trained(self) -> list[str]:
        runs = [command for command in self.commands if "--eval-only" not in command]
        return [str(Path(*Path(option(command, "OUTPUT_DIR")).parts[-2:])) for command in runs]


def run(folder: Path, program: FakeEvaluation, *arguments: str) -> int:
    return ablation.main(["--output", str(folder), "--level", "easy", *arguments], program)


def test_stages_share_what_they_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = FakeEvaluation()
    assert run(tmp_path, program, "--seeds", "3", "5", "--only", "modes", "cross_attention") == 0
    variants = ["-standard_previous", "-standard_segmenter", "-standard"]
    stages = ["MinVIS_toy", "DVIS_Online_toy", "DVIS_Offline_toy", *(f"DVIS_Online_toy{v}" for v in variants)]
    assert program.trained == [f"seed{seed}/{stage}" for seed in (3, 5) for stage in stages]
    by_name = {option(command, "OUTPUT_DIR"): command for command in program.commands}
    standard = by_name[str(tmp_path / "seed5" / "DVIS_Online_toy-standard")]
    assert option(standard, "MODEL.TRACKER.CROSS_ATTENTION") == "standard"
    assert option(standard, "MODEL.WEIGHTS") == str(tmp_path / "seed5/MinVIS_toy/model_final.pth")
    assert option(standard, "SEED") == "5"
    assert "MODEL.WEIGHTS" not in by_name[str(tmp_path / "seed5" / "MinVIS_toy")]

    text = (tmp_path / "ablation.md").read_text()
    assert capsys.readouterr().out.count(text) == 1
    assert "| DVIS online | 100.0 ± 0.0 | 100.0 ± 0.0 |" in text
    assert "DVIS online against MinVIS, AP: +" in text
    assert "± 0.0 over 2 seeds" in text
    assert "AP: +0.0 ± 0.0 over 2 seeds (+0.0, +0.0): **too few seeds to tell**" in text
    numbers = json.loads((tmp_path / "ablation.json").read_text())
    (attention,) = (table for title, table in numbers.items() if title.startswith("Cross attention"))
    assert attention["standard, matched"]["3"]["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.01, 0.02, 0.03), "+2.0 ± 1.0 over 3 seeds (+1.0, +2.0, +3.0): **holds**"),
        ((-0.01, -0.02, -0.03), "-2.0 ± 1.0 over 3 seeds (-1.0, -2.0, -3.0): **reversed**"),
        ((-0.01, 0.0, 0.02), "+0.3 ± 1.5 over 3 seeds (-1.0, +0.0, +2.0): **within the spread**"),
        ((0.01, 0.01), "+1.0 ± 0.0 over 2 seeds (+1.0, +1.0): **too few seeds to tell**"),
        ((0.01,), "+1.0 (one seed, so nothing is known about the spread)"),
    ],
)
def test_claims_are_judged_seed_by_seed(gains: tuple[float, ...], verdict: str) -> None:
    found = {
        "new": {seed: {"AP": 0.5 + seed / 10 + gain} for seed, gain in enumerate(gains)},
        "old": {seed: {"AP": 0.5 + seed / 10} for seed in range(5)},
    }
    assert ablation._judge(found, "new", "old", "AP") == f"* new against old, AP: {verdict}"


def test_windows_evaluate_one_model_in_several_ways(tmp_path: Path) -> None:
    program = FakeEvaluation()
    assert run(tmp_path, program, "--seeds", "0", "--only", "windows") == 0
    evaluations = [command for command in program.commands if "--eval-only" in command]
    sizes = [option(c, "MODEL.MASK_FORMER.TEST.WINDOW_SIZE") for c in evaluations if "window" in c]
    assert sizes == ["1", "3", "6", "12"]
    assert len({option(command, "MODEL.WEIGHTS") for command in evaluations}) == 2
    assert "nothing is known about the spread" in (tmp_path / "ablation.md").read_text()


def test_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seeds", "0", "--only", "modes"]
    first = FakeEvaluation(fail_at=3)
    assert run(tmp_path, first, *arguments) == 3
    assert "run the same command to continue" in capsys.readouterr().err
    assert "| MinVIS | " in (tmp_path / "ablation.md").read_text()
    second = FakeEvaluation()
    assert run(tmp_path, second, *arguments) == 0
    assert len(first.commands) - 1 + len(second.commands) == 6
    third = FakeEvaluation()
    assert run(tmp_path, third, *arguments) == 0
    assert not third.commands
    assert run(tmp_path, third, *arguments, "--dry-run") == 0
    more = FakeEvaluation()
    assert run(tmp_path, more, "--seeds", "0", "1", "--only", "modes") == 0
    assert len(more.commands) == 6


def test_iterations_are_scaled_and_other_settings_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = FakeEvaluation()
    arguments = ["--seeds", "0", "--only", "modes", "--iterations-scale", "0.1"]
    assert run(tmp_path, program, *arguments, "--opts", "SOLVER.BASE_LR", "0.1") == 0
    trainings = [command for command in program.commands if "--resume" in command]
    assert [option(c, "SOLVER.MAX_ITER") for c in trainings] == ["150", "200", "60"]
    assert {option(c, "SOLVER.WARMUP_ITERS") for c in trainings} == {"10"}
    assert {option(c, "SOLVER.BASE_LR") for c in program.commands} == {"0.1"}
    assert "0.1 times the default number of iterations" in (tmp_path / "ablation.md").read_text()
    with pytest.raises(SystemExit):
        run(tmp_path, program, "--seeds", "0")
    assert "has other settings" in capsys.readouterr().err


def test_seeds_may_share_a_trained_segmenter(tmp_path: Path) -> None:
    program = FakeEvaluation()
    weights = str(tmp_path / "MinVIS.pth")
    arguments = ["--seeds", "1", "2", "--only", "modes", "--segmenter", weights]
    assert run(tmp_path / "out", program, *arguments) == 0
    stages = ["DVIS_Online_toy", "DVIS_Offline_toy"]
    assert program.trained == [f"seed{seed}/{stage}" for seed in (1, 2) for stage in stages]
    starts = [
        option(c, "MODEL.WEIGHTS") for c in program.commands if option(c, "OUTPUT_DIR").endswith("_toy")
    ]
    trackers = [str(tmp_path / f"out/seed{seed}/DVIS_Online_toy/model_final.pth") for seed in (1, 2)]
    assert starts == [weights, trackers[0], weights, trackers[1]]
    assert "share one segmenter" in (tmp_path / "out" / "ablation.md").read_text()


def test_dry_run_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = FakeEvaluation()
    assert run(tmp_path / "new", program, "--seeds", "0", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not program.commands
    assert not (tmp_path / "new").exists()
    assert lines[0] == "seed 0: train MinVIS"
    assert len(lines) == len(set(lines))


def test_every_change_is_a_setting_that_exists() -> None:
    for table in ablation.build_tables().values():
        titles = [row.title for row in table.rows]
        assert len(set(titles)) == len(titles)
        assert set(table.judged_by) <= set(ablation.METRICS)
        for claim in table.claims:
            assert set(claim) <= set(titles)
        for row in table.rows:
            config = ablation.Ablation(Path("none"), "occluded").config(row.training)
            ablation.dvis.load_config(config, [*row.training.changes, *row.changes])


@pytest.mark.slow
def test_smallest_table_for_real(tmp_path: Path) -> None:
    options = ["--level", "easy", "--seeds", "0", "--iterations-scale", "0.001", "--only", "cross_attention"]
    changes = [*TINY, "MODEL.TRACKER.DECODER_LAYERS", "1"]
    code = ablation.main(["--output", str(tmp_path), *options, "--opts", *changes])
    assert code == 0
    result = json.loads((tmp_path / "seed0" / "DVIS_Online.json").read_text())
    assert 0 <= result["stats"]["AP"] <= 1
    assert torch.load(tmp_path / "seed0/DVIS_Online_toy/model_final.pth", weights_only=True)["iteration"] == 1
    assert "| standard, matched |" in (tmp_path / "ablation.md").read_text()
