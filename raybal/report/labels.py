"""What the report says about labels: answers by round, counts by class, conflicts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from raybal.labelling.table import CANNOT_LABEL
from raybal.report.data import ExperimentRecord

CLASSES = 60
CONFLICTS = 50


@dataclass(frozen=True)
class LabelRound:
    """What became of one round's query.

    Attributes:
        name: of the round, or of the labels that were there from the start.
        asked, labelled, cannot_label, unanswered, conflicts: numbers of items.
        sheet: name of its query sheet, if it has one.
    """

    name: str
    asked: int
    labelled: int
    cannot_label: int
    unanswered: int
    conflicts: int
    sheet: str | None


@dataclass(frozen=True)
class ClassCount:
    """Labels of one class: in all, and by the rounds in which they were asked for (the first: from the start)."""

    name: str
    total: int
    parts: list[int]


@dataclass(frozen=True)
class ClassCounts:
    """Labels by class.

    Attributes:
        shown: classes in the order of the class list; those with most labels where there are too many.
        left_out: number of classes with labels that are not shown.
        none: classes without a label.
        rounds: names of the parts of each count.
        most: labels of the commonest class.
        widest: characters of the longest name shown.
    """

    shown: list[ClassCount]
    left_out: int
    none: list[str]
    rounds: list[str]
    most: int
    widest: int


@dataclass(frozen=True)
class Conflict:
    """An item whose answers differ: its answers as (answer, source), and the one that stands meanwhile."""

    id: str
    answers: list[tuple[str, str]]
    standing: str


def label_rounds(experiment: ExperimentRecord) -> list[LabelRound]:
    """Returns what became of each round's query, after the labels that were there from the start."""
    found = []
    if experiment.initial:
        found.append(_round(experiment, "from the start", sorted(experiment.initial), None))
    for r, query in experiment.queries():
        sheet = next((s for s in experiment.sheets if s.startswith(f"round-{r.number:03d}.")), None)
        found.append(_round(experiment, str(r.number), query.ids, sheet))
    return found


def _round(experiment: ExperimentRecord, name: str, ids: list[str], sheet: str | None) -> LabelRound:
    labels = experiment.labels
    answered = [i for i in ids if i in labels.label]
    labelled = sum(labels.label[i] is not None for i in answered)
    return LabelRound(
        name=name,
        asked=len(ids),
        labelled=labelled,
        cannot_label=len(answered) - labelled,
        unanswered=len(ids) - len(answered),
        conflicts=sum(i in labels.conflicts for i in ids),
        sheet=sheet,
    )


def class_counts(experiment: ExperimentRecord) -> ClassCounts:
    """Returns the labels that stand, by class and by the round in which they were asked for."""
    groups = [("from the start", list(experiment.initial))] if experiment.initial else []
    groups += [(f"round {r.number}", query.ids) for r, query in experiment.queries()]
    known = experiment.labels.known
    by_round = [Counter(known[i] for i in ids if i in known) for _, ids in groups]
    total: Counter[str] = sum(by_round, Counter())
    # The journal's own names too: a class that left the list would otherwise vanish without a word.
    names = list(dict.fromkeys([*experiment.classes, *total]))
    counts = [ClassCount(name, total[name], [part[name] for part in by_round]) for name in names]
    labelled = [c for c in counts if c.total]
    shown = counts
    if len(counts) > CLASSES:
        most = {c.name for c in sorted(labelled, key=lambda c: -c.total)[:CLASSES]}
        shown = [c for c in labelled if c.name in most]
    return ClassCounts(
        shown=shown,
        left_out=len(labelled) - sum(c.total > 0 for c in shown),
        none=[c.name for c in counts if not c.total],
        rounds=[name for name, _ in groups],
        most=max((c.total for c in counts), default=0),
        widest=max((len(c.name) for c in shown), default=0),
    )


def conflicts_of(experiment: ExperimentRecord) -> list[Conflict]:
    """Returns the first open conflicts."""
    labels = experiment.labels
    return [
        Conflict(i, [(a.label or CANNOT_LABEL, a.source) for a in given], labels.label[i] or CANNOT_LABEL)
        for i, given in list(labels.conflicts.items())[:CONFLICTS]
    ]
