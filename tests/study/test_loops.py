"""Whole loops in one process: what they spend, when they end, and why."""

from __future__ import annotations

import csv
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import cohen_kappa_score
from toy import OMICS, make_items, write_pool

from raybal import loop
from raybal.config import LoopConfig
from raybal.experiment import Experiment
from raybal.lease import Lease
from raybal.loop import WaitingForLabels
from raybal.rounds import ENDED, Round, rounds_of
from raybal.settings import from_plain
from raybal.stopping import Progress, reason_to_stop
from raybal.store import Store
from raybal.study.loops import LocalLoop, run_loop

ITEMS = make_items(150, OMICS[:2])
SPLIT = ["train"] * 70 + ["val"] * 40 + ["test"] * 40
COSTS = np.random.default_rng(0).uniform(0.5, 9.0, len(ITEMS))


def config_of(pool: str, store: Any, **changes: Any) -> LoopConfig:
    content = {
        "label_budget": 70,
        "query": {"strategy": "random", "size": 10},
        "balancing": {"method": "multi_loss"},
        "train": {"epochs": 4, "batch_size": 16, "learning_rate": 0.02, "device": "cpu"},
        "model": {"encoder": {"dim": 8, "width": 4}},
    }
    return from_plain(LoopConfig, {**content, "pool": pool, "store": str(store), **changes})


def rounds_by(config: LoopConfig) -> list[Round]:
    """Runs a loop and leaves its rounds where they are."""
    store = Store(config.store)
    with Lease(store) as lease:
        experiment = Experiment(config, store)
        experiment.begin()
        LocalLoop(experiment, lease).run()
    return rounds_of(store)


def why(config: LoopConfig) -> str:
    return Store(config.store).read_yaml(ENDED)["why"]


@pytest.mark.parametrize("unit", ["euros", "seconds"])
@pytest.mark.parametrize(("budget", "cut"), [(20, 0), (120, 2)])
def test_a_budget_in_another_unit_is_never_overspent(tmp_path, unit, budget, cut):
    """The query that costs too much may be one that a model chose, or the first, of which nothing is known."""
    own = {"seconds": pa.array(COSTS, pa.float32())} if unit == "seconds" else {}
    pool, cost = write_pool(tmp_path / "pool", ITEMS, SPLIT, **own), {"unit": unit}
    if unit == "euros":
        cost["file"] = str(tmp_path / "costs.parquet")
        pq.write_table(pa.table({"id": ITEMS.ids, "euros": COSTS}), cost["file"])
    query = {"strategy": "coreset", "size": 10}
    config = config_of(pool, tmp_path / "store", label_budget=budget, cost=cost, query=query)
    rounds = rounds_by(config)
    assert why(config) == "the label budget is spent but for less than what was wanted next"
    assert len(rounds) == cut + 1
    queries = [r.query() for r in rounds]
    costs = [COSTS[[ITEMS.ids.index(i) for i in query["id"].to_pylist()]].sum() for query in queries]
    selected = [r.facts("select") for r in rounds]
    assert [facts["cost"] for facts in selected] == pytest.approx(costs)
    assert ["passed_over" in facts for facts in selected] == [False] * cut + [True]
    assert sum(costs) <= budget < sum(costs) + selected[-1]["passed_over"]
    assert rounds[-1].facts("evaluate")["labels"] == sum(map(len, queries))

    last = queries[-1]
    assert 0 < len(last) < 10
    assert last["stands_for"].null_count == len(last)
    for name in ("predicted", "confidence", "contribution_a", "nearest_labelled"):
        assert last[name].null_count == (0 if cut else len(last))
    assert bool(selected[-1]["balance"]) == bool(cut)
    # How many items each stands for is known of a query that is whole, and adds up to all candidates.
    whole = [r.number for r in rounds if 0 < r.number < cut]
    assert [sum(queries[n]["stands_for"].to_pylist()) for n in whole] == [70 - 10 * n for n in whole]


def test_two_models_are_compared_on_the_candidates_that_both_have_scored(tmp_path):
    pool = write_pool(tmp_path / "pool", ITEMS, SPLIT)
    config = config_of(pool, tmp_path / "store", stop={"agreement": 0.01})
    _, one, other = (
        {
            row["id"]: row["predicted"]
            for shard in r.facts("score").get("shards", [])
            for row in r.store.read_table(f"{r.scores}/{shard}.parquet", ["id", "predicted"]).to_pylist()
        }
        for r in rounds_by(config)
    )
    assert (len(one), len(other)) == (60, 50)
    kappa = cohen_kappa_score([one[i] for i in other], list(other.values()))
    assert 0.01 < kappa < 0.9
    assert why(config) == f"two successive models agree on the candidates (kappa {kappa:.3f})"
    # A loop that wants more agreement goes on from there.
    config = config_of(pool, tmp_path / "store", stop={"agreement": kappa + 0.01}, label_budget=30)
    assert [len(r.query()) for r in rounds_by(config)] == [10, 10, 10]
    assert why(config) == "the label budget is spent"


def test_models_that_know_one_class_do_not_agree(tmp_path):
    """All that is asked for first is of one class: two models that predict it for whatever there is have learnt
    nothing that further labels could not change."""
    split = np.where(ITEMS.labels == 0, "train", np.where(np.arange(len(ITEMS)) % 2, "val", "test"))
    pool = write_pool(tmp_path / "pool", ITEMS, split.tolist())
    config = config_of(pool, tmp_path / "store", stop={"agreement": 0.99}, label_budget=40)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=20, keep="last"))
    rounds = rounds_by(config)
    predicted = {
        one
        for r in rounds[1:]
        for name in r.facts("score")["shards"]
        for one in r.store.read_table(f"{r.scores}/{name}.parquet", ["predicted"])["predicted"].to_pylist()
    }
    assert (len(rounds), predicted) == (4, {0})
    assert why(config) == "the label budget is spent"


def test_a_round_that_nobody_could_label_tells_nothing_of_more_labels(tmp_path, monkeypatch):
    """It trains on the labels of the round before."""
    pool, label = write_pool(tmp_path / "pool", ITEMS, SPLIT), dict(zip(ITEMS.ids, ITEMS.labels, strict=True))
    config = config_of(pool, tmp_path / "store", labelling={"labeller": "table"}, stop={"agreement": 1.0})
    config = dataclasses.replace(config, label_budget=40)
    known: list[Progress] = []
    # Else the pool's own labels would be there from the start.
    monkeypatch.setattr(Experiment, "initial", {})
    monkeypatch.setattr(loop, "reason_to_stop", lambda progress, _: known.append(progress))
    for number in range(4):
        with pytest.raises(WaitingForLabels):
            rounds_by(config)
        sheet = tmp_path / f"store/sheets/round-{number:03d}.csv"
        rows = list(csv.DictReader(sheet.open()))
        answers = [{**row, "label": "cannot label" if number == 1 else str(label[row["id"]])} for row in rows]
        with sheet.open("w") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(answers)
    assert len(rounds_by(config)) == 4
    assert {tuple(p.labels): p.agreement is None for p in known} == {(): True, (10,): True, (10, 20): False}


def test_a_loop_that_ends_after_scoring_keeps_what_it_has_found(tmp_path):
    pool = write_pool(tmp_path / "pool", ITEMS, SPLIT)
    config = config_of(pool, tmp_path / "store", stop={"agreement": 0.01})
    assert [r["labels"] for r in run_loop(config)] == [10, 20]
    assert why(config).startswith("two successive models agree")


@pytest.mark.parametrize(
    ("rule", "value", "reason"),
    [
        ("accuracy", 0.7, "validation accuracy is"),
        ("plateau", 1, "validation accuracy has not risen"),
        ("expected_gain", 0.2, "the next 10 labels are expected to add"),
    ],
)
def test_validation_items_decide_when_a_loop_ends(tmp_path, rule, value, reason):
    """Every test item has a wrong label, so that the better a model is, the worse it looks on these."""
    labels = np.where(np.array(SPLIT) == "test", (ITEMS.labels + 1) % 3, ITEMS.labels)
    pool = write_pool(tmp_path / "pool", dataclasses.replace(ITEMS, labels=labels), SPLIT)
    config = config_of(pool, tmp_path / "store", stop={rule: value})
    curve = run_loop(config)
    assert not (tmp_path / "store/rounds").exists()

    def reasons(of: str) -> list[str | None]:
        """By what is known after each round."""
        known = [([r["labels"] for r in curve[:n]], [r[of] for r in curve[:n]]) for n in range(1, len(curve) + 1)]
        return [reason_to_stop(Progress(*pair, None, 10), config.stop) for pair in known]

    assert reasons("validation") == [None] * (len(curve) - 1) + [why(config)]
    assert why(config).startswith(reason)
    assert reasons("accuracy") != reasons("validation")
