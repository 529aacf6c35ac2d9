"""Schedules by population."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from ray.util import placement_group_table

from raybal.balancing.base import METHODS, BalancingSettings
from raybal.balancing.pace import PaceSettings
from raybal.config import parse
from raybal.errors import ConfigError, StoreError
from raybal.settings import from_plain
from raybal.start import at_work
from raybal.store import Store
from raybal.tuning.config import BEGUN, TuneConfig
from raybal.tuning.keys import ACCURACY, EPOCH
from raybal.tuning.member import STRENGTH, Schedule, extended, values_with
from raybal.tuning.population import STEP, Record, _stepped, members, populate, scheduler
from raybal.tuning.spaces import settings_from, space_of
from raybal.tuning.summary import RowFound
from raybal.tuning.sweep import Sweep


def pace_of(schedule: Schedule) -> PaceSettings:
    content = settings_from(values_with({}, schedule), METHODS.get("mlb").Settings)["balancing"]
    built = from_plain(BalancingSettings, {"method": "mlb", **content})
    return built.pace  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(20))
def test_a_schedule_is_what_its_lineage_went_through(seed):
    """Grown interval by interval as takeovers do, it goes to each strength within an interval and leaves the past."""
    generator, epochs, interval = random.Random(seed), 20, 4
    schedule: Schedule = [(0.0, generator.random())]
    strength = schedule[0][1]
    for epoch in range(interval, epochs, interval):
        before = pace_of(schedule)
        new = strength if generator.random() < 0.4 else generator.random()
        schedule = extended(schedule, new, epoch, interval, epochs)
        after = pace_of(schedule)
        for at in np.linspace(0, epoch / epochs, 50):
            assert after.strength(at) == pytest.approx(before.strength(at))
        assert after.strength((epoch + interval / 2) / epochs) == pytest.approx((strength + new) / 2)
        assert after.strength((epoch + interval) / epochs) == pytest.approx(new)
        assert after.strength(1.0) == pytest.approx(new)
        strength = new


def test_the_last_interval_may_be_short():
    assert extended([(0.0, 1.0)], 0.5, 9, 4, 10) == [(0.0, 1.0), (0.9, 1.0), (1.0, 0.5)]
    assert extended([(0.0, 1.0)], 0.5, 10, 4, 10) == [(0.0, 1.0), (1.0, 1.0)]
    assert extended([(0.0, 1.0)], 1.0, 4, 4, 10) == [(0.0, 1.0)]


def test_members_begin_differently_and_the_same_each_time():
    space = space_of(METHODS.get("mlb").Settings(method="mlb"), ["method", "learning_rate"], {}, 20)
    first = [{"balancing.beta_max": 2.0, "balancing.slope": 0.5, "train.learning_rate": 1e-3}]
    found = members(space, first, 6, 3)
    assert found == members(space, first, 6, 3)
    assert found != members(space, first, 6, 4)
    assert [m.strength for m in found[:2]] == [1.0, 0.0]
    assert found[0].values == first[0]
    assert len({m.values["train.learning_rate"] for m in found}) == 6
    for m in found:
        assert all(space[key].takes(value) for key, value in m.values.items())


@pytest.mark.parametrize("before", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_step_moves_and_stays_within_bounds(before):
    found = {_stepped({STRENGTH: before, "origin": 3})[STRENGTH] for _ in range(50)}
    assert found == {s for s in (before - 0.25, before + 0.25) if 0 <= s <= 1}


def test_pb2_suggests_strengths_from_what_members_have_reached(tmp_path):
    """Asked as Ray Tune asks: with each member's reports so far."""
    record = Record(Store(str(tmp_path)), "mlb", 0)
    pb2 = scheduler("pb2", 2, 0.25, record)
    trials = [SimpleNamespace(config={STRENGTH: k / 7, "origin": k}) for k in range(8)]
    for epoch in (2, 4, 6):
        for k, trial in enumerate(trials):
            # The stronger the better.
            report = {EPOCH: epoch, ACCURACY: 0.1 * epoch / 2 + 0.05 * k}
            pb2._save_trial_state(SimpleNamespace(), epoch, report, trial)
        # After one report of each Ray's class knows too little, and would train the clone as its source.
        if epoch == 2:
            assert pb2._get_new_config(trials[0], trials[7])[0][STRENGTH] == pytest.approx(1 - STEP)
    reports = pb2._reports()
    found = [pb2._get_new_config(trials[0], trials[7])[0] for _ in range(3)]
    assert all(0 <= config[STRENGTH] < 1 for config in found)
    assert {config["origin"] for config in found} == {7}
    # A driver that comes after a lost one learns from the same reports.
    record.write(6, {}, reports, [])
    again = scheduler("pb2", 2, 0.25, record)
    assert again._next_perturbation_sync == 8
    np.random.seed(0)
    one = again._get_new_config(trials[0], trials[7])[0]
    pb2.data, pb2.current, pb2.last_exploration_time = pd.DataFrame(reports), None, 0
    np.random.seed(0)
    assert pb2._get_new_config(trials[0], trials[7])[0] == one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--population.members", "3"], r"population\.members: 3 is not accepted; with share 0\.25 .* at least 4"),
        (["--population.members", "4", "--train.num-workers", "2"], r"train\.num_workers: members of a population"),
        (["--population.members", "4", "--objective", "both"], "objective: 'both' is not accepted; members of a"),
        (["--population.share", "0.6"], r"population\.share: 0\.6 is not accepted"),
    ],
)
def test_a_population_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse(TuneConfig, arguments)


@contextlib.contextmanager
def begun(pool, folder, *more: str) -> Iterator[Sweep]:
    """A sweep of a population of two members with two takeovers."""
    text = (
        f"--methods mlb --search learning_rate --population.members 2 --population.interval 2 --train.epochs 6 "
        f"--population.share 0.5 --seeds 0 --items 60 --train.batch-size 16 --train.device cpu "
        f"--model.encoder.dim 8 --model.encoder.width 4 --pool {pool} --store {folder}"
    )
    with at_work(BEGUN, parse(TuneConfig, [*text.split(), *more]), Sweep) as sweep:
        sweep.begin()
        yield sweep


def populated(pool, folder, *more: str) -> RowFound:
    """Returns what it comes to."""
    with begun(pool, folder, *more) as sweep:
        return populate(sweep.plans["mlb"], sweep.parts, sweep.store)


def measured(history: list[dict]) -> list[dict]:
    """Returns a training run's records without what is no result."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


@pytest.mark.ray
def test_takeovers_take_effect_also_those_of_a_driver_that_was_lost(cluster, feature_pool, tmp_path, monkeypatch):
    row = populated(feature_pool, tmp_path / "undisturbed")
    store = Store(str(tmp_path / "undisturbed"))
    assert [e["epoch"] for e in row.exploits] == [2, 4]
    ended = [store.read_yaml(f"trials/mlb/member-{k:02d}/0/member.yaml") for k in range(2)]
    for number, member in enumerate(ended):
        assert [r["epoch"] for r in member["history"]] == [1, 2, 3, 4, 5, 6]
        pace = pace_of(row.schedules[number])
        for r in member["history"]:
            # What was in force, step by step, is what the schedule says of that epoch.
            low, high = sorted((pace.strength((r["epoch"] - 1) / 6), pace.strength(r["epoch"] / 6)))
            assert low - 1e-9 <= np.mean(r["pace"]) <= high + 1e-9
    for e in row.exploits:
        assert e["accuracy"] <= e["accuracy_of_from"]
    last = row.exploits[-1]
    assert pace_of(row.schedules[last["member"]]).strength(1.0) == pytest.approx(last["new_strength"])
    assert ended[last["member"]]["history"][:4] == ended[last["from"]]["history"][:4]
    assert not list((tmp_path / "undisturbed/trials/mlb").glob("member-*/at-*"))
    # Trained from scratch, a schedule does what its lineage did.
    with begun(feature_pool, tmp_path / "undisturbed") as sweep:
        plan, values = sweep.plans["mlb"], row.trials[last["member"]].values
        replay = plan.task(plan.run_of("replay", values), values)
        replay.write_items(*sweep.parts)
        assert measured(replay.run()["history"]) == measured(ended[last["member"]]["history"])

    def write_and_die(self, *arguments):
        write(self, *arguments)
        raise StoreError("this driver is lost")

    write = Record.write
    with monkeypatch.context() as patch:
        patch.setattr(Record, "write", write_and_die)
        with pytest.raises(StoreError, match="this driver is lost"):
            populated(feature_pool, tmp_path / "lost")
    again = populated(feature_pool, tmp_path / "lost")
    assert again.exploits == row.exploits
    assert again.schedules == row.schedules
    assert [t.accuracies for t in again.trials] == [t.accuracies for t in row.trials]
    # All of it is done.
    assert populated(feature_pool, tmp_path / "lost") == again


@pytest.mark.ray
def test_a_member_that_diverged_takes_over_another_as_pb2_suggests(cluster, feature_pool, tmp_path):
    space = "{train.learning_rate: {values: [1.0e-3, 1.0e+20]}}"
    before = set(placement_group_table())
    # There is room for one at a time: members wait for one another.
    more = ("--population.scheduler", "pb2", "--seed", "1", "--space", space, "--resources.cpus-per-worker", "3")
    row = populated(feature_pool, tmp_path, *more)
    assert [t.values["train.learning_rate"] for t in row.trials] == [1e-3, 1e-3]
    first = row.exploits[0]
    assert (first["epoch"], first["member"], first["from"], first["accuracy"]) == (2, 1, 0, 0.0)
    assert [t.state for t in row.trials] == ["finished", "finished"]
    # What was asked for was granted, and given back: taken back while it is being granted, it might be lost.
    groups = [group for name, group in placement_group_table().items() if name not in before]
    assert len(groups) > 2
    assert all(group["stats"]["end_to_end_creation_latency_ms"] > 0 for group in groups)
