"""Evaluators and metrics of video segmentation."""

from dvis.evaluation.build import build_evaluator
from dvis.evaluation.evaluator import VideoEvaluator
from dvis.evaluation.ytvis_evaluator import YTVISEvaluator

__all__ = ["VideoEvaluator", "YTVISEvaluator", "build_evaluator"]
