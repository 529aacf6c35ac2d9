"""What a store says, as plain structures: everything that the report and the event files show comes from here.

Only finished phases count: a phase without its marker left nothing that may be relied on. Labels are those of the
journal, which were asked for; the pool's own label sidecar stays shut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raybal.labelling.journal import Journal, Labels
from raybal.rounds import ENDED, PHASES, Round, rounds_of
from raybal.store import Store

FUSED = "fused"
MANIFEST = "manifest"  # the source of labels that were there from the start
CONTRIBUTION = "contribution_"
SCORE = "score_"
PARTS = ("test", "validation")  # over which a model's own contributions are measured; the first counts for more


@dataclass(frozen=True)
class QueryRecord:
    """The items asked for in one round, in order of choice.

    Attributes:
        modalities: their names, in the order of the contributions.
        ids: of the items.
        reason: why each was chosen.
        score: the strategy's number for each.
        parts: what the score of each is made of, by name.
        predicted: class index that the model they were chosen with predicted; None if there was no model yet.
        confidence: of that prediction, or None.
        contribution: each modality's share of the prediction [n, M]; nan where there was no model.
        stands_for: number of candidates that were nearer to it than to the others of the query, or None.
        nearest_labelled: id of the labelled item that was nearest, or None.
    """

    modalities: list[str]
    ids: list[str]
    reason: list[str]
    score: list[float]
    parts: list[dict[str, float]]
    predicted: list[int | None]
    confidence: list[float | None]
    contribution: NDArray[np.float64]
    stands_for: list[int | None]
    nearest_labelled: list[str | None]

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
class RoundRecord:
    """One round.

    Attributes:
        number: from 0.
        facts: what each finished phase reported, by phase.
        query: the items asked for, once they are selected.
    """

    number: int
    facts: dict[str, dict[str, Any]]
    query: QueryRecord | None

    @property
    def has_model(self) -> bool:
        """Whether training left a model: none where no item asked for so far could be labelled."""
        return self.facts.get("train", {}).get("epoch") is not None

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
        """What the candidates looked like to the model they were scored with; None if there was no model yet."""
        return self.facts.get("select", {}).get("pool") or None

    @property
    def balance(self) -> dict[str, Any] | None:
        """How balanced the query was beside the candidates; None if there was no model yet."""
        return self.facts.get("select", {}).get("balance") or None

    @property
    def contributions(self) -> dict[str, list[float]]:
        """Mean contribution of each modality to the predictions of the round's own model [M], over its labelled "test"
        and "validation" items, as far as there are some."""
        found = self.facts.get("evaluate", {}).get("contribution") or {}
        return {part: found[part] for part in PARTS if found.get(part)}


@dataclass(frozen=True)
class ExperimentRecord:
    """A store's content.

    Attributes:
        begun: `experiment.yaml`, empty if it is not there yet: what the store was begun with, and the settings and the
            version of its last start.
        rounds: those that have begun, in order.
        labels: what the journal says.
        initial: ids whose labels were there from the start.
        sheets: names of the query sheets.
        ended: why the loop ended, or None if it has not.
    """

    begun: dict[str, Any]
    rounds: list[RoundRecord]
    labels: Labels = field(default_factory=Labels)
    initial: frozenset[str] = frozenset()
    sheets: list[str] = field(default_factory=list)
    ended: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the last start."""
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

    @property
    def cost(self) -> float:
        """What they cost of the label budget."""
        return sum(r.facts["select"].get("cost", len(query.ids)) for r, query in self.queries())

    @property
    def measured_on(self) -> str | None:
        """The items over which contributions to the rounds' own models are shown: "test", or else "validation"."""
        return next((part for part in PARTS if any(part in r.contributions for r in self.rounds)), None)

    def queries(self) -> Iterator[tuple[RoundRecord, QueryRecord]]:
        """Yields the rounds that have a query, with it."""
        for r in self.rounds:
            if r.query is not None:
                yield r, r.query

    def tested(self) -> list[RoundRecord]:
        """Returns the rounds whose model was evaluated on test labels."""
        return [r for r in self.rounds if r.test is not None]

    def model_before(self, r: RoundRecord) -> RoundRecord | None:
        """Returns the newest round before one that left a model: that of its scores and predictions."""
        return next((b for b in reversed(self.rounds) if b.number < r.number and b.has_model), None)

    def class_name(self, index: int) -> str:
        """Returns a class's name."""
        return self.classes[index] if index < len(self.classes) else f"class {index}"


def read_experiment(store: Store) -> ExperimentRecord:
    """Reads everything but models and scores from a store, which may be part way or empty."""
    journal = Journal(store)
    return ExperimentRecord(
        begun=store.read_yaml("experiment.yaml") if store.exists("experiment.yaml") else {},
        rounds=[_read_round(r) for r in rounds_of(store)],
        labels=journal.read(),
        initial=frozenset(a.id for a in journal.answers() if a.source == MANIFEST),
        sheets=store.names("sheets"),
        ended=store.read_yaml(ENDED)["why"] if store.exists(ENDED) else None,
    )


def _read_round(r: Round) -> RoundRecord:
    # One listing instead of a question a phase: on an object store each is a request.
    found = set(r.store.names(r.folder))
    facts = {phase: r.facts(phase) for phase in PHASES if f"{phase}.yaml" in found}
    return RoundRecord(r.number, facts, _query(r.query()) if "select" in facts else None)


def _query(table: pa.Table) -> QueryRecord:
    shares = [c for c in table.column_names if c.startswith(CONTRIBUTION)]
    columns = [table[c].to_numpy().astype(np.float64) for c in shares]
    return QueryRecord(
        modalities=[c.removeprefix(CONTRIBUTION) for c in shares],
        ids=table["id"].to_pylist(),
        reason=table["reason"].to_pylist(),
        score=table["score"].to_pylist(),
        parts=_parts(table),
        predicted=table["predicted"].to_pylist(),
        confidence=table["confidence"].to_pylist(),
        contribution=np.stack(columns, 1) if columns else np.zeros((len(table), 0)),
        stands_for=_if_there(table, "stands_for"),
        nearest_labelled=_if_there(table, "nearest_labelled"),
    )


def _parts(table: pa.Table) -> list[dict[str, float]]:
    names = [c for c in table.column_names if c.startswith(SCORE)]
    rows = table.select(names).to_pylist() if names else [{}] * len(table)
    return [{n.removeprefix(SCORE): v for n, v in row.items() if v is not None} for row in rows]


def _if_there(table: pa.Table, column: str) -> list[Any]:
    """Returns a column that stores of earlier versions do not have."""
    return table[column].to_pylist() if column in table.column_names else [None] * len(table)


def heads_of(test: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the metrics of those heads that have some, by name."""
    return {head: metrics for head, metrics in test.items() if isinstance(metrics, dict)}


def place(store: Store, name: str = "") -> str:
    """Returns where a file of the store is, as people write it: a path, or a URI without options."""
    if "://" not in store.root:
        return store.path(name)
    root = store.root.partition("?")[0].rstrip("/")
    return f"{root}/{name}" if name else root
