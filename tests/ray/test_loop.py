"""The loop on a real cluster."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pytest

from raybal.config import LoopConfig
from raybal.data.pool import Pool
from raybal.errors import ConfigError, DataError, LabelError, StoreError
from raybal.loop import run_loop
from raybal.rounds import PHASES, Round, rounds_of
from raybal.settings import from_plain
from raybal.store import Store

LABELS = "tables/0001/sidecar/labels.parquet"

pytestmark = pytest.mark.ray

SETTINGS: dict[str, Any] = {
    "label_budget": 90,
    "query": {"strategy": "bmmal", "size": 30},
    "train": {"epochs": 8, "batch_size": 16, "learning_rate": 0.02, "device": "cpu"},
    "model": {"encoder": {"dim": 8, "width": 4}},
}


def make_config(pool: Path | str, store: Path, **changes: Any) -> LoopConfig:
    content = {**SETTINGS, "pool": str(pool), "store": str(store)}
    for key, value in changes.items():
        content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
    if "strategy" in changes.get("query", {}):
        content["query"] = changes["query"]
    return from_plain(LoopConfig, {"balancing": {"method": "mlb"}, **content})


def queries(store: Path | str) -> list[list[str]]:
    return [r.query()["id"].to_pylist() for r in rounds_of(Store(str(store)))]


def models(store: Path | str) -> list[bytes]:
    return [Store(str(store)).read_bytes(r.model) for r in rounds_of(Store(str(store)))]


@pytest.fixture(scope="module")
def finished(feature_pool, tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("finished") / "store"
    run_loop(make_config(feature_pool, store))
    return store


def test_the_budget_is_spent_on_different_items_and_the_model_learns(finished, feature_pool):
    asked = queries(finished)
    assert [len(q) for q in asked] == [30, 30, 30]
    everything = [i for q in asked for i in q]
    assert len(set(everything)) == 90
    pool = Pool(str(feature_pool))
    assert set(pool.split[pool.positions(everything)]) == {"train"}
    last = Round(Store(str(finished)), 2)
    test = last.facts("evaluate")["test"]
    assert test["items"] == len(pool.positions_in("test"))
    assert test["fused"]["accuracy"] > 0.6
    items = Store(str(finished)).read_table("rounds/002/train/items.parquet")
    groups = {i: f"group-{int(i.split('-')[1]) // 3}" for i in everything}
    parts = {
        part: {groups[i] for i, p in zip(items["id"].to_pylist(), items["part"].to_pylist(), strict=True) if p == part}
        for part in ("train", "validation")
    }
    assert not parts["train"] & parts["validation"]
    assert 0.1 < pc.sum(pc.equal(items["part"], "validation")).as_py() / 90 < 0.3


def test_a_finished_store_does_nothing_more_and_a_larger_budget_goes_on(finished, feature_pool, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    before = queries(store), models(store)
    run_loop(make_config(feature_pool, store))
    assert (queries(store), models(store)) == before
    run_loop(make_config(feature_pool, store, label_budget=100))
    assert queries(store)[:3] == before[0]
    assert [len(q) for q in queries(store)] == [30, 30, 30, 10]


def test_a_query_says_why_and_a_loop_that_has_enough_stops(feature_pool, tmp_path, caplog):
    """A first round without a trained model, labelled items that count, a quota, and a stop before the budget."""
    query = {
        "strategy": "coreset",
        "size": 30,
        "initial": "typiclust",
        "initial_features": "easy",
        "quota": {"dominated": 0.8},
    }
    config = make_config(feature_pool, tmp_path / "store", query=query, stop={"agreement": 0.01})
    with caplog.at_level("INFO"):
        run_loop(config)
        run_loop(config)
    store = Store(str(tmp_path / "store"))
    assert caplog.text.count("the loop ends: two successive models agree") == 2
    assert "two successive models agree" in Store(str(tmp_path / "store")).read_yaml("ended.yaml")["why"]
    first, second = (r.query() for r in rounds_of(store) if r.done("select"))
    assert len(first) == len(second) == 30
    assert "typical of a cluster" in first["reason"][0].as_py()
    assert first["predicted"].null_count == first["nearest_labelled"].null_count == 30
    assert pc.sum(first["stands_for"]).as_py() == len(Pool(str(feature_pool)).positions_in("train"))
    assert second["predicted"].null_count == 0
    assert set(second["nearest_labelled"].to_pylist()) <= set(first["id"].to_pylist())
    # What is far from labelled and chosen items is as far from labelled ones.
    assert (second["labelled_distance"].to_numpy() >= second["score"].to_numpy() - 1e-5).all()
    balance = rounds_of(store)[1].facts("select")["balance"]
    assert max(balance["dominated"]) <= 0.8
    assert "nearest labelled" in (tmp_path / "store" / "report.html").read_text()


@pytest.mark.parametrize("phase", ["select", "train", "score"])
def test_phases_that_are_done_again_give_the_same(finished, feature_pool, tmp_path, phase):
    """As if the driver had been lost before the phase's marker was written."""
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    folder = store / "rounds" / "002"
    for later in PHASES[PHASES.index(phase) :]:
        (folder / f"{later}.yaml").unlink()
    if phase == "score":
        shutil.rmtree(folder / "scores")
        shutil.rmtree(folder / "train")
    if phase == "train":
        shutil.rmtree(folder / "train")
    run_loop(make_config(feature_pool, store))
    assert queries(store) == queries(finished)
    assert models(store) == models(finished)


def test_labels_not_asked_for_and_test_labels_change_nothing(finished, feature_pool, tmp_path):
    """The proof that nothing leaks: scrambled hidden labels, the same queries and the same weights to the bit."""
    pool = tmp_path / "pool"
    shutil.copytree(feature_pool, pool)
    labels = Store(str(pool)).read_table(LABELS)
    asked = {i for q in queries(finished) for i in q}
    hidden = np.array([i not in asked for i in labels["id"].to_pylist()])
    values = np.array(labels["label"].to_pylist(), dtype=object)
    values[hidden] = np.random.default_rng(1).permutation(values[hidden])
    assert (values != np.array(labels["label"].to_pylist(), dtype=object)).sum() > 200
    changed = labels.set_column(1, "label", pa.array(values.tolist()))
    Store(str(pool)).write_table(LABELS, changed)
    run_loop(make_config(pool, tmp_path / "store"))
    assert queries(tmp_path / "store") == queries(finished)
    assert models(tmp_path / "store") == models(finished)
    ours = Round(Store(str(tmp_path / "store")), 2).facts("evaluate")["test"]["fused"]["accuracy"]
    assert ours != Round(Store(str(finished)), 2).facts("evaluate")["test"]["fused"]["accuracy"]


def test_two_training_workers_ask_for_nearly_the_same(finished, feature_pool, tmp_path):
    config = make_config(feature_pool, tmp_path / "store", train={"num_workers": 2}, label_budget=60)
    run_loop(config)
    one, two = queries(finished), queries(tmp_path / "store")
    assert two[0] == one[0]
    # Sums over workers round differently; the choice may differ in an item whose draw was that close.
    assert len(set(two[1]) & set(one[1])) >= 28
    accuracy = [
        Round(Store(str(s)), 1).facts("evaluate")["test"]["fused"]["accuracy"] for s in (finished, tmp_path / "store")
    ]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.02)


def test_a_changed_experiment_is_refused_and_named(finished, feature_pool, tmp_path):
    for changes, message in (
        ({"seed": 3}, r"seed = 0, and now it is 3"),
        ({"train": {"epochs": 9}}, r"train\.epochs = 8, and now it is 9"),
        ({"query": {"strategy": "entropy", "size": 30}}, r"query\.strategy = bmmal, and now it is entropy"),
        ({"label_budget": 60}, r"label_budget: 60 is not accepted; 90 items"),
    ):
        with pytest.raises((StoreError, ConfigError), match=message):
            run_loop(make_config(feature_pool, finished, **changes))
    store = tmp_path / "old"
    shutil.copytree(finished, store)
    experiment = Store(str(store)).read_yaml("experiment.yaml")
    Store(str(store)).write_yaml("experiment.yaml", experiment | {"format": 99, "raybal": "9.9"})
    with pytest.raises(StoreError, match=r"format 99 by raybal 9\.9"):
        run_loop(make_config(feature_pool, store))


def test_a_pool_that_is_not_one_or_lacks_labels(feature_pool, tmp_path):
    with pytest.raises(DataError, match=r"is not a prepared pool \(it has no pool\.yaml\)"):
        run_loop(make_config(tmp_path, tmp_path / "store"))
    pool = tmp_path / "pool"
    shutil.copytree(feature_pool, pool)
    labels = Store(str(pool)).read_table(LABELS)
    Store(str(pool)).write_table(LABELS, labels.slice(5))
    with pytest.raises(DataError, match=r"the oracle answers.*there is none for item-000"):
        run_loop(make_config(pool, tmp_path / "store"))


def answer(sheet: Path, answers: dict[str, str]) -> list[str]:
    """Fills in a query sheet as a person would; returns the ids on it."""
    table = pacsv.read_csv(sheet, convert_options=pacsv.ConvertOptions(column_types={"label": pa.string()}))
    ids = table["id"].to_pylist()
    old = table["label"].to_pylist()
    labels = [answers.get(i, o or "") for i, o in zip(ids, old, strict=True)]
    pacsv.write_csv(table.set_column(table.column_names.index("label"), "label", pa.array(labels)), sheet)
    return ids


def test_people_answer_through_sheets(feature_pool, tmp_path, caplog):
    """Three rounds without any label: partial answers, a wrong label, a conflict, "cannot label"."""
    caplog.set_level("INFO", logger="raybal")
    truth = Store(str(feature_pool)).read_table(LABELS)
    truth = dict(zip(truth["id"].to_pylist(), truth["label"].to_pylist(), strict=True))
    pool, store = tmp_path / "pool", tmp_path / "store"
    shutil.copytree(feature_pool, pool)
    Store(str(pool)).write_table(LABELS, Store(str(pool)).read_table(LABELS).slice(0, 0))
    labelling = {"labeller": "table"}
    config = make_config(pool, store, labelling=labelling, label_budget=60, query={"strategy": "bmmal", "size": 20})
    sheets = [store / "sheets" / f"round-{n:03d}.csv" for n in range(3)]

    run_loop(config)
    assert "waiting for labels: 20 of the 20 items of round 0" in caplog.text
    ids = answer(sheets[0], {})
    assert len(ids) == 20
    # Half of the answers: it waits for the rest, or goes on if it may.
    answer(sheets[0], {i: truth[i] for i in ids[:10]})
    run_loop(config)
    assert "waiting for labels: 10 of the 20" in caplog.text
    assert not (store / "rounds" / "000" / "train").exists()
    # A label outside the class list.
    answer(sheets[0], {ids[10]: "clas-1"})
    with pytest.raises(LabelError, match=rf"item {ids[10]}: 'clas-1' \(did you mean 'class-1'\?\)"):
        run_loop(config)
    answer(sheets[0], {i: truth[i] for i in ids[10:19]} | {ids[18]: "cannot label"})
    partial = dataclasses.replace(config, labelling=dataclasses.replace(config.labelling, accept_partial=True))
    run_loop(partial)
    facts = Round(Store(str(store)), 0).facts("ask")
    assert facts["unanswered"] == [ids[19]]
    assert facts["cannot_label"] == [ids[18]]
    assert len(Store(str(store)).read_table("rounds/000/train/items.parquet")) == 18
    assert Round(Store(str(store)), 0).facts("evaluate")["test"] is None

    second = answer(sheets[1], {})
    assert not set(second) & set(ids)
    # A late answer of the first round counts, and a changed one conflicts.
    other = "class-0" if truth[ids[0]] != "class-0" else "class-1"
    answer(sheets[0], {ids[19]: truth[ids[19]], ids[0]: other})
    answer(sheets[1], {i: truth[i] for i in second})
    run_loop(config)
    assert f"conflicting answers ({ids[0]})" in caplog.text
    trained = Store(str(store)).read_table("rounds/001/train/items.parquet")
    classes = Pool(str(pool)).info.classes
    labels = dict(zip(trained["id"].to_pylist(), trained["label"].to_pylist(), strict=True))
    assert len(labels) == 18 + 1 + 20
    assert classes[labels[ids[0]]] == truth[ids[0]]
    # The conflict is settled for the later answer.
    conflicts = store / "sheets" / "conflicts.csv"
    conflicts.write_text(conflicts.read_text().rstrip("\n").removesuffix('""') + f'"{other}"\n')
    third = answer(sheets[2], {})
    answer(sheets[2], {i: truth[i] for i in third})
    run_loop(config)
    trained = Store(str(store)).read_table("rounds/002/train/items.parquet")
    labels = dict(zip(trained["id"].to_pylist(), trained["label"].to_pylist(), strict=True))
    assert classes[labels[ids[0]]] == other
    assert not conflicts.exists()
    assert len(queries(store)) == 3
    assert len({i for q in queries(store) for i in q}) == 60


def test_a_query_that_nobody_could_label_is_followed_by_another(feature_pool, tmp_path, caplog):
    caplog.set_level("INFO", logger="raybal")
    truth = Store(str(feature_pool)).read_table(LABELS)
    truth = dict(zip(truth["id"].to_pylist(), truth["label"].to_pylist(), strict=True))
    pool, store = tmp_path / "pool", tmp_path / "store"
    shutil.copytree(feature_pool, pool)
    Store(str(pool)).write_table(LABELS, Store(str(pool)).read_table(LABELS).slice(0, 0))
    config = make_config(
        pool, store, labelling={"labeller": "table"}, label_budget=50, query={"strategy": "bmmal", "size": 20}
    )
    sheets = [store / "sheets" / f"round-{n:03d}.csv" for n in range(3)]
    run_loop(config)
    first = answer(sheets[0], {})
    answer(sheets[0], dict.fromkeys(first, "cannot label"))
    run_loop(config)
    assert "none of the items asked for could be labelled" in caplog.text
    assert "waiting for labels: 20 of the 20 items of round 1" in caplog.text
    second = answer(sheets[1], {})
    assert not set(first) & set(second)
    assert Round(Store(str(store)), 1).query()["reason"].to_pylist() == ["no model yet: at random"] * 20
    answer(sheets[1], {i: truth[i] for i in second})
    run_loop(config)
    third = answer(sheets[2], {})
    assert len(third) == 10
    assert all("gradient norm" in reason for reason in Round(Store(str(store)), 2).query()["reason"].to_pylist())


def test_settings_are_tuned_between_rounds(cluster, feature_pool, tmp_path):
    store = Store(str(tmp_path / "store"))
    tuning = {"every": 2, "share": 0.99, "trials": 3, "search": ["method", "learning_rate"]}
    config = make_config(feature_pool, store.root, tuning=tuning, train={"epochs": 3})
    run_loop(config)
    rounds = rounds_of(store)
    assert [bool(r.facts("tune").get("trials")) for r in rounds] == [False, False, True]
    in_force: dict[str, Any] = {}
    for r in rounds[2:]:
        facts = r.facts("tune")
        assert 1 <= facts["trials"] <= 3
        # The settings that were in force are the first trial, and only better ones replace them.
        assert facts["before"]["trial"] == 0
        assert facts["after"]["accuracy"] >= facts["before"]["accuracy"]
        if facts["after"]["trial"] == 0:
            assert facts["settings"] == in_force
        else:
            assert facts["settings"]["balancing"]["beta_max"] == facts["after"]["values"]["balancing.beta_max"]
        in_force = facts["settings"]
        trained = store.read_tensors(r.model)[1]["spec"]["balancing"]
        expected = {**dataclasses.asdict(config.balancing), **in_force.get("balancing", {})}
        assert (trained["alpha"], trained["beta_max"]) == (expected["alpha"], expected["beta_max"])
    # A second start finds everything done.
    before = {r.number: store.read_bytes(r.model) for r in rounds}
    run_loop(config)
    assert {r.number: store.read_bytes(r.model) for r in rounds_of(store)} == before
