"""What items cost, and what a budget of something else than items lets a round ask for."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybal.bench.toy import make_pool
from raybal.config import LoopConfig
from raybal.costs import affordable
from raybal.data.pool import Pool
from raybal.errors import ConfigError, DataError, StoreError
from raybal.experiment import Experiment
from raybal.rounds import Round
from raybal.settings import from_plain
from raybal.store import Store


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    make_pool(f"{tmp_path}/pool", 40, shards=2, classes=4)
    return Pool(f"{tmp_path}/pool")


def make(pool: Pool, store: Store, **changes) -> Experiment:
    content = {"pool": pool.store.root, "store": store.root, "balancing": {"method": "mlb"}, "train": {"device": "cpu"}}
    return Experiment(from_plain(LoopConfig, {**content, **changes}), store)


def costs_file(pool: Pool, path: Path, costs, column="euros") -> str:
    table = pa.table({"id": pool.ids, column: pa.array(costs)})
    # In another order, with rows that the pool does not have.
    table = pa.concat_tables([pa.table({"id": ["stranger"], column: table[column][:1]}), table])[::-1]
    if path.suffix == ".csv":
        lines = [f"id,{column}", *(f"{i},{c}" for i, c in zip(*(t.to_pylist() for t in table), strict=True))]
        path.write_text("\n".join(lines))
    else:
        pq.write_table(table, path)
    return str(path)


def asked(store: Store, number: int, ids: list[str]) -> None:
    current = Round(store, number)
    store.write_table(f"{current.folder}/query.parquet", pa.table({"id": ids}))
    current.finish("select", {})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_budget_in_another_unit(pool, tmp_path, suffix):
    store = Store(tmp_path / "store")
    costs = np.random.default_rng(0).uniform(0.5, 9.0, 40)
    file = costs_file(pool, tmp_path / f"costs.{suffix}", costs)
    settings = {"cost": {"unit": "euros", "file": file}, "query": {"strategy": "margin", "size": 8}}
    experiment = make(pool, store, label_budget=20, **settings)
    experiment.begin()
    np.testing.assert_allclose(experiment.costs, costs)
    train = pool.positions_in("train")
    assert experiment.candidates(Round(store, 0)).tolist() == train.tolist()
    most = int((np.cumsum(np.sort(costs[train])) <= 20).sum())
    assert experiment.size(Round(store, 0)) == min(most, 8)

    first = train[np.argsort(costs[train])][-2:]
    asked(store, 0, pool.ids_at(first))
    left = 20 - costs[first].sum()
    wanted = [p for p in train if p not in first and costs[p] <= left]
    assert experiment.candidates(Round(store, 1)).tolist() == wanted
    assert experiment.why_exhausted(Round(store, 1)) is None
    ids = pool.ids_at(np.array(wanted[::-1]))
    kept = experiment.affordable(Round(store, 1), ids)
    assert experiment.cost([ids[k] for k in kept]) <= left
    # Nothing that was passed over would still have fitted when its turn came.
    for k in set(range(len(ids))) - set(kept):
        before = experiment.cost([ids[j] for j in kept if j < k])
        assert before + costs[wanted[::-1][k]] > left

    asked(store, 1, [ids[k] for k in kept])
    assert experiment.why_exhausted(Round(store, 2)).startswith("the label budget is spent; no item costs as little as")
    # What was asked for stays within a budget that is continued.
    with pytest.raises(ConfigError, match=r"label_budget: 5 is not accepted; [\d.]+ euros were asked for already"):
        make(pool, store, label_budget=5, **settings)


def test_sums_of_fractions_are_within_the_budget_that_let_them_in(pool, tmp_path):
    """Of costs in tenths, sums differ in their last bit by the order of adding."""
    generator = np.random.default_rng(0)
    for case in range(20):
        store = Store(tmp_path / f"store-{case}")
        costs = generator.integers(1, 40, 40) / 10
        file = costs_file(pool, tmp_path / f"{case}.csv", costs)
        order = generator.permutation(pool.positions_in("train"))
        budget = round(sum(costs[order[:10]]))
        settings = {"label_budget": budget, "cost": {"unit": "euros", "file": file}}
        experiment = make(pool, store, **settings)
        experiment.begin()
        ids = pool.ids_at(order)
        kept = experiment.affordable(Round(store, 0), ids)
        assert round(sum(10 * costs[order[k]] for k in kept)) <= 10 * budget
        asked(store, 0, [ids[k] for k in kept])
        make(pool, store, **settings)


def test_a_query_that_was_cut_ends_the_loop_until_the_budget_grows(pool, tmp_path):
    store, costs = Store(tmp_path / "store"), np.full(40, 2.0)
    costs[pool.positions_in("train")[0]] = 7.0
    settings = {"cost": {"unit": "euros", "file": costs_file(pool, tmp_path / "c.csv", costs)}}
    experiment = make(pool, store, label_budget=10, **settings)
    experiment.begin()
    current = Round(store, 0)
    store.write_table(f"{current.folder}/query.parquet", pa.table({"id": pool.ids_at(pool.positions_in("train")[1:3])}))
    current.finish("select", {"passed_over": 7.0})
    assert (
        experiment.why_exhausted(Round(store, 1)) == "the label budget is spent but for less than what was wanted next"
    )
    assert make(pool, store, label_budget=20, **settings).why_exhausted(Round(store, 1)) is None


def test_other_costs_are_another_experiment(pool, tmp_path):
    store = Store(tmp_path / "store")
    cost = {"unit": "euros", "file": costs_file(pool, tmp_path / "c.csv", np.full(40, 2.0))}
    make(pool, store, cost=cost).begin()
    make(pool, store, cost={**cost, "file": costs_file(pool, tmp_path / "moved.csv", np.full(40, 2.0))})
    costs_file(pool, tmp_path / "c.csv", np.full(40, 3.0))
    with pytest.raises(StoreError, match=r"costs = "):
        make(pool, store, cost=cost)


def test_what_is_affordable_is_taken_in_order():
    for costs in itertools.product([1.0, 2.0, 3.0], repeat=4):
        for left in (0.5, 2.0, 4.0, 12.0):
            kept = affordable(costs, left)
            assert sum(costs[k] for k in kept) <= left
            first = next((k for k, c in enumerate(costs) if c <= left), None)
            assert (kept[0] if kept else None) == first


def test_every_item_asked_for_is_another_reason(pool, tmp_path):
    store = Store(tmp_path / "store")
    experiment = make(pool, store, label_budget=1000)
    experiment.begin()
    asked(store, 0, pool.ids_at(pool.positions_in("train")))
    assert experiment.why_exhausted(Round(store, 1)).startswith("every item of the training split")


def test_costs_that_make_no_sense_are_refused(pool, tmp_path):
    store = Store(tmp_path / "store")
    costs = np.ones(40)
    bad = costs.copy()
    bad[pool.positions_in("train")[3]] = 0
    item = pool.ids_at(pool.positions_in("train")[3:4])[0]
    for cost, error, message in [
        ({"unit": "euros"}, ConfigError, r"cost\.unit: 'euros' is not items or seconds; give cost\.file with"),
        ({"file": "x.csv"}, ConfigError, r"cost\.file: not looked at with cost\.unit items"),
        ({"unit": "seconds"}, DataError, r"cost\.unit: \d+ items have no seconds above 0 in pool"),
        (
            {"unit": "euro", "file": costs_file(pool, tmp_path / "a.csv", costs)},
            ConfigError,
            r"no column 'euro' .did you mean 'euros'",
        ),
        (
            {"unit": "euros", "file": costs_file(pool, tmp_path / "b.parquet", bad)},
            DataError,
            f"1 items have no euros above 0 in .*b.parquet: {item}",
        ),
        (
            {"unit": "name", "file": costs_file(pool, tmp_path / "c.csv", ["x"] * 40, "name")},
            DataError,
            r"column 'name' of .*c\.csv must be numbers",
        ),
        ({"unit": "euros", "file": str(tmp_path / "nothing.csv")}, StoreError, r"cannot read .*nothing\.csv"),
        (
            {"unit": "euros", "file": costs_file(pool, tmp_path / "d.csv", costs * 400)},
            ConfigError,
            r"label_budget: 300 is not accepted; the cheapest item costs 400 euros",
        ),
    ]:
        with pytest.raises(error, match=message):
            make(pool, store, cost=cost)
