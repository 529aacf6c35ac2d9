"""The report's figures: first the numbers (lines and bars), then their drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raybal.report import svg
from raybal.report.data import FUSED, PHASES, Experiment, Round

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Rounds drawn over each other in a training figure; more would be a haze.
OVERLAID = 8
#: Inches of a figure that takes half of the page's width, and of one that takes a third.
WIDE, SMALL = (5.8, 3.0), (4.3, 2.6)


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Attributes:
        name: of what it shows.
        x, y: its points.
        head: "fused" or a modality, which gives colour and marker.
        round: it belongs to, where a figure overlays rounds.
        dashed: whether it is the second of a pair (the pool, beside the query).
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    head: str
    round: int | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        title: what it shows.
        svg: an `<svg>` element.
        heads: those to list in its legend.
        level: name of the dotted line across it, if it has one.
        pair: whether solid lines are the query's and dashed ones the pool's.
    """

    title: str
    svg: str
    heads: tuple[str, ...] = ()
    level: str | None = None
    pair: bool = False


def accuracy_lines(experiment: Experiment, names: Sequence[str], metric: str) -> list[Line]:
    """Returns a test metric of each head against the number of labels."""
    lines = []
    for head in (FUSED, *names):
        points = [(r.labels, r.test[head][metric]) for r in experiment.tested() if r.test and r.test.get(head)]
        if points:
            lines.append(Line(head, *_columns(points), head))
    return lines


def contribution_lines(experiment: Experiment, names: Sequence[str], of: str) -> list[Line]:
    """Returns each modality's share per round, in the query and in the pool it was chosen from.

    Args:
        of: "contribution" (mean share of the prediction) or "dominated" (share of items that it dominates).
    """
    lines = []
    for k, m in enumerate(names):
        query, pool = [], []
        for r, chosen in experiment.queries():
            shares = chosen.mean_contribution() if of == "contribution" else chosen.dominated()
            if shares is not None:
                query.append((r.number, shares[k]))
            if r.pool:
                pool.append((r.number, r.pool[of][k]))
        if query:
            lines.append(Line(f"{m} in the query", *_columns(query), m))
        if pool:
            lines.append(Line(f"{m} in the pool", *_columns(pool), m, dashed=True))
    return lines


def training_lines(experiment: Experiment, names: Sequence[str], of: str) -> list[Line]:
    """Returns a quantity over the epochs of the newest rounds, oldest first.

    Args:
        of: "loss", "pace", "validation" (accuracy of each head) or "coefficient" (of each modality).
    """
    lines = []
    for r in [r for r in experiment.rounds if r.history][-OVERLAID:]:
        for head in names if of == "coefficient" else (FUSED, *names) if of == "validation" else (FUSED,):
            points = [
                (record["epoch"], value)
                for record in r.history
                if (value := _of_epoch(record, of, head, names)) is not None
            ]
            if points:
                name = head if of in ("validation", "coefficient") else of
                lines.append(Line(f"{name}, round {r.number}", *_columns(points), head, round=r.number))
    return lines


def _of_epoch(record: dict[str, Any], of: str, head: str, names: Sequence[str]) -> float | None:
    if of == "validation":
        metrics = record["validation"].get(head)
        return metrics["accuracy"] if metrics else None
    value = record.get(of)
    if of != "coefficient":
        return value
    return value[names.index(head)] if isinstance(value, list) and len(value) == len(names) else None


def phase_seconds(experiment: Experiment) -> list[tuple[int, list[float | None]]]:
    """Returns (round, seconds of each phase or None before its end) of the rounds that have a finished phase."""
    return [(r.number, [_seconds(r, phase) for phase in PHASES]) for r in experiment.rounds if r.facts]


def _seconds(r: Round, phase: str) -> float | None:
    return r.facts[phase].get("seconds") if phase in r.facts else None


def validation_charts(experiment: Experiment, names: Sequence[str]) -> list[Chart]:
    """Draws validation accuracy over epochs, a figure a head and all on one scale; none without validation."""
    lines = training_lines(experiment, names, "validation")
    if not lines:
        return []
    newest = [r for r in experiment.rounds if r.history][-1]
    used = newest.facts["train"]["epoch"]
    charts = []
    for head in (FUSED, *names):
        own = [line for line in lines if line.head == head]
        ring = [(x, y) for line in own if line.round == newest.number for x, y in zip(line.x, line.y, strict=True)
                if x == used]  # fmt: skip
        if own:
            title = f"Validation accuracy: {head}"
            charts.append(
                line_chart(
                    title, own, names, x="epoch", top=top_of(lines), rings=ring if head == FUSED else (), small=True
                )
            )
    return charts


def top_of(lines: Sequence[Line], level: tuple[float, str] | None = None) -> float:
    """Returns where a percent axis that starts at 0 should end for these lines."""
    return min(1.0, 1.1 * max([v for line in lines for v in line.y] + [level[0] if level else 0.0, 0.05]))


def line_chart(
    title: str,
    lines: Sequence[Line],
    names: Sequence[str],
    *,
    x: str,
    top: float | None = None,
    level: tuple[float, str] | None = None,
    rings: Sequence[tuple[float, float]] = (),
    small: bool = False,
) -> Chart:
    """Draws lines.

    Args:
        title: of the figure.
        lines: what to draw.
        names: the modalities, in the order of their colours.
        x: what the x axis counts.
        top: y is a share in percent, from 0 to this; without it y is a plain number.
        level: a thin horizontal line and its name.
        rings: points to ring.
        small: for a third of the page's width instead of half.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

    newest = max((line.round for line in lines if line.round is not None), default=None)
    with svg.canvas(*(SMALL if small else WIDE)) as (figure, axes):
        for i, line in enumerate(lines):
            _draw(axes, i, line, names, newest)
        if rings:
            axes.plot(*zip(*rings, strict=True), "o", ms=9, mfc="none", mec=svg.INK, mew=1.2, zorder=5)
        if level is not None:
            axes.axhline(level[0], color=svg.MUTED, linewidth=1.2, dashes=(1, 2.5), zorder=1)
        axes.set_xlabel(x)
        at = sorted({v for line in lines for v in line.x})
        few = len(at) <= 10 and x != "epoch"
        axes.xaxis.set_major_locator(FixedLocator(at) if few else MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(x=0.04, y=0.08)
        if len(at) == 1:
            axes.set_xlim(at[0] - 1, at[0] + 1)
        if top is not None:
            axes.set_ylim(0, 1.02 * top)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        else:
            _widen(axes)
        found = svg.to_svg(figure, _label(title, x, lines, newest, share=top is not None))
    heads = tuple(dict.fromkeys(line.head for line in lines))
    return Chart(title, found, heads, level[1] if level else None, any(line.dashed for line in lines))


def _draw(axes: Axes, index: int, line: Line, names: Sequence[str], newest: int | None) -> None:
    old = line.round is not None and line.round != newest
    fused = line.head == FUSED
    k = 0 if fused else list(names).index(line.head)
    colour = svg.INK if fused else svg.modality_colour(k)
    points = len(line.x)
    (artist,) = axes.plot(
        line.x,
        line.y,
        color=colour,
        linewidth=1 if old else 2.4 if fused else 2,
        # Older rounds fade with their age, and none of them hides the newest.
        alpha=0.16 + 0.24 * 0.7 ** (newest - line.round)
        if old and newest is not None and line.round is not None
        else 1,
        zorder=2 if old else 4 if fused else 3,
        marker=None if old or points > 40 else svg.FUSED_MARKER if fused else svg.MARKERS[k % len(svg.MARKERS)],
        markersize=3 if line.round is not None else 5,
        markerfacecolor=svg.SURFACE if line.dashed else colour,
        markeredgecolor=colour,
        solid_capstyle="round",
    )
    if line.dashed:
        artist.set_dashes((2.5, 1.8))
    artist.set_gid(f"{svg.SERIES}{index}")


def _widen(axes: Axes) -> None:
    """Gives a level line some room, so that rounding does not look like a trend."""
    low, high = axes.get_ylim()
    least = 0.1 * max(abs(low), abs(high))
    if high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)


def _label(title: str, x: str, lines: Sequence[Line], newest: int | None, *, share: bool) -> str:
    last = [
        f"{line.name} {100 * line.y[-1]:.1f}%" if share else f"{line.name} {line.y[-1]:.3g}"
        for line in lines
        if line.round == newest
    ]
    where = f" At {x} {lines[0].x[-1]:g}: " if lines else ""
    return f"{title}, by {x}.{where}{', '.join(last)}."


def time_chart(experiment: Experiment) -> Chart:
    """Draws the seconds of each phase, stacked, a bar a round."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    rows = [(number, [value or 0.0 for value in seconds]) for number, seconds in phase_seconds(experiment)]
    numbers, total = [n for n, _ in rows], max((sum(seconds) for _, seconds in rows), default=0.0)
    scale, unit = (60.0, "minutes") if total > 600 else (1.0, "seconds")
    with svg.canvas(*WIDE) as (figure, axes):
        bottom = [0.0] * len(rows)
        for k in range(len(PHASES)):
            height = [seconds[k] / scale for _, seconds in rows]
            bars = axes.bar(
                numbers, height, 0.68, bottom, color=svg.phase_colour(k), edgecolor=svg.SURFACE, linewidth=0.8
            )
            for number, bar in zip(numbers, bars, strict=True):
                bar.set_gid(f"{svg.SERIES}{number}-{PHASES[k]}")
            bottom = [b + h for b, h in zip(bottom, height, strict=True)]
        axes.set_xlabel("round")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(FixedLocator(numbers) if len(numbers) <= 12 else MaxNLocator(12, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if len(rows) < 4:
            axes.set_xlim(min(numbers, default=0) - 1.5, max(numbers, default=0) + 1.5)
        label = f"Time per phase and round, {unit}. " + ", ".join(
            f"round {n} {sum(seconds) / scale:.3g}" for n, seconds in rows[-12:]
        )
        found = svg.to_svg(figure, label)
    return Chart("Time per phase", found)


def _columns(points: Sequence[tuple[float | None, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(float(a or 0) for a, _ in points), tuple(float(b) for _, b in points)
