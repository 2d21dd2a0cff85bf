"""Data sets, clip sampling, augmentation and loaders; importing it registers the data sets."""

import detectron2_fallback  # noqa: F401  isort: skip  (first: it provides detectron2 where upstream is absent)

from dvis.data.build import build_test_loader, build_train_loader, check_datasets
from dvis.data.custom import use_custom_datasets
from dvis.data.datasets import DATASETS, DatasetSpec, get_spec, register_dataset
from dvis.data.errors import BrokenDataError, MissingDataError

__all__ = [
    "DATASETS",
    "BrokenDataError",
    "DatasetSpec",
    "MissingDataError",
    "build_test_loader",
    "build_train_loader",
    "check_datasets",
    "get_spec",
    "register_dataset",
    "use_custom_datasets",
]
