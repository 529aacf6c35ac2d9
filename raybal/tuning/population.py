"""Schedules by population-based training (PBT, Jaderberg et al. 2017; PB2, Parker-Holder et al., NeurIPS 2020).

Members train side by side. After every interval of epochs the worst take over weights, optimizer and settings of the
best, and change the strength that their pace goes to in the next interval. What a lineage has gone through is then a
piecewise-linear pace, which can be trained from scratch: only strengths change, because that alone can be written down
as a pace; coefficients and training settings stay those of a member's first start, and are selected with it.

Ray Tune decides who takes over whom. What its decisions rest on lies in the store after every interval, so that a
driver that was lost is replaced by one that goes on from there as the first would have.

    trials/<row>/population.yaml    the members after the last takeovers
    trials/<row>/exploits.yaml      who took over whom, with values before and after
"""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2
from ray.tune.search.basic_variant import BasicVariantGenerator

from raybal import hashing
from raybal.data.pool import Labelled
from raybal.errors import RaybalError, shorten
from raybal.resources import trial_options
from raybal.store import Store
from raybal.training.checkpoint import Checkpoints
from raybal.tuning.keys import ACCURACY, EPOCH
from raybal.tuning.member import ENDED, MEMBER, ORIGIN, STATE, STRENGTH, Member, run_member, state_folder, values_with
from raybal.tuning.search import drawn
from raybal.tuning.spaces import Space, Values
from raybal.tuning.summary import Found, RowFound
from raybal.tuning.trial import Plan
from raybal.tuning.trials import run, run_config, set_defaults

#: How far PBT moves a strength, where it does not draw a new one.
STEP = 0.25

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """The files that say how far a row's population is.

    Args:
        store: of the sweep.
        row: name of the row.
        seed: of the population.
        check: raises a StoreError where another driver has taken over.
    """

    store: Store
    row: str
    seed: int
    check: Callable[[], None] = lambda: None

    @property
    def exploits(self) -> list[dict[str, Any]]:
        """Who took over whom, with values before and after."""
        return self.store.read_yaml(self._exploits) if self.store.exists(self._exploits) else []

    @property
    def reached(self) -> dict[str, Any] | None:
        """{"epoch", "members": their configurations by number, "reports"}; None before the first takeovers."""
        return self.store.read_yaml(self._reached) if self.store.exists(self._reached) else None

    def write(
        self, epoch: int, members: dict[int, dict[str, Any]], reports: list[dict[str, Any]], events: list[dict]
    ) -> None:
        """Writes what takeovers after an epoch have come to; nobody needs the states before."""
        self.check()
        kept = [event for event in self.exploits if event["epoch"] < epoch]
        self.store.write_yaml(self._exploits, [*kept, *events])
        before = self.reached
        self.store.write_yaml(self._reached, {"epoch": epoch, "members": members, "reports": reports})
        if before is not None:
            for member in before["members"]:
                self.store.clear(state_folder(self.row, member, before["epoch"]))

    @property
    def _exploits(self) -> str:
        return f"trials/{self.row}/exploits.yaml"

    @property
    def _reached(self) -> str:
        return f"trials/{self.row}/population.yaml"


class _Recorded(PopulationBasedTraining):
    """Mixed into Ray Tune's schedulers: keeps what was decided, and goes on from it.

    Args:
        record: of the population.
        settings: of the scheduler.
    """

    def __init__(self, record: Record, **settings: Any) -> None:
        super().__init__(**settings)
        self.record = record
        self._events: list[dict[str, Any]] = []
        reached = record.reached
        if reached is not None:
            # Members that begin later than at 0 take over for the first time an interval later.
            self._next_perturbation_sync = reached["epoch"] + self._perturbation_interval
            self._go_on_from(reached["reports"])

    def _go_on_from(self, reports: list[dict[str, Any]]) -> None:
        """Takes in what members reported to earlier drivers."""

    def _reports(self) -> list[dict[str, Any]]:
        """Returns what members have reported so far, if decisions rest on it."""
        return []

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        due = self._next_perturbation_sync
        decision = super().on_trial_result(tune_controller, trial, result)
        if self._next_perturbation_sync > due:
            row, epoch = self.record.row, int(result[EPOCH])
            source = {event["member"]: event["from"] for event in self._events}
            members = {}
            for one in self._trial_state:
                number = one.config[MEMBER]
                state = state_folder(row, source.get(number, number), epoch)
                members[number] = {**one.config, STRENGTH: float(one.config[STRENGTH]), STATE: state}
            self.record.write(epoch, members, self._reports(), self._events)
            self._events = []
            scores = {one.config[MEMBER]: float(state.last_score) for one, state in self._trial_state.items()}
            shown = ", ".join(f"{number} {100 * score:.1f}%" for number, score in sorted(scores.items()))
            log.info("%s: epoch %d of all members: %s", row, epoch, shown)
        return decision

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        # The others would wait for it for ever.
        super().on_trial_error(tune_controller, trial)
        why = Path(trial.error_file).read_text().strip().splitlines()[-1] if trial.error_file else "its process is lost"
        raise RaybalError(
            f"{self.record.row}: member {trial.config[MEMBER]} could not be trained: {why}. The same command goes on "
            "from the last takeovers"
        )

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        log.info("%s: member %d has ended", self.record.row, trial.config[MEMBER])

    def _quantiles(self) -> tuple[list[Any], list[Any]]:
        # Asked once before the takeovers after an interval: whichever driver makes them, they are the same.
        seed = hashing.digest(self.record.seed, "takeovers", int(self._next_perturbation_sync))
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return super()._quantiles()

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        number, before = trial.config[MEMBER], trial.config[STRENGTH]
        super()._exploit(tune_controller, trial, trial_to_clone)
        trial.set_config({**trial.config, MEMBER: number})
        states = self._trial_state
        event = {
            "epoch": int(states[trial].last_train_time),
            "member": number,
            "from": trial_to_clone.config[MEMBER],
            "accuracy": float(states[trial].last_score),
            "accuracy_of_from": float(states[trial_to_clone].last_score),
            "strength": float(before),
            "strength_of_from": float(trial_to_clone.config[STRENGTH]),
            "new_strength": float(trial.config[STRENGTH]),
        }
        self._events.append(event)
        log.info(
            "epoch %d: member %d (%.1f%%) takes over member %d (%.1f%%); strength %.2f of that one becomes %.2f",
            event["epoch"], event["member"], 100 * event["accuracy"], event["from"], 100 * event["accuracy_of_from"],
            event["strength_of_from"], event["new_strength"],
        )  # fmt: skip


class _PBT(_Recorded):
    """PBT that is recorded."""


class _PB2(_Recorded, PB2):
    """PB2 that is recorded; its Gaussian process learns from all reports.

    As long as it knows too little to suggest a strength Ray's class leaves that of the member taken over, which would
    then be trained twice; here that is moved by a step, as in PBT.
    """

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        if config[STRENGTH] == trial_to_clone.config[STRENGTH]:
            config = _stepped(config)
        return config, operations

    def _go_on_from(self, reports: list[dict[str, Any]]) -> None:
        self.data = pd.DataFrame(reports, columns=["Trial", "Time", STRENGTH, "Reward"])

    def _reports(self) -> list[dict[str, Any]]:
        columns = {"Trial": str, "Time": int, STRENGTH: float, "Reward": float}
        return [{name: kind(row[name]) for name, kind in columns.items()} for row in self.data.to_dict("records")]


def _stepped(config: dict[str, Any]) -> dict[str, Any]:
    """Moves a strength by a step to either side, inwards at the ends: factors, as PBT has them, would leave 0 at 0."""
    before = float(config[STRENGTH])
    sides = [after for after in (before - STEP, before + STEP) if 0 <= after <= 1]
    return {**config, STRENGTH: random.choice(sides)}


def scheduler(kind: str, interval: int, share: float, record: Record) -> PopulationBasedTraining:
    """Returns Ray Tune's scheduler of a population."""
    common: dict[str, Any] = {
        "time_attr": EPOCH,
        "metric": ACCURACY,
        "mode": "max",
        "perturbation_interval": interval,
        "quantile_fraction": share,
        "log_config": False,
        "require_attrs": False,
        "synch": True,
    }
    if kind == "pb2":
        return _PB2(record, hyperparam_bounds={STRENGTH: [0.0, 1.0]}, **common)
    mutations = {STRENGTH: tune.uniform(0.0, 1.0)}
    explore = {"perturbation_factors": (1.0, 1.0), "custom_explore_fn": _stepped}
    return _PBT(record, hyperparam_mutations=mutations, **explore, **common)


def members(space: Space, first: Sequence[Values], count: int, seed: int) -> list[Member]:
    """Returns the members that a population begins with: given values first, then drawn ones; strength 1 (the method as
    it is) first, 0 (its baseline) second, then drawn ones."""
    found = []
    for k in range(count):
        values = first[k] if k < len(first) else drawn(space, hashing.digest(seed, "member", k))
        strength = float(1 - k) if k < 2 else random.Random(hashing.digest(seed, "strength", k)).random()
        found.append(Member(dict(values), strength))
    return found


def populate(
    plan: Plan, parts: tuple[Labelled, Labelled], store: Store, check: Callable[[], None] = lambda: None
) -> RowFound:
    """Runs what is left of a row's population; its trials are the members, with their schedules among the values.

    Args:
        plan: of the row.
        parts: training and validation items.
        store: of the sweep.
        check: raises a StoreError where another driver has taken over.

    Raises:
        RaybalError: a member could not be run.
    """
    config, row = plan.config, plan.row
    settings, epochs = config.population, config.train.epochs
    record = Record(store, row, hashing.digest(config.seed, "population", row), check)
    names = [f"trials/{row}/member-{k:02d}/0/{ENDED}" for k in range(settings.members)]
    begin = members(plan.space, plan.first_values(), settings.members, record.seed)
    left = [k for k, name in enumerate(names) if not store.exists(name)]
    if left:
        reached, interval = record.reached, settings.interval or max(1, round(epochs / 5))
        if reached is None:
            configs = [{MEMBER: k, ORIGIN: k, STRENGTH: m.strength, STATE: None} for k, m in enumerate(begin)]
        else:
            # Takeovers are made among all of them; after the last ones, each goes on by itself.
            last = reached["epoch"] + interval >= epochs
            configs = [reached["members"][k] for k in (left if last else range(settings.members))]
        so_far = "" if reached is None else f", {reached['epoch']} of them done"
        log.info(
            "%s: a population of %d members, %d epochs%s, takeovers every %d",
            row, len(begin), epochs, so_far, interval,
        )  # fmt: skip
        trainable = tune.with_parameters(run_member, plan=plan, parts=parts, begin=begin, interval=interval)
        run(_tuner(trainable, configs, plan, record, interval), row)
        if missing := [k for k, name in enumerate(names) if not store.exists(name)]:
            raise RaybalError(f"{row}: members {shorten(map(str, missing))} have not ended; the same command goes on")
    for k in range(settings.members):
        # What only a driver that goes on would need.
        folder = f"trials/{row}/member-{k:02d}"
        Checkpoints(store, f"{folder}/0").keep_only("epoch", None)
        for name in store.names(folder):
            if name.startswith("at-"):
                store.clear(f"{folder}/{name}")
    found, schedules = [], {}
    for number, name in enumerate(names):
        ended = store.read_yaml(name)
        schedules[number] = [(at, strength) for at, strength in ended["schedule"]]
        history = ended["history"]
        found.append(
            Found(
                number,
                values_with(ended["values"], schedules[number]),
                {r["epoch"]: r["validation"]["fused"]["accuracy"] for r in history},
                {"diverged": ended["diverged"]} if "diverged" in ended else _result(ended),
                history[-1].get("rehearsed", 0) if history else 0,
                round(sum(r["seconds"] for r in history), 3),
            )
        )
    return RowFound(row, plan.own.method, plan.space, found, [], exploits=record.exploits, schedules=schedules)


def _result(ended: dict[str, Any]) -> dict[str, Any]:
    last = ended["history"][-1]["validation"]["fused"]
    seconds = round(sum(r["seconds"] for r in ended["history"]), 3)
    kept = {key: ended[key] for key in ("epoch", "probes", "gap")}
    return {**kept, "seconds": seconds, "nll": last["nll"]}


def _tuner(trainable: Any, configs: list[dict[str, Any]], plan: Plan, record: Record, interval: int) -> tune.Tuner:
    """Returns the population of a row.

    Args:
        trainable: that trains a member.
        configs: of the members, as they begin or go on.
        plan: of the row.
        record: of the population.
        interval: epochs between takeovers.
    """
    config, settings = plan.config, plan.config.population
    resources, _ = trial_options(config.train, config.resources)
    set_defaults()
    name = f"population-{plan.row}-{uuid.uuid4().hex}"
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        # Each of the configurations is given; Ray Tune wants to know how it would draw others.
        param_space={key: tune.choice([value]) for key, value in configs[0].items()},
        tune_config=tune.TuneConfig(
            scheduler=scheduler(settings.scheduler, interval, settings.share, record),
            # No limit of trials: those that it would keep waiting are members, without whom nobody takes over.
            search_alg=BasicVariantGenerator(points_to_evaluate=configs),
            num_samples=len(configs),
            # Members wait for room. One that got another's process would take back what it has asked for, and where
            # that was just being granted the cluster would lose it for good (Ray issue 64693).
            reuse_actors=False,
            # By its name PB2 knows a member again.
            trial_name_creator=lambda trial: f"member-{trial.config[MEMBER]:02d}",
        ),
        run_config=run_config(name, plan, record.store),
    )
