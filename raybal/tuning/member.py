"""One member of a population: a training run that may go on from another's state.

trials/<row>/member-<number>/0/        its training run; member.yaml when it has ended
trials/<row>/member-<number>/at-0006/  what others go on from: its checkpoint and its schedule so far
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune

from raybal.data.pool import Labelled
from raybal.errors import DivergedError
from raybal.store import Store
from raybal.table.cells import probe_on_validation
from raybal.tasks import ready_to_train
from raybal.training.checkpoint import Checkpoints
from raybal.training.task import TrainTask
from raybal.tuning.keys import ACCURACY, EPOCH
from raybal.tuning.spaces import Values
from raybal.tuning.trial import Plan, gap_of

#: Keys of a member's configuration: its number, whose values it has, the strength that its pace goes to, and the
#: folder of the state that it begins with, if any.
MEMBER, ORIGIN, STRENGTH, STATE = "member", "origin", "strength", "state"
SCHEDULE, ENDED = "schedule.yaml", "member.yaml"

# They say at every takeover where Ray Tune's own files lie, before a member's function is called.
for _name in ("ray.tune.trainable.trainable", "ray.train._internal.storage"):
    logging.getLogger(_name).setLevel(logging.WARNING)

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
    """Ray Tune's function: trains a member from its last state, or that of the member that it takes over, to the end.
    Every interval it reports its state, and Ray Tune may end it there to go on otherwise.

    Args:
        config: which member it is, and what its next interval is to be.
        plan: of the row.
        parts: training and validation items.
        begin: all members as they began.
        interval: epochs between takeovers.
    """
    member = begin[config[ORIGIN]]
    run = plan.run_of(f"member-{config[MEMBER]:02d}", member.values)
    store, epochs = Store(plan.config.store), plan.config.train.epochs
    store.clear(run.folder)
    state = _restored(store, run.folder, _state_of(config), member)
    schedule = extended(state.schedule, config[STRENGTH], state.epoch, interval, epochs)
    task = plan.task(run, values_with(member.values, schedule))
    task = dataclasses.replace(task, settings=dataclasses.replace(task.settings, keep="last", patience=None))
    task.write_items(*parts)
    last = {ACCURACY: 0.0}

    def diverged(why: str, due: int) -> dict[str, Any]:
        """Has the worst accuracy there is until another is taken over, or to the end."""
        for epoch in range(due, epochs, interval):
            _report_state(store, task, MemberState(schedule, state.epoch, why), {EPOCH: epoch, ACCURACY: 0.0})
        last[ACCURACY] = 0.0
        return {"diverged": why, "history": task.history(), "epoch": 0}

    def on_epoch(record: dict[str, Any]) -> None:
        epoch = record["epoch"]
        last[ACCURACY] = record["validation"]["fused"]["accuracy"]
        if epoch % interval == 0 and epoch < epochs:
            _report_state(store, task, MemberState(schedule, epoch), {EPOCH: epoch, **last})

    with ready_to_train():
        if state.diverged is not None:
            result = diverged(state.diverged, state.reported + interval)
        else:
            try:
                result = task.run(on_epoch=on_epoch)
                probes = probe_on_validation(task) if plan.alone else {}
                result |= {"probes": probes, "gap": gap_of(probes, plan.alone)}
            except DivergedError as error:
                result = diverged(str(error), (len(task.history()) // interval + 1) * interval)
    ended = {**result, "schedule": [list(knot) for knot in schedule], "values": member.values}
    store.write_yaml(f"{run.folder}/{ENDED}", ended)
    # Without an epoch: after the last one nobody takes over.
    tune.report(dict(last))


def state_folder(row: str, member: int, epoch: int) -> str:
    """Returns the folder of what a member has reached after an epoch."""
    return f"trials/{row}/member-{member:02d}/at-{epoch:04d}"


@dataclass(frozen=True)
class MemberState:
    """What a member has reached, beside its checkpoint.

    Attributes:
        schedule: that it has gone through.
        epoch: that its checkpoint is of.
        diverged: why it was given up, if it was.
        reported: the epoch that it was reported with; one that has diverged reports without training.
    """

    schedule: Schedule
    epoch: int = 0
    diverged: str | None = None
    reported: int = 0


def _report_state(store: Store, task: TrainTask, state: MemberState, metrics: dict[str, Any]) -> None:
    """Keeps what a member, or one that takes it over, goes on from, and reports where it lies: Ray Tune skips takeovers
    of members that report no checkpoint."""
    done = Checkpoints(store, task.folder).epochs("epoch")
    place = f"{task.folder.rpartition('/')[0]}/at-{metrics[EPOCH]:04d}"
    store.clear(place)
    for epoch in done[-1:]:
        name = f"epoch-{epoch:04d}.safetensors"
        store.write_bytes(f"{place}/{name}", store.read_bytes(f"{task.folder}/{name}"))
    facts = dataclasses.asdict(dataclasses.replace(state, reported=metrics[EPOCH]))
    store.write_yaml(f"{place}/{SCHEDULE}", {**facts, "schedule": [list(knot) for knot in state.schedule]})
    with tempfile.TemporaryDirectory() as folder:
        Store(folder).write_yaml("state.yaml", {STATE: place})
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def _state_of(config: dict[str, Any]) -> str | None:
    """Returns the folder of the state that a member goes on from: Ray Tune's word before that of its configuration."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return config[STATE]
    with checkpoint.as_directory() as path:
        return Store(path).read_yaml("state.yaml")[STATE]


def _restored(store: Store, folder: str, place: str | None, member: Member) -> MemberState:
    """Puts the checkpoint of a state into a training run's folder; returns the state."""
    if place is None:
        return MemberState([(0.0, member.strength)])
    for name in store.names(place):
        if name.endswith(".safetensors"):
            store.write_bytes(f"{folder}/{name}", store.read_bytes(f"{place}/{name}"))
    facts = store.read_yaml(f"{place}/{SCHEDULE}")
    return MemberState(**{**facts, "schedule": [(at, strength) for at, strength in facts["schedule"]]})
