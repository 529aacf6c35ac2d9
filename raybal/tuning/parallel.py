"""Parallel coordinates: one axis a searched key, one line a trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from raybal.report import svg
from raybal.tuning.charts import CHOSEN, SHADES, Drawing, Mark, label_of, ramp, shortened, states_of
from raybal.tuning.spaces import Dimension, Space
from raybal.tuning.summary import Found, RowFound
from raybal.tuning.values import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Keys in one figure.
MOST = 16
#: Inches of the figure, which takes the whole width of the page.
WHOLE = (12.3, 3.5)


@dataclass(frozen=True)
class Axis:
    """One axis of the figure.

    Attributes:
        name: at its head.
        at: maps a trial to its height from 0 to 1; None where the trial has no such value.
        ticks: heights and what is written there.
    """

    name: str
    at: Callable[[Found], float | None]
    ticks: list[tuple[float, str]]


def searched(space: Space) -> list[str]:
    """Returns the keys of a space that have more than one value."""
    return [
        key
        for key, dimension in space.items()
        if (len(dimension.values) > 1 if dimension.kind == "choice" else dimension.bounds[0] < dimension.bounds[1])
    ]


def parallel_charts(row: RowFound) -> list[Drawing]:
    """Draws all trials over the searched keys, in as many figures as keep them readable; none where all are fixed."""
    keys = searched(row.space)
    size = math.ceil(len(keys) / max(1, math.ceil(len(keys) / MOST)))
    parts = [keys[i : i + size] for i in range(0, len(keys), size)] if keys else []
    return [_chart(row, part, f"{i} of {len(parts)}" if len(parts) > 1 else "") for i, part in enumerate(parts, 1)]


def _chart(row: RowFound, keys: Sequence[str], part: str) -> Drawing:
    lines = [_accuracy_axis(row), *(_axis(key, row.space[key]) for key in keys)]
    width, height = WHOLE
    chosen = row.chosen
    with svg.canvas(width, height) as (figure, axes):
        axes.set_position((0.5 / width, 0.12 / height, 1 - 1.2 / width, 1 - 0.75 / height))
        axes.set_axis_off()
        axes.set_xlim(0, len(lines) - 1)
        axes.set_ylim(-0.03, 1.03)
        for x, axis in enumerate(lines):
            _draw_axis(axes, x, axis)
        for trial in sorted(row.trials, key=lambda t: (t.state != "diverged", t.accuracy)):
            xs, ys = _path([axis.at(trial) for axis in lines])
            if trial is chosen:
                style: dict[str, Any] = {"color": CHOSEN, "linewidth": 2.4, "zorder": 5}
            elif trial.state == "diverged":
                style = {"color": svg.MUTED, "linewidth": 0.8, "dashes": (3, 2), "zorder": 2}
            else:
                shade = svg.phase_colour(ramp(_shade(trial, row.trials)))
                style = {"color": shade, "linewidth": 1.2 if trial.state == "finished" else 0.8, "zorder": 3}
            (line,) = axes.plot(xs, ys, clip_on=False, **style)
            line.set_gid(f"{svg.SERIES}trial-{trial.number}")
        values = ", ".join(f"{label_of(k)} {shown(chosen.values[k])}" for k in keys if k in chosen.values)
        names = ", ".join(map(label_of, keys))
        label = f"Searched keys of {len(row.trials)} trials, an axis a key: {names}. Trial {chosen.number}, chosen: "
        found = svg.to_svg(figure, f"{label}{values or 'none of these'}.")
    legend: list[tuple[Mark, str]] = [("ramp", "fifths of the trials, least to most accurate"), ("picked", "chosen")]
    if states_of(row)["diverged"]:
        legend.append(("broken", "diverged"))
    return Drawing(f"Values of each trial{f', {part}' if part else ''}", found, tuple(legend))


def _accuracy_axis(row: RowFound) -> Axis:
    values = [t.accuracy for t in row.trials if t.state != "diverged"]
    low, high = min(values), max(values)

    def at(trial: Found) -> float | None:
        if trial.state == "diverged":
            return None
        return (trial.accuracy - low) / (high - low) if high > low else 0.5

    ends = [(0.0, low), (1.0, high)] if high > low else [(0.5, high)]
    return Axis("accuracy", at, [(y, f"{100 * value:.1f}%") for y, value in ends])


def _axis(key: str, dimension: Dimension) -> Axis:
    """Returns the axis of a key: choices at even distances, numbers on a linear or a logarithmic scale."""
    if dimension.kind == "choice":
        values = dimension.values
        ticks = [((i + 0.5) / len(values), shortened(shown(v), 12)) for i, v in enumerate(values)]
        return Axis(
            label_of(key),
            lambda t: (values.index(t.values[key]) + 0.5) / len(values) if key in t.values else None,
            ticks[:: math.ceil(len(ticks) / 10)],
        )
    scale: Callable[[float], float] = math.log if dimension.kind == "loguniform" else float
    low, high = dimension.bounds

    def height(value: float) -> float:
        return (scale(value) - scale(low)) / (scale(high) - scale(low))

    between: list[float] = [(low + high) / 2] if dimension.kind == "uniform" else []
    if dimension.kind == "loguniform":
        between = [10.0**e for e in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    marks = [low, *(v for v in between if 0.12 < height(v) < 0.88), high]
    return Axis(
        label_of(key),
        lambda t: height(t.values[key]) if key in t.values else None,
        [(height(v), f"{v:.3g}") for v in marks],
    )


def _draw_axis(axes: Axes, x: int, axis: Axis) -> None:
    (line,) = axes.plot([x, x], [0, 1], color=svg.MUTED, linewidth=0.8, zorder=1, clip_on=False)
    line.set_gid(f"{svg.SERIES}axis-{x}")
    # All lines go to the right from the first axis.
    side: dict[str, Any] = {"xytext": (4, 0), "ha": "left"} if x else {"xytext": (-4, 0), "ha": "right"}
    for y, text in axis.ticks:
        axes.annotate(
            text, (x, y), **side, textcoords="offset points", va="center", fontsize=8, color=svg.MUTED, zorder=6
        )
    axes.annotate(
        _broken(axis.name), (x, 1), (0, 9), textcoords="offset points", ha="center", va="bottom", fontsize=8.5
    )


def _broken(name: str) -> str:
    """Returns a key in short lines: it stands over its axis, and the next one is near."""
    lines = [""]
    for piece in name.replace(".", ".\n").replace("_", "_\n").splitlines():
        joined = lines[-1] + piece
        if lines[-1] and (lines[-1].endswith(".") or len(joined) > 11):
            lines.append(piece)
        else:
            lines[-1] = joined
    return "\n".join(shortened(line, 13) for line in lines[-3:])


def _path(heights: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Returns a line with gaps; a value between two gaps is a short dash."""
    xs: list[float] = []
    ys: list[float] = []
    for missing, run in groupby(enumerate(heights), key=lambda point: point[1] is None):
        points = [(float(x), math.nan if y is None else y) for x, y in run]
        if not missing and len(points) == 1:
            (x, y) = points[0]
            points = [(x - 0.08, y), (x + 0.08, y)]
        xs += [x for x, _ in points]
        ys += [y for _, y in points]
    return xs, ys


def _shade(trial: Found, trials: Sequence[Found]) -> int:
    """Returns in which fifth of the trials with an accuracy one is, 4 for the best."""
    ranked = [t.accuracy for t in trials if t.state != "diverged"]
    return SHADES - 1 - SHADES * sum(a > trial.accuracy for a in ranked) // len(ranked)
