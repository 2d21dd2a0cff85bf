"""Batches in one piece of memory: everything comes back, however large the batch."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import BitMasks, Instances
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import dvis
from dvis.data import build_train_loader
from dvis.data.packing import PackedBatch, pack, pack_in_worker, unpack

DTYPES = (torch.uint8, torch.bool, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64)


def clip(num_objects: int = 2) -> dict[str, Any]:
    instances = Instances((4, 6))
    instances.gt_masks = BitMasks(torch.rand(num_objects, 4, 6) > 0.5)
    instances.gt_ids = torch.arange(num_objects)
    return {"image": [torch.rand(3, 4, 6)], "instances": [instances], "video_id": "a", "frame_indices": [3]}


@pytest.mark.parametrize("num_objects", [0, 1, 3])
def test_clips_come_back(num_objects: int) -> None:
    given_clip = clip(num_objects)
    (found,) = unpack(pack([given_clip]))
    assert found.keys() == given_clip.keys()
    assert (found["video_id"], found["frame_indices"]) == ("a", [3])
    assert torch.equal(found["image"][0], given_clip["image"][0])
    instances, expected = found["instances"][0], given_clip["instances"][0]
    assert instances.image_size == (4, 6)
    assert torch.equal(instances.gt_masks.tensor, expected.gt_masks.tensor)
    assert torch.equal(instances.gt_ids, expected.gt_ids)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4))))
def test_all_types_and_shapes(layout: list[tuple[torch.dtype, list[int]]]) -> None:
    tensors = [torch.randint(0, 100, shape).to(dtype) for dtype, shape in layout]
    packed = pack(tensors)
    found = unpack(packed)
    assert len(found) == len(tensors)
    for tensor, expected in zip(found, tensors, strict=True):
        assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
        assert torch.equal(tensor, expected)
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in found)


def test_slices_and_repeated_tensors() -> None:
    x = torch.arange(24.0).view(4, 6)
    packed = pack([x[:, ::2], x.T, x.T, x])
    sliced, transposed, _, whole = unpack(packed)
    assert torch.equal(sliced, x[:, ::2])
    assert torch.equal(transposed, x.T)
    whole[0, 0] = 7  # its own, and may be written to
    assert x[0, 0] == 0
    repeated = pack([x, x])
    assert repeated.memory.numel() == pack([x]).memory.numel()


def test_nothing_to_do_in_the_training_process() -> None:
    batch = [clip()]
    assert pack_in_worker(batch) is batch
    assert unpack(batch) is batch


def test_what_comes_from_a_process_is_packed() -> None:
    loader = DataLoader([clip()], batch_size=1, num_workers=1, collate_fn=pack_in_worker)
    (batch,) = loader
    assert isinstance(batch, PackedBatch)


@pytest.fixture
def few_files() -> Iterator[None]:
    """Only 64 more files may be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 64, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_long_clips_in_large_batches_need_few_files(toy_data: Path, few_files: None) -> None:
    overrides = [
        "DATASETS.TRAIN", ("toy_vis_train",), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 6,
        "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.SAMPLING_FRAME_NUM", 5, "INPUT.SAMPLING_FRAME_RANGE", 2,
        "SOLVER.IMS_PER_BATCH", 8, "DATALOADER.NUM_WORKERS", 2,
    ]  # fmt: skip
    loader = build_train_loader(dvis.load_config(overrides=overrides))
    sizes = [len(batch) for batch in itertools.islice(loader, 3)]
    loader.close()
    assert sizes == [8, 8, 8]
