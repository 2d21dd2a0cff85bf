"""The evaluator of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, DatasetEvaluator

from dvis.data.datasets import DATASETS, DatasetSpec, get_spec
from dvis.evaluation.evaluator import VideoEvaluator
from dvis.evaluation.metrics.video_ap import Protocol
from dvis.evaluation.vps_evaluator import VPSEvaluator
from dvis.evaluation.vss_evaluator import VSSEvaluator
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
        ValueError: if the data set has no evaluation protocol or one that is not known, or if the model's
            task is another one.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _EVALUATORS:
        raise ValueError(
            f"data set {dataset_name} asks for the evaluation {kind!r}; known are {sorted(_EVALUATORS)}"
        )
    folder = Path(output_folder or Path(cfg.OUTPUT_DIR) / "inference" / dataset_name)
    return _EVALUATORS[kind](cfg, dataset_name, folder)


Builder = Callable[[CfgNode, str, Path], DatasetEvaluator]


def _video(make: Callable[[DatasetSpec, dict[int, int], Path, bool], VideoEvaluator]) -> Builder:
    def build(cfg: CfgNode, dataset_name: str, folder: Path) -> VideoEvaluator:
        spec = get_spec(dataset_name)
        id_of_class = {index: category_id for category_id, index in spec.class_of_id().items()}
        evaluator = make(spec, id_of_class, folder, cfg.TEST.ZIP)
        if evaluator.task != cfg.MODEL.MASK_FORMER.TEST.TASK:
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.TASK is {cfg.MODEL.MASK_FORMER.TEST.TASK!r}; {dataset_name} is "
                f"evaluated on results of {evaluator.task!r}"
            )
        return evaluator

    return build


def _instances(protocol: Protocol) -> Builder:
    return _video(
        lambda spec, ids, folder, packed: YTVISEvaluator(
            spec.name,
            spec.annotation_path,
            ids,
            protocol,
            folder,
            zip_results=packed,
            categories=spec.rows,
            parts=_parts(spec),
        )
    )


def _parts(spec: DatasetSpec) -> dict[str, Path]:
    """Short and long videos of a split that is registered with both."""
    return {
        part: DATASETS[f"{spec.name}_{part}"].annotation_path
        for part in ("short", "long")
        if f"{spec.name}_{part}" in DATASETS
    }


# Evaluation protocol (the metadata's evaluator_type) -> evaluator.
_EVALUATORS: dict[str, Builder] = {
    "ytvis": _instances("ytvis"),
    "ovis": _instances("ovis"),
    "vps": _video(
        lambda spec, ids, folder, packed: VPSEvaluator(
            spec.name,
            spec.annotation_path,
            spec.mask_root,
            ids,
            folder,
            zip_results=packed,
            categories=spec.rows,
        )
    ),
    "vss": _video(
        lambda spec, ids, folder, packed: VSSEvaluator(
            spec.name, spec.annotation_path, spec.image_root, ids, folder, zip_results=packed
        )
    ),
    "coco": lambda cfg, name, folder: COCOEvaluator(name, output_dir=str(folder)),
    "coco_panoptic_seg": lambda cfg, name, folder: COCOPanopticEvaluator(name, str(folder)),
}
