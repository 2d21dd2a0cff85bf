from __future__ import annotations

from tests.dvis.golden import check_training_step


def test_golden_training_step() -> None:
    check_training_step("minvis_r50")
