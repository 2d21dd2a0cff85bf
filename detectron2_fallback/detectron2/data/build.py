"""From data set names to loaders."""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.utils.data as torchdata
from detectron2.config import configurable
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n
from tabulate import tabulate
from termcolor import colored

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
]

logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """Drop images without annotations, or with crowds only."""
    kept = [
        dataset_dict
        for dataset_dict in dataset_dicts
        if any(annotation.get("iscrowd", 0) == 0 for annotation in dataset_dict["annotations"])
    ]
    logger.info(
        "Removed %d images with no usable annotations. %d images left.",
        len(dataset_dicts) - len(kept),
        len(kept),
    )
    return kept


def filter_images_with_few_keypoints(dataset_dicts: list[dict], min_keypoints_per_image: int) -> list[dict]:
    """Drop images with fewer visible keypoints (of all instances together) than given."""

    def visible_keypoints(dataset_dict: dict) -> int:
        return sum(
            int((np.array(annotation["keypoints"][2::3]) > 0).sum())
            for annotation in dataset_dict["annotations"]
            if "keypoints" in annotation
        )

    kept = [d for d in dataset_dicts if visible_keypoints(d) >= min_keypoints_per_image]
    logger.info(
        "Removed %d images with fewer than %d keypoints.",
        len(dataset_dicts) - len(kept),
        min_keypoints_per_image,
    )
    return kept


def load_proposals_into_dataset(dataset_dicts: list[dict], proposal_file: str) -> list[dict]:
    """Precomputed proposals come as pickles, which may run any code: not supported here.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        f"Loading precomputed proposals ({proposal_file}) needs upstream detectron2; "
        "unset MODEL.LOAD_PROPOSALS."
    )


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: Sequence[str]) -> None:
    """Log how many instances every class has; crowds do not count.

    Args:
        dataset_dicts: with "annotations", whose "category_id" is an index into ``class_names``.
        class_names: names of the classes.

    Raises:
        AssertionError: if a category id is no such index.
    """
    num_classes = len(class_names)
    histogram = np.zeros(num_classes, dtype=int)
    for dataset_dict in dataset_dicts:
        classes = np.asarray(
            [a["category_id"] for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)], dtype=int
        )
        if len(classes):
            assert classes.min() >= 0, f"Got an invalid category_id={classes.min()}"
            assert classes.max() < num_classes, (
                f"Got an invalid category_id={classes.max()} for a dataset of {num_classes} classes"
            )
        histogram += np.bincount(classes, minlength=num_classes)

    def short_name(name: str) -> str:
        return name[:11] + ".." if len(name) > 13 else name  # long names make the table hard to read

    cells: list[Any] = list(
        itertools.chain.from_iterable(
            (short_name(name), int(count)) for name, count in zip(class_names, histogram, strict=True)
        )
    )
    columns = min(6, len(cells))
    if num_classes > 1:
        cells += ["total", int(histogram.sum())]
    cells += [None] * (-len(cells) % columns if columns else 0)
    table = tabulate(
        itertools.zip_longest(*(cells[i::columns] for i in range(columns))),
        headers=["category", "#instances"] * (columns // 2),
        tablefmt="pipe",
        numalign="left",
        stralign="center",
    )
    log_first_n(
        logging.INFO,
        f"Distribution of instances among all {num_classes} categories:\n" + colored(table, "cyan"),
        key="message",
    )


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> Any:
    """Load registered data sets and join them.

    Args:
        names: a name or several.
        filter_empty: whether to drop images without instance annotations.
        min_keypoints: drop images with fewer keypoints; 0 keeps all.
        proposal_files: one per name, see :func:`load_proposals_into_dataset`.
        check_consistency: whether the data sets must agree about their classes.

    Returns:
        A list of dicts; or, if the names stand for ``torch.utils.data.Dataset`` objects, such an object.

    Raises:
        KeyError: if a name is not registered.
        AssertionError: if a data set is empty or nothing is left of them.
        ValueError: if the data sets have different classes.
    """
    if isinstance(names, str):
        names = [names]
    assert len(names), names
    unknown = [name for name in names if name not in DatasetCatalog]
    if unknown:
        logger.warning("The following dataset names are not registered in the DatasetCatalog: %s", unknown)
    loaded: list[Any] = [DatasetCatalog.get(name) for name in names]

    if isinstance(loaded[0], torchdata.Dataset):
        if len(loaded) > 1:
            # ConcatDataset needs lengths
            assert all(hasattr(dataset, "__len__") for dataset in loaded), names
            return torchdata.ConcatDataset(loaded)
        return loaded[0]

    for name, dicts in zip(names, loaded, strict=True):
        assert len(dicts), f"Dataset '{name}' is empty!"
    if proposal_files is not None:
        assert len(names) == len(proposal_files)
        loaded = [
            load_proposals_into_dataset(dicts, file)
            for dicts, file in zip(loaded, proposal_files, strict=True)
        ]

    dataset_dicts = list(itertools.chain.from_iterable(loaded))
    has_instances = "annotations" in dataset_dicts[0]
    if filter_empty and has_instances:
        dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
    if min_keypoints > 0 and has_instances:
        dataset_dicts = filter_images_with_few_keypoints(dataset_dicts, min_keypoints)
    # a data set need not have class names
    has_names = all(MetadataCatalog.get(name).get("thing_classes") is not None for name in names)
    if check_consistency and has_instances and has_names:
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(dataset_dicts, MetadataCatalog.get(names[0]).thing_classes)
    assert len(dataset_dicts), f"No valid data found in {','.join(names)}."
    return dataset_dicts


def build_batch_data_loader(
    dataset: Any,
    sampler: torchdata.Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    drop_last: bool = True,
    **kwargs: Any,
) -> Iterable[Any]:
    """A loader of batches, one part of the total batch for every process.

    Args:
        dataset: map-style with ``sampler``, or iterable without.
        sampler: gives the indices of this process.
        total_batch_size: over all processes; must be a multiple of their number.
        aspect_ratio_grouping: whether to batch landscape and portrait images separately; elements need
            "width" and "height".
        num_workers: processes that read data.
        collate_fn: makes a batch of a list of elements; None leaves the list.
        drop_last: whether an incomplete last batch is dropped.
        kwargs: passed to ``torch.utils.data.DataLoader``.

    Returns:
        An iterable of batches of ``total_batch_size / processes`` elements.
    """
    world_size = get_world_size()
    batch_size, remainder = divmod(total_batch_size, world_size)
    assert remainder == 0, (
        f"Total batch size ({total_batch_size}) must be divisible by the number of gpus ({world_size})."
    )
    assert batch_size > 0, f"Total batch size must be positive, got {total_batch_size}."

    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    else:
        assert sampler is not None, "a map-style dataset needs a sampler"
        # Workers that iterate over the sampler themselves start at once and need no index queue.
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)

    if aspect_ratio_grouping:
        assert drop_last, "Aspect ratio grouping will drop incomplete batches."
        loader = torchdata.DataLoader(
            dataset,
            num_workers=num_workers,
            collate_fn=operator.itemgetter(0),  # single elements; batches are made below
            worker_init_fn=worker_init_reset_seed,
            **kwargs,
        )
        batches: Any = AspectRatioGroupedDataset(loader, batch_size)
        if collate_fn is not None:
            batches = MapDataset(batches, collate_fn)
        return batches
    return torchdata.DataLoader(
        dataset,
        batch_size=batch_size,
        drop_last=drop_last,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
        worker_init_fn=worker_init_reset_seed,
        **kwargs,
    )


def _build_training_sampler(cfg: CfgNode, dataset: Any) -> torchdata.Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info("Using training sampler %s", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset))
    if name == "RepeatFactorTrainingSampler":
        return RepeatFactorTrainingSampler(
            RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                dataset, cfg.DATALOADER.REPEAT_THRESHOLD
            )
        )
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    raise ValueError(f"Unknown training sampler: {name}")


def _train_loader_from_config(
    cfg: CfgNode, mapper: Callable | None = None, *, dataset: Any = None, sampler: Any = None
) -> dict[str, Any]:
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=(
                cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
            ),
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    if sampler is None and not isinstance(dataset, torchdata.IterableDataset):
        sampler = _build_training_sampler(cfg, dataset)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **kwargs: Any,
) -> Iterable[Any]:
    """A loader for training; call it as ``build_detection_train_loader(cfg, mapper=...)`` or with arguments.

    Args:
        dataset: list of dicts, map-style or iterable data set.
        mapper: applied to every element; None for none (from a config: the default :class:`DatasetMapper`).
        sampler: gives indices; None means a :class:`TrainingSampler` (none for an iterable data set).
        total_batch_size: over all processes.
        aspect_ratio_grouping, num_workers, collate_fn, kwargs: see :func:`build_batch_data_loader`.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    else:
        if sampler is None:
            sampler = TrainingSampler(len(dataset))
        assert isinstance(sampler, torchdata.Sampler), f"Expect a Sampler but got {type(sampler)}"
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Callable | None = None
) -> dict[str, Any]:
    if isinstance(dataset_name, str):
        dataset_name = [dataset_name]
    proposal_files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        proposal_files = [
            cfg.DATASETS.PROPOSAL_FILES_TEST[list(cfg.DATASETS.TEST).index(name)] for name in dataset_name
        ]
    dataset = get_detection_dataset_dicts(dataset_name, filter_empty=False, proposal_files=proposal_files)
    iterable = isinstance(dataset, torchdata.IterableDataset)
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": None if iterable else InferenceSampler(len(dataset)),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> torchdata.DataLoader:
    """A loader for inference: every element once, in order, shared out over the processes.

    Call it as ``build_detection_test_loader(cfg, dataset_name, mapper=...)`` or with arguments.

    Args:
        dataset: list of dicts, map-style or iterable data set.
        mapper: applied to every element; None for none (from a config: the default :class:`DatasetMapper`).
        sampler: gives indices; None means an :class:`InferenceSampler` (none for an iterable data set).
        batch_size: of this process; the last batch may be smaller.
        num_workers: processes that read data.
        collate_fn: makes a batch of a list of elements; None leaves the list.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return torchdata.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
    )


def trivial_batch_collator(batch: list) -> list:
    """The list of elements is the batch."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed numpy and Python's random in a worker too (PyTorch seeds only itself)."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
