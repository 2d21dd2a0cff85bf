"""Evaluators and metrics of video segmentation."""

from dvis.evaluation.build import build_evaluator
from dvis.evaluation.evaluator import VideoEvaluator, fingerprint
from dvis.evaluation.vps_evaluator import VPSEvaluator
from dvis.evaluation.vss_evaluator import VSSEvaluator
from dvis.evaluation.ytvis_evaluator import YTVISEvaluator

__all__ = [
    "VPSEvaluator",
    "VSSEvaluator",
    "VideoEvaluator",
    "YTVISEvaluator",
    "build_evaluator",
    "fingerprint",
]
