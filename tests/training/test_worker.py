"""Training under Ray Train: what is tried again and what is not."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from ray.train import ControllerError

from raybal.bench.toy import make_pool
from raybal.data.pool import Pool
from raybal.errors import ConfigError, StoreError
from raybal.resources import ResourceSettings
from raybal.training.settings import TrainSettings
from raybal.training.task import TrainTask
from raybal.training.worker import _Failures, _set_defaults, train


@dataclasses.dataclass(frozen=True)
class FailingTask(TrainTask):
    """Leaves a trace of every attempt; the first worker fails."""

    def run(self, workers=None, on_epoch=None):
        attempts = Path(self.store) / "attempts"
        attempts.mkdir(parents=True, exist_ok=True)
        (attempts / str(os.getpid())).touch()
        if workers.rank == 0:
            raise StoreError("cannot write model.safetensors: the disk is full")
        workers.barrier()
        return {}


def make_task(kind, folder, **settings):
    from toy import make_spec  # the workers, which import this module, do not find it

    make_pool(str(folder / "pool"), 24, shards=2, classes=3)
    pool = Pool(str(folder / "pool"))
    task = kind(
        store=str(folder / "store"),
        folder="train",
        pool=str(folder / "pool"),
        spec=make_spec("mlb", pool.info.modalities),
        settings=TrainSettings(**{"epochs": 2, "batch_size": 8, "device": "cpu", **settings}),
        seed=0,
        token=None,
    )
    ids = pool.ids.to_pylist()
    task.write_items([(i, k % 3) for k, i in enumerate(ids[:16])], [(i, k % 3) for k, i in enumerate(ids[16:])])
    return task


def test_what_was_raised_on_purpose_ends_the_run_and_a_lost_worker_does_not(caplog):
    error = ConfigError("model.encoders.video.weights: there is no file w.pt")
    with pytest.raises(ControllerError) as raised:
        _Failures().after_exception(None, {1: RuntimeError("connection reset"), 0: error})
    assert raised.value.controller_failure is error
    _Failures().after_exception(None, {1: RuntimeError("Traceback ...\nconnection reset by peer")})
    assert "training worker 1 failed: connection reset by peer" in caplog.text


def test_settings_of_the_environment_stand(monkeypatch):
    names = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_TRAIN_METRICS_ENABLED", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER")
    for name in ("RAY_ADDRESS", "RAY_JOB_ID", *names):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(names[0], "3")
    _set_defaults()
    assert [os.environ[name] for name in names] == ["3", "0", "0"]
    for name in names:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    _set_defaults()
    assert names[2] not in os.environ, "a cluster of several machines may lose one"


@pytest.mark.ray
def test_an_error_that_repetition_cannot_mend_is_tried_once(cluster, tmp_path):
    with pytest.raises(StoreError, match="the disk is full"):
        train(make_task(FailingTask, tmp_path, num_workers=2), ResourceSettings())
    assert len(list((tmp_path / "store" / "attempts").iterdir())) == 2
