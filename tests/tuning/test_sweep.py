"""Sweeps on a cluster."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.trial import TrialState
from ray_tools import run_job

from raybal.config import LoopConfig, parse
from raybal.errors import ConfigError, StoreError
from raybal.settings import from_plain
from raybal.store import Store
from raybal.table.config import TableConfig
from raybal.tuning.config import TuneConfig
from raybal.tuning.journal import StoreJournal
from raybal.tuning.run import run_sweep
from raybal.tuning.search import accuracies_of

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


def test_two_trials_of_two_workers_each_at_a_time(cluster, feature_pool, tmp_path):
    changes = {"train.num-workers": 2, "methods": "mlb", "trials": 3, "seeds": 0, "finalists": 1, "finalist-seeds": 1}
    changes |= {"train.epochs": 3, "stopping.grace": 1}
    summary = run_sweep(parse(TuneConfig, options(feature_pool, tmp_path / "store", **changes)))
    (row,) = summary.rows
    assert len(row.trials) == 3
    assert row.finished
    assert all(list(t.accuracies) == list(range(1, len(t.accuracies) + 1)) for t in row.trials)
    # They fill the cluster of 4 CPUs, and neither waits for the other.
    journal = StoreJournal(Store(str(tmp_path / "store")), "optuna.log")
    first, second, *_ = optuna.load_study(study_name="mlb", storage=JournalStorage(journal)).trials
    assert second.datetime_start < first.datetime_complete


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": ["fusion"], "balancing": {"mlb": {"method": "mlb"}}, "space": {"balancing.alhpa": 2}},
         r"space\.balancing\.alhpa: no method of the sweep has such a key \(did you mean 'balancing\.alpha'"),
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
