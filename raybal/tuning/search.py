"""Which values are tried next, and which trials are stopped: Optuna and successive halving, as Ray Tune asks for them.

Both start from what the Optuna study knows: a driver that was lost is replaced by one that suggests and stops as the
first would have.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raybal import hashing
from raybal.tuning.journal import StoreJournal
from raybal.tuning.keys import ACCURACY, EPOCH, GAP, INSIDE, NUMBER, RESULT, VALUES
from raybal.tuning.spaces import Dimension, Space, Values, draw

#: User attributes of a trial, and INSIDE.
REPORTS, FACTS = "reports", "facts"
#: How many starts could not run a trial, and after how many it is given up.
FAILURES, MOST_FAILURES = "failures", 2
#: Seconds that a trial took, waiting and starting included; of one that was resumed, those since then.
SECONDS = "seconds"
#: Marks a trial of the row's own settings, with nothing of the space in it.
OWN = "own"


class StudySearch(OptunaSearch):
    """Suggests trials of one Optuna study until there are as many as asked for.

    Beside what Ray's class does: the study lies in the store, and trials that were under way when a driver was lost are
    suggested again before new ones. What trial n is depends on the seed, on n, and on the trials that have ended when
    it is asked for: one at a time, it is that of an undisturbed run, whenever drivers were lost. A trial that was
    stopped is told as pruned, with what it had reached, not as one that ended there.

    Args:
        journal: that the study lies in.
        name: of the study.
        space: what is searched, conditions first.
        total: number of trials in all.
        seed: of the suggestions.
        gap: whether the balance gap is an objective beside accuracy.
        first: values of the first trials; none: the row's own settings, which may lie outside of the space.

    Attributes:
        study: the study.
        deadline: on time.monotonic(): no trial begins that would not end before, were it as long as the longest so far;
            None: no such limit.
        say: called with each trial that has ended.
    """

    def __init__(
        self,
        journal: StoreJournal,
        name: str,
        space: Space,
        total: int,
        seed: int,
        *,
        gap: bool,
        first: Sequence[Values],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        super().__init__(
            space=lambda trial: (
                {} if OWN in trial.user_attrs else draw(space, lambda key, dimension: _suggest(trial, key, dimension))
            ),
            metric=[ACCURACY, GAP] if gap else ACCURACY,
            mode=["max", "min"] if gap else "max",
            study_name=name,
            storage=JournalStorage(journal),
            sampler=sampler(seed),
        )
        self.journal = journal
        self.total = total
        self.study: optuna.Study = self._ot_study
        self._seed_of_study = seed
        self._space_of_study = space
        self.say: Callable[[FrozenTrial], None] = lambda trial: None
        self._gap = gap
        self.deadline: float | None = None
        self._begun: dict[str, float] = {}
        self._reports: dict[str, dict[int, float]] = {}
        self._inside: dict[str, int] = {}
        if not self.study.trials:
            for values in first:
                self.study.enqueue_trial(values, None if values else {OWN: True}, skip_if_exists=True)
            journal.flush()
        self._longest = max(map(seconds_of, self.study.trials), default=0.0)
        self._interrupted = [t for t in self.study.trials if t.state == TrialState.RUNNING]

    @property
    def left(self) -> int:
        """The number of trials that have not ended."""
        return self.total - sum(t.state.is_finished() for t in self.study.trials)

    @property
    def spent(self) -> float:
        """Seconds that the trials that have ended took, one after the other."""
        return sum(map(seconds_of, self.study.trials))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self._interrupted:
            trial = optuna.trial.Trial(self.study, self._interrupted.pop(0)._trial_id)
            self._ot_trials[trial_id] = trial
        else:
            if self.deadline is not None and time.monotonic() + self._longest > self.deadline:
                return Searcher.FINISHED
            begun = sum(t.state != TrialState.WAITING for t in self.study.trials)
            self.study.sampler = sampler(hashing.digest(self._seed_of_study, "trial", begun))
        super().suggest(trial_id)
        self.journal.flush()
        self._reports[trial_id] = {}
        self._begun[trial_id] = time.monotonic()
        number = self._ot_trials[trial_id].number
        return {NUMBER: number, VALUES: values_of(self.study.trials[number], self._space_of_study)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if EPOCH in result:
            self._reports[trial_id][result[EPOCH]] = result[ACCURACY]
            self._inside[trial_id] = result.get(INSIDE, 0)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._ot_trials[trial_id]
        if error or not result:
            failures = self.study.trials[trial.number].user_attrs.get(FAILURES, 0) + 1
            trial.set_user_attr(FAILURES, failures)
            if failures >= MOST_FAILURES:
                # It is not the cluster: others shall not wait for it for ever.
                trial.set_user_attr(FACTS, {"diverged": f"could not be run, in {failures} starts"})
                self.study.tell(trial, state=TrialState.FAIL)
            # Else it is still under way as far as the study knows, so the next start goes on with it.
            self.journal.flush()
            self._forget(trial_id)
            return
        seconds = round(time.monotonic() - self._begun[trial_id], 3)
        self._longest = max(self._longest, seconds)
        if not self.study.trials[trial.number].state.is_finished():
            self._tell(trial_id, trial, result, seconds)
        # Where it cannot be written Ray Tune tries the trial again, and this is told again.
        self.journal.flush()
        self._forget(trial_id)
        self.say(self.study.trials[trial.number])

    def _tell(self, trial_id: str, trial: optuna.Trial, result: dict[str, Any], seconds: float) -> None:
        reports = self._reports[trial_id]
        if EPOCH in result:
            # The report that a trial was stopped at is told here alone.
            reports[result[EPOCH]] = result[ACCURACY]
            self._inside[trial_id] = result.get(INSIDE, 0)
        if result.get(RESULT) is None:
            state, values = TrialState.PRUNED, None
        else:
            state, values = TrialState.COMPLETE, [result[ACCURACY], result[GAP]] if self._gap else [result[ACCURACY]]
        trial.set_user_attr(REPORTS, [[epoch, value] for epoch, value in sorted(reports.items())])
        trial.set_user_attr(INSIDE, self._inside.get(trial_id, 0))
        trial.set_user_attr(SECONDS, seconds)
        trial.set_user_attr(FACTS, json.loads(result.get(RESULT) or "{}"))
        if not self._gap:
            for epoch, value in sorted(reports.items()):
                trial.report(value, epoch)
        self.study.tell(trial, values, state=state)

    def _forget(self, trial_id: str) -> None:
        for known in (self._ot_trials, self._reports, self._inside, self._begun):
            known.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the study is the state."""


def sampler(seed: int) -> optuna.samplers.TPESampler:
    """Returns the sampler of one suggestion: multivariate, by groups of values that occur together."""
    return optuna.samplers.TPESampler(seed=seed % 2**32, multivariate=True, group=True, constant_liar=True)


def values_of(trial: FrozenTrial, space: Space) -> Values:
    """Returns a trial's values by key."""
    return {key: trial.params[key] for key in space if key in trial.params}


def accuracies_of(trial: FrozenTrial) -> dict[int, float]:
    """Returns the validation accuracy after each epoch of a trial that has ended."""
    return {int(epoch): float(value) for epoch, value in trial.user_attrs.get(REPORTS, [])}


def seconds_of(trial: FrozenTrial) -> float:
    """Returns how long a trial took; 0 where it has not ended."""
    return float(trial.user_attrs.get(SECONDS, 0.0))


def distribution(dimension: Dimension) -> BaseDistribution:
    """Returns a dimension as Optuna has it."""
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.values)
    low, high = dimension.bounds
    if dimension.kind == "int":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=dimension.kind == "loguniform")


def drawn(space: Space, seed: int) -> Values:
    """Returns values of a space drawn at random."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed % 2**32)).ask()
    return draw(space, lambda key, dimension: _suggest(trial, key, dimension))


def _suggest(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.kind == "choice":
        return trial.suggest_categorical(key, dimension.values)
    low, high = dimension.bounds
    if dimension.kind == "int":
        return trial.suggest_int(key, int(low), int(high))
    return trial.suggest_float(key, low, high, log=dimension.kind == "loguniform")


class Halving(AsyncHyperBandScheduler):
    """Asynchronous successive halving that knows the trials of earlier drivers.

    Args:
        study: whose ended trials have reached rungs before.
        epochs: of a trial that is not stopped.
        grace: epochs before which none is stopped.
        reduction: of as many trials that reach a rung one goes on.
        spared: number of a trial that is never stopped; None: there is none.
    """

    def __init__(
        self, study: optuna.Study, epochs: int, grace: int, reduction: float, *, spared: int | None = None
    ) -> None:
        super().__init__(
            time_attr=EPOCH,
            metric=ACCURACY,
            mode="max",
            # No rung is at the last epoch, after which there is nothing to save by stopping.
            max_t=max(grace, epochs - 1),
            grace_period=grace,
            reduction_factor=reduction,
            # The last epoch's model is still to be written and measured.
            stop_last_trials=False,
        )
        self.spared = spared
        (bracket,) = self._brackets
        #: Epochs after which trials may be stopped, ascending.
        self.rungs = sorted(math.ceil(milestone) for milestone, _ in bracket._rungs)
        for trial in study.trials:
            if not trial.state.is_finished():
                continue
            accuracies = accuracies_of(trial)
            for milestone, recorded in bracket._rungs:
                reached = [epoch for epoch in accuracies if epoch >= milestone]
                if reached:
                    recorded[f"earlier-{trial.number}"] = accuracies[min(reached)]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if self.spared is not None and trial.config[NUMBER] == self.spared:
            return TrialScheduler.CONTINUE
        return decision
