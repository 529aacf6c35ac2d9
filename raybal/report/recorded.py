"""Figures of what a balancing method did, epoch by epoch, for all reports that show training runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybal.report.figures import Chart, Level, line_chart
from raybal.report.lines import Line


@dataclass(frozen=True)
class Recorded:
    """A quantity that methods record.

    Attributes:
        name: in an epoch's record.
        title: of its figure.
        level: value that stands for no change, if there is one.
        top: the figure's end, for a share; None for a plain number.
    """

    name: str
    title: str
    level: float | None = None
    top: float | None = None


#: How quantities are drawn that are not plain numbers under their own names.
RECORDED = (
    Recorded("coefficient", "Coefficient of each modality", level=1.0),
    Recorded("ahead", "Share of steps in which each modality is ahead", top=1.0),
    Recorded("loss_weight", "Weight of each loss", level=1.0),
    Recorded("prototype_weight", "Weight of each prototype loss"),
    Recorded("fused_weight", "Weight of the fused gradient in each encoder", top=1.0),
    Recorded("held_back", "Share of steps with gates held back", top=1.0),
    Recorded("influence", "Influence on the fused prediction (nats)"),
    Recorded("reinit_strength", "Pull towards the initial weights", top=1.0),
    Recorded("purity_train", "Purity of clusters of training items", top=1.0),
    Recorded("purity_held_out", "Purity of clusters of held-out items", top=1.0),
)


def recorded_charts(
    histories: Iterable[Sequence[Mapping[str, Any]]], lines_of: Callable[[str], list[Line]], names: Sequence[str]
) -> tuple[list[Chart], list[str]]:
    """Returns figures of what was recorded, and what is said instead of one.

    Args:
        histories: epochs' records of all training runs; every quantity in them that has a value a modality is drawn.
        lines_of: maps the name of a quantity to its lines; none where it was not recorded.
        names: the modalities, in the order of their colours.
    """
    charts, notes = [], []
    records = [record for history in histories for record in history]
    found = {k for record in records for k, v in record.items() if isinstance(v, list) and _is_row(v)}
    known = {one.name for one in RECORDED}
    others = [Recorded(k, k.replace("_", " ").capitalize()) for k in sorted(found - known - {"pace"})]
    for one in (*RECORDED, *others):
        lines = lines_of(one.name)
        if lines:
            levels = [] if one.level is None else [Level(one.level)]
            charts.append(
                line_chart(
                    one.title,
                    lines,
                    names,
                    x="epoch",
                    top=one.top,
                    levels=levels,
                    level="no change" if levels else None,
                    small=True,
                )
            )
    pace = lines_of("pace")
    strengths = {v for line in pace for v in line.y}
    if len(strengths) > 1:
        charts.append(line_chart("Pace", pace, names, x="epoch", top=1.0, small=True))
    elif strengths:
        notes.append(f"The pace is {strengths.pop():g} throughout (1: the method acts as published, 0: not at all).")
    return charts, notes


def _is_row(values: list[Any]) -> bool:
    return all(isinstance(v, (int, float)) for v in values)
