"""Running a sweep.

sweep.yaml                          what defines the sweep, and all settings of this start
rows/<row>.yaml                     the settings that a row was begun with
optuna.log                          all trials of all rows: an Optuna journal, one study a row
trials/<row>/<trial>/<seed>/        a training run: items, checkpoints, model, markers
alone.yaml                          what encoders trained alone reach, by which the balance gap is measured
tuned/<row>.yaml                    the settings found, for jobs/train.py and jobs/al_loop.py
trials.csv, table.csv, cells.csv    every trial; the final table, and its runs
report.html                         tables and figures
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raybal import hashing
from raybal.balancing.base import METHODS, BalancingSettings
from raybal.begun import Kind
from raybal.config import defining
from raybal.errors import ConfigError, RaybalError, StoreError, did_you_mean
from raybal.lease import Lease, is_current
from raybal.material import Material
from raybal.resources import trial_options
from raybal.start import at_work, say_where
from raybal.store import Store
from raybal.table.cells import Cell, has_diverged, probe_on_validation
from raybal.table.fill import Filler
from raybal.table.summary import Summary
from raybal.training.task import TrainTask
from raybal.tuning.config import TuneConfig
from raybal.tuning.journal import StoreJournal
from raybal.tuning.page import write_page
from raybal.tuning.search import FACTS, Halving, StudySearch, accuracies_of, rungs, values_of
from raybal.tuning.spaces import Dimension, Space, Values, merged, samples, space_of, values_in
from raybal.tuning.summary import Found, RowFound, SweepSummary
from raybal.tuning.trial import Plan, TrialRun, run_trial

BEGUN = Kind("sweep", format=1, hint="give the old value, or choose another store, or another name for a row")
FOLDERS = ("trials", "rows", "tuned")
JOURNAL = "optuna.log"
ALONE = "alone.yaml"
#: The method whose encoders are trained alone.
ALONE_METHOD = "ensemble"
#: Its row: no user's row begins like this.
ALONE_ROW = "_alone"
#: What the trial of settings that no search suggested is called.
PUBLISHED = "published"

#: Ray Tune's own files about trials are not looked at, nor is what it prints; a report may lack what the end tells.
TUNE_DEFAULTS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}

log = logging.getLogger(__name__)


def run_sweep(config: TuneConfig) -> SweepSummary:
    """Runs what is left of a sweep, writes its files and prints its tables.

    Raises:
        RaybalError: the sweep cannot begin or continue.
    """
    with at_work(BEGUN, config, Sweep) as sweep:
        sweep.store.sweep(FOLDERS)
        sweep.begin()
        summary = sweep.run()
    report = write_page(sweep.store, summary, sweep.config)
    for line in summary.lines():
        log.info("%s", line)
    say_where(sweep.store, report)
    return summary


class Sweep:
    """A sweep of methods over one pool.

    Args:
        config: its settings.
        store: where it lies.
        lease: of the store, held before anything is run.

    Raises:
        ConfigError, DataError, StoreError: it cannot begin, or cannot continue with these settings.
    """

    def __init__(self, config: TuneConfig, store: Store, lease: Lease) -> None:
        self.config = dataclasses.replace(config, store=store.root)
        self.store = store
        self.lease = lease
        self.material = Material(config)
        self.parts = self.material.parts(0)
        if not self.parts[1]:
            raise ConfigError(
                f"pool: {config.pool} has no validation items (its labelled items are of one group), and trials are "
                "judged by them"
            )
        if config.seeds:
            _ = self.material.test
        config.train.resolve_device()
        self.spaces = {row: self._space(row) for row in config.methods}
        self._check()

    # What it is.

    def begin(self) -> None:
        """Writes what defines the sweep and its rows."""
        BEGUN.write(self.store, self._keys, dataclasses.asdict(self.config))
        for row in self.config.methods:
            self.store.write_yaml(f"rows/{row}.yaml", defining(self.config.settings_of(row)))

    @property
    def _keys(self) -> dict[str, Any]:
        return {"pool": self.material.pool.info.content_hash, **defining(self.config)}

    def _check(self) -> None:
        if (begun := BEGUN.read(self.store)) is not None:
            BEGUN.refuse_changes(self.store, begun["defines"], self._keys)
        for row in self.config.methods:
            if self.store.exists(name := f"rows/{row}.yaml"):
                now = defining(self.config.settings_of(row))
                BEGUN.refuse_changes(self.store, self.store.read_yaml(name), now, f"balancing.{row}.")

    def _plan(self, row: str, alone: Mapping[str, float]) -> Plan:
        info = self.material.pool.info
        return Plan(self.config, row, info.modalities, self.material.classes, self.lease.token, alone)

    def _space(self, row: str) -> Space:
        """Returns what a row's trials may be, with every value in it accepted by the settings that it is one of."""
        config, settings = self.config, self.config.settings_of(row)
        groups, plan = list(config.search), self._plan(row, {})
        if "paces" in groups and not getattr(METHODS.get(settings.method), "acts_by_modality", False):
            groups[groups.index("paces")] = "pace"
        try:
            space = space_of(
                settings, groups, self._given(settings), config.train.epochs, self.material.pool.info.names
            )
            if not space:
                raise ConfigError(f"search: nothing of {', '.join(config.search)} can be searched")
            for values in ({}, *samples(space)):
                plan.task(plan.run_of(PUBLISHED, values), values).spec.build()
        except ConfigError as error:
            raise ConfigError(f"{row}: {error}") from error
        return space

    def _given(self, settings: BalancingSettings) -> dict[str, Dimension]:
        """Returns those of the user's dimensions that a row has: coefficients are those of some methods only."""
        kinds = [self.config.settings_of(row) for row in self.config.methods]
        fields = {type(one): {f.name for f in dataclasses.fields(one)} for one in kinds}

        def has(kind: type, key: str) -> bool:
            section, _, name = key.partition(".")
            return section != "balancing" or re.split(r"[.\[]", name)[0] in fields[kind]

        for key in self.config.dimensions:
            if not any(has(kind, key) for kind in fields):
                known = sorted({f"balancing.{name}" for names in fields.values() for name in names})
                raise ConfigError(f"space.{key}: no method of the sweep has such a key{did_you_mean(key, known)}")
        return {key: dimension for key, dimension in self.config.dimensions.items() if has(type(settings), key)}

    # How it is run.

    def run(self) -> SweepSummary:
        """Runs what is missing and returns what came out. Ray must be connected."""
        journal = StoreJournal(self.store, JOURNAL)
        # What Ray Tune writes there is of no use to another start.
        self.store.clear("ray")
        alone = self._train_alone()
        plans = {row: self._plan(row, alone) for row in self.config.methods}
        rows = [self._found(row, plans[row], self._search(row, plans[row], journal)) for row in plans]
        rows = [self._with_finalists(row, plans[row.name]) for row in rows]
        for row in rows:
            self._write_tuned(row, plans[row.name])
        return SweepSummary(rows, self._final(rows, plans), self.material.pool.info.names)

    def _train_alone(self) -> dict[str, float]:
        """Returns the accuracy of a probe of each encoder trained alone, on validation."""
        names = self.material.pool.info.names
        if len(names) < 2:
            return {}
        if not self.store.exists(ALONE):
            log.info("training each encoder alone, which the balance gap is measured by")
            config = dataclasses.replace(
                self.config, balancing={ALONE_ROW: METHODS.get(ALONE_METHOD).Settings(method=ALONE_METHOD)}
            )
            plan = dataclasses.replace(self._plan(ALONE_ROW, {}), config=config)
            run = plan.run_of(PUBLISHED, {})
            self._filler({run: (plan, {})}).fill([run], measured=False)
            if has_diverged(self.store, run):
                raise RaybalError(f"{run.title}: {self.store.read_yaml(run.trained)['diverged']}")
            self.store.write_yaml(ALONE, probe_on_validation(plan.task(run, {})))
        return {m: value for m, value in self.store.read_yaml(ALONE).items() if value}

    def _search(self, row: str, plan: Plan, journal: StoreJournal) -> optuna.Study:
        """Runs the trials of a row that have not ended; returns its study."""
        config, space = self.config, self.spaces[row]
        search = StudySearch(
            journal,
            row,
            space,
            config.trials,
            hashing.digest(config.seed, "search", row),
            gap=config.objective == "both",
            first=first_values(config.settings_of(row), space, plan.base),
        )
        if search.left <= 0:
            return search.study
        ended = config.trials - search.left
        done = f", {ended} of them done" if ended else ""
        log.info("%s: %d trials%s, searching %s", row, config.trials, done, ", ".join(space))
        search.say = Progress(row, config.trials, search.study)
        resources, at_once = trial_options(config.train, config.resources)
        for name, value in TUNE_DEFAULTS.items():
            os.environ.setdefault(name, value)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, plan=plan, parts=self.parts), resources),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=self._scheduler(search.study, row),
                num_samples=search.left,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"{row}-{self.lease.token}",
                storage_path=self.store.path("ray"),
                storage_filesystem=self.store.filesystem,
                failure_config=tune.FailureConfig(max_failures=config.resources.max_failures),
                callbacks=[_Fence(self.store.root, self.lease.token)],
                verbose=0,
            ),
        )
        errors = tuner.fit().errors
        if errors:
            cause = str(getattr(errors[0], "cause", None) or errors[0]).strip().rpartition("\n")[2]
            raise RaybalError(
                f"{row}: {len(errors)} trials could not be run, the first because of: {cause}. What has ended is kept; "
                "the same command tries the others again"
            )
        return search.study

    def _scheduler(self, study: optuna.Study, row: str) -> TrialScheduler:
        stopping, epochs = self.config.stopping, self.config.train.epochs
        if not self.rungs(row):
            return FIFOScheduler()
        return Halving(study, epochs, self.grace(row), stopping.reduction)

    def rungs(self, row: str) -> list[int]:
        """Returns the epochs after which trials of a row may be stopped, ascending."""
        stopping = self.config.stopping
        return [] if stopping.off else rungs(self.config.train.epochs, self.grace(row), stopping.reduction)

    def grace(self, row: str) -> int:
        """Returns the epochs before which no trial of a row is stopped."""
        epochs = self.config.train.epochs
        if self.config.stopping.grace is not None:
            return min(self.config.stopping.grace, epochs)
        latest = max((d.bounds[1] for key, d in self.spaces[row].items() if key.endswith(".start")), default=0.0)
        return min(epochs, max(math.ceil(epochs / 3), math.floor(latest * epochs) + 1))

    def _found(self, row: str, plan: Plan, study: optuna.Study) -> RowFound:
        config = self.config
        trials = [
            Found(
                number=t.number,
                values=values_of(t, self.spaces[row]),
                accuracies=accuracies_of(t),
                result=t.user_attrs.get(FACTS) or None,
            )
            for t in study.trials
            if t.state.is_finished()
        ]
        return RowFound(row, config.settings_of(row).method, self.spaces[row], trials, self.rungs(row))

    def _with_finalists(self, row: RowFound, plan: Plan) -> RowFound:
        """Trains the best trials of a row with more seeds; the best on average is the row's choice."""
        seeds = range(self.config.finalist_seeds)
        runs = {
            plan.run_of(f"{trial.number:04d}", trial.values, seed): (plan, trial.values)
            for trial in row.best(self.config.finalists)
            for seed in seeds
        }
        if not runs:
            raise RaybalError(f"{row.name}: no trial was trained to the end without diverging; narrow the space")
        self._filler(runs).fill(list(runs), measured=False)
        scores: dict[int, list[float]] = {}
        for run in runs:
            scores.setdefault(int(run.trial), []).append(validation_accuracy(self.store, run))
        return dataclasses.replace(row, finalists=scores)

    def _write_tuned(self, row: RowFound, plan: Plan) -> None:
        chosen = plan.chosen(row.chosen.values)
        own = changed(plan.settings(row.chosen.values)[0])
        text = yaml.safe_dump({**chosen, "balancing": own}, sort_keys=False, allow_unicode=True)
        head = (
            f"# {row.name}: trial {row.chosen.number} of {len(row.trials)}, validation "
            f"{100 * row.score:.1f} % over {self.config.finalist_seeds} seeds.\n"
        )
        self.store.write_bytes(f"tuned/{row.name}.yaml", (head + text).encode())

    def _final(self, rows: Sequence[RowFound], plans: Mapping[str, Plan]) -> Summary | None:
        """Trains each row's choice and its published settings with fresh seeds, and measures them on test items."""
        first, count = self.config.finalist_seeds, self.config.seeds
        if not count:
            return None
        runs: dict[TrialRun, tuple[Plan, Values]] = {}
        for row in rows:
            plan, trial = plans[row.name], row.chosen
            for seed in range(first, first + count):
                runs[plan.run_of(f"{trial.number:04d}", trial.values, seed)] = (plan, trial.values)
        methods = {row.name: row.method for row in rows}
        for row in rows:
            plan, name = plans[row.name], f"{row.name}-{PUBLISHED}"
            methods[name] = row.method
            for seed in range(first, first + count):
                runs[dataclasses.replace(plan.run_of(PUBLISHED, {}, seed), row=name)] = (plan, {})
        log.info("final table: %d settings with %d fresh seeds", len(methods), count)
        return self._filler(runs).compare(list(runs), methods)

    def _filler(self, runs: Mapping[TrialRun, tuple[Plan, Values]]) -> Filler:
        def task(cell: Cell) -> TrainTask:
            assert isinstance(cell, TrialRun)
            plan, values = runs[cell]
            return plan.task(cell, values)

        return Filler(self.store, self.lease, self.material, self.config.resources, task, len(runs))


class _Fence(tune.Callback):
    """Ends a sweep whose store another driver has taken over."""

    def __init__(self, root: str, token: str) -> None:
        self.root = root
        self.token = token

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not is_current(Store(self.root), self.token):
            raise StoreError(f"store {self.root}: another driver has taken over; this sweep stops")


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
            what = f"validation {100 * trial.values[0]:.1f}%, gap {facts['gap']:.2f}, {facts['seconds']:.0f} s"
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


def first_values(settings: BalancingSettings, space: Space, base: Mapping[str, Any]) -> list[Values]:
    """Returns where a row's own settings and the published ones lie in its space; those that lie outside are left out.

    Args:
        settings: of the row.
        space: that is searched.
        base: the row's settings, plain, by section.
    """
    found = []
    for own in ({}, *type(settings).published):
        values = values_in(space, merged(base, {"balancing": own}), type(settings))
        if values is not None and values not in found:
            found.append(values)
    return found


def validation_accuracy(store: Store, run: TrialRun) -> float:
    """Returns the validation accuracy of the epoch that a finished run keeps; 0 of one that diverged."""
    if has_diverged(store, run):
        return 0.0
    trained = store.read_yaml(run.trained)
    return float(trained["history"][trained["epoch"] - 1]["validation"]["fused"]["accuracy"])


def changed(settings: BalancingSettings) -> dict[str, Any]:
    """Returns plain settings without those that are as by default."""
    default = dataclasses.asdict(type(settings)(method=settings.method))
    own = dataclasses.asdict(settings)
    return {"method": settings.method} | {key: value for key, value in own.items() if value != default[key]}
