"""Whole loops as trials."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import yaml

from raybal.config import LoopConfig, parse
from raybal.errors import ConfigError, RaybalError, StoreError
from raybal.material import Material
from raybal.store import Store
from raybal.study.summary import area
from raybal.tuning import loops
from raybal.tuning.config import TuneConfig
from raybal.tuning.loops import METHOD, SIZE, STRATEGY, LoopPlan, LoopSweep
from raybal.tuning.run import run_sweep
from raybal.tuning.summary import Found, LoopsSummary, RowFound

OPTIONS = (
    "--loop.label-budget 40 --loop.sizes 10,20 --loop.strategies random,margin --methods multi_loss,mlb --search "
    "learning_rate --trials 3 --finalists 2 --finalist-seeds 2 --seeds 2 --train.epochs 2 --train.batch-size 16 "
    "--train.device cpu --model.encoder.dim 8 --model.encoder.width 4"
)


def config_of(*more: str) -> TuneConfig:
    return parse(TuneConfig, [*OPTIONS.split(), *more])


def test_the_first_trial_is_the_first_of_every_choice():
    plan = LoopPlan(config_of("--train.learning-rate", "0.002"), [])
    first = {STRATEGY: "random", SIZE: 10, METHOD: "multi_loss", "train.learning_rate": 0.002}
    assert plan.first_values() == [first]
    # What the space does not take begins at its lower end.
    outside = LoopPlan(config_of("--train.learning-rate", "0.5"), [])
    assert outside.first_values() == [first | {"train.learning_rate": 1e-5}]


def test_values_are_settings_of_a_loop(tmp_path):
    given = {
        "query.modulate": {"values": ["both"], "when": {STRATEGY: ["bmmal"]}},
        "model.fusion": {"values": ["film"]},
    }
    arguments = ["--loop.strategies", "random,bmmal", "--balancing.mlb.beta-max", "3", "--space", yaml.safe_dump(given)]
    plan = LoopPlan(config_of(*arguments, "--store", str(tmp_path)), [])
    assert set(plan.space) == {STRATEGY, SIZE, METHOD, "train.learning_rate", *given}
    values = {STRATEGY: "bmmal", SIZE: 20, METHOD: "mlb", "train.learning_rate": 0.003, "query.modulate": "both"}
    loop = plan.loop(values | {"model.fusion": "film"}, "0002", 1)
    assert (loop.query.strategy, loop.query.size, loop.query.modulate) == ("bmmal", 20, "both")
    assert (loop.balancing.method, loop.balancing.beta_max) == ("mlb", 3.0)
    assert (loop.train.learning_rate, loop.train.epochs, loop.model.fusion) == (0.003, 2, "film")
    assert loop.store == str(tmp_path / "trials/loops/0002/1")
    # Loops of a seed are the same draws, those of another are others.
    assert plan.loop(values, "0003", 1).seed == loop.seed != plan.loop(values, "0002", 2).seed
    # As a file for jobs/al_loop.py.
    (tmp_path / "loops.yaml").write_text(yaml.safe_dump(plan.settings(values)))
    again = parse(LoopConfig, ["--config", str(tmp_path / "loops.yaml")])
    assert (again.query.modulate, again.query.size, again.balancing) == ("both", 20, loop.balancing)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loop.sizes", "50"], r"loop\.sizes: 50 is not accepted; a loop asks for 40 items in all"),
        (["--loop.sizes", "0"], r"loop\.sizes: \[0\] is not accepted"),
        (["--population.members", "4"], r"population\.members: loops are no population"),
        (["--objective", "both"], "objective: loops are compared by accuracy alone"),
        (["--items", "50"], r"items: a loop asks for its items itself; give loop\.label_budget"),
        (["--train.num-workers", "2"], r"train\.num_workers: loops run in one process each"),
    ],
)
def test_what_loops_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        config_of(*arguments)


def test_areas_begin_where_every_loop_has_labels():
    """Else a large first query would be worth more by that alone."""
    given = {"query.initial_size": {"values": [10, 30]}, "query.size": {"kind": "int", "low": 5, "high": 15}}
    plan = LoopPlan(config_of("--space", yaml.safe_dump(given)), [])
    assert plan.since == 30
    straight = [{"labels": n, "validation": n / 40} for n in range(10, 41, 10)]
    late = [{"labels": n, "validation": n / 40} for n in range(30, 41, 10)]
    assert plan.area(straight, "validation") == plan.area(late, "validation") == pytest.approx(35 / 40)


def test_loops_that_diverged_are_not_compared_on_test_items():
    found = Found(0, {}, {}, {"epoch": 1, "area": 0.5, "gap": None})
    row = RowFound("loops", "loops", {}, [found], [], finalists={0: [0.5]})
    summary = LoopsSummary(row, [], [], 20)
    assert (summary.areas, summary.gain) == ([], None)

    class Sweep(LoopSweep):
        def __init__(self):
            self.config = config_of()
            self.plan = LoopPlan(self.config, [])

        def looks(self, choices=None):
            return 1

        def _curves(self, runs, *, tested):
            good = [{"labels": 20, "accuracy": 0.5}]
            return [[{"labels": 40, "accuracy": 0.0, "diverged": "nan"}] if run.seed == 3 else good for run in runs]

    assert Sweep()._compared(row) == ([], [])


def test_loops_that_all_diverged_are_said_to(tmp_path, monkeypatch):
    lost = RowFound("loops", "loops", {}, [Found(0, {}, {}, {"diverged": "nan"})], [])
    monkeypatch.setattr(loops, "search", lambda *_, **__: lost)

    class Sweep(LoopSweep):
        def __init__(self):
            self.config, self.store, self.plan = config_of(), Store(str(tmp_path)), None

        def journal(self):
            return None

    with pytest.raises(RaybalError, match="no loop of 1 trials ended without diverging; narrow the space"):
        Sweep().run()


@pytest.mark.ray
def test_a_sweep_of_loops(feature_pool, tmp_path):
    store = Store(str(tmp_path / "store"))
    places = ["--pool", str(feature_pool), "--store", store.root]
    for space, message in (
        ("{balancing.alpha: 2}", r"space\.balancing\.alpha: .* ranges are of query, train, model"),
        ("{query.sise: 2}", r"query\.sise: there is no such key.*'size'"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_sweep(config_of(*places, "--space", space))
    assert not store.names()

    summary = run_sweep(config_of(*places))
    row = summary.row
    assert row.trials[0].values[SIZE] == 10
    held_out = {i for i, _ in Material(config_of(*places)).validation}
    for trial in row.trials:
        curve = store.read_yaml(f"trials/loops/{trial.number:04d}/0/curve.yaml")
        assert [r["labels"] for r in curve] == list(range(trial.values[SIZE], 41, trial.values[SIZE]))
        assert trial.accuracy == area(curve, "validation", since=20)
        # Trials see no test items, and ask for none that they are judged by.
        assert all(r["accuracy"] is None for r in curve)
        labels = store.names(f"trials/loops/{trial.number:04d}/0/labels")
        asked = {
            i
            for name in labels
            for i in store.read_table(f"trials/loops/{trial.number:04d}/0/labels/{name}")["id"].to_pylist()
        }
        assert len(asked) == 40
        assert not asked & held_out
    assert row.chosen.number == max(row.finalists, key=lambda n: sum(row.finalists[n]))
    rounds = list(csv.DictReader(io.StringIO((tmp_path / "store/curves.csv").read_text())))
    fresh = [store.read_yaml(f"trials/loops/{row.chosen.number:04d}/{seed}/curve.yaml") for seed in (2, 3)]
    assert summary.areas[0][1].mean == pytest.approx(np.mean([area(c, since=20) for c in fresh]))
    assert [float(r["accuracy"]) for r in rounds if r["loop"] == "chosen"] == [r["accuracy"] for c in fresh for r in c]
    loop = parse(LoopConfig, ["--config", str(tmp_path / "store/tuned/loops.yaml")])
    assert (loop.query.strategy, loop.query.size) == (row.chosen.values[STRATEGY], row.chosen.values[SIZE])
    assert "raybal sweep of loops" in (tmp_path / "store/report.html").read_text()
    # All is done, and other choices are another sweep.
    assert run_sweep(config_of(*places)).lines() == summary.lines()
    with pytest.raises(StoreError, match=r"loop\.sizes = \[10, 20\], and now it is \[20\]"):
        run_sweep(config_of(*places, "--loop.sizes", "20"))
