"""Running the trials of a row: Optuna suggests, Ray Tune runs and stops."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.schedulers import FIFOScheduler

from raybal import hashing
from raybal.data.pool import Labelled
from raybal.errors import ConfigError, RaybalError
from raybal.resources import trial_options
from raybal.store import Store
from raybal.tuning.config import TuneConfig
from raybal.tuning.journal import StoreJournal
from raybal.tuning.search import FACTS, INSIDE, Halving, StudySearch, accuracies_of, seconds_of, values_of
from raybal.tuning.spaces import Space, Values
from raybal.tuning.summary import Found, RowFound
from raybal.tuning.trial import run_trial

#: Ray Tune's own files about trials are not looked at, nor is what it prints; a report may lack what the end tells; an
#: interrupt ends the job, which Ray Tune would take for the end of all trials.
TUNE_DEFAULTS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}

log = logging.getLogger(__name__)


class TrialsError(RaybalError):
    """Trials that could not be run."""


class Searched(Protocol):
    """What the trials of a row share.

    Attributes:
        config: of the sweep.
        row, method: names of the row and of its method.
        space: what is searched, conditions first.
        grace: epochs before which no trial is stopped.
    """

    @property
    def config(self) -> TuneConfig: ...

    @property
    def row(self) -> str: ...

    @property
    def method(self) -> str: ...

    @property
    def space(self) -> Space: ...

    @property
    def grace(self) -> int: ...

    def first_values(self) -> list[Values]:
        """Returns values of the first trials."""
        ...


def search(
    plan: Searched,
    parts: tuple[Labelled, Labelled] | None,
    store: Store,
    journal: StoreJournal,
    total: int,
    *,
    trainable: Callable[..., None] = run_trial,
    stopping: bool = True,
    first: Sequence[Values] = (),
    seconds: float | None = None,
    spared: int | None = None,
) -> RowFound:
    """Runs the trials of a row that have not ended.

    Args:
        plan: of the row.
        parts: training and validation items.
        store: of the sweep.
        journal: that the row's study lies in.
        total: number of trials in all.
        trainable: Ray Tune's function, of (a trial's number and values, plan, parts).
        stopping: whether trials that fall behind are stopped.
        first: values of the first trials, before the row's own and the published ones.
        seconds: that the trials may take together, those of earlier starts among them; None: no such limit.
        spared: number of a trial that is trained to the end in any case.

    Raises:
        RaybalError: a trial could not be run.
    """
    config, row = plan.config, plan.row
    both, seed = config.objective == "both", hashing.digest(config.seed, "search", row)
    points = [*first, *(values for values in plan.first_values() if values not in first)]
    suggestions = StudySearch(journal, row, plan.space, total, seed, gap=both, first=points)
    study, left, epochs = suggestions.study, suggestions.left, config.train.epochs
    if left < 0:
        raise ConfigError(
            f"trials: {total} is not accepted; {row} has {total - left} trials in this store. Give as many, or more, "
            "so that rows stay comparable"
        )
    grace = plan.grace if stopping and not config.stopping.off else epochs
    halving = Halving(study, epochs, grace, config.stopping.reduction, spared=spared) if grace < epochs else None
    if left > 0:
        done = f", {total - left} of them done" if left < total else ""
        log.info("%s: %d trials%s, searching %s", row, total, done, ", ".join(plan.space))
        suggestions.say = Progress(row, total, study)
        resources, at_once = trial_options(config.train, config.resources)
        if seconds is not None:
            suggestions.deadline = time.monotonic() + seconds - suggestions.spent / at_once
        set_defaults()
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, plan=plan, parts=parts), resources),
            tune_config=tune.TuneConfig(
                search_alg=suggestions,
                scheduler=halving or FIFOScheduler(),
                num_samples=left,
                max_concurrent_trials=at_once,
                # A trial that waits for data-parallel workers cannot be told to begin another, and one that waits for
                # room, as it does where more run at a time than there is room for, should not take back what it has
                # asked for: the cluster may lose it (Ray issue 64693).
                reuse_actors=not config.train.num_workers and config.resources.trials is None,
            ),
            # Another start begins with another name: the study is what it goes on from.
            run_config=run_config(f"{row}-{uuid.uuid4().hex}", plan, store),
        )
        try:
            run(tuner, row)
        except TrialsError:
            if suggestions.left:
                raise
        if suggestions.left and suggestions.deadline is None:
            raise RaybalError(f"{row}: {suggestions.left} of {total} trials have not ended; the same command goes on")
    for trial in study.trials:
        if trial.state == TrialState.PRUNED:
            # Checkpoints that nobody goes on from.
            store.clear(f"trials/{row}/{trial.number:04d}")
        elif trial.state == TrialState.FAIL:
            log.warning("%s: trial %d %s, and is left out", row, trial.number, trial.user_attrs[FACTS]["diverged"])
    return RowFound(row, plan.method, plan.space, ended(study, plan.space), halving.rungs if halving else [])


def ended(study: optuna.Study, space: Space) -> list[Found]:
    """Returns the trials of a study that have ended."""
    return [
        Found(
            t.number,
            values_of(t, space),
            accuracies_of(t),
            t.user_attrs.get(FACTS) or None,
            t.user_attrs.get(INSIDE, 0),
            seconds_of(t),
        )
        for t in study.trials
        if t.state.is_finished()
    ]


def set_defaults() -> None:
    """Sets what the user has not set in the environment; Ray Tune reads it."""
    for name, value in TUNE_DEFAULTS.items():
        os.environ.setdefault(name, value)


def run_config(name: str, plan: Searched, store: Store) -> tune.RunConfig:
    """Returns how Ray Tune runs a row, its own files in the store's folder ray/<name>."""
    return tune.RunConfig(
        name=name,
        storage_path=store.path("ray"),
        storage_filesystem=store.filesystem,
        failure_config=tune.FailureConfig(max_failures=plan.config.resources.max_failures),
        verbose=0,
    )


def run(tuner: tune.Tuner, row: str) -> None:
    """Runs trials until all have ended.

    Raises:
        TrialsError: some have not ended as they should.
        RaybalError: the store cannot be written.
    """
    try:
        errors = tuner.fit().errors
    except tune.TuneError as error:
        # Of what a scheduler, a searcher or a callback raised Ray Tune keeps the text.
        if isinstance(error.__context__, RaybalError):
            raise error.__context__ from error
        raise
    if errors:
        cause = str(getattr(errors[0], "cause", None) or errors[0]).strip().rpartition("\n")[2]
        raise TrialsError(
            f"{row}: {len(errors)} trials could not be run, the first because of: {cause}. What has ended is kept; the "
            "same command tries the others again, those that failed once more"
        )


class Progress:
    """Says how far a row is, and how long the rest may take.

    Args:
        row: its name.
        total: number of its trials.
        study: that they are in.
    """

    def __init__(self, row: str, total: int, study: optuna.Study) -> None:
        self.row = row
        self.total = total
        self.study = study
        self._done = 0
        self._started = time.monotonic()

    def __call__(self, trial: FrozenTrial) -> None:
        self._done += 1
        ended = [t for t in self.study.trials if t.state.is_finished()]
        accuracies, facts = accuracies_of(trial), trial.user_attrs[FACTS]
        if "diverged" in facts:
            what = "diverged"
        elif trial.state == TrialState.PRUNED:
            what = f"stopped after epoch {max(accuracies)} at {100 * accuracies[max(accuracies)]:.1f}%"
        else:
            gap = "" if facts["gap"] is None else f", gap {facts['gap']:.2f}"
            what = f"validation {100 * trial.values[0]:.1f}%{gap}, {seconds_of(trial):.0f} s"
        best = max((t for t in ended if t.state == TrialState.COMPLETE), key=lambda t: t.values[0], default=None)
        lead = "" if best is None else f"; best {100 * best.values[0]:.1f}% (trial {best.number})"
        left = (self.total - len(ended)) * (time.monotonic() - self._started) / self._done / 60
        log.info(
            "%s, %d of %d: trial %d %s%s, about %.0f min left",
            self.row,
            len(ended),
            self.total,
            trial.number,
            what,
            lead,
            left,
        )
