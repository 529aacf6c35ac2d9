"""Studies of query strategies."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from scipy import stats

from raybal.config import parse
from raybal.data.pool import Pool
from raybal.errors import ConfigError, StoreError
from raybal.settings import from_plain
from raybal.store import Store
from raybal.study import fill as study_fill
from raybal.study import run as study_run
from raybal.study.config import StudyConfig
from raybal.study.loops import LocalLoop, run_loop
from raybal.study.run import Cell, loop_of, run_study
from raybal.study.summary import area, summarise


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


def curve(*accuracy, start=20):
    seconds = {"score": 1.0, "select": 0.5, "train": 9.0}
    return [
        {
            "labels": start * (k + 1),
            "accuracy": a,
            "heads": {"easy": a, "hard": a},
            "balance": {"contribution": [0.1 * k, -0.1 * k], "class_entropy": 1.0 + k} if k else {},
            "seconds": seconds,
        }
        for k, a in enumerate(accuracy)
    ]


def test_areas_are_means_over_labels_and_compared_by_seed():
    assert area(curve(0.2, 0.4, 0.6)) == pytest.approx(0.4)
    assert area(curve(0.2, 0.6, 0.6)) == pytest.approx((0.4 + 0.6) / 2)
    assert area(curve(0.3)) == 0.3
    uneven = curve(0.0, 1.0)
    uneven[1]["labels"] = 100
    assert area([*uneven, {**uneven[1], "labels": 400}]) == pytest.approx((80 * 0.5 + 300) / 380)

    generator = np.random.default_rng(0)
    config = StudyConfig(strategies=["random", "margin", "badge"], methods=["joint"], seeds=5)
    curves = {
        ("joint", s, seed): curve(*(0.3 + 0.1 * k + 0.02 * i + 0.01 * generator.normal() for k in range(4)))
        for i, s in enumerate(config.strategies)
        for seed in range(5)
    }
    summary = summarise(curves, config)
    rows = {r.strategy: r for r in summary.rows["joint"]}
    areas = {s: [area(curves["joint", s, seed]) for seed in range(5)] for s in config.strategies}
    assert [r.strategy for r in summary.rows["joint"]] == sorted(areas, key=lambda s: -np.mean(areas[s]))
    ps = {s: stats.ttest_rel(areas[s], areas["random"]).pvalue for s in ("margin", "badge")}
    smallest, largest = sorted(ps, key=ps.__getitem__)
    assert rows[smallest].against.adjusted == pytest.approx(2 * ps[smallest])
    assert rows[largest].against.adjusted == pytest.approx(max(2 * ps[smallest], ps[largest]))
    assert rows["random"].against is None
    assert rows["random"].verdict == ""
    assert rows["badge"].seconds == 1.5
    # Of the second to the fourth query: the first was chosen without a model.
    assert rows["badge"].contribution == pytest.approx([0.2, -0.2])
    assert rows["badge"].class_entropy == pytest.approx(3.0)
    table = list(csv.DictReader(io.StringIO(summary.rows_csv())))
    assert float(table[0]["hard_contribution_minus_pool"]) == pytest.approx(-0.2)
    assert len(summary.lines()) == 5


def test_an_area_may_begin_later():
    rounds = [{"labels": 20, "validation": 0.1}, {"labels": 40, "validation": 0.3}, {"labels": 80, "validation": 0.7}]
    # From 0.2 at 30 labels: 10 labels of 0.25 and 40 of 0.5 in the mean.
    assert area(rounds, "validation", since=30) == pytest.approx((10 * 0.25 + 40 * 0.5) / 50)
    assert area(rounds, "validation", since=20) == area(rounds, "validation")
    assert area(rounds, "validation", since=80) == 0.7


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.05, 0.06, 0.05, 0.04, 0.05], "better than random"),
        ([-0.05, -0.06, -0.05, -0.04, -0.05], "worse than random"),
        ([0.05, -0.06, 0.05, -0.04, 0.01], "not told from random"),
        ([0.05, 0.05, 0.05], "not told from random"),
        ([0.05], ""),
    ],
)
def test_a_verdict_says_which_way_and_whether(gains, verdict):
    config = StudyConfig(strategies=["random", "badge"], methods=["joint"], seeds=len(gains))
    plain = [0.50, 0.62, 0.55, 0.41, 0.58]
    curves = {("joint", "random", seed): curve(plain[seed]) for seed in range(len(gains))}
    curves |= {("joint", "badge", seed): curve(plain[seed] + gain) for seed, gain in enumerate(gains)}
    rows = {r.strategy: r.verdict for r in summarise(curves, config).rows["joint"]}
    assert rows == {"random": "", "badge": verdict}


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


def test_what_is_no_study_is_left_alone(tmp_path):
    (tmp_path / "experiment.yaml").write_text("format: 1")
    with pytest.raises(StoreError, match="not the store of a study"):
        run_study(make_config("nowhere", tmp_path))
