"""What a store says, as plain structures: everything that the report and the event files show comes from here.

Only finished phases count: a phase without its marker left nothing that may be relied on. Labels are those of the
journal, which were asked for; the pool's own label sidecar stays shut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raybal.labelling.journal import Journal, Labels
from raybal.store import Store

PHASES = ("score", "select", "ask", "train", "evaluate")
FUSED = "fused"
MANIFEST = "manifest"  # the source of labels that were there from the start
CONTRIBUTION = "contribution_"


@dataclass(frozen=True)
class Query:
    """The items asked for in one round, in order of choice.

    Attributes:
        modalities: their names, in the order of the contributions.
        ids: of the items.
        reason: why each was chosen.
        predicted: class index that the model of the round before predicted; None in a first, random round.
        confidence: of that prediction, or None.
        contribution: each modality's share of the prediction [n, M]; nan where there was no model.
    """

    modalities: list[str]
    ids: list[str]
    reason: list[str]
    predicted: list[int | None]
    confidence: list[float | None]
    contribution: NDArray[np.float64]

    @property
    def known(self) -> NDArray[np.float64]:
        """The contributions of the items that a model looked at [k, M]."""
        return self.contribution[np.isfinite(self.contribution).all(1)]

    def mean_contribution(self) -> list[float] | None:
        """Returns the mean contribution of each modality, or None if there was no model."""
        return self.known.mean(0).tolist() if len(self.known) else None

    def dominated(self) -> list[float] | None:
        """Returns the share of items that each modality dominates (the first of equals, as in the pool's summary), or
        None if there was no model."""
        if not len(self.known):
            return None
        strongest = np.bincount(self.known.argmax(1), minlength=self.known.shape[1])
        return (strongest / len(self.known)).tolist()


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        number: from 0.
        facts: what each finished phase reported, by phase.
        query: the items asked for, once they are selected.
    """

    number: int
    facts: dict[str, dict[str, Any]]
    query: Query | None

    @property
    def test(self) -> dict[str, Any] | None:
        """Test metrics by head, with the number of items; None without an evaluation or without test labels."""
        return self.facts.get("evaluate", {}).get("test")

    @property
    def labels(self) -> int | None:
        """How many labels the round's model learned from (its own validation part included)."""
        return self.facts.get("evaluate", {}).get("labels")

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record an epoch; empty until training is finished."""
        return self.facts.get("train", {}).get("history", [])

    @property
    def pool(self) -> dict[str, Any] | None:
        """What the candidates looked like to the model of the round before; None in a first, random round."""
        return self.facts.get("select", {}).get("pool") or None


@dataclass(frozen=True)
class Experiment:
    """A store's content.

    Attributes:
        begun: `experiment.yaml`, empty if it is not there yet.
        rounds: those that have begun, in order.
        labels: what the journal says.
        initial: ids whose labels were there from the start.
        sheets: names of the query sheets.
    """

    begun: dict[str, Any]
    rounds: list[Round]
    labels: Labels = field(default_factory=Labels)
    initial: frozenset[str] = frozenset()
    sheets: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings with which the store was begun."""
        return self.begun.get("settings", {})

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the class index."""
        return self.begun.get("defines", {}).get("classes", [])

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, as the first query lists them; empty before there is one."""
        return next((query.modalities for _, query in self.queries()), [])

    @property
    def asked(self) -> int:
        """How many items were asked for."""
        return sum(len(query.ids) for _, query in self.queries())

    def queries(self) -> Iterator[tuple[Round, Query]]:
        """Yields the rounds that have a query, with it."""
        for r in self.rounds:
            if r.query is not None:
                yield r, r.query

    def tested(self) -> list[Round]:
        """Returns the rounds whose model was evaluated on test labels."""
        return [r for r in self.rounds if r.test is not None]

    def class_name(self, index: int) -> str:
        """Returns a class's name."""
        return self.classes[index] if index < len(self.classes) else f"class {index}"


def read_experiment(store: Store) -> Experiment:
    """Reads everything but models and scores from a store, which may be part way or empty."""
    journal = Journal(store)
    return Experiment(
        begun=store.read_yaml("experiment.yaml") if store.exists("experiment.yaml") else {},
        rounds=[_read_round(store, name) for name in store.names("rounds")],
        labels=journal.read(),
        initial=frozenset(a.id for a in journal.answers() if a.source == MANIFEST),
        sheets=store.names("sheets"),
    )


def _read_round(store: Store, name: str) -> Round:
    folder = f"rounds/{name}"
    # One listing instead of a question a phase: on an object store each is a request.
    found = set(store.names(folder))
    facts = {phase: store.read_yaml(f"{folder}/{phase}.yaml") for phase in PHASES if f"{phase}.yaml" in found}
    query = _query(store.read_table(f"{folder}/query.parquet")) if "select" in facts else None
    return Round(int(name), facts, query)


def _query(table: pa.Table) -> Query:
    shares = [c for c in table.column_names if c.startswith(CONTRIBUTION)]
    columns = [table[c].to_numpy().astype(np.float64) for c in shares]
    return Query(
        modalities=[c.removeprefix(CONTRIBUTION) for c in shares],
        ids=table["id"].to_pylist(),
        reason=table["reason"].to_pylist(),
        predicted=table["predicted"].to_pylist(),
        confidence=table["confidence"].to_pylist(),
        contribution=np.stack(columns, 1) if columns else np.zeros((len(table), 0)),
    )


def heads_of(test: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the metrics of those heads that have some, by name."""
    return {head: metrics for head, metrics in test.items() if isinstance(metrics, dict)}


def public(text: str) -> str:
    """Drops the name and key that a URI may carry before its host (s3://KEY:SECRET@bucket/...): reports are passed
    on."""
    return re.sub(r"(\w://)[^/\s@]+@", r"\1", text)


def place(store: Store, name: str = "") -> str:
    """Returns where a file of the store is, as people write it: a path, or a URI without keys and options."""
    if "://" not in store.root:
        return store.path(name)
    root = public(store.root.partition("?")[0].rstrip("/"))
    return f"{root}/{name}" if name else root
