"""The evaluator of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, DatasetEvaluator

from dvis.data.datasets import get_spec
from dvis.evaluation.metrics.video_ap import Protocol
from dvis.evaluation.ytvis_evaluator import YTVISEvaluator

__all__ = ["build_evaluator"]


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None
) -> DatasetEvaluator:
    """Make the evaluator that the data set's metadata ask for (``evaluator_type``).

    Args:
        cfg: the configuration.
        dataset_name: registered name.
        output_folder: where files are written; None: ``<OUTPUT_DIR>/inference/<dataset_name>``.

    Raises:
        ValueError: if the data set has no evaluation protocol or one that is not known.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _EVALUATORS:
        raise ValueError(
            f"data set {dataset_name} asks for the evaluation {kind!r}; known are {sorted(_EVALUATORS)}"
        )
    folder = Path(output_folder or Path(cfg.OUTPUT_DIR) / "inference" / dataset_name)
    return _EVALUATORS[kind](dataset_name, folder)


def _instances(protocol: Protocol) -> Callable[[str, Path], DatasetEvaluator]:
    def build(dataset_name: str, folder: Path) -> DatasetEvaluator:
        spec = get_spec(dataset_name)
        id_of_class = {index: category_id for category_id, index in spec.class_of_id().items()}
        return YTVISEvaluator(dataset_name, spec.annotation_path, id_of_class, protocol, folder)

    return build


# Evaluation protocol (the metadata's evaluator_type) -> evaluator.
_EVALUATORS: dict[str, Callable[[str, Path], DatasetEvaluator]] = {
    "ytvis": _instances("ytvis"),
    "ovis": _instances("ovis"),
    "coco": lambda name, folder: COCOEvaluator(name, output_dir=str(folder)),
    "coco_panoptic_seg": lambda name, folder: COCOPanopticEvaluator(name, str(folder)),
}
