"""What an experiment finds out before anything is written or asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raybal.bench.toy import make_pool
from raybal.config import LoopConfig
from raybal.data.schema import PoolInfo
from raybal.errors import ConfigError, DataError, RaybalError, StoreError
from raybal.experiment import BEGUN, Experiment
from raybal.rounds import Round
from raybal.settings import from_plain
from raybal.store import Store


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    make_pool(f"{tmp_path}/pool", 40, shards=2, classes=4)
    return tmp_path / "pool"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(pool: Path, store: Store, **changes: Any) -> Experiment:
    content = {"pool": str(pool), "store": store.root, "balancing": {"method": "mlb"}, "train": {"device": "cpu"}}
    return Experiment(from_plain(LoopConfig, {**content, **changes}), store)


def rewrite_labels(pool: Path, change: Any) -> None:
    name = PoolInfo.read(Store(pool)).sidecar("labels")
    labels = Store(pool).read_table(name)
    Store(pool).write_table(name, change(labels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"encoder": {"name": "mlp"}}}, r"model\.encoders\.video\.name: 'mlp' does not take video"),
        ({"model": {"encoders": {"sound": {}}}}, r"model\.encoders\.sound: the pool has no such modality"),
        ({"model": {"encoder": {"weights": "/no/such.pt"}}}, r"weights.*/no/such\.pt"),
        ({"labelling": {"classes": ["a", "a"]}}, r"labelling\.classes: \['a', 'a'\]"),
        ({"labelling": {"classes": ["a", " "]}}, r"labelling\.classes"),
        ({"labelling": {"classes": ["0", "1"]}}, r"labels outside the class list: item-.*classes are 0, 1"),
        ({"labelling": {"labeller": "table", "classes": ["0", "1"]}}, r"labels outside the class list"),
    ],
)
def test_a_wrong_setting_leaves_no_trace(pool, store, changes, message):
    with pytest.raises(RaybalError, match=message):
        make(pool, store, **changes)
    assert not store.exists()


def test_an_oracle_without_all_labels_says_what_else_there_is(pool, store):
    rewrite_labels(pool, lambda labels: labels.slice(1))
    with pytest.raises(DataError, match=r"people would, with --labelling\.labeller table.*none for item-0000000"):
        make(pool, store)
    assert not store.exists()
    assert make(pool, store, labelling={"labeller": "table"}).initial.keys() == {f"item-{i:07d}" for i in range(1, 40)}


def test_a_folder_with_other_things_is_no_store(pool, store):
    store.write_bytes("holiday.jpg", b"x")
    with pytest.raises(StoreError, match=r"not the store of an experiment .*not empty \(it has holiday\.jpg\)"):
        make(pool, store)
    assert store.names() == ["holiday.jpg"]


def test_an_empty_folder_and_one_that_a_driver_only_leased_are_new_stores(pool, store):
    for name in ("lease.yaml", "lease.lock", ".DS_Store"):
        store.write_bytes(name, b"")
    assert BEGUN.read(store) is None
    make(pool, store).begin()
    assert BEGUN.read(store)["defines"]["seed"] == 0


@pytest.mark.parametrize(
    "content",
    ["", "- a\n", "nothing: 1\n", "{format: 1, raybal: x}\n", "{format: 1, raybal: x, defines: [], settings: {}}\n"],
)
def test_a_damaged_store_is_named(pool, store, content):
    store.write_bytes(BEGUN.file, content.encode())
    with pytest.raises(StoreError, match=rf"{BEGUN.file} is damaged"):
        make(pool, store)
    store.write_yaml(BEGUN.file, {"format": 99, "raybal": "9.9"})
    with pytest.raises(StoreError, match=r"was written in format 99 by raybal 9\.9"):
        make(pool, store)


def test_a_store_does_not_go_on_with_another_pool(pool, store):
    make(pool, store).begin()
    make(pool, store)
    info = PoolInfo.read(Store(pool))
    dataclasses.replace(info, content_hash="other").write(Store(pool))
    with pytest.raises(StoreError, match=r"begun with another pool than .*splits or tensors differ"):
        make(pool, store)


def test_naming_the_classes_that_the_pool_has_is_no_change(pool, store):
    make(pool, store).begin()
    make(pool, store, labelling={"classes": ["0", "1", "2", "3"]})
    with pytest.raises(StoreError, match=r"begun with classes = \['0', '1', '2', '3'\]"):
        make(pool, store, labelling={"classes": ["1", "0", "2", "3"]})


def test_a_budget_below_what_was_asked_says_how_much_it_takes(pool, store):
    make(pool, store).begin()
    store.write_table("rounds/000/query.parquet", pa.table({"id": ["item-0000000", "item-0000001"]}))
    Round(store, 0).finish("select", {})
    with pytest.raises(ConfigError, match=r"label_budget: 1 .*at least 2"):
        make(pool, store, label_budget=1)
    experiment = make(pool, store, label_budget=3)
    assert experiment.size(Round(store, 1)) == 1
    assert not np.isin(experiment.pool.positions(["item-0000000"]), experiment.candidates(Round(store, 1))).any()
