"""The drawing of the report's figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raybal.report import svg
from raybal.report.data import FUSED, ExperimentRecord
from raybal.report.lines import Line, Stroke, contribution_lines, phase_seconds, training_lines
from raybal.rounds import PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches of a figure that takes half of the page's width, and of one that takes a third.
WIDE, SMALL = (5.8, 3.0), (4.3, 2.6)
#: Lengths of lines and gaps, in widths of the line.
DASHES = {"dashed": (2.5, 1.8), "dashdot": (6, 1.5, 1, 1.5)}


@dataclass(frozen=True)
class Level:
    """A dotted horizontal line at y, in the colour of a modality if it is that of one."""

    y: float
    head: str | None = None


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        title: what it shows.
        svg: an `<svg>` element.
        heads: those to list in its legend.
        level: name of the dotted lines across it, if it has some.
        strokes: what solid, dashed and other lines are, where there is more than one kind.
    """

    title: str
    svg: str
    heads: tuple[str, ...] = ()
    level: str | None = None
    strokes: tuple[tuple[Stroke, str], ...] = ()


def contribution_charts(experiment: ExperimentRecord, names: Sequence[str], even: Sequence[float]) -> list[Chart]:
    """Draws the share of each modality in the predictions, and how many items it dominates.

    Args:
        even: the share that each modality would have if those that an item has contributed evenly.
    """
    titles = {"contribution": "Mean contribution", "dominated": "Share of items that each modality dominates"}
    by_kind = {of: contribution_lines(experiment, names, of) for of in titles}
    rounds = {x for lines in by_kind.values() for line in lines for x in line.x}
    charts = []
    for of, title in titles.items():
        lines = by_kind[of]
        same = max(even) - min(even) < 0.005
        levels = [Level(even[0])] if same else [Level(y, m) for y, m in zip(even, names, strict=True)]
        levels = levels if of == "contribution" else []
        if lines:
            charts.append(
                line_chart(
                    title,
                    lines,
                    names,
                    x="round of the model",
                    span=rounds,
                    top=top_of(lines, levels),
                    levels=levels,
                    level="even" if same else "even, counting what items lack",
                    strokes={"solid": "query", "dashed": "pool", "dashdot": f"{experiment.measured_on} items"},
                )
            )
    return charts


def validation_charts(experiment: ExperimentRecord, names: Sequence[str]) -> list[Chart]:
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


def top_of(lines: Sequence[Line], levels: Sequence[Level] = ()) -> float:
    """Returns where a percent axis that starts at 0 should end for these lines."""
    return min(1.0, 1.1 * max([0.05, *(v for line in lines for v in line.y), *(level.y for level in levels)]))


def line_chart(
    title: str,
    lines: Sequence[Line],
    names: Sequence[str],
    *,
    x: str,
    span: Collection[float] = (),
    top: float | None = None,
    levels: Sequence[Level] = (),
    level: str | None = None,
    strokes: Mapping[Stroke, str] | None = None,
    rings: Sequence[tuple[float, float]] = (),
    small: bool = False,
) -> Chart:
    """Draws lines.

    Args:
        title: of the figure.
        lines: what to draw.
        names: the modalities, in the order of their colours.
        x: what the x axis counts.
        span: values that it shows also where the lines have none.
        top: y is a share in percent, from 0 to this; without it y is a plain number.
        levels: thin horizontal lines.
        level: their name.
        strokes: what the lines of each stroke are.
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
        for i, one in enumerate(levels):
            colour = svg.MUTED if one.head is None else svg.modality_colour(list(names).index(one.head))
            drawn = axes.axhline(one.y, color=colour, linewidth=1.2, dashes=(1, 2.5), zorder=1)
            drawn.set_gid(f"{svg.SERIES}level-{i}")
        axes.set_xlabel(x)
        at = sorted({*span, *(v for line in lines for v in line.x)})
        few = len(at) <= 10 and x != "epoch"
        axes.xaxis.set_major_locator(FixedLocator(at) if few else MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(x=0.04, y=0.08)
        axes.update_datalim([(v, lines[0].y[0]) for v in at])
        if len(at) == 1:
            axes.set_xlim(at[0] - 1, at[0] + 1)
        if top is not None:
            axes.set_ylim(0, 1.02 * top)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        else:
            _widen(axes)
        found = svg.to_svg(figure, _label(title, x, lines, newest, share=top is not None))
    heads = tuple(dict.fromkeys(line.head for line in lines))
    used = {line.stroke for line in lines}
    named = tuple((stroke, name) for stroke, name in (strokes or {}).items() if stroke in used)
    return Chart(title, found, heads, level if levels else None, named)


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
        markersize=3 if line.round is not None or line.stroke == "dashdot" else 5,
        markerfacecolor=svg.SURFACE if line.stroke == "dashed" else colour,
        markeredgecolor=colour,
        solid_capstyle="round",
    )
    if line.stroke in DASHES:
        artist.set_dashes(DASHES[line.stroke])
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
    ends = {line.x[-1] for line in lines}
    where = f" At {x} {ends.pop():g}: " if len(ends) == 1 else " At the end of each line: "
    return f"{title}, by {x}.{where}{', '.join(last)}."


def time_chart(experiment: ExperimentRecord) -> Chart:
    """Draws the seconds of each phase, stacked, a bar a round."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    rows = [(number, [value or 0.0 for value in seconds]) for number, seconds in phase_seconds(experiment)]
    numbers, total = [n for n, _ in rows], max((sum(seconds) for _, seconds in rows), default=0.0)
    scale, unit = (60.0, "minutes") if total > 600 else (1.0, "seconds")
    edge = 0.8 if len(rows) <= 40 else 0.0  # edges would eat thin bars
    with svg.canvas(*WIDE) as (figure, axes):
        bottom = [0.0] * len(rows)
        for k in range(len(PHASES)):
            height = [seconds[k] / scale for _, seconds in rows]
            bars = axes.bar(
                numbers, height, 0.68, bottom, color=svg.phase_colour(k), edgecolor=svg.SURFACE, linewidth=edge
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
