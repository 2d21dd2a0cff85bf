"""Printing results, and comparing them with expected ones."""

from __future__ import annotations

import logging
import pprint
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__all__ = ["flatten_results_dict", "print_csv_format", "verify_results"]


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics so that they can be pasted into a table.

    Args:
        results: task -> metric -> number; metrics with "-" in their name (those of single classes) are left
            out. A task may also be a single number.
    """
    assert isinstance(results, Mapping) or not len(results), results  # unordered results cannot be printed
    logger = logging.getLogger(__name__)
    for task, result in results.items():
        if not isinstance(result, Mapping):
            logger.info("copypaste: %s=%s", task, result)
            continue
        important = [(metric, value) for metric, value in result.items() if "-" not in metric]
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(metric for metric, _ in important))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for _, value in important))


def verify_results(cfg: CfgNode, results: Mapping[str, Any]) -> bool:
    """Compare results with ``cfg.TEST.EXPECTED_RESULTS``; exit with status 1 if they do not agree.

    Args:
        cfg: its expected results are a list of [task, metric, expected, tolerance].
        results: task -> metric -> number.

    Returns:
        True.
    """
    expected_results = cfg.TEST.EXPECTED_RESULTS
    if not len(expected_results):
        return True
    logger = logging.getLogger(__name__)

    def agrees(task: str, metric: str, expected: float, tolerance: float) -> bool:
        actual = results[task].get(metric)
        return actual is not None and bool(np.isfinite(actual)) and abs(actual - expected) <= tolerance

    if all(agrees(*expectation) for expectation in expected_results):
        logger.info("Results verification passed.")
        return True
    logger.error("Result verification failed!")
    logger.error("Expected Results: %s", expected_results)
    logger.error("Actual Results: %s", pprint.pformat(results))
    sys.exit(1)


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Turn nested dicts into one dict with keys such as "bbox/AP"."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": v for inner, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
