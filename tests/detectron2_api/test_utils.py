"""Logging, events, processes, files and other helpers."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import random
import sys
import urllib.error
from pathlib import Path

import iopath.common.file_io
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import TORCH_VERSION, seed_all_rng, setup_custom_environment
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)
from detectron2.utils.file_io import PathHandler, PathManager
from detectron2.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper
from torch import nn

# ------------------------------------------------------------------ registry


def test_registry() -> None:
    registry = Registry("THINGS")

    @registry.register()
    class Thing:
        pass

    def make():
        pass

    registry.register(make)
    assert registry.get("Thing") is Thing
    assert registry.get("make") is make
    assert "Thing" in registry
    assert dict(registry) == {"Thing": Thing, "make": make}
    with pytest.raises(KeyError, match="No object named 'Other' found in 'THINGS' registry!"):
        registry.get("Other")
    with pytest.raises(AssertionError, match="already registered in 'THINGS' registry!"):
        registry.register(Thing)


def test_locate() -> None:
    assert locate("torch.nn.Linear") is nn.Linear
    assert locate("detectron2.utils.events.EventStorage.put_scalar") is EventStorage.put_scalar
    assert locate("builtins.int") is int
    with pytest.raises(ImportError, match="no_such_module"):
        locate("no_such_module.thing")


# ------------------------------------------------------------------ events


def read_json(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_storage_is_found_inside_its_context() -> None:
    with pytest.raises(AssertionError, match="has to be called inside a 'with EventStorage"):
        get_event_storage()
    with EventStorage(5) as outer:
        assert get_event_storage() is outer
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
        assert outer.iter == outer.iteration == 5
        outer.step()
        assert outer.iter == 6
        outer.iter = 11
        assert outer.iter == 11


def test_scalars() -> None:
    storage = EventStorage(10)
    storage.put_scalar("a", torch.tensor(2.0))
    storage.step()
    with storage.name_scope("scope"):
        storage.put_scalars(b=1, c=2, smoothing_hint=False)
    storage.put_scalar("a", 4)
    assert storage.latest() == {"a": (4.0, 11), "scope/b": (1.0, 11), "scope/c": (2.0, 11)}
    assert storage.history("a").values() == [(2.0, 10), (4.0, 11)]
    assert storage.latest_with_smoothing_hint(20)["a"] == (3.0, 11)
    assert storage.latest_with_smoothing_hint(1)["a"] == (4.0, 11)
    assert storage.smoothing_hints() == {"a": True, "scope/b": False, "scope/c": False}
    assert set(storage.histories()) == {"a", "scope/b", "scope/c"}
    with pytest.raises(KeyError, match="No history metric available for b!"):
        storage.history("b")
    with pytest.raises(AssertionError, match="different smoothing_hint"):
        storage.put_scalar("a", 1, smoothing_hint=False)


def test_name_scope_ends_with_an_error() -> None:
    storage = EventStorage()
    with pytest.raises(RuntimeError), storage.name_scope("x"):
        raise RuntimeError
    with storage.name_scope("y"):
        storage.put_scalar("a", 1)
    assert list(storage.latest()) == ["y/a"]


def test_json_writer(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(str(path))
        for k in range(60):
            if k % 17 == 0:  # another period than that of the writer
                storage.put_scalar("rare", k, smoothing_hint=False)
            storage.put_scalar("often", k, smoothing_hint=False)
            if (k + 1) % 20 == 0:
                writer.write()
            storage.step()
        writer.write()  # nothing new
        writer.close()
    assert read_json(path) == [
        {"rare": 17, "iteration": 17},
        {"often": 19, "iteration": 19},
        {"rare": 34, "iteration": 34},
        {"often": 39, "iteration": 39},
        {"rare": 51, "iteration": 51},
        {"often": 59, "iteration": 59},
    ]


def test_json_writer_appends_and_smooths(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    for _ in range(2):
        with EventStorage() as storage:
            writer = JSONWriter(str(path), window_size=3)
            for value in (100.0, 1.0, 3.0, 2.0):
                storage.put_scalar("loss", value)
                storage.step()
            writer.write()
            writer.close()
    assert read_json(path) == [{"loss": 2.0, "iteration": 3}] * 2


def test_tensorboard_writer(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path))
        for k in range(4):
            storage.put_scalar("x", k, smoothing_hint=False)
            storage.step()
            if k % 2:
                writer.write()
        storage.put_image("picture", torch.zeros(3, 4, 5, dtype=torch.uint8))
        storage.put_histogram("values", torch.arange(10.0), bins=5)
        writer.write()
        writer.write()
        writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("x")] == [(1, 1.0), (3, 3.0)]
    assert [(e.width, e.height) for e in events.Images("picture")] == [(5, 4)]
    histogram = events.Histograms("values")[0].histogram_value
    assert (histogram.min, histogram.max, histogram.num, list(histogram.bucket)) == (0, 9, 10, [2.0] * 5)


def test_metric_printer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="detectron2.utils.events")
    with EventStorage() as storage:
        with_eta, without = CommonMetricPrinter(10), CommonMetricPrinter()
        for _ in range(2):
            storage.put_scalars(time=60.0, data_time=0.25, total_loss=1.5)
            storage.put_scalar("lr", 1e-4, smoothing_hint=False)
            storage.step()
        for printer in (with_eta, without):
            printer.logger.propagate = True
            printer.write()
        first, second = caplog.messages
        assert "eta: 0:07:00  iter: 2  total_loss: 1.5" in first
        assert "eta" not in second
        for message in (first, second):
            assert "lr: 0.0001" in message
            assert "data_time: 0.2500" in message
        assert storage.latest()["eta_seconds"] == (420.0, 2)
        storage.iter = 10
        with_eta.write()
        assert len(caplog.messages) == 2  # training is over


def test_metric_printer_without_any_metric(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="detectron2.utils.events")
    with EventStorage() as storage:
        printer = CommonMetricPrinter(10)
        printer.logger.propagate = True
        printer.write()
        storage.step()
        printer.write()
    assert "iter: 0" in caplog.messages[0]
    assert "lr: N/A" in caplog.messages[0]
    assert "eta: 0:00:00  iter: 1" in caplog.messages[1]


def test_event_writer_interface() -> None:
    with pytest.raises(NotImplementedError):
        EventWriter().write()
    EventWriter().close()


# ------------------------------------------------------------------ logger


def test_logger_writes_a_file_per_process(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = "detectron2_test_logger"
    main = setup_logger(str(tmp_path), 0, color=False, name=name, abbrev_name="t")
    assert setup_logger(str(tmp_path), 0, color=False, name=name, abbrev_name="t") is main
    assert len(main.handlers) == 2
    logging.getLogger(name + ".part").warning("hello %s", "there")
    text = (tmp_path / "log.txt").read_text()
    assert text.endswith(f"] {name}.part WARNING: hello there\n")
    assert "hello there" in capsys.readouterr().out
    other = setup_logger(str(tmp_path / "sub" / "my.log"), 2, name=name + "_2")
    other.info("quiet")
    assert "quiet" in (tmp_path / "sub" / "my.log.rank2").read_text()
    assert capsys.readouterr().out == ""
    assert not main.propagate


def test_coloured_logger(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    setup_logger(name="detectron2_colour", abbrev_name="dc")
    log = logging.getLogger("detectron2_colour.deep")
    log.info("fine")
    log.warning("careful")
    log.error("broken")
    info, warning, error = capsys.readouterr().out.splitlines()
    assert "dc.deep]: " in info
    assert info.endswith("fine")
    assert "WARNING" in warning
    assert "ERROR" in error


def test_log_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(5):
        log_first_n(logging.INFO, "first two", 2)
    for _ in range(5):
        log_every_n(logging.INFO, "every third", 3)
    for _ in range(3):
        log_every_n_seconds(logging.INFO, "each hour", 3600)
    for word in ("a", "b", "a"):
        log_first_n(logging.INFO, word, key="message", name="some.name")
    expected = ["first two"] * 2 + ["every third"] * 2 + ["each hour", "a", "b"]
    assert caplog.messages == expected
    assert caplog.records[0].name == __name__
    assert caplog.records[-1].name == "some.name"


def test_small_table() -> None:
    lines = create_small_table({"AP": 12.34567, "AP50": 20.0, "note": "x"}).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["AP", "AP50", "note"]
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == ["12.346", "20.000", "x"]


# ------------------------------------------------------------------ comm


def ranks() -> tuple[int, int, int, int]:
    return comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()


def test_comm_without_processes() -> None:
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (
        1,
        0,
        0,
        1,
    )
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather("x") == comm.gather("x") == ["x"]
    losses = {"a": torch.tensor(1.0)}
    assert comm.reduce_dict(losses) == losses
    np.random.seed(3)
    expected = np.random.randint(2**31)
    np.random.seed(3)
    assert comm.shared_random_seed() == expected
    if comm._LOCAL_PROCESS_GROUP is None:
        with pytest.raises(AssertionError, match="Local process group is not yet created"):
            comm.get_local_process_group()


def comm_worker(rank: int, folder: str) -> None:
    """What each of two processes checks."""
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    with pytest.raises(AssertionError, match="Local process group is not yet created"):
        comm.get_local_rank()
    comm.create_local_process_group(1)
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (
        2,
        rank,
        0,
        1,
    )
    assert comm.is_main_process() == (rank == 0)
    comm.synchronize()
    assert comm.all_gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    assert comm.gather(rank) == ([0, 1] if rank == 0 else [])
    assert comm.gather(rank, dst=1) == ([0, 1] if rank == 1 else [])
    assert comm.all_gather(rank, group=comm.get_local_process_group()) == [rank]
    np.random.seed(rank)
    assert len(set(comm.all_gather(comm.shared_random_seed()))) == 1
    scalars = {"b": torch.tensor(1.0 + rank), "a": torch.tensor(10.0 * rank)}
    means, sums = comm.reduce_dict(scalars), comm.reduce_dict(scalars, average=False)
    if rank == 0:
        assert {k: v.item() for k, v in means.items()} == {"a": 5.0, "b": 1.5}
        assert {k: v.item() for k, v in sums.items()} == {"a": 10.0, "b": 3.0}
    check_sync_batch_norm(rank)
    comm.synchronize()
    comm._LOCAL_PROCESS_GROUP = None  # else its threads live until the interpreter ends, and can abort it
    dist.destroy_process_group()


def check_sync_batch_norm(rank: int) -> None:
    """Two processes give what one gives with both halves of the batch, gradients included."""
    torch.manual_seed(0)
    whole = torch.randn(4, 3, 5, 2)
    for mode, split in (("", [2, 2]), ("N", [1, 3]), ("N", [0, 4])):
        expected_input = whole.clone().requires_grad_()
        plain, synced = nn.BatchNorm2d(3), NaiveSyncBatchNorm(3, stats_mode=mode)
        expected = plain(expected_input)
        (expected**3).sum().backward()
        mine = whole.split(split)[rank].clone().requires_grad_()
        result = synced(mine)
        (result**3).sum().backward()
        torch.testing.assert_close(result, expected.split(split)[rank])
        torch.testing.assert_close(mine.grad, expected_input.grad.split(split)[rank], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(synced.running_mean, plain.running_mean)


def test_comm_of_two_processes(tmp_path: Path) -> None:
    mp.start_processes(comm_worker, args=(str(tmp_path),), nprocs=2, start_method="spawn")


# ------------------------------------------------------------------ files


def test_path_manager_handles_local_files(tmp_path: Path) -> None:
    path = str(tmp_path / "a" / "b.txt")
    PathManager.mkdirs(os.path.dirname(path))
    with PathManager.open(path, "w") as f:
        f.write("text")
    assert PathManager.isfile(path)
    assert PathManager.get_local_path(path) == path
    assert PathManager.ls(os.path.dirname(path)) == ["b.txt"]
    with pytest.raises(FileNotFoundError):
        PathManager.open(path + ".missing")


def test_own_handlers_can_be_added(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("content")

    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["testscheme://"]

        def _open(self, path, mode="r", buffering=-1, **kwargs):
            return open(tmp_path / path.removeprefix("testscheme://"), mode)

    PathManager.register_handler(Handler())
    with PathManager.open("testscheme://x") as f:
        assert f.read() == "content"


def test_detectron2_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = []

    def download(url, folder, *, filename=None, progress=True):
        urls.append(url)
        path = Path(folder) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("weights")
        return str(path)

    monkeypatch.setattr(iopath.common.file_io, "download", download)
    local = PathManager.get_local_path("detectron2://a/b.pkl", cache_dir=str(tmp_path))
    assert Path(local).read_text() == "weights"
    assert urls == ["https://dl.fbaipublicfiles.com/detectron2/a/b.pkl"]
    with PathManager.open("detectron2://a/b.pkl") as f:
        assert f.read() == "weights"
    assert len(urls) == 1  # cached


def test_detectron2_scheme_without_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(iopath.common.file_io, "download", download)
    with pytest.raises(OSError, match="no route to host"):
        PathManager.get_local_path("detectron2://none.pkl", cache_dir=str(tmp_path))


# ------------------------------------------------------------------ the rest


def test_seed_all_rng(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")

    def draw(seed):
        seed_all_rng(seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw(4) == draw(4) != draw(5)
    assert draw(None) != draw(None)


def test_torch_version() -> None:
    assert (1, 8) < TORCH_VERSION < (99, 0)


def test_custom_environment(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("import sys\ndef setup_environment():\n    sys.d2_test_done = True\n")
    bad.write_text("x = 1\n")
    setup_custom_environment(str(good))
    assert sys.d2_test_done
    del sys.d2_test_done
    with pytest.raises(AssertionError, match="setup_environment"):
        setup_custom_environment(str(bad))


def test_retry_passes_other_errors_on() -> None:
    calls = []

    @retry_if_cuda_oom
    def work(x, fail_times=0, message="CUDA out of memory. Tried to allocate"):
        calls.append(x)
        if len(calls) <= fail_times:
            raise RuntimeError(message)
        return x + 1

    assert work(torch.tensor(1)).item() == 2
    calls.clear()
    assert work(1, fail_times=2) == 2
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(RuntimeError, match="out of memory"):
        work(1, fail_times=3)
    calls.clear()
    with pytest.raises(RuntimeError, match="something else"):
        work(1, fail_times=1, message="something else")
    assert work.__name__ == "work"


def test_picklable_wrapper() -> None:
    offset = 3
    wrapped = PicklableWrapper(PicklableWrapper(lambda x: x + offset))
    assert wrapped(1) == 4
    assert not isinstance(wrapped._obj, PicklableWrapper)
    assert pickle.loads(pickle.dumps(wrapped))(1) == 4
    assert PicklableWrapper("abc").upper() == "ABC"
    with pytest.raises(AttributeError):
        _ = wrapped.no_such


def double(x: int) -> int:
    return 2 * x


def test_picklable_wrapper_reaches_another_process() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(PicklableWrapper(lambda x: double(x) + 1), (4,)) == 9


def test_collect_env() -> None:
    info = collect_env_info()
    for word in ("Python", "numpy", "detectron2", torch.__version__, "fvcore"):
        assert word in info
