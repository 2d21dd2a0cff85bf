"""Share of queries that keep their number: on known queries, and the program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.integration.conftest import CONFIG, TINY
from tests.integration.conftest import data_root as data_root
from tests.integration.conftest import random_weights as random_weights
from tests.integration.conftest import tiny_data as tiny_data
from tools import measure_query_order as program


def test_queries_that_change_places_are_seen() -> None:
    queries = torch.eye(4).expand(1, 3, 4, 4).clone()
    queries[0, 2] = queries[0, 1, [1, 0, 2, 3]]
    logits = torch.zeros(1, 3, 4, 3)
    logits[0, :, 0, 1] = 5.0
    model: Any = SimpleNamespace(segment=lambda _: SimpleNamespace(queries=queries, logits=logits))
    kept, sure = program.kept_places(model, torch.zeros(1, 3, 3, 8, 8), 0.5)
    assert kept.tolist() == [[True] * 4, [False, False, True, True]]
    assert sure.tolist() == [[True, False, False, False]] * 2


def test_program(random_weights: Callable[[Path], str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([str(CONFIG), *TINY, "MODEL.WEIGHTS", random_weights(CONFIG)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("all queries: ")
    assert lines[-1].startswith("sure queries: ")
    with pytest.raises(SystemExit):
        program.main(["missing.yaml"])
