"""Sweeps on a cluster."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.trial import TrialState
from ray.util import placement_group_table
from ray_tools import run_job
from toy import make_spec

from raybal.config import LoopConfig, parse
from raybal.data.pool import Pool
from raybal.errors import ConfigError, StoreError
from raybal.lease import Lease
from raybal.predictor import save_predictor
from raybal.querying.base import QuerySettings, build_strategy
from raybal.resources import ResourceSettings
from raybal.scorers import Scorers
from raybal.settings import from_plain
from raybal.store import Store
from raybal.table.config import TableConfig
from raybal.tuning.config import TuneConfig
from raybal.tuning.journal import StoreJournal
from raybal.tuning.run import run_sweep
from raybal.tuning.search import accuracies_of
from raybal.tuning.sweep import Sweep

pytestmark = pytest.mark.ray


def options(pool: Path, store: Path, **changes) -> list[str]:
    content = {
        "pool": pool,
        "store": store,
        "methods": "multi_loss,mlb",
        "trials": 4,
        "finalists": 2,
        "finalist-seeds": 2,
        "seeds": 2,
        "items": 60,
        "stopping.grace": 2,
        "train.epochs": 5,
        "train.batch-size": 16,
        "train.device": "cpu",
        "model.encoder.dim": 8,
        "model.encoder.width": 4,
    }
    return [text for key, value in (content | changes).items() for text in (f"--{key}", str(value))]


def study_of(store: Path, row: str) -> list:
    study = optuna.load_study(study_name=row, storage=JournalStorage(StoreJournal(Store(str(store)), "optuna.log")))
    return [(t.number, t.params, t.state, t.values, accuracies_of(t)) for t in study.trials]


@pytest.fixture(scope="module")
def finished(cluster, feature_pool, tmp_path_factory):
    """A sweep of one trial at a time: each reserves the whole cluster."""
    store = tmp_path_factory.mktemp("sweep") / "store"
    arguments = options(feature_pool, store, **{"resources.cpus-per-worker": 4})
    return store, run_sweep(parse(TuneConfig, arguments))


def test_every_method_has_the_same_trials_and_test_items_are_looked_at_once(finished):
    store, summary = finished
    for row in summary.rows:
        assert len(row.trials) == 4
        assert [t[0] for t in study_of(store, row.name)] == [0, 1, 2, 3]
        assert set(row.finalists) == {t.number for t in row.best(2)}
        chosen = max(row.finalists, key=lambda n: sum(row.finalists[n]))
        assert row.chosen.number == chosen
        assert row.finalists[chosen][0] == row.chosen.accuracy
    # Of the fresh seeds alone.
    measured = {(p.parts[-4], p.parts[-2]) for p in store.glob("trials/*/*/*/measure.yaml")}
    names = {"multi_loss", "mlb", "multi_loss-published", "mlb-published"}
    assert measured == {(name, seed) for name in names for seed in "23"}
    assert summary.final is not None
    assert {row.name for row in summary.final.rows} == names
    assert summary.final.baselines == ["multi_loss"]
    kept = next(r for r in summary.rows if r.name == "mlb").finished[0]
    assert set(kept.result["probes"]) == {"easy", "hard"}
    alone = Store(str(store)).read_yaml("alone.yaml")
    ratios = [kept.result["probes"][m] / alone[m] for m in alone]
    assert kept.gap == pytest.approx(max(ratios) - min(ratios))


def test_what_was_found_is_what_tables_and_loops_train_with(finished):
    store, summary = finished
    for row in summary.rows:
        file = ["--config", str(store / "tuned" / f"{row.name}.yaml")]
        loop, table = parse(LoopConfig, file), parse(TableConfig, file)
        assert loop.balancing == table.balancing[row.name]
        assert loop.train.learning_rate == table.learning_rates[0] == row.chosen.values["train.learning_rate"]
        assert loop.train.weight_decay == table.train.weight_decay == row.chosen.values["train.weight_decay"]
        if row.name == "mlb":
            assert loop.balancing.beta_max == row.chosen.values["balancing.beta_max"]
            assert loop.balancing.pace.kind == row.chosen.values["balancing.pace.kind"]


def test_a_second_start_does_nothing_again_and_more_trials_add_only_theirs(finished, feature_pool):
    store, summary = finished
    before = {p: p.stat().st_mtime_ns for p in store.glob("trials/**/*.yaml")}
    studies = {row.name: study_of(store, row.name) for row in summary.rows}
    arguments = options(feature_pool, store, **{"resources.cpus-per-worker": 4})
    assert run_sweep(parse(TuneConfig, arguments)).lines() == summary.lines()
    assert {p: p.stat().st_mtime_ns for p in store.glob("trials/**/*.yaml")} == before
    more = run_sweep(parse(TuneConfig, [*arguments, "--trials", "5", "--seeds", "0"]))
    for row in more.rows:
        assert len(row.trials) == 5
        assert study_of(store, row.name)[:4] == studies[row.name]
    assert before.items() <= {p: p.stat().st_mtime_ns for p in store.glob("trials/**/*.yaml")}.items()
    with pytest.raises(StoreError, match=r"train\.epochs = 5, and now it is 6"):
        run_sweep(parse(TuneConfig, [*arguments, "--train.epochs", "6"]))


def test_killed_in_the_middle_of_a_trial(finished, feature_pool, tmp_path):
    store = tmp_path / "store"
    arguments = options(feature_pool, store, **{"resources.cpus-per-worker": 4, "methods": "mlb", "seeds": 0})
    run_job("tune.py", arguments, lambda: any(store.glob("trials/mlb/0001/0/epoch-0003*")))
    left = study_of(store, "mlb")
    assert [t[2] for t in left] == [TrialState.COMPLETE, TrialState.RUNNING, *[TrialState.WAITING] * (len(left) - 2)]
    first = (store / "trials/mlb/0000/0/train.yaml").stat().st_mtime_ns
    printed = run_job("tune.py", arguments)
    assert "4 trials, 1 of them done" in printed
    assert (store / "trials/mlb/0000/0/train.yaml").stat().st_mtime_ns == first
    # As if nothing had happened.
    assert study_of(store, "mlb") == study_of(finished[0], "mlb")[:4]


def scoring_phase(pool: Pool, folder: str) -> int:
    """Scores a pool with actors on the cluster; returns the number of items scored."""
    store, spec = Store(folder), make_spec("mlb", pool.info.modalities)
    weights = {f"model.{key}": value for key, value in spec.build()[0].state_dict().items()}
    save_predictor(store, "model.safetensors", spec, weights)
    shards = {name: np.flatnonzero(pool.shard_of == i) for i, name in enumerate(pool.shards)}
    scorers = Scorers(pool.store.root, folder, len(shards), ResourceSettings())
    scorers.score("scores", shards, "model.safetensors", build_strategy("entropy", QuerySettings("entropy")))
    scorers.stop()
    return sum(store.read_table(f"scores/{name}.parquet").num_rows for name in shards)


def test_two_trials_of_two_workers_each_next_to_a_scoring_phase(cluster, feature_pool, tmp_path):
    """The workers hold all 4 CPUs of the cluster, what scores goes on all the same, and nobody waits for ever."""
    changes = {"methods": "multi_loss", "search": "learning_rate", "objective": "both", "trials": 2, "seeds": 0}
    changes |= {"train.num-workers": 2, "train.epochs": 3, "stopping.grace": 1, "finalists": 1, "finalist-seeds": 1}
    # The second trial diverges.
    changes |= {"seed": 3, "space": "{train.learning_rate: {values: [1.0e-3, 1.0e+20]}}"}
    most, scored, ended = 0, 0, threading.Event()

    def watch() -> None:
        nonlocal most, scored
        while not ended.wait(0.05):
            groups = placement_group_table().values()
            most = max(most, sum(g["state"] == "CREATED" and len(g["bundles"]) == 2 for g in groups))
            if most == 2 and not scored:
                scored = scoring_phase(Pool(str(feature_pool)), str(tmp_path / "scored"))

    with ThreadPoolExecutor() as threads:
        watched = threads.submit(watch)
        try:
            summary = run_sweep(parse(TuneConfig, options(feature_pool, tmp_path / "store", **changes)))
        finally:
            ended.set()
        watched.result()
    assert (most, scored) == (2, 600)
    (row,) = summary.rows
    assert [(t.values["train.learning_rate"], t.state) for t in row.trials] == [(1e-3, "finished"), (1e20, "diverged")]
    assert row.chosen.gap is not None


@pytest.mark.parametrize(
    ("interval", "epochs", "tuned"), [(20, 9, 2), (20, 30, 20), (30, 9, 30)], ids=["published", "in time", "given"]
)
def test_what_would_never_act_as_published_is_tuned_as_the_same_share_of_the_run(
    feature_pool, tmp_path, caplog, interval, epochs, tuned
):
    """Re-learning after every 20 of 90 epochs would never come in 9. What a user gave is left as it is."""
    own = {"method": "diagnosing_relearning", "interval": interval}
    content = {"pool": str(feature_pool), "store": str(tmp_path), "methods": ["again"], "balancing": {"again": own}}
    config = from_plain(TuneConfig, content | {"train": {"epochs": epochs, "device": "cpu"}})
    store = Store(str(tmp_path))
    with caplog.at_level("INFO", logger="raybal"):
        plan = Sweep(config, store, Lease(store)).plans["again"]
    assert plan.own.interval == tuned
    assert (f"interval {interval} → {tuned}" in caplog.text) == (interval != tuned)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": ["fusion"], "balancing": {"mlb": {"method": "mlb"}}, "space": {"balancing.alhpa": 2}},
         r"space\.balancing\.alhpa: no method of the sweep has such a key \(did you mean 'balancing\.alpha'"),
        ({"space": {"weight_decay": 1e-4}}, r"space\.weight_decay: ranges are of balancing, model, train"),
        ({"space": {"query.size": 3}}, r"space\.query\.size: ranges are of balancing, model, train"),
        ({"methods": ["mlb"], "population": {"members": 4}, "space": {"balancing.pace.kind": "window"}},
         r"space\.balancing\.pace\.kind: a population finds the pace"),
        ({"methods": ["mlb"], "population": {"members": 4},
          "balancing": {"mlb": {"method": "mlb", "paces": {"m0": {"kind": "constant"}}}}},
         r"balancing\.mlb\.paces\.m0: a population finds the pace, one for all modalities"),
        ({"space": {"train.momemtum": 0.5}}, r"multi_loss: train\.momemtum: there is no such key.*'momentum'"),
        ({"methods": ["joint"], "search": ["method"]}, r"joint: search: nothing of method can be searched"),
        ({"space": {"train.momentum": {"kind": "uniform", "low": 0, "high": 2}}},
         r"multi_loss: train\.momentum: 2\.0 is not accepted; it must be less than 1"),
        ({"space": {"model.fusion": {"values": ["sum", "cat"]}}}, r"multi_loss: model\.fusion: 'cat' is not accepted"),
    ],
)  # fmt: skip
def test_a_space_that_settings_do_not_accept_is_refused_before_anything_is_trained(
    cluster, feature_pool, tmp_path, changes, message
):
    config = from_plain(TuneConfig, {"pool": str(feature_pool), "store": str(tmp_path / "store"), **changes})
    with pytest.raises(ConfigError, match=message):
        run_sweep(config)
    assert not (tmp_path / "store" / "sweep.yaml").exists()
