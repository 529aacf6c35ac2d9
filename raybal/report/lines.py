"""The numbers that the report's figures show: lines against labels, rounds and epochs, and seconds of phases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raybal.report.data import FUSED, ExperimentRecord, RoundRecord
from raybal.rounds import PHASES

#: Rounds shown over each other in a training figure; more would be a haze.
OVERLAID = 8

Stroke = Literal["solid", "dashed", "dashdot"]


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Attributes:
        name: of what it shows.
        x, y: its points.
        head: "fused" or a modality, which gives colour and marker.
        round: it belongs to, where a figure overlays rounds.
        stroke: what tells it from other lines of the same head.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    head: str
    round: int | None = None
    stroke: Stroke = "solid"


def accuracy_lines(experiment: ExperimentRecord, names: Sequence[str], metric: str) -> list[Line]:
    """Returns a test metric of each head against the number of labels."""
    lines = []
    for head in (FUSED, *names):
        points = [(r.labels, r.test[head][metric]) for r in experiment.tested() if r.test and r.test.get(head)]
        if points:
            lines.append(Line(head, *_columns(points), head))
    return lines


def contribution_lines(experiment: ExperimentRecord, names: Sequence[str], of: str) -> list[Line]:
    """Returns each modality's share in the predictions of each round's model: over the query that was chosen with it,
    over the pool that it was chosen from and, of contributions, over the test or validation items.

    Args:
        of: "contribution" (mean share of the prediction) or "dominated" (share of items that it dominates).
    """
    query, pool, own = {}, {}, {}
    for r, chosen in experiment.queries():
        shares = chosen.mean_contribution() if of == "contribution" else chosen.dominated()
        model = experiment.model_before(r)
        if model is not None and shares is not None:
            query[model.number] = shares
        if model is not None and r.pool:
            pool[model.number] = r.pool[of]
    part = experiment.measured_on
    if part and of == "contribution":
        own = {r.number: r.contributions[part] for r in experiment.rounds if part in r.contributions}
    kinds: list[tuple[str, Stroke, dict[int, list[float]]]] = [
        ("query", "solid", query),
        ("pool", "dashed", pool),
        (f"{part} items", "dashdot", own),
    ]
    return [
        Line(f"{m} in the {where}", *_columns([(n, shares[k]) for n, shares in found.items()]), m, stroke=stroke)
        for k, m in enumerate(names)
        for where, stroke, found in kinds
        if found
    ]


def training_lines(experiment: ExperimentRecord, names: Sequence[str], of: str) -> list[Line]:
    """Returns a quantity over the epochs of the newest rounds, oldest first.

    Args:
        of: "loss", "validation" (accuracy of each head), or what the method recorded.
    """
    lines = []
    for r in [r for r in experiment.rounds if r.history][-OVERLAID:]:
        for head in (FUSED, *names):
            points = [
                (record["epoch"], value)
                for record in r.history
                if (value := value_of(record, of, head, names)) is not None
            ]
            if points:
                name = of if head == FUSED and of in ("loss", "pace") else head
                lines.append(Line(f"{name}, round {r.number}", *_columns(points), head, round=r.number))
    return lines


def value_of(record: dict[str, Any], of: str, head: str, names: Sequence[str]) -> float | None:
    """Returns a quantity of a head in an epoch's record; None where it has none.

    Args:
        of: "validation" (accuracy), or what training recorded: a number, of the fused head, one a modality, or those
            and at last one of the fused head.
        head: "fused" or a modality.
        names: all modalities.
    """
    if of == "validation":
        metrics = record["validation"].get(head) if record["validation"] else None
        return metrics["accuracy"] if metrics else None
    value = record.get(of)
    heads = (*names, FUSED) if isinstance(value, list) else (FUSED,)
    found = dict(zip(heads, value if isinstance(value, list) else [value], strict=False)).get(head)
    return found if found is not None and math.isfinite(found) else None


def phase_seconds(experiment: ExperimentRecord) -> list[tuple[int, list[float | None]]]:
    """Returns (round, seconds of each phase or None before its end) of the rounds that have a finished phase."""
    return [(r.number, [_seconds(r, phase) for phase in PHASES]) for r in experiment.rounds if r.facts]


def _seconds(r: RoundRecord, phase: str) -> float | None:
    return r.facts[phase].get("seconds") if phase in r.facts else None


def _columns(points: Sequence[tuple[float | None, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(float(a or 0) for a, _ in points), tuple(float(b) for _, b in points)
