from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dvis.inference.store import GIGABYTE, FrameStore, StoreSettings


def windows(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.rand(t, 5, 3, 7, generator=generator) * 9 - 4 for t in (3, 1, 2, 3)]
    return [value.to(dtype) for value in values]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.int64])
@pytest.mark.parametrize("budget_frames", [0, 4, 100])
def test_reads_what_was_stored(tmp_path: Path, dtype: torch.dtype, budget_frames: int) -> None:
    parts = windows(dtype)
    whole = torch.cat(parts)
    budget = budget_frames * 5 * 3 * 7 * dtype.itemsize / GIGABYTE
    with FrameStore(StoreSettings(max_host_gb=budget, spill_dir=str(tmp_path))) as store:
        for part in parts:
            store.append("masks", part)
        assert store.num_frames("masks") == 9
        assert (store.bytes_used["disk"] > 0) == (budget_frames < 100)
        assert store.bytes_used["host"] <= budget * GIGABYTE
        assert torch.equal(store.read("masks"), whole)
        slots = torch.tensor([4, 0, 4])
        for start in range(9):
            for stop in range(start + 1, 10):
                assert torch.equal(store.read("masks", start, stop), whole[start:stop])
                assert torch.equal(store.read("masks", start, stop, slots), whole[start:stop, slots])


def test_a_stored_slice_does_not_keep_the_rest_alive() -> None:
    big = torch.zeros(100, 10)
    store = FrameStore()
    store.append("x", big[:2])
    assert store.read("x").untyped_storage().nbytes() == 2 * 10 * 4


def test_writing_to_a_result_does_not_change_the_file(tmp_path: Path) -> None:
    store = FrameStore(StoreSettings(max_host_gb=0, spill_dir=str(tmp_path)))
    store.append("x", torch.arange(6.0).view(2, 3))
    store.read("x").zero_()
    assert torch.equal(store.read("x"), torch.arange(6.0).view(2, 3))


def test_half_precision_is_small_and_close() -> None:
    store = FrameStore(StoreSettings(half_precision=True))
    value = windows()[0]
    store.append("x", value)
    assert store.bytes_used["host"] == value.numel() * 2
    assert store.read("x").dtype == torch.float32
    torch.testing.assert_close(store.read("x"), value, rtol=1e-3, atol=1e-3)


def test_close_removes_the_file(tmp_path: Path) -> None:
    with FrameStore(StoreSettings(max_host_gb=0, spill_dir=str(tmp_path))) as store:
        store.append("x", torch.ones(1, 4))
    assert store.num_frames("x") == 0
    assert store.bytes_used == {"device": 0, "host": 0, "disk": 0}
    assert list(tmp_path.iterdir()) == []
    store.close()


def test_errors(tmp_path: Path) -> None:
    store = FrameStore()
    store.append("x", torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"frames of 'x' have shape \(4,\), got \(5,\)"):
        store.append("x", torch.ones(1, 5))
    with pytest.raises(IndexError, match="frames 2 to 2"):
        store.read("x", 2)
    with pytest.raises(ValueError, match="MAX_MEMORY_GB must be 0 or a positive number, not -1"):
        StoreSettings(max_host_gb=-1)
    spilling = FrameStore(StoreSettings(max_host_gb=0, spill_dir=str(tmp_path / "missing")))
    with pytest.raises(OSError, match=r"missing .*SPILL_DIR"):
        spilling.append("x", torch.ones(1, 4))
