"""Whole loops as trials: how labels are best spent on a pool like this one.

sweep.yaml                      what defines the sweep, and all settings of this start
optuna.log                      all trials: an Optuna journal
trials/loops/<trial>/<seed>/    a loop's store; when it has ended, only what it found is kept: curve.yaml
tuned/loops.yaml                the settings found, for jobs/al_loop.py
trials.csv, curves.csv          every trial; the rounds of the final comparison
report.html                     tables and figures
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import yaml
from numpy.typing import NDArray
from ray import tune

from raybal import hashing
from raybal.balancing.base import BalancingSettings
from raybal.config import LoopConfig, defining
from raybal.data.pool import Labelled
from raybal.errors import ConfigError, DivergedError, RaybalError, shorten
from raybal.experiment import Experiment
from raybal.lease import Lease
from raybal.models.classifier import ModelSettings
from raybal.querying.base import QuerySettings
from raybal.resources import task_options
from raybal.rounds import Round
from raybal.settings import from_plain
from raybal.store import Store
from raybal.study.fill import fill_loops
from raybal.study.loops import CURVE, Curve, run_loop
from raybal.study.summary import area
from raybal.tasks import ready_to_train
from raybal.training.settings import TrainSettings
from raybal.tuning.base import SweepBase
from raybal.tuning.config import TuneConfig
from raybal.tuning.keys import ACCURACY, EPOCH, GAP, NUMBER, RESULT, VALUES
from raybal.tuning.spaces import (
    SHARED,
    Dimension,
    Space,
    Values,
    draw,
    flat,
    merged,
    samples,
    settings_from,
    with_given,
)
from raybal.tuning.summary import LoopsSummary, RowFound
from raybal.tuning.trials import search
from raybal.tuning.values import changed, shared

ROW = "loops"
STRATEGY, SIZE, INITIAL, METHOD = "query.strategy", "query.size", "query.initial_size", "balancing.method"
#: What a loop has ranges for, beside what it is made of.
SECTIONS = ("query", "train", "model")

log = logging.getLogger(__name__)


class JudgedExperiment(Experiment):
    """An experiment whose models are judged by items that it never asks for: of what loops ask for themselves, those
    that ask for easy items would validate by easy ones.

    Args:
        config: its settings.
        store: where it lies.
        validation: the items that it is judged by.
    """

    def __init__(self, config: LoopConfig, store: Store, validation: Labelled) -> None:
        self._validation = validation
        super().__init__(config, store)

    @property
    def fixed_validation(self) -> Labelled:
        """The items that it is judged by."""
        return self._validation

    def candidates(self, current: Round) -> NDArray[np.int64]:
        """Returns positions of the items that a round may ask for, none of which it is judged by."""
        positions = super().candidates(current)
        return positions[~np.isin(positions, self.pool.positions(sorted(i for i, _ in self._validation)))]


@dataclass(frozen=True)
class LoopPlan:
    """What all trials of a sweep of loops share.

    Attributes:
        config: of the sweep, its pool and store as full addresses.
        validation: items that loops are judged by.
        row: name of the study.
        method: how the report calls what is searched.
    """

    config: TuneConfig
    validation: Labelled
    row: str = ROW
    method: str = ROW

    @property
    def grace(self) -> int:
        """Loops are not stopped."""
        return self.config.train.epochs

    @property
    def space(self) -> Space:
        """Strategy, query size and method, what else is searched of training, and the user's own dimensions.

        Raises:
            ConfigError: a dimension of the user's is of something that loops have no ranges for.
        """
        loop = self.config.loop
        choices: dict[str, Sequence[Any]] = {STRATEGY: loop.strategies, SIZE: loop.sizes, METHOD: self.config.methods}
        space = {key: Dimension("choice", values=list(values)) for key, values in choices.items()}
        for group in self.config.search:
            space |= SHARED.get(group, {})
        for key in self.config.dimensions:
            if key.partition(".")[0] not in SECTIONS:
                raise ConfigError(
                    f"space.{key}: where loops are trials, ranges are of {', '.join(SECTIONS)}; methods are chosen "
                    "from `methods`, which may have rows of your own with other settings"
                )
        return with_given(space, self.config.dimensions)

    @property
    def since(self) -> int:
        """Labels that every loop has after its first round: an area that began later would be larger by that alone."""
        return int(max(self.space[key].largest for key in (SIZE, INITIAL) if key in self.space))

    def first_values(self) -> list[Values]:
        """Returns the first of every choice with the training settings as they are: what others are compared with."""
        config = self.config
        base = flat({"train": dataclasses.asdict(config.train), "model": dataclasses.asdict(config.model)})

        def first(key: str, dimension: Dimension) -> Any:
            if dimension.kind == "choice":
                return base[key] if base.get(key) in dimension.values else dimension.values[0]
            return base[key] if key in base and dimension.takes(base[key]) else dimension.bounds[0]

        return [draw(self.space, first)]

    def loop(self, values: Values, trial: str, seed: int) -> LoopConfig:
        """Returns the settings of one loop.

        Raises:
            ConfigError: a value is not accepted.
        """
        config = self.config
        base = {"query": {}, "train": dataclasses.asdict(config.train), "model": dataclasses.asdict(config.model)}
        others = {key: value for key, value in values.items() if key != METHOD}
        content = merged(base, settings_from(others, BalancingSettings))
        query = from_plain(QuerySettings, content["query"], "query")
        return LoopConfig(
            pool=config.pool,
            store=Store(config.store).where(f"trials/{self.row}/{trial}/{seed}"),
            seed=hashing.digest(config.seed, "loop", seed),
            label_budget=config.loop.label_budget,
            model=from_plain(ModelSettings, content["model"], "model"),
            balancing=config.settings_of(values[METHOD]),
            train=from_plain(TrainSettings, content["train"], "train"),
            query=dataclasses.replace(query, explain=False),
            resources=config.resources,
        )

    def area(self, curve: Curve, of: str) -> float:
        """Returns what a loop is worth, on "validation" items or by "accuracy" on test items: its area since every loop
        has labels, whatever it asks for at a time."""
        return area(curve, of, since=self.since)

    def settings(self, values: Values) -> dict[str, Any]:
        """Returns a trial's values as plain settings of jobs/al_loop.py, with what else defines the loops of the sweep
        and is not as by default."""
        loop = self.loop(values, "", 0)
        query = settings_from({k: v for k, v in values.items() if k.startswith("query.")}, BalancingSettings)
        budget = {"label_budget": loop.label_budget}
        return {**budget, **query, "balancing": changed(loop.balancing), **shared(loop.model, loop.train)}

    def run(self, values: Values, trial: str, seed: int, *, tested: bool) -> Curve:
        """Runs what is left of one loop in this process; only where it is tested it looks at test items. The curve of
        one that diverges is a record of no accuracy, which says why."""
        loop = self.loop(values, trial, seed)
        try:
            return run_loop(loop, tested=tested, begin=self.begin)
        except DivergedError as error:
            # Another start would end the same way.
            why = str(getattr(error, "cause", None) or error)
            curve = [{"labels": loop.label_budget, "validation": 0.0, "accuracy": 0.0, "diverged": why}]
            Store(loop.store).write_yaml(CURVE, curve)
            return curve

    def begin(self, config: LoopConfig, store: Store) -> Experiment:
        """Returns the experiment of a loop."""
        return JudgedExperiment(config, store, self.validation)


@dataclass(frozen=True)
class LoopRun:
    """A loop of a trial with some seed.

    Attributes:
        trial: its name.
        seed: of the loop; that of the trial itself is 0.
        values: of the searched keys.
    """

    trial: str
    seed: int
    values: Values

    @property
    def folder(self) -> str:
        """trials/loops/<trial>/<seed>."""
        return f"trials/{ROW}/{self.trial}/{self.seed}"

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"loop of trial {self.trial.lstrip('0') or '0'}, seed {self.seed}"


def run_trial(config: dict[str, Any], plan: LoopPlan, parts: None) -> None:
    """Ray Tune's function: runs a loop as a trial's values say, and reports its rounds and its area on validation."""
    with ready_to_train(logging.ERROR):
        curve = plan.run(config[VALUES], f"{config[NUMBER]:04d}", 0, tested=False)
    if "diverged" in curve[0]:
        tune.report({ACCURACY: 0.0, GAP: math.nan, RESULT: json.dumps({"diverged": curve[0]["diverged"]})})
        return
    for r in curve:
        tune.report({EPOCH: r["labels"], ACCURACY: r["validation"], GAP: math.nan, RESULT: None})
    found = plan.area(curve, "validation")
    facts = {"epoch": curve[-1]["labels"], "area": found, "gap": None}
    tune.report({ACCURACY: found, GAP: math.nan, RESULT: json.dumps(facts)})


@ray.remote
def run_alone(plan: LoopPlan, run: LoopRun, tested: bool) -> Curve:
    """Runs what is left of one loop as a Ray task; returns its curve."""
    with ready_to_train(logging.ERROR):
        return plan.run(run.values, run.trial, run.seed, tested=tested)


class LoopSweep(SweepBase):
    """A sweep of whole loops over one pool.

    Args:
        config: its settings.
        store: where it lies.
        lease: of the store, held before anything is run.

    Raises:
        ConfigError, DataError, StoreError: it cannot begin, or cannot continue with these settings.
    """

    def __init__(self, config: TuneConfig, store: Store, lease: Lease) -> None:
        super().__init__(config, store, lease)
        self.plan = LoopPlan(self.config, self.material.validation)
        if self.plan.since > config.loop.label_budget:
            raise ConfigError(
                f"space: a loop may ask for {self.plan.since} items at first, and for {config.loop.label_budget} in "
                "all (loop.label_budget)"
            )
        # What settings can get wrong shows before anything is run.
        for values in samples(self.plan.space):
            loop = self.plan.loop(values, "none", 0)
            self.plan.begin(loop, Store(loop.store))
        self.check()

    @property
    def keys(self) -> dict[str, Any]:
        config = self.config
        rows = {f"balancing.{m}.{key}": v for m in config.methods for key, v in defining(config.settings_of(m)).items()}
        return {"pool": self.material.pool.info.content_hash, **defining(config), "methods": config.methods, **rows}

    def run(self) -> LoopsSummary:
        """Runs what is missing and returns what came out. Ray must be connected."""
        config, journal = self.config, self.journal()
        row = search(self.plan, None, self.store, journal, config.trials, stopping=False, trainable=run_trial)
        finalists = [
            LoopRun(f"{trial.number:04d}", seed, trial.values)
            for trial in row.best(config.finalists)
            for seed in range(config.finalist_seeds)
        ]
        if not finalists:
            raise RaybalError(f"no loop of {len(row.trials)} trials ended without diverging; narrow the space")
        log.info("%d finalists with %d seeds", len(finalists) // config.finalist_seeds, config.finalist_seeds)
        scores: dict[int, list[float]] = {}
        for run, curve in zip(finalists, self._curves(finalists, tested=False), strict=True):
            scores.setdefault(int(run.trial), []).append(self.plan.area(curve, "validation"))
        row = dataclasses.replace(row, finalists=scores)
        self._write_tuned(row)
        return LoopsSummary(row, *self._compared(row), self.plan.since, self.looks())

    def _compared(self, row: RowFound) -> tuple[list[Curve], list[Curve]]:
        """Returns curves of the choice and of the first trial with fresh seeds, on test items; none where a loop
        diverged, which has no area to compare."""
        config = self.config
        seeds = range(config.finalist_seeds, config.finalist_seeds + config.seeds)
        first = row.trials[0]
        runs = [LoopRun(f"{t.number:04d}", seed, t.values) for t in (row.chosen, first) for seed in seeds]
        log.info("the choice beside the first trial, with %d fresh seeds", len(seeds))
        if seeds and (looks := self.looks({ROW: row.chosen.number})) > 1:
            log.warning("test items have been looked at for %d different choices; the report says so", looks)
        curves = self._curves(runs, tested=True)
        if lost := [run.title for run, curve in zip(runs, curves, strict=True) if "diverged" in curve[0]]:
            log.warning("the comparison on test items is left out: %s diverged", shorten(lost))
            return [], []
        return curves[: len(seeds)], curves[len(seeds) :]

    def _curves(self, runs: Sequence[LoopRun], *, tested: bool) -> list[Curve]:
        """Runs loops that have not ended; returns the curves of all."""
        remote = run_alone.options(**task_options(self.config.train, self.config.resources))
        return fill_loops(runs, self.store, self.lease, lambda run: remote.remote(self.plan, run, tested))

    def _write_tuned(self, row: RowFound) -> None:
        chosen = row.chosen
        text = yaml.safe_dump(self.plan.settings(chosen.values), sort_keys=False, allow_unicode=True)
        head = (
            f"# Trial {chosen.number} of {len(row.trials)} loops of {self.config.loop.label_budget} labels: area "
            f"{100 * row.score:.1f} % on validation over {self.config.finalist_seeds} seeds.\n"
        )
        self.store.write_bytes(f"tuned/{ROW}.yaml", (head + text).encode())
