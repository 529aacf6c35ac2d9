"""Schedules by population-based training (PBT, Jaderberg et al. 2017; PB2, Parker-Holder et al., NeurIPS 2020).

Members train side by side. After every interval of epochs the worst take over weights, optimizer and settings of the
best, and change the strength that their pace goes to in the next interval. What a lineage has gone through is then a
piecewise-linear pace, which can be trained from scratch: only strengths change, because that alone can be written down
as a pace; coefficients and training settings stay those of a member's first start, and are selected with it.

    trials/<row>/member-<number>/0/    a member's training run; member.yaml when it has ended
    trials/<row>/exploits.yaml         who took over whom, with values before and after
"""

from __future__ import annotations

import dataclasses
import logging
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2
from ray.tune.search.basic_variant import BasicVariantGenerator

from raybal import hashing, memory
from raybal.data.pool import Labelled
from raybal.errors import DivergedError
from raybal.resources import trial_options
from raybal.store import Store
from raybal.table.cells import probe_on_validation
from raybal.training.checkpoint import Checkpoints
from raybal.training.task import TrainTask
from raybal.tuning.search import ACCURACY, EPOCH
from raybal.tuning.spaces import Space, Values, drawn
from raybal.tuning.summary import Found, RowFound
from raybal.tuning.trial import Plan, gap_of
from raybal.tuning.trials import check, fence, run_config, set_defaults

STRENGTH, ORIGIN = "strength", "origin"
#: How far PBT moves a strength, where it does not draw a new one.
STEP = 0.25
SCHEDULE, ENDED = "schedule.yaml", "member.yaml"

log = logging.getLogger(__name__)

#: (progress, strength), ascending: strengths lie on straight lines between them.
Schedule = list[tuple[float, float]]


@dataclass(frozen=True)
class Member:
    """A member of a population.

    Attributes:
        values: of the searched keys, its pace not among them.
        strength: that it begins with.
    """

    values: Values
    strength: float


def members(space: Space, first: Sequence[Values], count: int, seed: int) -> list[Member]:
    """Returns the members that a population begins with: given values first, then drawn ones; strength 1 (the method as
    it is) first, 0 (its baseline) second, then drawn ones."""
    found = []
    for k in range(count):
        values = first[k] if k < len(first) else drawn(space, hashing.digest(seed, "member", k))
        strength = float(1 - k) if k < 2 else random.Random(hashing.digest(seed, "strength", k)).random()
        found.append(Member(dict(values), strength))
    return found


def extended(schedule: Schedule, strength: float, epoch: int, interval: int, epochs: int) -> Schedule:
    """Returns a schedule that, from an epoch on, goes to another strength within an interval and stays there."""
    if strength == schedule[-1][1]:
        return schedule
    now, then = epoch / epochs, min(1.0, (epoch + interval) / epochs)
    kept = schedule if schedule[-1][0] >= now else [*schedule, (now, schedule[-1][1])]
    return [*kept, (then, strength)] if then > now else kept


def values_with(values: Values, schedule: Schedule) -> Values:
    """Returns a member's values together with its schedule as a pace."""
    pace: Values = {"balancing.pace.kind": "knots"}
    for i, (at, strength) in enumerate(schedule):
        pace |= {f"balancing.pace.knots[{i}]": at, f"balancing.pace.strengths[{i}]": strength}
    return {**values, **pace}


def run_member(
    config: dict[str, Any], plan: Plan, parts: tuple[Labelled, Labelled], begin: Sequence[Member], interval: int
) -> None:
    """Ray Tune's function: trains a member from its last checkpoint, or that of the member that it takes over, to the
    end. Every interval it reports a checkpoint, and Ray Tune may end it there to go on otherwise.

    Args:
        config: whose values it has, and the strength that its pace goes to.
        plan: of the row.
        parts: training and validation items.
        begin: all members as they began.
        interval: epochs between takeovers.
    """
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    member = begin[config[ORIGIN]]
    run = plan.run_of(f"member-{member_number(tune.get_context().get_trial_id()):02d}", member.values)
    store, epochs = Store(plan.config.store), plan.config.train.epochs
    store.clear(run.folder)
    schedule, done = _restored(store, run.folder, member)
    schedule = extended(schedule, config[STRENGTH], done, interval, epochs)
    task = plan.task(run, values_with(member.values, schedule))
    task = dataclasses.replace(task, settings=dataclasses.replace(task.settings, keep="last", patience=None))
    task.write_items(*parts)
    last = {ACCURACY: 0.0}

    def on_epoch(record: dict[str, Any]) -> None:
        epoch = record["epoch"]
        last[ACCURACY] = record["validation"]["fused"]["accuracy"]
        if epoch % interval == 0 and epoch < epochs:
            _report_checkpoint(store, task, schedule, {EPOCH: epoch, **last})

    try:
        result = task.run(on_epoch=on_epoch)
        probes = probe_on_validation(task)
        result |= {"probes": probes, "gap": gap_of(probes, plan.alone)}
    except DivergedError as error:
        # The worst accuracy there is, until it takes over another.
        due = (len(task.history()) // interval + 1) * interval
        if due < epochs:
            _report_checkpoint(store, task, schedule, {EPOCH: due, ACCURACY: 0.0})
        result = {"diverged": str(error), "history": task.history(), "epoch": 0}
        last[ACCURACY] = 0.0
    finally:
        memory.give_back()
    ended = {**result, "schedule": [list(knot) for knot in schedule], "values": member.values}
    store.write_yaml(f"{run.folder}/{ENDED}", ended)
    # Without an epoch: after the last one nobody takes over.
    tune.report(dict(last))


def member_number(trial_id: str) -> int:
    """Returns which member a trial of Ray Tune is."""
    return int(trial_id.rpartition("_")[2])


def _report_checkpoint(store: Store, task: TrainTask, schedule: Schedule, metrics: dict[str, Any]) -> None:
    """Reports what another member would go on from."""
    done = Checkpoints(store, task.folder).epochs("epoch")
    with tempfile.TemporaryDirectory() as folder:
        here = Store(folder)
        here.write_yaml(SCHEDULE, {"schedule": [list(knot) for knot in schedule], "epoch": done[-1] if done else 0})
        for epoch in done[-1:]:
            name = f"epoch-{epoch:04d}.safetensors"
            here.write_bytes(name, store.read_bytes(f"{task.folder}/{name}"))
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def _restored(store: Store, folder: str, member: Member) -> tuple[Schedule, int]:
    """Puts the checkpoint that Ray Tune hands to a member into its folder; returns (schedule so far, epochs done)."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return [(0.0, member.strength)], 0
    with checkpoint.as_directory() as path:
        facts = Store(path).read_yaml(SCHEDULE)
        for file in Path(path).glob("epoch-*.safetensors"):
            store.write_bytes(f"{folder}/{file.name}", file.read_bytes())
    return [(at, strength) for at, strength in facts["schedule"]], facts["epoch"]


class _Recorded:
    """Keeps who took over whom, in the store; mixed into Ray Tune's schedulers."""

    def __init__(self, *, record: str, name: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.record = record
        self.name = name

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        before = trial.config[STRENGTH]
        super()._exploit(tune_controller, trial, trial_to_clone)  # type: ignore[misc]
        states = self._trial_state  # type: ignore[attr-defined]
        event = {
            "epoch": int(states[trial].last_train_time),
            "member": member_number(trial.trial_id),
            "from": member_number(trial_to_clone.trial_id),
            "accuracy": float(states[trial].last_score),
            "accuracy_of_from": float(states[trial_to_clone].last_score),
            "strength": float(before),
            "strength_of_from": float(trial_to_clone.config[STRENGTH]),
            "new_strength": float(trial.config[STRENGTH]),
        }
        store = Store(self.record)
        events = store.read_yaml(self.name) if store.exists(self.name) else []
        store.write_yaml(self.name, [*events, event])
        log.info(
            "epoch %d: member %d (%.1f%%) takes over member %d (%.1f%%); strength %.2f of that one becomes %.2f",
            event["epoch"], event["member"], 100 * event["accuracy"], event["from"], 100 * event["accuracy_of_from"],
            event["strength_of_from"], event["new_strength"],
        )  # fmt: skip


class _PBT(_Recorded, PopulationBasedTraining):
    """PBT that is recorded."""


class _PB2(_Recorded, PB2):
    """PB2 that is recorded."""


def _stepped(config: dict[str, Any]) -> dict[str, Any]:
    """Moves a strength by a step to either side, inwards at the ends: factors, as PBT has them, would leave 0 at 0."""
    before = float(config[STRENGTH])
    sides = [after for after in (before - STEP, before + STEP) if 0 <= after <= 1]
    return {**config, STRENGTH: random.choice(sides)}


def exploits_of(row: str) -> str:
    """Returns the name of the record of who took over whom."""
    return f"trials/{row}/exploits.yaml"


def scheduler(kind: str, interval: int, share: float, store: Store, row: str) -> PopulationBasedTraining:
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
        "record": store.root,
        "name": exploits_of(row),
    }
    if kind == "pb2":
        return _PB2(hyperparam_bounds={STRENGTH: [0.0, 1.0]}, **common)
    mutations = {STRENGTH: tune.uniform(0.0, 1.0)}
    return _PBT(hyperparam_mutations=mutations, perturbation_factors=(1.0, 1.0), custom_explore_fn=_stepped, **common)


def populate(plan: Plan, parts: tuple[Labelled, Labelled], store: Store) -> RowFound:
    """Runs what is left of a row's population; its trials are the members, with their schedules among the values.

    Raises:
        RaybalError: a member could not be run.
    """
    config, row = plan.config, plan.row
    settings, epochs = config.population, config.train.epochs
    interval = settings.interval or max(1, round(epochs / 5))
    names = [f"trials/{row}/member-{k:02d}/0/{ENDED}" for k in range(settings.members)]
    if not all(store.exists(name) for name in names):
        begin = members(
            plan.space, plan.first_values(), settings.members, hashing.digest(config.seed, "population", row)
        )
        log.info("%s: a population of %d members, %d epochs, takeovers every %d", row, len(begin), epochs, interval)
        check(_tuner(plan, parts, begin, store, interval).fit(), row)
    found, schedules = [], {}
    for number, name in enumerate(names):
        ended = store.read_yaml(name)
        schedules[number] = [(at, strength) for at, strength in ended["schedule"]]
        accuracies = {r["epoch"]: r["validation"]["fused"]["accuracy"] for r in ended["history"]}
        result = {"diverged": ended["diverged"]} if "diverged" in ended else _result(ended)
        found.append(Found(number, values_with(ended["values"], schedules[number]), accuracies, result))
    exploits = store.read_yaml(exploits_of(row)) if store.exists(exploits_of(row)) else []
    return RowFound(row, plan.own.method, plan.space, found, [], exploits=exploits, schedules=schedules)


def _result(ended: dict[str, Any]) -> dict[str, Any]:
    last = ended["history"][-1]["validation"]["fused"]
    seconds = round(sum(r["seconds"] for r in ended["history"]), 3)
    kept = {key: ended[key] for key in ("epoch", "probes", "gap")}
    return {**kept, "seconds": seconds, "nll": last["nll"]}


def _tuner(
    plan: Plan, parts: tuple[Labelled, Labelled], begin: Sequence[Member], store: Store, interval: int
) -> tune.Tuner:
    """Returns the population of a row."""
    config, row = plan.config, plan.row
    resources, _ = trial_options(config.train, config.resources)
    set_defaults()
    trainable = tune.with_resources(
        tune.with_parameters(run_member, plan=plan, parts=parts, begin=list(begin), interval=interval), resources
    )
    # A population is one run: a driver that was lost in the middle of it begins it again.
    store.clear(f"ray/population-{row}")
    store.clear(f"trials/{row}")
    random.seed(hashing.digest(config.seed, "population", row))
    settings = config.population
    points = [{ORIGIN: k, STRENGTH: member.strength} for k, member in enumerate(begin)]
    return tune.Tuner(
        trainable,
        param_space={ORIGIN: tune.choice(list(range(len(begin)))), STRENGTH: tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(
            scheduler=scheduler(settings.scheduler, interval, settings.share, store, row),
            # No limit of trials: those that it would keep waiting are members, without whom nobody takes over.
            search_alg=BasicVariantGenerator(points_to_evaluate=points),
            num_samples=len(begin),
            reuse_actors=True,
        ),
        run_config=run_config(f"population-{row}", plan, store, fence(plan, store)),
    )
