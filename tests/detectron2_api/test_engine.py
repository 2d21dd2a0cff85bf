"""Training loop, hooks, default trainer and set-up, predictor, and start-up of processes."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import Checkpointer, DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import (
    AMPTrainer,
    DefaultPredictor,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
    launch,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter, get_event_storage
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn

import detectron2_fallback

bundled_only = pytest.mark.skipif(not detectron2_fallback.is_bundled(), reason="upstream asserts CUDA here")


@META_ARCH_REGISTRY.register()
class ContractModel(nn.Module):
    """A linear layer whose loss is its mean squared output; outputs its mean in testing."""

    def __init__(self, cfg: CfgNode | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(4, 3)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(3, 4, generator=generator))
            self.layer.bias.zero_()

    def forward(self, x: Any) -> Any:
        if not self.training:
            return [{"mean": self.layer.weight.mean().item()} for _ in x]
        x = self.layer(x)
        return {"loss_square": x.square().mean(), "loss_abs": x.abs().mean()}


def batches(limit: int | None = None) -> Iterator[torch.Tensor]:
    """The same batches each time."""
    for i in itertools.count() if limit is None else range(limit):
        yield torch.randn(2, 4, generator=torch.Generator().manual_seed(i % 5))


def simple_trainer(lr: float = 0.1, model: nn.Module | None = None, **kwargs: Any) -> SimpleTrainer:
    model = ContractModel() if model is None else model
    return SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr), **kwargs)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------ the loop


class Recorder(HookBase):
    def __init__(self, events: list[str], name: str) -> None:
        self.events, self.name = events, name

    def _record(self, what: str) -> None:
        self.events.append(f"{self.name}.{what}@{self.trainer.iter}/{self.trainer.storage.iter}")

    def before_train(self) -> None:
        self.events.append(f"{self.name}.before_train")

    def after_train(self) -> None:
        self._record("after_train")

    def before_step(self) -> None:
        self._record("before_step")

    def after_step(self) -> None:
        self._record("after_step")


def test_order_of_calls() -> None:
    events: list[str] = []

    class Trainer(TrainerBase):
        def run_step(self) -> None:
            events.append(f"step@{self.iter}")
            assert get_event_storage() is self.storage

    trainer = Trainer()
    trainer.register_hooks([Recorder(events, "a"), None, Recorder(events, "b")])
    trainer.train(3, 5)
    steps = [
        event
        for i in (3, 4)
        for event in (
            f"a.before_step@{i}/{i}",
            f"b.before_step@{i}/{i}",
            f"step@{i}",
            f"a.after_step@{i}/{i}",
            f"b.after_step@{i}/{i}",
        )
    ]
    ends = ["a.after_train@5/5", "b.after_train@5/5"]
    assert events == ["a.before_train", "b.before_train", *steps, *ends]
    assert (trainer.start_iter, trainer.iter, trainer.max_iter) == (3, 5, 5)
    with pytest.raises(AssertionError):
        trainer.register_hooks([3])


def test_hooks_do_not_keep_the_trainer_alive() -> None:
    trainer = simple_trainer()
    hook = hooks.CallbackHook()
    trainer.register_hooks([hook])
    reference = weakref.ref(trainer)
    del trainer
    assert reference() is None


def test_failure_ends_training_with_after_train(caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []

    class Trainer(TrainerBase):
        def run_step(self) -> None:
            if self.iter == 1:
                raise RuntimeError("out of luck")

    trainer = Trainer()
    trainer.register_hooks([Recorder(events, "a")])
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="out of luck"):
        trainer.train(0, 3)
    assert events[-1] == "a.after_train@1/1"
    assert "Exception during training" in caplog.text
    with pytest.raises(NotImplementedError):
        TrainerBase().run_step()


def test_callback_hook() -> None:
    seen: list[tuple[str, int]] = []

    def note(name: str) -> Callable[[TrainerBase], None]:
        return lambda trainer: seen.append((name, trainer.iter))

    trainer = simple_trainer()
    names = ["before_train", "after_train", "before_step", "after_step"]
    trainer.register_hooks([hooks.CallbackHook(**{name: note(name) for name in names})])
    trainer.train(0, 1)
    assert seen == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


def test_state_of_loop_and_hooks(caplog: pytest.LogCaptureFixture) -> None:
    class Counting(HookBase):
        count = 0

        def after_step(self) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

    trainer = simple_trainer()
    trainer.register_hooks([Counting()])
    trainer.train(0, 3)
    state = trainer.state_dict()
    assert state["iteration"] == 3
    assert list(state["hooks"].values()) == [{"count": 3}]
    fresh, hook = simple_trainer(lr=7.0), Counting()
    fresh.register_hooks([hook])
    fresh.load_state_dict(state)
    assert (fresh.iter, hook.count, fresh.optimizer.param_groups[0]["lr"]) == (3, 3, 0.1)
    with caplog.at_level(logging.WARNING):
        simple_trainer().load_state_dict(state)
    assert "Counting" in caplog.text


# ------------------------------------------------------------------ simple trainer


def expected_weights(steps: int, lr: float = 0.1) -> torch.Tensor:
    model = ContractModel()
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for batch in batches(steps):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.layer.weight.detach()


@pytest.mark.parametrize("options", [{}, {"zero_grad_before_forward": True}, {"async_write_metrics": True}])
def test_simple_trainer_equals_a_plain_loop(options: dict[str, Any]) -> None:
    trainer = simple_trainer(**options)
    trainer.train(0, 7)
    assert torch.equal(trainer.model.layer.weight, expected_weights(7))


def test_simple_trainer_accepts_a_single_loss() -> None:
    class Single(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).sum()

    trainer = simple_trainer(model=Single(4, 1))
    trainer.register_hooks([hooks.CallbackHook(after_step=lambda t: names.append(set(t.storage.latest())))])
    names: list[set[str]] = []
    trainer.train(0, 2)
    assert names[-1] == {"data_time", "total_loss"}


def test_simple_trainer_logs_the_losses() -> None:
    trainer = simple_trainer()
    storages: list[EventStorage] = []
    trainer.register_hooks([hooks.CallbackHook(after_train=lambda t: storages.append(t.storage))])
    trainer.train(0, 3)
    storage = storages[0]
    model = ContractModel()
    first = {key: value.item() for key, value in model(next(batches())).items()}
    assert {name: storage.history(name).values()[0][0] for name in first} == pytest.approx(first)
    assert storage.history("total_loss").values()[0][0] == pytest.approx(sum(first.values()))
    assert [iteration for _, iteration in storage.history("total_loss").values()] == [0, 1, 2]
    assert storage.history("data_time").latest() >= 0


def test_losses_are_gathered_periodically() -> None:
    trainer = simple_trainer(gather_metric_period=4)
    iterations: list[list[float]] = []
    trainer.register_hooks(
        [
            hooks.CallbackHook(
                after_train=lambda t: iterations.append(
                    [i for _, i in t.storage.history("total_loss").values()]
                )
            )
        ]
    )
    trainer.train(0, 10)
    assert iterations == [[3, 7]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_raises(value: float) -> None:
    class Broken(ContractModel):
        calls = 0

        def forward(self, x: Any) -> Any:
            losses = super().forward(x)
            Broken.calls += 1
            if Broken.calls == 3:
                losses["loss_abs"] = losses["loss_abs"] * value
            return losses

    trainer = simple_trainer(model=Broken())
    before: list[torch.Tensor] = []
    trainer.register_hooks(
        [hooks.CallbackHook(before_step=lambda t: before.append(t.model.layer.weight.detach().clone()))]
    )
    with pytest.raises(FloatingPointError, match="iteration=2") as error:
        trainer.train(0, 5)
    assert "loss_abs" in str(error.value)
    # The broken gradient has not reached the weights.
    assert torch.equal(trainer.model.layer.weight, before[-1])


def test_model_must_stay_in_training_mode() -> None:
    trainer = simple_trainer()
    trainer.model.eval()
    with pytest.raises(AssertionError, match="eval mode"):
        trainer.train(0, 1)


def test_exhausted_and_reset_data_loader() -> None:
    trainer = simple_trainer()
    trainer.data_loader = list(batches(3))
    with pytest.raises(StopIteration):
        trainer.train(0, 4)
    trainer.reset_data_loader(lambda: list(batches(3)))
    trainer.train(0, 3)


@bundled_only
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_mixed_precision_on_the_cpu(precision: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    dtypes: list[torch.dtype] = []

    class Watching(ContractModel):
        def forward(self, x: Any) -> Any:
            dtypes.append(self.layer(x).dtype)
            return super().forward(x)

    model = Watching()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = AMPTrainer(model, batches(), optimizer, precision=precision)
    trainer.train(0, 4)
    if precision == torch.float16:  # switched off
        assert set(dtypes) == {torch.float32}
        assert "full precision" in caplog.text
        assert torch.equal(model.layer.weight, expected_weights(4))
    else:
        assert set(dtypes) == {torch.bfloat16}
        torch.testing.assert_close(model.layer.weight, expected_weights(4), rtol=0.05, atol=0.05)
    state = trainer.state_dict()
    other = AMPTrainer(Watching(), batches(), torch.optim.SGD(model.parameters(), 1.0))
    other.load_state_dict(state)
    assert other.iter == 4
    with pytest.raises(AssertionError, match="multi-device"):
        AMPTrainer(nn.DataParallel(model), batches(), optimizer)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_mixed_precision_on_cuda(precision: torch.dtype, tmp_path: Path) -> None:
    model = ContractModel().cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = (batch.cuda() for batch in batches())
    trainer = AMPTrainer(model, data, optimizer, precision=precision, log_grad_scaler=True)
    trainer.train(0, 4)
    torch.testing.assert_close(model.layer.weight.cpu(), expected_weights(4), rtol=0.05, atol=0.05)
    DetectionCheckpointer(model, str(tmp_path), trainer=trainer).save("amp")
    fresh = AMPTrainer(model, data, optimizer)
    DetectionCheckpointer(model, str(tmp_path), trainer=fresh).resume_or_load("", resume=True)
    assert fresh.grad_scaler.get_scale() == trainer.grad_scaler.get_scale()
    assert fresh.iter == 4


# ------------------------------------------------------------------ hooks


def test_writers_write_periodically_and_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    max_iter = 50
    trainer = simple_trainer()
    writers = [CommonMetricPrinter(max_iter), JSONWriter(str(tmp_path / "metrics.json"))]
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"metric": 100}), hooks.PeriodicWriter(writers)])
    logger = writers[0].logger
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger=logger.name):
            trainer.train(0, max_iter)
    finally:
        logger.removeHandler(caplog.handler)
    data = read_metrics(tmp_path / "metrics.json")
    assert [line["iteration"] for line in data] == [19, 39, 49, 50]
    assert "metric" in data[-1]
    messages = list(dict.fromkeys(r.getMessage() for r in caplog.records if r.name == logger.name))
    assert len(messages) == 3
    for message, iteration in zip(messages, [19, 39, 49], strict=True):
        assert f"iter: {iteration}" in message
    assert "eta: 0:00:00" in messages[-1]


def test_iteration_timer(caplog: pytest.LogCaptureFixture) -> None:
    trainer = simple_trainer()
    storages: list[EventStorage] = []
    trainer.register_hooks(
        [
            hooks.IterationTimer(warmup_iter=3),
            hooks.CallbackHook(after_train=lambda t: storages.append(t.storage)),
        ]
    )
    logger = logging.getLogger("detectron2.engine.hooks")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger=logger.name):
            trainer.train(0, 10)
    finally:
        logger.removeHandler(caplog.handler)
    assert [iteration for _, iteration in storages[0].history("time").values()] == list(range(2, 10))
    assert "Overall training speed" in caplog.text
    assert "Total training time" in caplog.text


@pytest.mark.parametrize(("total", "period", "count"), [(30, 15, 2), (31, 15, 3), (20, 0, 1)])
def test_eval_hook(total: int, period: int, count: int) -> None:
    calls: list[int] = []
    trainer = simple_trainer()
    trainer.register_hooks([hooks.EvalHook(period, lambda: calls.append(1) or {"metric": 3.0})])
    trainer.train(0, total)
    assert len(calls) == count


def test_eval_hook_stores_flat_numbers() -> None:
    latest: dict[str, Any] = {}
    trainer = simple_trainer()
    results = {"segm": {"AP": np.float32(2.5)}, "n": torch.tensor(3)}
    trainer.register_hooks(
        [
            hooks.EvalHook(0, lambda: results),
            hooks.CallbackHook(after_train=lambda t: latest.update(t.storage.latest())),
        ]
    )
    trainer.train(0, 2)
    assert latest["segm/AP"] == (2.5, 2)
    assert latest["n"] == (3.0, 2)
    bad = simple_trainer()
    bad.register_hooks([hooks.EvalHook(0, lambda: {"segm": {"AP": "high"}})])
    with pytest.raises(ValueError, match="segm/AP: high"):
        bad.train(0, 1)


def test_eval_hook_is_skipped_after_a_failure_and_on_request() -> None:
    calls: list[int] = []

    class Failing(ContractModel):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("broken")

    trainer = simple_trainer(model=Failing())
    trainer.register_hooks([hooks.EvalHook(2, lambda: calls.append(1))])
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train(0, 4)
    trainer = simple_trainer()
    trainer.register_hooks([hooks.EvalHook(0, lambda: calls.append(1), eval_after_train=False)])
    trainer.train(0, 4)
    assert calls == []


@pytest.mark.parametrize(
    ("mode", "metrics", "saved"),
    [
        ("max", [0.3, 0.4, 0.35, 0.5], 3),
        ("min", [1.0, 0.8, 0.9, 0.9], 2),
        ("min", [math.nan, 0.8, 0.9, 0.9], 1),
    ],
)
def test_best_checkpointer(tmp_path: Path, mode: str, metrics: list[float], saved: int) -> None:
    names: list[str] = []
    trainer = simple_trainer()
    checkpointer = Checkpointer(trainer.model, str(tmp_path), trainer=trainer)
    checkpointer.save = lambda name, **kwargs: names.append((name, kwargs["iteration"]))
    values = iter(metrics)
    trainer.register_hooks(
        [
            hooks.EvalHook(10, lambda: {"metric": next(values)}),
            hooks.BestCheckpointer(10, checkpointer, "metric", mode=mode),
        ]
    )
    trainer.train(0, 40)
    assert len(names) == saved
    assert {name for name, _ in names} == {"model_best"}
    with pytest.raises(AssertionError):
        hooks.BestCheckpointer(10, checkpointer, "metric", mode="best")


def test_best_checkpointer_without_the_metric(tmp_path: Path) -> None:
    trainer = simple_trainer()
    checkpointer = Checkpointer(trainer.model, str(tmp_path))
    trainer.register_hooks([hooks.BestCheckpointer(2, checkpointer, "missing")])
    trainer.train(0, 4)
    assert list(tmp_path.iterdir()) == []


def test_lr_scheduler_hook_with_a_torch_schedule(tmp_path: Path) -> None:
    def setup(lr: float) -> tuple[SimpleTrainer, Any, Checkpointer]:
        trainer = simple_trainer(lr)
        scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 3)
        trainer.register_hooks([hooks.LRScheduler(scheduler=scheduler)])
        return trainer, scheduler, Checkpointer(trainer.model, str(tmp_path), trainer=trainer)

    trainer, scheduler, checkpointer = setup(0.1)
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 10)])
    rates: list[float] = []
    trainer.register_hooks(
        [hooks.CallbackHook(after_step=lambda t: rates.append(t.storage.history("lr").latest()))]
    )
    trainer.train(0, 12)
    assert rates == pytest.approx([0.1 * 0.1 ** (i // 3) for i in range(12)])
    assert scheduler.last_epoch == 12

    trainer, scheduler, checkpointer = setup(999.0)  # the rate comes from the checkpoint
    checkpointer.resume_or_load("not there.pth")
    assert trainer.iter == 11  # the last finished iteration
    assert scheduler.last_epoch == 12
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_lr_scheduler_hook_with_a_function_of_progress() -> None:
    trainer = simple_trainer(lr=2.0)
    trainer.register_hooks([hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0))])
    rates: list[float] = []
    trainer.register_hooks(
        [hooks.CallbackHook(after_step=lambda t: rates.append(t.storage.history("lr").latest()))]
    )
    trainer.train(0, 4)
    assert rates == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_logged_rate_is_that_of_most_parameters() -> None:
    def parameter() -> nn.Parameter:
        return nn.Parameter(torch.zeros(1))

    groups = [
        {"params": [parameter()], "lr": 1.0},
        {"params": [parameter(), parameter()], "lr": 2.0},
        {"params": [parameter()], "lr": 1.0},
    ]
    assert hooks.LRScheduler.get_best_param_group_id(torch.optim.SGD(groups, lr=1)) == 1
    single = [{"params": [parameter()], "lr": lr} for lr in (3.0, 1.0, 2.0, 1.0)]
    assert hooks.LRScheduler.get_best_param_group_id(torch.optim.SGD(single, lr=1)) == 1


def test_precise_bn() -> None:
    class WithNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            get = torch.Generator().manual_seed(0)
            self.weight = nn.Parameter(torch.randn(4, generator=get))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.norm(x) * self.weight).square().mean()}

    model = WithNorm()
    trainer = simple_trainer(model=model)
    trainer.register_hooks([hooks.PreciseBN(0, model, batches(), 5)])
    trainer.train(0, 3)
    data = torch.cat(list(batches(5)))
    torch.testing.assert_close(model.norm.running_mean, data.mean(dim=0))
    without = hooks.PreciseBN(0, ContractModel(), batches(), 5)
    trainer = simple_trainer()
    trainer.register_hooks([without, hooks.TorchMemoryStats(period=1)])
    trainer.train(0, 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_profilers_write_traces(tmp_path: Path) -> None:
    trainer = simple_trainer()
    cpu = [torch.profiler.ProfilerActivity.CPU]
    trainer.register_hooks(
        [hooks.TorchProfiler(lambda t: t.iter == 1, str(tmp_path), activities=cpu, save_tensorboard=False)]
    )
    trainer.train(0, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["profiler-trace-iter1.json"]
    json.loads((tmp_path / "profiler-trace-iter1.json").read_text())
    trainer = simple_trainer()
    trainer.register_hooks([hooks.AutogradProfiler(lambda t: t.iter == 0, str(tmp_path), use_cuda=False)])
    trainer.train(0, 2)
    assert (tmp_path / "profiler-trace-iter0.json").exists()


# ------------------------------------------------------------------ default trainer


class MeanEvaluator(DatasetEvaluator):
    def reset(self) -> None:
        self.values: list[float] = []

    def process(self, inputs: Any, outputs: Any) -> None:
        self.values += [output["mean"] for output in outputs]

    def evaluate(self) -> dict[str, Any]:
        return {"task": {"mean": float(np.mean(self.values)), "count": len(self.values)}}


class ContractTrainer(DefaultTrainer):
    """Overrides what MaskFormer-type projects override."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return RepeatedBatch()

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return [[{"image": k}] for k in range(7 if dataset_name == "long" else 2)]

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> Any:
        return MeanEvaluator()

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), cfg.SOLVER.BASE_LR)


class RepeatedBatch:
    def __iter__(self) -> Iterator[torch.Tensor]:
        return itertools.repeat(next(batches()))


def trainer_cfg(output: Path, **solver: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "ContractModel"
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = str(output)
    cfg.DATASETS.TEST = ("short",)
    cfg.SOLVER.MAX_ITER = 8
    cfg.SOLVER.STEPS = (6,)
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.SOLVER.BASE_LR = 0.01
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


class Interrupt(HookBase):
    """Fails after the step of one iteration, as a killed process would."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def state_of(trainer: DefaultTrainer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


class LossRecorder(HookBase):
    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def after_step(self) -> None:
        self.losses[self.trainer.iter] = self.trainer.storage.latest()["total_loss"][0]


def losses_of(output: Path) -> dict[int, float]:
    lines = read_metrics(output / "metrics.json")
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


def test_default_trainer_runs_and_resumes(tmp_path: Path) -> None:
    whole = ContractTrainer(trainer_cfg(tmp_path / "whole"))
    expected_losses = LossRecorder()
    whole.register_hooks([expected_losses])
    whole.resume_or_load(resume=False)
    assert whole.start_iter == 0
    whole.train()
    assert whole.iter == 8
    files = sorted(path.name for path in (tmp_path / "whole").iterdir() if "events" not in path.name)
    expected = [
        "last_checkpoint",
        "metrics.json",
        "model_0000002.pth",
        "model_0000005.pth",
        "model_final.pth",
    ]
    assert [name for name in files if name != "inference"] == expected
    metrics = read_metrics(tmp_path / "whole" / "metrics.json")
    assert [line["iteration"] for line in metrics] == [7, 8]
    assert metrics[-1]["task/count"] == 2
    assert metrics[0]["lr"] == pytest.approx(0.001)

    part = ContractTrainer(trainer_cfg(tmp_path / "parts"))
    part.resume_or_load(resume=True)  # there is nothing yet
    assert part.start_iter == 0
    part.register_hooks([Interrupt(4)])
    with pytest.raises(KeyboardInterrupt):
        part.train()
    assert part.iter == 4

    resumed = ContractTrainer(trainer_cfg(tmp_path / "parts"))
    resumed.resume_or_load(resume=True)
    assert (resumed.iter, resumed.start_iter) == (2, 3)
    assert resumed.scheduler.last_epoch == 3
    recorder = LossRecorder()
    resumed.register_hooks([recorder])
    resumed.train()
    assert recorder.losses == {i: expected_losses.losses[i] for i in (3, 4, 5, 6, 7)}
    for key, value in state_of(whole).items():
        assert torch.equal(state_of(resumed)[key], value), key


def test_resume_wins_over_weights_and_weights_alone_restart(tmp_path: Path) -> None:
    first = ContractTrainer(trainer_cfg(tmp_path / "a"))
    first.train()
    cfg = trainer_cfg(tmp_path / "b")
    cfg.MODEL.WEIGHTS = str(tmp_path / "a" / "model_final.pth")
    second = ContractTrainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 0
    assert torch.equal(second.model.layer.weight, first.model.layer.weight)
    assert second.scheduler.last_epoch == 0
    cfg.OUTPUT_DIR = str(tmp_path / "a")
    cfg.MODEL.WEIGHTS = "not there.pth"
    third = ContractTrainer(cfg)
    third.resume_or_load(resume=True)
    assert third.start_iter == 8


def test_default_trainer_parts(tmp_path: Path) -> None:
    trainer = ContractTrainer(trainer_cfg(tmp_path))
    assert trainer.model is trainer._trainer.model
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert isinstance(trainer.data_loader, RepeatedBatch)
    trainer.model = ContractModel()
    assert trainer._trainer.model is trainer.model
    kinds = [type(hook).__name__ for hook in trainer._hooks]
    assert kinds == ["IterationTimer", "LRScheduler", "PeriodicCheckpointer", "EvalHook", "PeriodicWriter"]
    assert len(trainer.build_writers()) == 3
    with pytest.raises(NotImplementedError, match="build_evaluator"):
        DefaultTrainer.build_evaluator(trainer.cfg, "short")


@bundled_only
def test_default_trainer_with_amp_on_the_cpu(tmp_path: Path) -> None:
    plain = ContractTrainer(trainer_cfg(tmp_path / "plain"))
    plain.train()
    cfg = trainer_cfg(tmp_path / "amp")
    cfg.SOLVER.AMP.ENABLED = True
    mixed = ContractTrainer(cfg)
    assert isinstance(mixed._trainer, AMPTrainer)
    mixed.train()
    assert torch.equal(mixed.model.layer.weight, plain.model.layer.weight)
    again = ContractTrainer(cfg)
    again.resume_or_load()
    assert again.start_iter == 8


def test_default_trainer_clips_gradients(tmp_path: Path) -> None:
    class Clipping(ContractTrainer):
        build_optimizer = DefaultTrainer.build_optimizer

    cfg = trainer_cfg(
        tmp_path, WARMUP_ITERS=0, BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0, MAX_ITER=1, STEPS=()
    )
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.001
    trainer = Clipping(cfg)
    before = state_of(trainer)
    trainer.train()
    after = state_of(trainer)
    for key in before:
        assert (after[key] - before[key]).norm().item() == pytest.approx(0.001, rel=1e-3)


def test_default_trainer_full_model_clipping(tmp_path: Path) -> None:
    class Clipping(ContractTrainer):
        @classmethod
        def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
            class FullModel(torch.optim.SGD):
                def step(self, closure: Any = None) -> None:
                    everything = [p for group in self.param_groups for p in group["params"]]
                    nn.utils.clip_grad_norm_(everything, 0.001)
                    super().step(closure=closure)

            return FullModel(model.parameters(), cfg.SOLVER.BASE_LR)

    trainer = Clipping(trainer_cfg(tmp_path, WARMUP_ITERS=0, BASE_LR=1.0, MAX_ITER=1, STEPS=()))
    before = state_of(trainer)
    trainer.train()
    change = torch.cat([(state_of(trainer)[key] - before[key]).flatten() for key in before])
    assert change.norm().item() == pytest.approx(0.001, rel=1e-3)


def test_default_trainer_test(tmp_path: Path) -> None:
    cfg = trainer_cfg(tmp_path)
    model = ContractModel().train()
    single = ContractTrainer.test(cfg, model)
    assert single["task"]["count"] == 2
    assert model.training
    cfg.DATASETS.TEST = ("short", "long")
    both = ContractTrainer.test(cfg, model)
    assert {name: result["task"]["count"] for name, result in both.items()} == {"short": 2, "long": 7}
    given = ContractTrainer.test(cfg, model, evaluators=[MeanEvaluator(), MeanEvaluator()])
    assert given == both
    with pytest.raises(AssertionError):
        ContractTrainer.test(cfg, model, evaluators=[MeanEvaluator()])

    class Without(ContractTrainer):
        @classmethod
        def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> Any:
            raise NotImplementedError

    assert Without.test(cfg, model) == {"short": {}, "long": {}}


def test_expected_results_are_verified(tmp_path: Path) -> None:
    cfg = trainer_cfg(tmp_path)
    cfg.TEST.EXPECTED_RESULTS = [["task", "count", 2.0, 0.1]]
    results = ContractTrainer(cfg).train()
    assert results["task"]["count"] == 2
    cfg.TEST.EXPECTED_RESULTS = [["task", "count", 5.0, 0.1]]
    with pytest.raises(SystemExit):
        ContractTrainer(cfg).train()


def test_auto_scale_workers() -> None:
    cfg = trainer_cfg(Path("unused"), IMS_PER_BATCH=16, BASE_LR=0.1, MAX_ITER=5000, STEPS=(4000,))
    cfg.SOLVER.CHECKPOINT_PERIOD = 1000
    cfg.SOLVER.WARMUP_ITERS = 200
    cfg.TEST.EVAL_PERIOD = 500
    assert DefaultTrainer.auto_scale_workers(cfg, 16) is cfg
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, 16)
    solver = scaled.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.STEPS) == (32, 0.2, 2500, (2000,))
    assert (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD) == (100, 500, 250)
    assert solver.REFERENCE_WORLD_SIZE == 16
    assert scaled.is_frozen()
    assert cfg.SOLVER.MAX_ITER == 5000


# ------------------------------------------------------------------ set-up


def test_argument_parser() -> None:
    parser = default_argument_parser()
    args = parser.parse_args(["--config-file", "c.yaml", "--num-gpus", "2", "--resume", "A.B", "1", "C", "x"])
    assert (args.config_file, args.num_gpus, args.resume, args.eval_only) == ("c.yaml", 2, True, False)
    assert args.opts == ["A.B", "1", "C", "x"]
    defaults = parser.parse_args([])
    assert (defaults.config_file, defaults.num_gpus, defaults.num_machines, defaults.machine_rank) == (
        "",
        1,
        1,
        0,
    )
    assert defaults.dist_url.startswith("tcp://127.0.0.1:")
    assert defaults.opts == []
    assert "try this" in default_argument_parser(epilog="try this").format_help()


def test_default_setup(tmp_path: Path) -> None:
    cfg = get_cfg()  # asks for CUDA, which need not be there
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.SEED = 5
    config_file = tmp_path / "c.yaml"
    config_file.write_text("SEED: 5\n")
    benchmark = torch.backends.cudnn.benchmark
    try:
        cfg.CUDNN_BENCHMARK = not benchmark
        default_setup(cfg, argparse.Namespace(config_file=str(config_file), eval_only=True))
        assert torch.backends.cudnn.benchmark == benchmark
        first = (torch.rand(1).item(), np.random.rand())
        default_setup(cfg, argparse.Namespace(config_file="", eval_only=False))
        assert torch.backends.cudnn.benchmark != benchmark
        assert (torch.rand(1).item(), np.random.rand()) == first
    finally:
        torch.backends.cudnn.benchmark = benchmark
    written = get_cfg()
    written.merge_from_file(str(tmp_path / "out" / "config.yaml"))
    assert json.dumps(written) == json.dumps(cfg)  # YAML makes lists of nested tuples
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Command line arguments" in log
    assert "Environment info" in log
    default_setup(cfg, {})


def test_default_writers(tmp_path: Path) -> None:
    writers = default_writers(str(tmp_path / "new"), 10)
    assert [type(w).__name__ for w in writers] == ["CommonMetricPrinter", "JSONWriter", "TensorboardXWriter"]
    assert (tmp_path / "new").is_dir()
    for writer in writers:
        writer.close()


def test_predictor(tmp_path: Path) -> None:
    @META_ARCH_REGISTRY.register()
    class EchoModel(nn.Module):
        def __init__(self, cfg: CfgNode) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            assert not self.training
            return [{**x, "image": x["image"] * self.scale} for x in inputs]

    torch.save({"model": {"scale": torch.full((1,), 2.0)}}, tmp_path / "echo.pth")
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "EchoModel"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = str(tmp_path / "echo.pth")
    cfg.INPUT.MIN_SIZE_TEST = 20
    cfg.INPUT.MAX_SIZE_TEST = 100
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    bgr = DefaultPredictor(cfg)(image)
    assert (bgr["height"], bgr["width"]) == (40, 60)
    assert bgr["image"].shape == (3, 20, 30)
    assert not bgr["image"].requires_grad
    cfg.INPUT.FORMAT = "RGB"
    rgb = DefaultPredictor(cfg)(image)
    torch.testing.assert_close(rgb["image"], bgr["image"].flip(0))
    cfg.INPUT.FORMAT = "YUV"
    with pytest.raises(AssertionError):
        DefaultPredictor(cfg)


# ------------------------------------------------------------------ processes


def test_launch_of_one_process_is_a_call() -> None:
    calls: list[int] = []
    launch(calls.append, 1, args=(3,))
    launch(calls.append, 0, args=(4,))  # upstream's way to say "on the CPU"
    assert calls == [3, 4]
    with pytest.raises(AssertionError, match="auto"):
        launch(calls.append, 2, num_machines=2, dist_url="auto")


def _train_in_process(output: str) -> None:
    """Run by each of two processes: the wrapped model, gathered losses, evaluation, resuming."""
    import detectron2_fallback  # noqa: F401

    rank = comm.get_rank()
    assert (comm.get_world_size(), comm.get_local_size(), comm.get_local_rank()) == (2, 2, rank)
    assert torch.distributed.get_backend() == ("nccl" if torch.cuda.is_available() else "gloo")
    folder = Path(output)

    class Trainer(ContractTrainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            return itertools.repeat(list(batches(2))[rank])

    cfg = trainer_cfg(folder)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 2
    trainer = Trainer(cfg)
    assert isinstance(trainer.model, nn.parallel.DistributedDataParallel)
    kinds = {type(hook).__name__ for hook in trainer._hooks}
    assert ("PeriodicCheckpointer" in kinds) == (rank == 0)
    trainer.train()
    torch.save(trainer.model.module.state_dict(), folder / f"rank{rank}.pth")
    again = Trainer(cfg)
    again.resume_or_load()
    assert again.start_iter == 8


def _fail_in_process() -> None:
    import detectron2_fallback  # noqa: F401

    if comm.get_rank() == 1:
        raise ValueError("rank one gave up")
    comm.synchronize()


def test_launch_of_two_processes(tmp_path: Path) -> None:
    launch(_train_in_process, 2, dist_url="auto", args=(str(tmp_path),))
    states = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(2)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])
    # One process with both batches: the losses are means, so that gradients average.
    model = ContractModel()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    cfg = trainer_cfg(tmp_path)
    scheduler = DefaultTrainer.build_lr_scheduler(cfg, optimizer)
    total = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        loss = sum(sum(model(batch).values()) for batch in batches(2)) / 2
        total.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(states[0][key], value)
    assert losses_of(tmp_path)[7] == pytest.approx(float(np.median(total)), rel=1e-5)


def test_failing_process_is_reported() -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="rank one gave up"):
        launch(_fail_in_process, 2, dist_url="auto")


def test_ddp_of_one_process_is_the_model() -> None:
    model = ContractModel()
    assert create_ddp_model(model, broadcast_buffers=False) is model
