"""Both sides of a measurement get the same: cores, repetitions, parts."""

import contextlib
import os

import numpy as np
import pytest
import torch
from toy import make_spec

from raybal.bench import machine, score, seeding
from raybal.bench.toy import make_pool
from raybal.data.pool import Pool
from raybal.errors import ConfigError
from raybal.predictor import save_predictor
from raybal.querying.bmmal import BMMALSettings
from raybal.store import Store


@pytest.fixture
def no_cluster(monkeypatch):
    """A stand-in for Ray that remembers how it was started."""
    started = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_ID", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", os.environ.get("RAY_API_SERVER_ADDRESS", ""))
    monkeypatch.setattr(machine.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(machine.ray, "init", lambda *args, **options: started.update(options))
    monkeypatch.setattr(machine.ray, "shutdown", started.clear)
    monkeypatch.setattr(machine, "cluster", lambda settings: contextlib.nullcontext())
    monkeypatch.setattr(machine, "capacity", lambda resource: float(started.get("num_cpus", 4)))
    return started


def test_a_local_cluster_has_the_cores_of_the_bare_side(no_cluster):
    before = os.sched_getaffinity(0)
    with machine.cores_of(1):
        assert no_cluster["num_cpus"] == 1
        assert len(os.sched_getaffinity(0)) == 1
        assert torch.get_num_threads() == 1
    assert os.sched_getaffinity(0) == before


def test_cores_that_are_not_there_are_refused(no_cluster, monkeypatch):
    most = len(os.sched_getaffinity(0))
    with (
        pytest.raises(ConfigError, match=f"cores: {most + 1} is not accepted; {most} can be used here"),
        machine.cores_of(most + 1),
    ):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    with pytest.raises(ConfigError, match="cores: 1 is not accepted; the cluster has 4 CPUs"), machine.cores_of(1):
        pass


def test_both_seedings_are_repeated_as_often(monkeypatch):
    modes = []

    def seeded(q, h, size, *, seed=None, uniforms=None):
        if len(q) == 6000:  # not the warm-up
            modes.append("rejection" if uniforms is None else "sequential")
        return np.arange(size)

    monkeypatch.setattr(seeding, "d2_seeding", seeded)
    assert dict(seeding.bench_seeding(n=6000, classes=4, size=8, picks=5))["times faster"] > 0
    assert modes.count("rejection") == modes.count("sequential") == seeding.REPETITIONS


def test_every_process_of_the_bare_scoring_has_its_own_part(tmp_path):
    make_pool(str(tmp_path / "pool"), 7, shards=2)
    pool, store = Pool(str(tmp_path / "pool")), Store(str(tmp_path / "store"))
    spec = make_spec("mlb", pool.info.modalities, 10)
    save_predictor(store, score.MODEL, spec, {f"model.{k}": v for k, v in spec.build()[0].state_dict().items()})
    # Unequal parts: one that is scored by the process of the other is noticed.
    parts = np.array_split(np.arange(7), 2)
    assert score._bare(store.root, pool.store.root, BMMALSettings(strategy="bmmal"), parts, 0.2) > 0
