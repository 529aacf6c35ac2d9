"""Sweeps of training runs.

sweep.yaml                          what defines the sweep, and all settings of this start
rows/<row>.yaml                     the settings that a row was begun with
optuna.log                          all trials of all rows: an Optuna journal, one study a row
trials/<row>/<trial>/<seed>/        a training run: items, checkpoints, model, markers
looks.yaml                          the choices that test items have been looked at for
alone.yaml                          what encoders trained alone reach, by which the balance gap is measured
tuned/<row>.yaml                    the settings found, for jobs/train.py and jobs/al_loop.py
trials.csv, table.csv, cells.csv    every trial; the final table, and its runs
report.html                         tables and figures
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from raybal.balancing.base import METHODS, BalancingSettings
from raybal.config import defining
from raybal.errors import ConfigError, RaybalError, did_you_mean
from raybal.lease import Lease
from raybal.store import Store
from raybal.table.cells import Cell, has_diverged, probe_on_validation, validation_accuracy
from raybal.table.fill import Filler
from raybal.table.summary import BASELINES, Summary
from raybal.training.task import TrainTask
from raybal.tuning.base import SweepBase
from raybal.tuning.config import CONSTANT, PUBLISHED, TuneConfig
from raybal.tuning.journal import StoreJournal
from raybal.tuning.population import populate
from raybal.tuning.spaces import Dimension, Values, declared
from raybal.tuning.summary import RowFound, SweepSummary, published
from raybal.tuning.trial import Plan, TrialRun
from raybal.tuning.trials import search
from raybal.tuning.values import changed, changes, shared

ALONE = "alone.yaml"
#: The method whose encoders are trained alone.
ALONE_METHOD = "ensemble"
#: Its row: no user's row begins like this.
ALONE_ROW = "_alone"

log = logging.getLogger(__name__)


class Sweep(SweepBase):
    """A sweep of methods over one pool.

    Args:
        config: its settings.
        store: where it lies.
        lease: of the store, held before anything is run.

    Raises:
        ConfigError, DataError, StoreError: it cannot begin, or cannot continue with these settings.
    """

    def __init__(self, config: TuneConfig, store: Store, lease: Lease) -> None:
        super().__init__(config, store, lease)
        self.parts = self.material.parts(0)
        config.train.resolve_device()
        if config.objective == "both" and len(self.material.pool.info.names) < 2:
            raise ConfigError(f"objective: {config.pool} has one modality, so there is no balance")
        self.plans = {row: self._plan(row) for row in config.methods}
        self.check()

    # What it is.

    @property
    def keys(self) -> dict[str, Any]:
        return {"pool": self.material.pool.info.content_hash, **defining(self.config)}

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row: defining(self.config.settings_of(row)) for row in self.config.methods}

    def _plan(self, row: str) -> Plan:
        config, info, own = self.config, self.material.pool.info, self.config.settings_of(row)
        epochs = config.train.epochs
        scaled = own.for_run(epochs)
        if own.begins(epochs) >= epochs and scaled.begins(epochs) < epochs:
            # What was published for a longer run would never act, and all would be compared with another method.
            differs = changes(dataclasses.asdict(own), dataclasses.asdict(scaled))
            log.info("%s would never act in %d epochs; as a share of them: %s", row, epochs, differs)
            own = scaled
        plan = Plan(config, row, own, {}, info.modalities, self.material.classes, self.lease.token, {})
        groups, given = config.search, self._given(own)
        if config.population.members:
            if "pace" not in {f.name for f in dataclasses.fields(own)}:
                raise ConfigError(f"{row}: {own.method} has no pace, so a population has no schedule to find")
            paces = [f"balancing.{row}.paces.{m}" for m in own.paces]  # type: ignore[attr-defined]
            paces += [f"space.{key}" for key in given if key.startswith(("balancing.pace.", "balancing.paces."))]
            if paces:
                raise ConfigError(f"{paces[0]}: a population finds the pace, one for all modalities; leave it out")
            groups = [group for group in groups if group not in ("pace", "paces")]
        return plan.searching(groups, given, may_be_empty=config.population.members > 0)

    def _given(self, settings: BalancingSettings) -> dict[str, Dimension]:
        """Returns those of the user's dimensions that a row has: coefficients are those of some methods only."""
        epochs = self.config.train.epochs
        fields: dict[type, set[str]] = {}
        for row in self.config.methods:
            own = self.config.settings_of(row)
            fields[type(own)] = {f.name for f in dataclasses.fields(own)}
            if "method" in self.config.search:
                found = declared(own, epochs, self.config.dimensions)
                fields[type(own)] |= {key.removeprefix("balancing.") for key in found}

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
        journal = self.journal()
        alone = self._train_alone()
        rows, plans = [], {}
        for plan in (dataclasses.replace(plan, alone=alone) for plan in self.plans.values()):
            for one in [plan] if not self.config.population.members else [plan, constant(plan)]:
                plans[one.row] = one
                rows.append(self._with_finalists(self._search(one, journal), one))
        for row in rows:
            self._write_tuned(row, plans[row.name])
        final = self._final(rows, plans)
        return SweepSummary(rows, final, self.material.pool.info.names, self.looks())

    def _search(self, plan: Plan, journal: StoreJournal) -> RowFound:
        members = self.config.population.members
        if plan.row in self.plans and members:
            return populate(plan, self.parts, self.store, self.lease.check)
        return search(plan, self.parts, self.store, journal, members or self.config.trials, stopping=not members)

    def _train_alone(self) -> dict[str, float]:
        """Returns the accuracy of a probe of each encoder trained alone, on validation."""
        info = self.material.pool.info
        if len(info.names) < 2:
            return {}
        if not self.store.exists(ALONE):
            log.info("training each encoder alone, which the balance gap is measured by")
            own = METHODS.get(ALONE_METHOD).Settings(method=ALONE_METHOD)
            token = self.lease.token
            plan = Plan(self.config, ALONE_ROW, own, {}, info.modalities, self.material.classes, token, {})
            run = plan.run_of(PUBLISHED, {})
            self._filler({run: (plan, {})}).fill([run])
            found = {}
            if not has_diverged(self.store, run):
                found = probe_on_validation(plan.task(run, {}))
            elif self.config.objective == "both":
                raise RaybalError(f"{run.title}: {self.store.read_yaml(run.trained)['diverged']}")
            else:
                log.warning("%s has diverged, so balance gaps are not measured", run.title)
            self.store.write_yaml(ALONE, found)
        return {m: value for m, value in self.store.read_yaml(ALONE).items() if value}

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
        self._filler(runs).fill(list(runs))
        scores: dict[int, list[float]] = {}
        for run in runs:
            scores.setdefault(int(run.trial), []).append(validation_accuracy(self.store, run))
        return dataclasses.replace(row, finalists=scores)

    def _write_tuned(self, row: RowFound, plan: Plan) -> None:
        balancing, model, train = plan.settings(row.chosen.values)
        content = {"balancing": changed(balancing), **shared(model, train)}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        head = (
            f"# {row.name}: trial {row.chosen.number} of {len(row.trials)}, validation "
            f"{100 * row.score:.1f} % over {self.config.finalist_seeds} seeds.\n"
        )
        self.store.write_bytes(f"tuned/{row.name}.yaml", (head + text).encode())

    def _final(self, rows: Sequence[RowFound], plans: Mapping[str, Plan]) -> Summary | None:
        """Trains each row's choice and its published settings with fresh seeds, and measures them on test items."""
        seeds = range(self.config.finalist_seeds, self.config.finalist_seeds + self.config.seeds)
        if not seeds:
            return None
        runs: dict[TrialRun, tuple[Plan, Values]] = {}
        methods = {row.name: row.method for row in rows}
        for row in rows:
            plan, values = plans[row.name], row.chosen.values
            runs |= {plan.run_of(f"{row.chosen.number:04d}", values, seed): (plan, values) for seed in seeds}
        for name, plan in self.plans.items():
            plan = dataclasses.replace(plan, row=published(name))
            methods[plan.row] = plan.own.method
            runs |= {plan.run_of(PUBLISHED, {}, seed): (plan, {}) for seed in seeds}
        log.info("final table: %d settings with %d fresh seeds", len(methods), len(seeds))
        if (looks := self.looks({row.name: row.chosen.number for row in rows})) > 1:
            log.warning("test items have been looked at for %d different choices; the report says so", looks)
        # Schedules are to be better than constant strengths, and tuned settings than a baseline that was tuned too:
        # the first row where none is one.
        baselines = [row.name for row in rows if row.name not in self.plans]
        baselines = baselines or [row.name for row in rows if row.method in BASELINES] or [rows[0].name]
        return self._filler(runs).compare(list(runs), methods, self.material, baselines)

    def _filler(self, runs: Mapping[TrialRun, tuple[Plan, Values]]) -> Filler:
        def task(cell: Cell) -> TrainTask:
            assert isinstance(cell, TrialRun)
            plan, values = runs[cell]
            return plan.task(cell, values)

        return Filler(self.store, self.lease, self.material.parts, self.config.resources, task, len(runs))


def constant(plan: Plan) -> Plan:
    """Returns a plan that searches constant strengths in place of schedules."""
    pace = {
        "balancing.pace.kind": Dimension("choice", values=["constant"]),
        "balancing.pace.final": Dimension("uniform", 0.0, 1.0),
    }
    return dataclasses.replace(plan, row=f"{plan.row}-{CONSTANT}", space=plan.space | pace)
