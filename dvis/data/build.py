"""Loaders for training and inference, from the configuration."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch.utils.data import Dataset

from dvis.data.datasets import DATASETS, DatasetSpec, get_spec
from dvis.data.errors import BrokenDataError, MissingDataError
from dvis.data.faults import FaultTolerantLoader, WorkerBoard, first_intact, raise_noted
from dvis.data.mapper import ClipMapper, VideoMapper, clip_mapper_from_config
from dvis.data.packing import pack_in_worker
from dvis.data.readers import describe
from dvis.data.samplers import ClipKey, ClipStream

__all__ = ["ClipDataset", "TrainLoader", "build_test_loader", "build_train_loader", "check_datasets"]

logger = logging.getLogger(__name__)

# Evaluation protocol -> what the model must be asked for.
TASK_OF_EVALUATOR = {"ytvis": "vis", "ovis": "vis", "vps": "vps", "vss": "vss"}


class ClipDataset(Dataset[dict[str, Any]]):
    """Training clips of several data sets, by `ClipKey`.

    Args:
        sources: per data set its records and the mapper that makes a clip of one.
        max_faults: how many clips may be replaced because they cannot be made, see ``dvis.data.faults``.
        board: where to note what is being read.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Sequence[dict[str, Any]], ClipMapper]],
        max_faults: int = 0,
        board: WorkerBoard | None = None,
    ) -> None:
        # Records are kept serialised, so that worker processes share their memory.
        self.sources = [(DatasetFromList(list(records), copy=False), mapper) for records, mapper in sources]
        self.max_faults = max_faults
        self.board = board or WorkerBoard(0)
        self.given_up: set[tuple[int, int]] = set()

    @property
    def sizes(self) -> list[int]:
        return [len(records) for records, _ in self.sources]

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, key: ClipKey) -> dict[str, Any]:
        records, mapper = self.sources[key.dataset]

        def make(video: int, rng: np.random.Generator) -> dict[str, Any]:
            if (key.dataset, video) in self.given_up:
                raise BrokenDataError(f"{self.describe(key.dataset, video)}: two processes died on it")
            self.board.note(key.dataset, video)
            record = records[video]  # unpickled by each access
            raise_noted(record)
            return mapper(record, rng)

        return first_intact(make, key.video, len(records), key.seed, self.max_faults)

    def describe(self, dataset: int, video: int) -> str:
        """Name a video for messages."""
        return describe(self.sources[dataset][0][video])

    def give_up(self, dataset: int, video: int) -> None:
        """Read this video no more, in processes that start from now on."""
        self.given_up.add((dataset, video))


class TrainLoader(FaultTolerantLoader):
    """Training batches from a place in the stream of clips that can be set until the first one is taken.

    Args:
        load: makes a loader, given the stream's seed and the number of the clip to begin with.
        seed: of the stream; every clip follows from it.
        first_clip: number of clips of the stream, over all processes, that come before the first batch.
        total_batch_size: clips per batch, over all processes.
        faults: see `FaultTolerantLoader`.
    """

    def __init__(
        self,
        load: Callable[[int, int], Iterable[list[dict[str, Any]]]],
        *,
        seed: int,
        first_clip: int,
        total_batch_size: int,
        **faults: Any,
    ) -> None:
        self.seed = seed
        self.first_clip = first_clip
        # Asked when loading processes have died: whether they were told to. A signal to the whole program
        # ends them too, but the step that is being done still needs its data.
        self.is_stopping: Callable[[], bool] = lambda: False
        self._running: Any = None
        super().__init__(
            lambda batch: load(self.seed, self.first_clip + batch * total_batch_size), start=0, **faults
        )

    def start_at(self, first_clip: int, seed: int) -> None:
        """Begin at another clip, of a stream of another seed."""
        self.first_clip, self.seed = first_clip, seed
        self._first = self._load(self._start)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        self._running = super().__iter__()
        return self._running

    def _note_death(self, pids: Sequence[int], error: Exception) -> None:
        if not self.is_stopping():
            super()._note_death(pids, error)

    def close(self) -> None:
        """End the loading processes."""
        if self._running is not None:
            self._running.close()


def build_train_loader(cfg: CfgNode, start_iter: int = 0) -> TrainLoader:
    """An endless loader of training batches over all data sets of ``DATASETS.TRAIN``.

    Which clips come, in which order and how they are augmented depends on ``SEED`` only, not on the number of
    workers.

    Args:
        cfg: the configuration.
        start_iter: number of batches to leave out, to continue a stopped run.

    Raises:
        KeyError: for a data set that is not known.
        ValueError: for settings that do not fit, see :func:`check_datasets`.
        MissingDataError, BrokenDataError: see ``DatasetSpec.load``. When batches are drawn,
            ``TooManyFaultsError`` if more than ``DATALOADER.MAX_FAULTS`` things are wrong with the data.
    """
    specs = _training_specs(cfg)
    max_faults = cfg.DATALOADER.MAX_FAULTS
    sources = []
    for spec, need_map in zip(specs, cfg.DATASETS.DATASET_NEED_MAP, strict=True):
        class_map = spec.class_map_to(specs[-1]) if need_map else None
        mapper = clip_mapper_from_config(cfg, spec.kind, spec.reader(), class_map)
        records = spec.load(tolerant=max_faults > 0)
        sources.append((_trainable(cfg, spec, records, class_map), mapper))
    board = WorkerBoard(cfg.DATALOADER.NUM_WORKERS)
    dataset = ClipDataset(sources, max_faults, board)
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN must be TrainingSampler, got {cfg.DATALOADER.SAMPLER_TRAIN!r}"
        )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    for spec, size in zip(specs, dataset.sizes, strict=True):
        logger.info("Training on %s: %d videos", spec.name, size)

    def load(seed: int, first_clip: int) -> Iterable[list[dict[str, Any]]]:
        return build_detection_train_loader(
            dataset=dataset,
            mapper=None,
            sampler=ClipStream(dataset.sizes, cfg.DATASETS.DATASET_RATIO, seed, start=first_clip),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=False,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=pack_in_worker,
        )

    return TrainLoader(
        load,
        seed=seed,
        first_clip=start_iter * cfg.SOLVER.IMS_PER_BATCH,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        budget=max_faults,
        board=board,
        describe=dataset.describe,
        give_up=dataset.give_up,
    )


def build_test_loader(
    cfg: CfgNode, dataset_name: str, skip: Collection[Any] = ()
) -> Iterable[list[dict[str, Any]]]:
    """A loader of the videos of a data set, one per batch, each process its share; see `VideoMapper`.

    Frames are decoded in the process that uses them, ahead by as many as ``DATALOADER.NUM_WORKERS``.

    Args:
        cfg: the configuration.
        dataset_name: registered name.
        skip: ids of videos to leave out.

    Raises:
        KeyError: if the data set is not known.
        MissingDataError, BrokenDataError: see ``DatasetSpec.load``.
    """
    mapper = VideoMapper(
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT, cfg.DATALOADER.NUM_WORKERS
    )
    records = [record for record in get_spec(dataset_name).load() if record["video_id"] not in skip]
    if not records:
        return []  # the sampler wants at least one
    # A worker would only hand over file names.
    return build_detection_test_loader(
        dataset=DatasetFromList(records, copy=False), mapper=mapper, num_workers=0
    )


def check_datasets(cfg: CfgNode, training: bool = True) -> None:
    """Find out early whether the configured data sets are known, present and fit the model.

    Args:
        cfg: the configuration.
        training: also check what training needs.

    Raises:
        KeyError: for a data set that is not known; suggests a name.
        ValueError: for lists of different lengths, a type that is not the data set's, a number of classes
            that is not that of the model, or a custom data set that cannot be evaluated or has other classes
            than the last training set.
        MissingDataError: if a file or folder is missing.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] if training else [*cfg.DATASETS.TEST]
    for name in names:
        _check_name(name)
    if training:
        if not cfg.DATASETS.TRAIN:
            raise ValueError("DATASETS.TRAIN is empty: there is nothing to train on")
        foreign = [name for name in cfg.DATASETS.TRAIN if name not in DATASETS]
        if foreign:
            raise ValueError(
                f"{foreign[0]} cannot be trained on here: it is detectron2's, not one of datasets/README.md. "
                "Images train as pseudo videos, through a coco2... set or DATASETS.CUSTOM"
            )
        target = _training_specs(cfg)[-1]
        num_classes = len(target.class_names())
        if num_classes != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}, "
                f"but {target.name} has {num_classes} classes"
            )
    _check_custom(cfg, training)
    _check_test_types(cfg)
    for name in names:
        if name in DATASETS:
            DATASETS[name].check_files()
        else:
            _check_foreign_files(name)


def _check_name(name: str) -> None:
    known = sorted({*DATASETS, *DatasetCatalog.list()})
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise KeyError(f"data set {name!r} is not known; {hint}")


def _check_custom(cfg: CfgNode, training: bool) -> None:
    """Check what is known of published data sets, but not of the user's own."""
    target = DATASETS.get(cfg.DATASETS.TRAIN[-1]) if cfg.DATASETS.TRAIN else None
    mapped = zip(cfg.DATASETS.TRAIN, cfg.DATASETS.DATASET_NEED_MAP, strict=False)
    same = [name for name, need_map in mapped if training and not need_map]
    for name in (*same, *cfg.DATASETS.TEST):
        spec = DATASETS.get(name)
        if spec is None or not spec.rows:
            continue
        if name in cfg.DATASETS.TEST and not spec.evaluator:
            raise ValueError(f"DATASETS.TEST: there is no evaluation of {name}, which is {spec.kind}")
        if target is not None and spec.class_names() != target.class_names():
            raise ValueError(
                f"{name} has other classes than {target.name}, the last of DATASETS.TRAIN: "
                f"{', '.join(spec.class_names())} instead of {', '.join(target.class_names())}. Give both "
                "the same DATASETS.CUSTOM.CATEGORIES, or map a training set (DATASETS.DATASET_NEED_MAP)"
            )


def _check_test_types(cfg: CfgNode) -> None:
    """Check what the configuration says about test sets; how one is read and scored, it says itself."""
    names, kinds = list(cfg.DATASETS.TEST), list(cfg.DATASETS.DATASET_TYPE_TEST)
    if len(kinds) == 1:
        kinds *= len(names)
    if len(kinds) != len(names):
        raise ValueError(
            f"DATASETS.DATASET_TYPE_TEST has {len(kinds)} entries for {len(names)} data sets in "
            f"DATASETS.TEST: {', '.join(names)}"
        )
    task = cfg.MODEL.MASK_FORMER.TEST.TASK
    for name, kind in zip(names, kinds, strict=True):
        spec = DATASETS.get(name)
        if spec is None:
            continue
        if spec.kind != kind:
            raise ValueError(f"DATASETS.DATASET_TYPE_TEST says {kind} for {name}, which is {spec.kind}")
        if not spec.evaluator:
            raise ValueError(f"DATASETS.TEST: there is no evaluation of {name}, which is {spec.kind}")
        if TASK_OF_EVALUATOR[spec.evaluator] != task:
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.TASK is {task!r}, but {name} is evaluated on results of "
                f"{TASK_OF_EVALUATOR[spec.evaluator]!r}"
            )


def _check_foreign_files(name: str) -> None:
    """Check the files of a data set that detectron2 or the user registered, as far as its metadata names
    them.
    """
    metadata = MetadataCatalog.get(name)
    for key in ("json_file", "panoptic_json", "image_root"):
        path = metadata.get(key)
        if path and not PathManager.exists(path):
            raise MissingDataError(
                f"data set {name}: {path} is missing; set the environment variable DETECTRON2_DATASETS "
                "to the folder that holds the data sets"
            )


def _training_specs(cfg: CfgNode) -> list[DatasetSpec]:
    """Data sets of ``DATASETS.TRAIN``, after checking what the other lists say about them."""
    names = list(cfg.DATASETS.TRAIN)
    for key in ("DATASET_TYPE", "DATASET_RATIO", "DATASET_NEED_MAP"):
        if len(cfg.DATASETS[key]) != len(names):
            raise ValueError(
                f"DATASETS.{key} has {len(cfg.DATASETS[key])} entries for {len(names)} data sets in "
                f"DATASETS.TRAIN: {', '.join(names)}"
            )
    specs = [get_spec(name) for name in names]
    for spec, kind in zip(specs, cfg.DATASETS.DATASET_TYPE, strict=True):
        if spec.kind != kind:
            raise ValueError(f"DATASETS.DATASET_TYPE says {kind} for {spec.name}, which is {spec.kind}")
    return specs


def _trainable(
    cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]], class_map: dict[int, int] | None
) -> list[dict[str, Any]]:
    """Records that can be trained on: with frames, with ground truth and, if configured, with objects."""
    key = {"instance": "annotations", "panoptic": "segments_infos", "semantic": "sem_seg_file_names"}
    wanted = key[spec.kind.split("_")[1]]
    # Videos that are known to be broken stay, so that they are counted when their turn comes.
    kept = [record for record in records if "fault" in record or (record["length"] and wanted in record)]
    if records and not kept:
        raise ValueError(f"data set {spec.name} has no ground truth to train on ({spec.annotation_path})")
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and wanted == "annotations":
        kept = [record for record in kept if "fault" in record or _has_object(record, class_map)]
    if len(kept) < len(records):
        logger.info("%s: %d videos without objects left out", spec.name, len(records) - len(kept))
    return kept


def _has_object(record: dict[str, Any], class_map: dict[int, int] | None) -> bool:
    return any(
        not annotation["iscrowd"]
        and any(annotation["segmentations"])
        and (class_map is None or annotation["category_id"] in class_map)
        for annotation in record["annotations"]
    )
