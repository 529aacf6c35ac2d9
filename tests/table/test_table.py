"""A table of methods and seeds on a real cluster."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from layout_trees import crema_d, crema_d_common, write
from sklearn.metrics import f1_score

from raybal.balancing.base import METHODS
from raybal.bench.toy import make_pool
from raybal.config import parse
from raybal.data.pool import Pool, Sidecar
from raybal.data.schema import PoolInfo
from raybal.errors import ConfigError, DataError, StoreError
from raybal.lease import Lease
from raybal.predictor import load_predictor
from raybal.settings import from_plain
from raybal.store import Store
from raybal.table import fill as table_fill
from raybal.table import run as table_run
from raybal.table import work as table_work
from raybal.table.cells import Cell
from raybal.table.config import TableConfig
from raybal.table.run import run_table

LABELS = "tables/0001/sidecar/labels.parquet"


def make_config(pool, store, **changes) -> TableConfig:
    content = {
        "pool": str(pool),
        "store": str(store),
        "methods": ["mlb", "multi_loss", "ensemble"],
        "balancing": {"mlb": {"alpha": 2.0}},
        "seeds": 2,
        "items": 60,
        "learning_rates": [0.001, 0.02],
        "train": {"epochs": 4, "batch_size": 16, "device": "cpu"},
        "model": {"encoder": {"dim": 8, "width": 4}},
    }
    return from_plain(TableConfig, content | changes)


@pytest.fixture(scope="module")
def finished(cluster, feature_pool, tmp_path_factory):
    store = tmp_path_factory.mktemp("table") / "store"
    return store, run_table(make_config(feature_pool, store))


@pytest.mark.ray
def test_every_method_has_the_same_trials_and_the_rate_that_validated_best(finished):
    store, summary = Store(str(finished[0])), finished[1]
    assert {row.name for row in summary.rows} == {"mlb", "multi_loss", "ensemble"}
    for row in summary.rows:
        trials = {rate: store.read_yaml(Cell(row.name, rate, 0).trained) for rate in (0.001, 0.02)}
        scores = {
            rate: (kept["fused"]["accuracy"], -kept["fused"]["nll"])
            for rate, result in trials.items()
            for kept in [result["history"][result["epoch"] - 1]["validation"]]
        }
        assert row.learning_rate == max(scores, key=scores.get)
        assert {len(t["history"]) for t in trials.values()} == {4}
        # Test items are looked at once a method and seed, when the rate is chosen.
        for rate in (0.001, 0.02):
            assert store.exists(Cell(row.name, rate, 0).measured) == (rate == row.learning_rate)
        assert store.exists(Cell(row.name, row.learning_rate, 1).measured)


@pytest.mark.ray
def test_what_is_measured_is_what_the_model_does(finished, feature_pool):
    """The saved model of one cell, measured anew with other code."""
    store, summary = Store(str(finished[0])), finished[1]
    row = next(r for r in summary.rows if r.name == "mlb")
    cell = Cell("mlb", row.learning_rate, 1)
    predictor, _ = load_predictor(store, f"{cell.folder}/model.safetensors")
    pool, sidecar = Pool(str(feature_pool)), Sidecar(str(feature_pool))
    ids = pool.ids_at(pool.positions_in("test"))
    labels = sidecar.class_indices(ids, pool.info.classes, "test")
    inputs, present = pool.read(pool.positions_in("test"))
    with torch.no_grad():
        mask = torch.from_numpy(present)
        encoded = predictor.encode({m: torch.from_numpy(x) for m, x in inputs.items()}, mask)
        probabilities = predictor.logits(encoded.fusion_inputs, mask).softmax(1)
    guess = probabilities.argmax(1).tolist()
    found = store.read_yaml(cell.measured)["fused"]
    assert found["accuracy"] == pytest.approx(sum(a == b for a, b in zip(guess, labels, strict=True)) / len(ids))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, guess, average="macro"), abs=1e-6)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, label in zip(probabilities, labels, strict=True):
        bins.setdefault(min(int(float(p.max()) * 15), 14), []).append((float(p.max()), int(p.argmax()) == label))
    ece = sum(abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins.values()) / len(ids)
    assert found["ece"] == pytest.approx(ece, abs=1e-5)


@pytest.mark.ray
def test_encoders_trained_alone_leave_nothing_and_all_rows_saw_the_same_items(finished):
    store, summary = Store(str(finished[0])), finished[1]
    rows = {row.name: row for row in summary.rows}
    assert all(m.left.mean == 0 for m in rows["ensemble"].modalities.values())
    assert "ensemble" not in rows["ensemble"].against
    assert set(rows["mlb"].against) == {"multi_loss", "ensemble"}
    for seed in (0, 1):
        seen = {
            tuple(sorted(store.read_table(f"{Cell(n, r.learning_rate, seed).folder}/items.parquet")["id"].to_pylist()))
            for n, r in rows.items()
        }
        assert len(seen) == 1
    one, other = (store.read_table(f"{Cell('mlb', rows['mlb'].learning_rate, s).folder}/items.parquet") for s in (0, 1))
    parts = [dict(zip(t["id"].to_pylist(), t["part"].to_pylist(), strict=True)) for t in (one, other)]
    train = [{i for i, p in part.items() if p == "train"} for part in parts]
    assert [len(t) for t in train] == [60, 60]
    assert train[0] != train[1]
    assert {i for i, p in parts[0].items() if p == "validation"} == {
        i for i, p in parts[1].items() if p == "validation"
    }


@pytest.mark.ray
def test_a_second_start_does_nothing_again_and_more_seeds_add_only_theirs(finished, feature_pool, monkeypatch):
    store = finished[0]
    before = {p: p.stat().st_mtime_ns for p in Path(store).rglob("*.safetensors")}
    page = (store / "report.html").read_text()
    again = run_table(make_config(feature_pool, store))
    assert {p: p.stat().st_mtime_ns for p in Path(store).rglob("*.safetensors")} == before
    assert again.lines() == finished[1].lines()
    assert (store / "report.html").read_text() == page
    worked = []
    inner = table_fill.as_they_end
    monkeypatch.setattr(table_fill, "as_they_end", lambda tasks: (worked.extend(tasks.values()), inner(tasks))[1])
    run_table(make_config(feature_pool, store, seeds=3, methods=["mlb", "multi_loss", "ensemble", "joint"]))
    rates = {row.name: row.learning_rate for row in again.rows}
    assert {(c.row, c.seed) for c in worked if c.row != "joint"} == {(n, 2) for n in rates}
    assert sum(c.row == "joint" for c in worked) == 2 + 3  # its trials, then its seeds; one of them only measured


@pytest.mark.ray
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": 50}, "was begun with items = 60, and now it is 50"),
        ({"balancing": {"mlb": {"alpha": 3.0}}}, r"balancing\.mlb\.alpha = 2\.0, and now it is 3\.0"),
        ({"train": {"epochs": 5, "batch_size": 16, "device": "cpu"}}, r"train\.epochs = 4, and now it is 5"),
    ],
)
def test_a_table_does_not_change_in_the_middle(finished, feature_pool, changes, message):
    with pytest.raises(StoreError, match=message):
        run_table(make_config(feature_pool, finished[0], **changes))


@pytest.mark.ray
def test_the_files_hold_every_row_and_every_run(finished):
    store, summary = finished
    rows = list(csv.DictReader(io.StringIO((store / "table.csv").read_text())))
    cells = list(csv.DictReader(io.StringIO((store / "cells.csv").read_text())))
    for row in summary.rows:
        own = [float(c["accuracy"]) for c in cells if c["method"] == row.name]
        assert len(own) >= 2
        (line,) = [r for r in rows if r["method"] == row.name]
        assert float(line["accuracy"]) == pytest.approx(sum(own) / len(own))
    page = (store / "report.html").read_text()
    assert not re.search(r"(src|href)=.https?:", page)
    for text in ("mlb", "beside multi_loss", "easy", "hard", "Validation accuracy", "Coefficient of each modality"):
        assert text in page


@pytest.mark.ray
def test_a_run_that_diverges_costs_its_row_and_no_other(cluster, feature_pool, tmp_path):
    changes = {
        "methods": ["mmpareto", "joint"],
        "balancing": {"mmpareto": {"gamma": 1e30}},
        "seeds": 1,
        "learning_rates": [0.01],
        "train": {"epochs": 3, "batch_size": 16, "device": "cpu", "optimizer": "sgd"},
    }
    config = make_config(feature_pool, tmp_path / "store", **changes)
    for _ in range(2):
        summary = run_table(config)
        assert [row.name for row in summary.rows] == ["joint"]
    marker = Store(str(tmp_path / "store")).read_yaml(Cell("mmpareto", 0.01, 0).trained)
    assert "training has diverged" in marker["diverged"]


def bare_table(folder, groups="", **changes) -> table_run.Table:
    """A table without a cluster, over 40 clips of which every fourth is to test on."""
    root = str(folder / "pool")
    make_pool(root, 40)
    index, named = next((folder / "pool").rglob("index.parquet")), next((folder / "pool").rglob("groups.parquet"))
    table = pq.read_table(index)
    split = ["test" if i % 4 == 0 else "train" for i in range(40)]
    pq.write_table(table.set_column(table.schema.get_field_index("split"), "split", pa.array(split)), index)
    if groups:
        pq.write_table(pa.table({"id": table["id"], "group": [groups] * 40}), named)
    config = make_bare(folder, **changes)
    return table_run.Table(config, Store(config.store), SimpleNamespace(token="t"))


def make_bare(folder, **changes) -> TableConfig:
    content = {"pool": str(folder / "pool"), "store": str(folder / "store"), "learning_rates": [0.1], **changes}
    return from_plain(TableConfig, content)


def test_without_names_every_method_that_can_be_built_is_a_row(tmp_path, caplog):
    assert bare_table(tmp_path).rows == METHODS.names()
    with caplog.at_level("WARNING"):
        rows = bare_table(tmp_path, model={"fusion": "gated"}).rows
    assert set(METHODS.names()) - set(rows) == {"mmcosine"}
    assert "mmcosine is left out: balancing.mmcosine.method: mmcosine" in caplog.text
    # Only what has no settings of its own: anything else is a slip of the user's.
    slip = {"mlb": {"method": "mlb", "paces": {"vidoe": {"final": 0.0}}}}
    with pytest.raises(ConfigError, match=r"^balancing\.mlb\.paces\.vidoe: .*did you mean 'video'"):
        bare_table(tmp_path, balancing=slip)
    with pytest.raises(ConfigError, match=r"^model\.encoders\.vidoe: .*did you mean 'video'"):
        bare_table(tmp_path, model={"encoders": {"vidoe": {"dim": 8}}})
    with pytest.raises(ConfigError, match=r"^balancing\.cosine\.method: mmcosine"):
        bare_table(
            tmp_path, model={"fusion": "gated"}, methods=["cosine"], balancing={"cosine": {"method": "mmcosine"}}
        )


def test_rates_cannot_be_compared_without_validation(tmp_path, monkeypatch):
    table = bare_table(tmp_path, groups="one", methods=["joint"], seeds=1, train={"epochs": 1})

    def here(filler, cells, test=None):
        for cell in cells:
            task = table.task(cell)
            task.write_items(*table.material.parts(cell.seed))
            table_work.work(table.store, cell, task, table.test, lambda task: task.run())

    monkeypatch.setattr(table_fill.Filler, "fill", here)
    with Lease(table.store) as lease:
        table.lease = lease
        assert [row.name for row in table.run().rows] == ["joint"]
    with pytest.raises(ConfigError, match=r"learning_rates: \[0\.1, 0\.2\] .* no validation items"):
        bare_table(tmp_path, groups="one", learning_rates=[0.1, 0.2])


@pytest.mark.ray
def test_a_table_begins_with_a_data_set(cluster, tmp_path):
    """The folder of CREMA-D is prepared, trained on, found again, and not mixed with another fold."""
    folder = crema_d(tmp_path / "CREMA-D")
    write(folder, [], crema_d_common())

    def config(split):
        source = {
            "input": str(folder),
            "layout": {"name": "crema_d", "split": split},
            "preprocessing": {
                "video": {"frames": 1, "height": 16, "width": 16},
                "audio": {"seconds": 0.2, "mels": 8},
            },
        }
        changes = {"methods": ["joint"], "balancing": {}, "seeds": 1, "items": 40, "learning_rates": [0.001]}
        return make_config(tmp_path / "pool", tmp_path / "store", source=source, **changes)

    first = run_table(config("common"))
    assert run_table(config("common")).lines() == first.lines()
    assert len(Pool(str(tmp_path / "pool"))) == 92
    with pytest.raises(DataError, match="split"):
        run_table(config("fold-1"))


def test_rows_have_their_methods_and_settings():
    config = parse(
        TableConfig,
        ["--methods", "mlb,strong", "--balancing.strong.method", "mlb", "--balancing.strong.alpha", "4"],
    )
    assert config.settings_of("mlb").alpha == 0.5
    assert (config.settings_of("strong").method, config.settings_of("strong").alpha) == ("mlb", 4.0)
    assert TableConfig().settings_of("joint").method == "joint"


def test_a_file_may_have_settings_for_a_larger_table(tmp_path):
    (tmp_path / "all.yaml").write_text("balancing: {mlb: {alpha: 3}, ogm: {alpha: 2}}")
    config = parse(TableConfig, ["--config", str(tmp_path / "all.yaml"), "--methods", "mlb"])
    assert set(config.balancing) == {"mlb"}
    assert config.settings_of("mlb").alpha == 3


def test_a_long_run_says_once_a_minute_how_far_it_is(monkeypatch, caplog):
    now = 0.0
    monkeypatch.setattr(table_work, "time", SimpleNamespace(monotonic=lambda: now))
    on_epoch = table_work._sign_of_life(Cell("mlb", 0.001, 3), 7)
    with caplog.at_level("INFO"):
        for epoch in range(1, 8):
            now = 20.0 * epoch
            on_epoch({"epoch": epoch, "loss": 1 / epoch})
    assert [r.getMessage() for r in caplog.records] == ["mlb, learning rate 0.001, seed 3: epoch 4 of 7, loss 0.250"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--methods", "mlbb"],
            r"methods: 'mlbb' is not a balancing method.*did you mean 'mlb'.*--balancing\.mlbb\.method",
        ),
        (["--methods", "mlb", "--balancing.own.method", "joint"], r"balancing\.own: the table has no such row"),
        (["--methods", "mlb,mlb"], "methods: 'mlb' is there twice"),
        (["--train.learning-rate", "0.1"], r"train\.learning_rate: .* give learning_rates"),
        (["--learning-rates", "0.1,0.1"], "learning_rates: .* give different ones"),
        (["--learning-rates", "0.1234567,0.1234568"], "learning_rates: .* give different ones"),
        (["--balancing.method", "mlb"], r"balancing\.method: there may be several, .* balancing\.NAME\.method"),
        (["--methods", "mlb", "--balancing.mlb.method", "ogm"], r"'ogm' is not accepted in a row called mlb"),
        (["--methods", "[1, [2]]"], r"methods"),
        (["--methods", ""], "methods: '' is not accepted"),
        (
            ["--methods", "a_b,a-b", "--balancing.a_b.method", "mlb", "--balancing.a-b.method", "ogm"],
            r"balancing\.a_b: another name differs from it in - and _ only",
        ),
        (["--methods", "mlb", "--balancing.ogm.alpha", "2"], r"balancing\.ogm: the table has no such row; .* mlb$"),
        (["--methods", "../x"], r"balancing\.\.\./x\.method|a row's name has letters"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse(TableConfig, arguments)


def test_names_of_methods_may_be_typed_with_hyphens():
    arguments = ["--balancing.diagnosing-relearning.interval", "4", "--balancing.diagnosing_relearning.times", "2"]
    settings = parse(TableConfig, arguments).settings_of("diagnosing_relearning")
    assert (settings.interval, settings.times) == (4, 2)


def test_one_class_is_no_table(tmp_path):
    bare_table(tmp_path)
    info = PoolInfo.read(Store(tmp_path / "pool"))
    dataclasses.replace(info, classes=("cat",)).write(Store(tmp_path / "pool"))
    with pytest.raises(DataError, match="has one class, 'cat'"):
        table_run.Table(make_bare(tmp_path), Store(tmp_path / "store"), SimpleNamespace(token="t"))
