"""Evaluators and metrics of video segmentation."""
