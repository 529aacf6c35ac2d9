"""Suggestions and early stopping, without a cluster: what Ray Tune asks for is asked for here."""

from __future__ import annotations

import json
import math
import time
from types import SimpleNamespace

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raybal.balancing.base import METHODS
from raybal.errors import RaybalError, StoreError
from raybal.resources import ResourceSettings
from raybal.store import Store
from raybal.training.settings import TrainSettings
from raybal.tuning import trials as trials_of_rows
from raybal.tuning.config import TuneConfig
from raybal.tuning.journal import StoreJournal
from raybal.tuning.keys import ACCURACY, EPOCH, GAP, NUMBER, RESULT, VALUES
from raybal.tuning.search import Halving, StudySearch, accuracies_of
from raybal.tuning.spaces import space_of
from raybal.tuning.trial import Plan
from raybal.tuning.trials import ended

EPOCHS = 9
SPACE = space_of(METHODS.get("mlb").Settings(method="mlb"), ["method", "pace", "learning_rate"], {}, EPOCHS)
FIRST = [{"balancing.beta_max": 2.0, "balancing.slope": 0.5, "balancing.unimodal_weight": 1.0,
          "balancing.pace.kind": "constant", "balancing.pace.final": 1.0, "train.learning_rate": 1e-3}]  # fmt: skip


def accuracy(values: dict, epoch: int) -> float:
    """Made up: the best learning rate is 2e-3, and the best ceiling 5."""
    off = abs(math.log(values["train.learning_rate"] / 2e-3)) + 0.2 * (values["balancing.beta_max"] != 5.0)
    return (1 - math.exp(-epoch / 3)) * math.exp(-off)


class LostError(Exception):
    """The driver is killed."""


class Sweep:
    """One start of a driver that runs one trial at a time, as Ray Tune does."""

    def __init__(self, store: Store, total: int, *, gap: bool = False, dies_after: int | None = None) -> None:
        self.search = StudySearch(StoreJournal(store, "optuna.log"), "row", SPACE, total, 7, gap=gap, first=FIRST)
        self.halving = Halving(self.search.study, EPOCHS, 2, 2.0)
        self.trained: list[int] = []
        self._left = dies_after

    def run(self) -> optuna.Study:
        for k in range(self.search.left):
            trial = SimpleNamespace(trial_id=f"t{k}")
            config = self.search.suggest(trial.trial_id)
            trial.config = config
            self.trained.append(config[NUMBER])
            self.halving.on_trial_add(None, trial)
            self._one(trial, config)
        return self.search.study

    def _one(self, trial: SimpleNamespace, config: dict) -> None:
        for epoch in range(1, EPOCHS + 1):
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    raise LostError
            report = {EPOCH: epoch, ACCURACY: accuracy(config[VALUES], epoch), GAP: math.nan, RESULT: None}
            if self.halving.on_trial_result(None, trial, report) == TrialScheduler.STOP:
                self.search.on_trial_complete(trial.trial_id, report)
                return
            self.search.on_trial_result(trial.trial_id, report)
        facts = {"epoch": EPOCHS, "gap": 0.1, "seconds": 1.0}
        last = {ACCURACY: accuracy(config[VALUES], EPOCHS), GAP: 0.1, RESULT: json.dumps(facts)}
        self.halving.on_trial_result(None, trial, last)
        self.search.on_trial_complete(trial.trial_id, last)


def facts(study: optuna.Study) -> list:
    return [(t.number, t.params, t.state, t.values, accuracies_of(t)) for t in study.trials]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list:
    return facts(Sweep(Store(tmp_path_factory.mktemp("sweep")), 24).run())


@pytest.mark.parametrize("epochs", [0, 1, 5, 31, 60])
def test_a_driver_that_was_lost_is_replaced_by_one_that_suggests_the_same(tmp_path, undisturbed, epochs):
    store = Store(tmp_path)
    first = Sweep(store, 24, dies_after=epochs)
    with pytest.raises(LostError):
        first.run()
    second = Sweep(store, 24)
    found = facts(second.run())
    assert found == undisturbed
    assert second.trained[0] == first.trained[-1]
    assert len(first.trained) + len(second.trained) == 24 + 1


def test_lost_again_and_again(tmp_path, undisturbed):
    store, starts = Store(tmp_path), 0
    while True:
        starts += 1
        try:
            found = facts(Sweep(store, 24, dies_after=11).run())
            break
        except LostError:
            continue
    assert found == undisturbed
    assert starts > 3


def test_the_total_is_what_was_asked_for_and_may_grow(tmp_path, undisturbed):
    store = Store(tmp_path)
    assert len(Sweep(store, 10).run().trials) == 10
    again = Sweep(store, 10)
    assert again.search.left == 0
    assert facts(Sweep(store, 24).run()) == undisturbed


def test_published_values_are_tried_first(undisturbed):
    assert undisturbed[0][1] == FIRST[0]
    ended = [trial for trial in undisturbed if trial[2] == TrialState.COMPLETE]
    assert max(trial[3][0] for trial in ended) > 2 * undisturbed[0][3][0]


def test_stopped_trials_are_told_as_stopped(undisturbed):
    states = [trial[2] for trial in undisturbed]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    for _, params, state, values, reports in undisturbed:
        last = max(reports)
        assert list(reports) == list(range(1, last + 1))
        assert (state == TrialState.COMPLETE) == (last == EPOCHS)
        assert last in (2, 4, 8, EPOCHS)
        if state == TrialState.COMPLETE:
            assert values == [accuracy(params, EPOCHS)]


def test_halving_keeps_the_better_half(undisturbed):
    for rung in (2, 4):
        # Each was compared with those that had come so far before it.
        seen: list[float] = []
        for _, _, _, _, reports in undisturbed:
            if rung in reports:
                middle = sorted(seen)[len(seen) // 2] if len(seen) % 2 else None
                if middle is not None:
                    assert (max(reports) > rung) == (reports[rung] >= middle)
                seen.append(reports[rung])


@pytest.mark.parametrize(
    ("epochs", "grace", "reduction", "expected"),
    [(15, 5, 2.0, [5, 10]), (15, 5, 3.0, [5]), (20, 3, 1.5, [3, 5, 7, 11, 16]), (10, 5, 2.0, [5]), (6, 5, 2.0, [5])],
)
def test_no_rung_is_at_the_last_epoch(epochs, grace, reduction, expected):
    assert Halving(optuna.create_study(), epochs, grace, reduction).rungs == expected


def test_both_objectives(tmp_path):
    study = Sweep(Store(tmp_path), 16, gap=True).run()
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert {t.state for t in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(t.values == [accuracy(t.params, EPOCHS), 0.1] for t in study.best_trials)
    assert all(accuracies_of(t) for t in study.trials)


def test_a_trial_that_failed_is_tried_again(tmp_path):
    store = Store(tmp_path)
    first = Sweep(store, 3)
    number = first.search.suggest("t0")[NUMBER]
    first.search.on_trial_complete("t0", None, error=True)
    assert first.search.left == 3
    second = Sweep(store, 3)
    study = second.run()
    assert second.trained == [number, 1, 2]
    assert all(t.state.is_finished() for t in study.trials)


def test_a_trial_that_no_start_can_run_is_given_up(tmp_path):
    """Else the sweep would never end."""
    store = Store(tmp_path)
    for k in range(2):
        search = Sweep(store, 3).search
        assert search.suggest("t0")[NUMBER] == 0
        search.on_trial_complete("t0", None, error=True)
        assert search.left == 3 - k
    third = Sweep(store, 3)
    study = third.run()
    assert third.trained == [1, 2]
    assert study.trials[0].state == TrialState.FAIL
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in study.trials[1:])
    found = ended(study, SPACE)
    assert found[0].state == "diverged"
    assert "in 2 starts" in found[0].result["diverged"]


def test_a_trial_that_is_spared_is_trained_to_the_end():
    halving = Halving(optuna.create_study(), EPOCHS, 2, 2.0, spared=7)
    spared = SimpleNamespace(trial_id="b", config={NUMBER: 7})
    better = SimpleNamespace(trial_id="a", config={NUMBER: 8})
    worst = SimpleNamespace(trial_id="c", config={NUMBER: 9})
    for trial in (better, spared, worst):
        halving.on_trial_add(None, trial)
    decisions = [
        halving.on_trial_result(None, trial, {EPOCH: 2, ACCURACY: accuracy})
        for trial, accuracy in ((better, 0.9), (spared, 0.2), (worst, 0.1))
    ]
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.CONTINUE, TrialScheduler.STOP]


def test_settings_outside_of_the_space_are_tried_first_with_nothing_of_it(tmp_path):
    search = StudySearch(StoreJournal(Store(tmp_path), "optuna.log"), "row", SPACE, 4, 7, gap=False, first=[{}, *FIRST])
    found = [search.suggest(f"t{k}")[VALUES] for k in range(4)]
    assert found[:2] == [{}, FIRST[0]]
    assert all(found[2:])


def test_time_that_earlier_drivers_spent_is_spent(tmp_path):
    store = Store(tmp_path)
    study = Sweep(store, 3).run()
    assert all(t.user_attrs["seconds"] >= 0 for t in study.trials)
    journal = StoreJournal(store, "optuna.log")
    search = StudySearch(journal, "row", SPACE, 9, 7, gap=False, first=FIRST)
    assert search.spent == sum(t.user_attrs["seconds"] for t in study.trials)
    search.deadline = time.monotonic() - 1
    assert search.suggest("late") == Searcher.FINISHED
    search.deadline = time.monotonic() + 60
    assert search.suggest("early")[NUMBER] == 3
    assert Sweep(store, 2).search.left == -1


def test_a_driver_that_was_superseded_writes_nothing(tmp_path):
    def check():
        raise StoreError("another driver has taken over")

    search = StudySearch(StoreJournal(Store(tmp_path), "optuna.log"), "row", SPACE, 4, 7, gap=False, first=[])
    search.journal.check = check
    before = Store(tmp_path).read_bytes("optuna.log")
    with pytest.raises(StoreError, match="another driver"):
        search.suggest("t0")
    assert Store(tmp_path).read_bytes("optuna.log") == before


def test_a_trial_that_could_not_be_told_is_told_again(tmp_path, monkeypatch):
    search = StudySearch(StoreJournal(Store(tmp_path), "optuna.log"), "row", SPACE, 4, 7, gap=False, first=[])
    search.suggest("t0")
    last = {EPOCH: 2, ACCURACY: 0.5, GAP: math.nan, RESULT: None}

    def full():
        raise StoreError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(search.journal, "flush", full)
        with pytest.raises(StoreError, match="no space"):
            search.on_trial_complete("t0", last)
    search.on_trial_complete("t0", last)
    (trial,) = Sweep(Store(tmp_path), 4).search.study.trials
    assert (trial.state, accuracies_of(trial)) == (TrialState.PRUNED, {2: 0.5})


def test_optuna_itself_reads_the_journal(tmp_path, undisturbed):
    Sweep(Store(tmp_path), 24).run()
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna.log")))
    study = optuna.load_study(study_name="row", storage=storage)
    assert facts(study) == undisturbed
    assert study.best_value == max(t[3][0] for t in undisturbed if t[2] == TrialState.COMPLETE)


@pytest.mark.parametrize(("trials", "workers", "reused"), [(None, 0, True), (2, 0, False), (None, 2, False)])
def test_only_what_never_waits_for_room_gets_the_process_of_another(tmp_path, monkeypatch, trials, workers, reused):
    train, resources = TrainSettings(num_workers=workers, epochs=EPOCHS), ResourceSettings(trials=trials)
    plan = Plan(
        TuneConfig(train=train, resources=resources),
        "row",
        METHODS.get("mlb").Settings(method="mlb"),
        SPACE,
        (),
        (),
        "",
        {},
    )
    asked = []
    monkeypatch.setattr(trials_of_rows, "trial_options", lambda *_: ({"CPU": 1.0}, 2))
    monkeypatch.setattr(trials_of_rows, "run", lambda tuner, _: asked.append(tuner["tune_config"]["reuse_actors"]))
    kept = {name: lambda *_, **settings: settings for name in ("Tuner", "TuneConfig", "RunConfig", "FailureConfig")}
    given = {name: lambda what, *_, **__: what for name in ("with_resources", "with_parameters")}
    monkeypatch.setattr(trials_of_rows, "tune", SimpleNamespace(**given, **kept))
    store = Store(str(tmp_path))
    with pytest.raises(RaybalError, match="2 of 2 trials have not ended"):
        trials_of_rows.search(plan, None, store, StoreJournal(store, "optuna.log"), 2)
    assert asked == [reused]
