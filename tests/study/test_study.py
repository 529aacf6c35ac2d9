"""Studies of query strategies."""

from __future__ import annotations

import csv
import io
import re

import pytest
from toy import OMICS, make_items, write_pool

from raybal.config import parse
from raybal.data.pool import Pool
from raybal.data.schema import PoolInfo
from raybal.errors import ConfigError, StoreError
from raybal.lease import Lease
from raybal.settings import from_plain
from raybal.store import Store
from raybal.study import fill as study_fill
from raybal.study import run as study_run
from raybal.study.config import StudyConfig
from raybal.study.loops import LocalLoop, run_loop
from raybal.study.run import Cell, Study, loop_of, run_study
from raybal.study.summary import area


def make_config(pool, store, **changes) -> StudyConfig:
    content = {
        "pool": str(pool),
        "store": str(store),
        "strategies": ["random", "margin", "weak"],
        "query": {"weak": {"strategy": "bmmal"}},
        "methods": ["multi_loss"],
        "seeds": 2,
        "label_budget": 60,
        "size": 20,
        "train": {"epochs": 3, "batch_size": 16, "learning_rate": 0.02, "device": "cpu"},
        "model": {"encoder": {"dim": 8, "width": 4}},
    }
    return from_plain(StudyConfig, content | changes)


@pytest.mark.ray
def test_a_study_compares_from_the_same_first_items_and_goes_on(feature_pool, tmp_path, monkeypatch):
    config = make_config(feature_pool, tmp_path / "study")
    # One loop as it was left by a process that was killed in its second round.
    store, cell = Store(config.store), Cell("multi_loss", "weak", 1)

    class KilledError(Exception):
        pass

    def evaluate(self, current):
        if current.number == 1:
            raise KilledError
        return original(self, current)

    original = LocalLoop._evaluate
    monkeypatch.setattr(LocalLoop, "_evaluate", evaluate)
    with pytest.raises(KilledError):
        run_loop(loop_of(cell, config, store))
    monkeypatch.setattr(LocalLoop, "_evaluate", original)
    asked = {}
    undisturbed = run_loop(loop_of(cell, config, Store(str(tmp_path / "other"))))
    resumed = run_loop(loop_of(cell, config, store))
    assert [r["accuracy"] for r in resumed] == [r["accuracy"] for r in undisturbed]
    assert not (tmp_path / "study" / cell.folder / "rounds").exists()
    defines = {"pool": Pool(str(feature_pool)).info.content_hash, "label_budget": 60}
    store.write_yaml("study.yaml", {"format": 1, "raybal": "0.1.0", "defines": defines, "settings": {}})

    summary = run_study(config)
    assert {r.strategy for r in summary.rows["multi_loss"]} == {"random", "margin", "weak"}
    curves = list(csv.DictReader(io.StringIO((tmp_path / "study/curves.csv").read_text())))
    assert len(curves) == 3 * 2 * 3
    for line in curves:
        asked.setdefault((line["seed"], line["round"]), set()).add(line["accuracy"])
    # The first query of a seed is that of all strategies, and so is the model.
    assert all(len(asked[seed, "0"]) == 1 for seed in "01")
    assert any(len(asked[seed, "2"]) > 1 for seed in "01")
    page = (tmp_path / "study/report.html").read_text()
    assert not re.search(r"(src|href)=.https?:", page)
    assert "area beside random" in page

    # All is done: nothing is run again. Another seed is a loop a strategy more, and another budget is another study.
    ran = []

    class Recorder:
        def options(self, **options):
            return self

        def remote(self, loop):
            method, strategy, seed = loop.store.split("/")[-3:]
            cell = Cell(method, strategy, int(seed))
            ran.append(cell)
            store.write_yaml(cell.curve, store.read_yaml(Cell(cell.method, cell.strategy, 0).curve))
            return cell

    monkeypatch.setattr(study_run, "run_cell", Recorder())
    monkeypatch.setattr(
        study_fill, "as_they_end", lambda tasks: [(c, store.read_yaml(c.curve)) for c in tasks.values()]
    )
    run_study(config)
    assert ran == []
    run_study(make_config(feature_pool, tmp_path / "study", seeds=3))
    assert ran == [Cell("multi_loss", s, 2) for s in ("random", "margin", "weak")]
    with pytest.raises(StoreError, match="label_budget = 60, and now it is 80"):
        run_study(make_config(feature_pool, tmp_path / "study", label_budget=80))


@pytest.mark.ray
def test_a_loop_of_a_study_lies_where_the_study_does(feature_pool, tmp_path, s3):
    cell, curves = Cell("multi_loss", "margin", 0), []
    for root in (s3(), str(tmp_path / "study")):
        config = make_config(feature_pool, root, label_budget=40)
        curves.append(run_loop(loop_of(cell, config, Store(root))))
        assert Store(root).read_yaml(cell.curve) == curves[-1]
    assert [r["accuracy"] for r in curves[0]] == [r["accuracy"] for r in curves[1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--strategies", "badgee"],
            r"strategies: 'badgee' is not a query strategy.*did you mean 'badge'.*--query\.badgee\.strategy",
        ),
        (["--strategies", "random", "--query.badge.proposals", "3"], r"query\.badge: the study has no such row"),
        (["--strategies", "random,random"], "strategies: 'random' is there twice"),
        (["--methods", "../x"], r"methods: '\.\./x' is not accepted; a row's name has letters, digits, _ and -"),
        (["--train.num-workers", "2"], r"train\.num_workers: a study's loops run in one process"),
        (["--strategies", "random", "--query.random.size", "7"], r"query\.random\.size: all strategies of a study"),
        (
            ["--strategies", "random", "--query.random.explain", "true"],
            r"query\.random\.explain: all strategies of a study",
        ),
        (["--label-budget", "60"], r"label_budget: 60 is not accepted; the first, random query has 60 items"),
        (
            ["--label-budget", "60", "--size", "20", "--initial-size", "80"],
            r"label_budget: 60 is not accepted; .* 80 items",
        ),
        (
            ["--query.modulate", "both"],
            r"--query\.modulate: there is no such option; settings of a row have .*: --query\.NAME\.modulate",
        ),
        (["--query", "{badge: 3}"], r"--query: there is no such option"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse(StudyConfig, arguments)


def test_rows_have_their_own_settings():
    config = parse(
        StudyConfig, ["--strategies", "random,both", "--query.both.strategy", "bmmal", "--query.both.modulate", "both"]
    )
    query = config.loop("both", "mlb", 3, "somewhere").query
    assert (query.strategy, query.modulate, query.size, query.explain) == ("bmmal", "both", 60, False)
    assert config.loop("random", "mlb", 3, "somewhere").seed == 3
    assert query.initial_size is None
    first = parse(StudyConfig, ["--initial-size", "20"]).loop("random", "mlb", 0, "somewhere").query
    assert (first.size, first.initial_size) == (60, 20)


@pytest.fixture
def toy_pool(tmp_path) -> str:
    """60 items to ask for, and 20 test items."""
    return write_pool(tmp_path / "toy", make_items(80, OMICS[:2]), ["train"] * 60 + ["test"] * 20)


def begin(config: StudyConfig) -> Study:
    store = Store(config.store)
    return Study(config, store, Lease(store))


@pytest.mark.parametrize("key", ["size", "initial_size"])
def test_a_first_query_of_all_items_leaves_nothing_to_compare(toy_pool, tmp_path, key):
    sizes = {"label_budget": 100, "size": 20}
    begin(make_config(toy_pool, tmp_path / "study", **sizes | {key: 59}))
    for first in (60, 61):
        with pytest.raises(ConfigError, match=rf"^{key}: {first} is not accepted; .* has 60 items to ask for"):
            begin(make_config(toy_pool, tmp_path / "study", **sizes | {key: first}))
    assert not (tmp_path / "study").exists()


def test_a_study_needs_test_items_with_labels(toy_pool, tmp_path):
    """Test items are there in both pools; in one of them nobody has said what they are."""
    begin(make_config(toy_pool, tmp_path / "study"))
    store = Store(toy_pool)
    name = PoolInfo.read(store).sidecar("labels")
    store.write_table(name, store.read_table(name).slice(0, 60))
    with pytest.raises(ConfigError, match=r"pool: .*toy has no labelled test items"):
        begin(make_config(toy_pool, tmp_path / "study"))


def test_what_a_driver_that_died_has_left_of_finished_loops_is_cleared(toy_pool, tmp_path, monkeypatch):
    """What a loop that is to go on has of its rounds stays."""
    config = make_config(toy_pool, tmp_path / "study", seeds=1)
    study = begin(config)
    store, done, *left = study.store, *study.cells
    curve = run_loop(loop_of(done, config, Store(tmp_path / "other")))
    store.write_yaml(done.curve, curve)
    for cell in study.cells:
        store.write_bytes(f"{cell.folder}/rounds/002/train/model.safetensors", b"x")
    ran = []

    class Recorder:
        def options(self, **options):
            return self

        def remote(self, loop):
            ran.append(loop)
            store.write_yaml(left[len(ran) - 1].curve, curve)
            return loop.store

    monkeypatch.setattr(study_run, "run_cell", Recorder())
    monkeypatch.setattr(study_run, "task_options", lambda *_: {})
    monkeypatch.setattr(
        study_fill, "as_they_end", lambda tasks: [(c, store.read_yaml(c.curve)) for c in tasks.values()]
    )
    with study.lease:
        summary = study.run()
    assert ran == [loop_of(cell, config, store) for cell in left]
    assert [store.exists(f"{cell.folder}/rounds") for cell in study.cells] == [False, True, True]
    assert [r.area.mean for r in summary.rows["multi_loss"]] == [area(curve)] * 3


def test_what_is_no_study_is_left_alone(tmp_path):
    (tmp_path / "experiment.yaml").write_text("format: 1")
    with pytest.raises(StoreError, match="not the store of a study"):
        run_study(make_config("nowhere", tmp_path))
