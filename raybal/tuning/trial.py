"""One trial of a sweep: a training run that says after each epoch how far it is."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from raybal import hashing
from raybal.balancing.base import METHODS, BalancingSettings
from raybal.data.pool import Labelled
from raybal.data.schema import Modality
from raybal.errors import ConfigError, did_you_mean
from raybal.models.classifier import ModelSettings
from raybal.predictor import PredictorSpec
from raybal.resources import task_options
from raybal.settings import from_plain
from raybal.store import Store
from raybal.table.cells import Cell, has_diverged, probe_on_validation
from raybal.table.work import work
from raybal.tasks import ready_to_train
from raybal.training.settings import TrainSettings
from raybal.training.task import TrainTask
from raybal.training.worker import train
from raybal.tuning.config import TuneConfig
from raybal.tuning.keys import ACCURACY, EPOCH, GAP, INSIDE, NUMBER, RESULT, VALUES
from raybal.tuning.spaces import (
    Dimension,
    Space,
    Values,
    corners,
    flat,
    merged,
    same,
    samples,
    settings_from,
    space_of,
    tops,
    values_in,
)


@dataclass(frozen=True)
class TrialRun(Cell):
    """A training run of a trial: the one that was searched with has seed 0.

    Attributes:
        trial: "0007", or what the settings are called that no search suggested.
    """

    trial: str = ""

    @property
    def folder(self) -> str:
        """trials/<row>/<trial>/<seed>."""
        return f"trials/{self.row}/{self.trial}/{self.seed}"

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.row}, trial {self.trial.lstrip('0') or '0'}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """What all trials of a row share.

    Attributes:
        config: of the sweep, its pool and store as full addresses.
        row: name of the row.
        own: the row's settings without what is searched.
        space: what is searched, conditions first.
        modalities, classes: of the pool.
        token: of the driver's lease; None where the store has none of its own.
        alone: accuracy of a probe of each encoder trained alone, on validation; those that the gap is measured by.
    """

    config: TuneConfig
    row: str
    own: BalancingSettings
    space: Space
    modalities: tuple[Modality, ...]
    classes: tuple[str, ...]
    token: str | None
    alone: Mapping[str, float]

    @property
    def method(self) -> str:
        """Of the row."""
        return self.own.method

    @property
    def grace(self) -> int:
        """Epochs before which no trial is stopped: where none are given, a third of the run, and one after the method
        has begun to act, however late that may be."""
        epochs, given = self.config.train.epochs, self.config.stopping.grace
        begun = max(self.settings(values)[0].begins(epochs) for values in tops(self.space))
        return given or min(epochs, max(math.ceil(epochs / 3), begun + 1))

    @property
    def base(self) -> dict[str, Any]:
        """The row's settings without what is searched, plain, by section."""
        return {
            "balancing": dataclasses.asdict(self.own),
            "model": dataclasses.asdict(self.config.model),
            "train": dataclasses.asdict(self.config.train),
        }

    def chosen(self, values: Values) -> dict[str, Any]:
        """Returns searched values as plain settings by section, without those that are not searched."""
        found = settings_from(values, type(self.own))
        return {**found, "balancing": {"method": self.own.method, **found.get("balancing", {})}}

    def settings(self, values: Values) -> tuple[BalancingSettings, ModelSettings, TrainSettings]:
        """Returns a row's settings with a trial's values in them.

        Raises:
            ConfigError: they do not fit together, or a key is no setting.
        """
        content = merged(self.base, self.chosen(values))
        return (
            from_plain(BalancingSettings, content["balancing"], "balancing"),
            from_plain(ModelSettings, content["model"], "model"),
            from_plain(TrainSettings, content["train"], "train"),
        )

    def searching(self, groups: Sequence[str], given: Mapping[str, Dimension], *, may_be_empty: bool = False) -> Plan:
        """Returns the plan with a space, every value of which the settings that it is one of accept.

        Args:
            groups: what is searched.
            given: a user's own dimensions.
            may_be_empty: whether there may be nothing to search.

        Raises:
            ConfigError: there is nothing to search, or a value is not accepted.
        """
        for key in given:
            section, dot, _ = key.partition(".")
            if section not in self.base or not dot:
                raise ConfigError(
                    f"space.{key}: ranges are of {', '.join(self.base)}{did_you_mean(key, flat(self.base))}"
                )
        wanted = list(groups)
        if "paces" in wanted and not getattr(METHODS.get(self.own.method), "acts_by_modality", False):
            wanted[wanted.index("paces")] = "pace"
        try:
            space = space_of(self.own, wanted, given, self.config.train.epochs, [m.name for m in self.modalities])
            if not space and not may_be_empty:
                raise ConfigError(f"search: nothing of {', '.join(groups)} can be searched")
            plan = dataclasses.replace(self, space=space)
            for values in corners(space):
                plan.settings(values)
            for values in ({}, *samples(space)):
                plan.task(plan.run_of("", values), values).spec.build()
        except ConfigError as error:
            raise ConfigError(f"{self.row}: {error}") from error
        return plan

    def first_values(self) -> list[Values]:
        """Returns where the row's own settings and the published ones lie in its space, in this order; what lies
        outside as it was published may lie in it as a run of so many epochs can have it. Others are left out, also
        if they set what is not searched."""
        found: list[Values] = []
        for own in ({}, *self.own.published):
            wanted = from_plain(BalancingSettings, merged(self.base["balancing"], own), "balancing")
            for settings in (wanted, wanted.for_run(self.config.train.epochs)):
                if (values := self.values_of(settings)) is not None:
                    found.append(values)
                    break
        return [values for i, values in enumerate(found) if values not in found[:i]]

    def values_of(self, wanted: BalancingSettings) -> Values | None:
        """Returns where settings of the method lie in the space, with the row's own for what else is searched."""
        plain = dataclasses.asdict(wanted)
        paces = {m.name for m in self.modalities if f"balancing.paces.{m.name}.kind" in self.space}
        if paces:
            plain["paces"] = {m: plain["paces"].get(m, plain["pace"]) for m in paces} | plain["paces"]
        values = values_in(self.space, {**self.base, "balancing": plain}, type(self.own))
        if values is None:
            return None
        tried = dataclasses.asdict(self.settings(values)[0])
        if paces:
            # Where every modality has a pace of its own, what they would share is of no account.
            tried["pace"] = plain["pace"]
        return values if same(tried, plain) else None

    def run_of(self, trial: str, values: Values, seed: int = 0) -> TrialRun:
        """Returns a training run of some values."""
        return TrialRun(self.row, self.settings(values)[2].learning_rate, seed, trial)

    def task(self, run: TrialRun, values: Values) -> TrainTask:
        """Returns a run as a task."""
        balancing, model, settings = self.settings(values)
        weights = hashing.digest(self.config.seed, "weights", run.seed)
        return TrainTask(
            store=self.config.store,
            folder=run.folder,
            pool=self.config.pool,
            spec=PredictorSpec(self.modalities, self.classes, model, balancing, weights),
            settings=settings,
            seed=hashing.digest(self.config.seed, "train", run.seed),
            token=self.token,
        )


def run_trial(config: dict[str, Any], plan: Plan, parts: tuple[Labelled, Labelled]) -> None:
    """Ray Tune's function: trains what a trial's values say, from the last epoch on that an earlier start of it
    reached, and reports every epoch.

    Args:
        config: the trial's number and values.
        plan: of the row.
        parts: training and validation items.
    """
    store = Store(plan.config.store)
    run = plan.run_of(f"{config[NUMBER]:04d}", config[VALUES])
    task = plan.task(run, config[VALUES])
    with ready_to_train():
        if not store.exists(f"{run.folder}/items.parquet"):
            task.write_items(*parts)
        history = store.read_yaml(run.trained).get("history", []) if store.exists(run.trained) else task.history()
        for record in history:
            tune.report(_report(record))
        work(store, run, task, None, lambda t: _train(t, plan))
        tune.report(_outcome(store, run, task, plan))


def _train(task: TrainTask, plan: Plan) -> dict[str, Any]:
    if not task.settings.num_workers:
        return task.run(on_epoch=lambda record: tune.report(_report(record)))
    return train(task, plan.config.resources, [TuneReportCallback()], _report)


def _report(record: dict[str, Any]) -> dict[str, Any]:
    return {
        EPOCH: record["epoch"],
        ACCURACY: record["validation"]["fused"]["accuracy"],
        INSIDE: record.get("rehearsed", 0),
        # Ray Tune wants every objective in every report; this one is known at the end.
        GAP: math.nan,
        RESULT: None,
    }


def _outcome(store: Store, run: TrialRun, task: TrainTask, plan: Plan) -> dict[str, Any]:
    """Returns the last report of a trial that was trained to the end: the epoch that is kept."""
    trained = store.read_yaml(run.trained)
    if has_diverged(store, run):
        return {ACCURACY: 0.0, GAP: 1.0, RESULT: json.dumps({"diverged": trained["diverged"]})}
    name = f"{run.folder}/probes.yaml"
    if not store.exists(name):
        store.write_yaml(name, _probes(task, plan))
    probes = store.read_yaml(name)
    kept = trained["history"][trained["epoch"] - 1]["validation"]
    gap = gap_of(probes, plan.alone)
    facts = {
        "epoch": trained["epoch"],
        "seconds": trained["seconds"],
        "nll": kept["fused"]["nll"],
        "probes": probes,
        "gap": gap,
    }
    # As text: Ray Tune would flatten a mapping.
    # Where it is an objective, a gap that could not be measured is as good as the worst.
    worst = 1.0 if gap is None else gap
    return {ACCURACY: kept["fused"]["accuracy"], GAP: worst, RESULT: json.dumps(facts)}


def _probes(task: TrainTask, plan: Plan) -> dict[str, float | None]:
    """Returns the accuracy of a probe of each encoder on validation; nothing where there is nothing to compare with."""
    if not plan.alone:
        return {}
    if not task.settings.num_workers:
        return probe_on_validation(task)
    # The trial has reserved next to nothing: its workers had all, and they are gone. What it starts stands for itself.
    options = task_options(task.settings, plan.config.resources) | {"scheduling_strategy": "DEFAULT"}
    return ray.get(ray.remote(probe_on_validation).options(**options).remote(task))


def gap_of(probes: Mapping[str, float | None], alone: Mapping[str, float]) -> float | None:
    """Returns how unevenly modalities have learnt: the largest minus the smallest ratio of an encoder's probe to that
    of the same encoder trained alone; None where fewer than two can be compared.

    Args:
        probes: accuracy of a probe of each encoder; None where it could not be measured.
        alone: the same of encoders trained alone.
    """
    ratios = {m: probe / alone[m] for m, probe in probes.items() if probe is not None and m in alone}
    return max(ratios.values()) - min(ratios.values()) if len(ratios) > 1 else None
