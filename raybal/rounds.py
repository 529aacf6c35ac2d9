"""Rounds in the store: which there are, how far each one is, and what it asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raybal.store import Store

PHASES = ("score", "select", "ask", "tune", "train", "evaluate")
MODEL = "model.safetensors"
#: Says why the last start ended, if nobody is to be waited for.
ENDED = "ended.yaml"
#: What the names of score files of labelled items begin with.
LABELLED = "labelled-"


#: Settings that a tuning has set, plain, by section ("balancing", "train").
TunedSettings = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Round:
    """One round of an experiment, in its folder of the store.

    rounds/003/scores/<shard>.parquet, labelled-<shard>.parquet
    rounds/003/query.parquet         the items asked for, with the reason for each
    rounds/003/train/                items, checkpoints, model
    rounds/003/<phase>.yaml          the phase's marker: what it did and how long it took
    """

    store: Store
    number: int

    @property
    def folder(self) -> str:
        """The round's folder."""
        return f"rounds/{self.number:03d}"

    @property
    def scores(self) -> str:
        """The folder of its scored shards."""
        return f"{self.folder}/scores"

    @property
    def training(self) -> str:
        """The folder of its training run."""
        return f"{self.folder}/train"

    @property
    def model(self) -> str:
        """The name of its model."""
        return f"{self.training}/{MODEL}"

    @property
    def before(self) -> Round:
        """The round before it."""
        return Round(self.store, self.number - 1)

    @property
    def trained_before(self) -> Round | None:
        """The newest of the rounds before it that left a model; None where nothing could be trained yet."""
        earlier = (Round(self.store, number) for number in reversed(range(self.number)))
        return next((r for r in earlier if self.store.exists(r.model)), None)

    @property
    def model_before(self) -> str | None:
        """The name of the newest model of the rounds before it."""
        return None if self.trained_before is None else self.trained_before.model

    def done(self, phase: str) -> bool:
        """Returns whether a phase is finished."""
        return self.store.exists(f"{self.folder}/{phase}.yaml")

    def facts(self, phase: str) -> dict[str, Any]:
        """Returns what a finished phase reported."""
        return self.store.read_yaml(f"{self.folder}/{phase}.yaml")

    def finish(self, phase: str, facts: dict[str, Any]) -> None:
        """Marks a phase as finished."""
        self.store.write_yaml(f"{self.folder}/{phase}.yaml", facts)

    def query(self) -> pa.Table:
        """Returns the items asked for."""
        return self.store.read_table(f"{self.folder}/query.parquet")

    def predictions(self, shards: Sequence[str]) -> pa.Table:
        """Returns id and predicted (class index) of the candidates scored in some shards."""
        files = [f"{self.scores}/{shard}.parquet" for shard in shards]
        return pa.concat_tables([self.store.read_table(file, columns=["id", "predicted"]) for file in files])

    def trained_on(self) -> dict[str, str]:
        """Returns the part ("train" or "validation") of each item of its training run, by id; none without a run."""
        if not self.store.exists(f"{self.training}/items.parquet"):
            return {}
        table = self.store.read_table(f"{self.training}/items.parquet", columns=["id", "part"])
        return dict(zip(table["id"].to_pylist(), table["part"].to_pylist(), strict=True))


def rounds_of(store: Store) -> list[Round]:
    """Returns the rounds that have begun, in order."""
    return [Round(store, int(name)) for name in store.names("rounds") if name.isdigit()]


def asked_in(store: Store, before: int | None = None) -> list[str]:
    """Returns the ids of all queries, or of those before a round, in the order in which they were asked for."""
    rounds = [r for r in rounds_of(store) if before is None or r.number < before]
    return [i for r in rounds if r.done("select") for i in r.query()["id"].to_pylist()]


def settings_in_force(current: Round) -> TunedSettings:
    """Returns what the newest tuning up to a round has set, plain, by section; nothing where there was none."""
    for number in range(current.number, -1, -1):
        found = Round(current.store, number)
        if found.done("tune") and (settings := found.facts("tune").get("settings")):
            return settings
    return {}


def seconds_left(current: Round, share: float) -> float:
    """Returns how many seconds of tuning make up a share of the loop's time so far, beyond what tuning has had."""
    spent = {"tune": 0.0, "else": 0.0}
    for number in range(current.number + 1):
        one = Round(current.store, number)
        for phase in PHASES:
            if one.done(phase):
                spent["tune" if phase == "tune" else "else"] += one.facts(phase)["seconds"]
    return share / (1 - share) * spent["else"] - spent["tune"]
