"""Every recorded video of MinVIS and DVIS, for each mode and task."""

from __future__ import annotations

import pytest

from tests.dvis.golden import check_end_to_end

CASES = [
    "minvis_r50_ovis",
    "dvis_online_r50_ovis_vis",
    "dvis_online_r50_ytvis19_vis",
    "dvis_online_r50_vps",
    "dvis_online_r50_vss",
    "dvis_offline_r50_ovis_vis",
    "dvis_offline_r50_vps",
    "dvis_offline_r50_vss",
]


@pytest.mark.parametrize("name", CASES)
def test_golden_video(name: str) -> None:
    check_end_to_end(name)
