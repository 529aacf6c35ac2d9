"""The figures of a row of a sweep: its trials by number, by epoch and by balance gap, and what its keys have to say.

The same marks mean the same in all of them: the chosen trial stands out in a colour of its own, stopped trials are
fainter than finished ones, and trials that diverged have no accuracy to stand at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from raybal.report import svg
from raybal.report.figures import WIDE
from raybal.rounds import PHASES
from raybal.tuning.summary import Found, RowFound

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The entries that a legend may have; the page draws a key for each.
Mark = Literal[
    "finished", "stopped", "diverged", "chosen", "best", "front", "rung", "ended", "early", "broken", "picked", "ramp"
]

CHOSEN = svg.modality_colour(1)
#: Shades of trials; the page's ramp of phases has at least as many.
SHADES = 5
#: More trials on a front than this are not numbered.
NUMBERED = 12
#: The smallest range of accuracies that a figure shows.
LEAST = 0.04
#: Characters of a key or a choice that fit beside a figure.
LONGEST = 30


def ramp(shade: int) -> int:
    """Returns the place on the page's ramp of a shade from 0, the faintest, to `SHADES` - 1."""
    return len(PHASES) - SHADES + shade


FINISHED, STOPPED, FAINT = (svg.phase_colour(ramp(shade)) for shade in (3, 2, 1))


@dataclass(frozen=True)
class Drawing:
    """A figure of the page.

    Attributes:
        title: what it shows.
        svg: an `<svg>` element.
        legend: marks and what they stand for.
    """

    title: str
    svg: str
    legend: tuple[tuple[Mark, str], ...] = ()


def label_of(key: str) -> str:
    """Returns how a searched key is written in figures and tables."""
    return key.removeprefix("balancing.")


def shortened(text: str, longest: int = LONGEST) -> str:
    """Returns text that is cut where it is longer than this."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def history_chart(row: RowFound) -> Drawing:
    """Draws the accuracy of every trial by its number, and the best finished one so far."""
    finished = row.finished
    with svg.canvas(WIDE[0], _height(row)) as (figure, axes):
        best = list(accumulate((t.accuracy for t in finished), max))
        steps = [*zip((t.number for t in finished), best, strict=True), (row.trials[-1].number, best[-1])]
        (line,) = axes.plot(*zip(*steps, strict=True), color=svg.INK, linewidth=1.4, drawstyle="steps-post", zorder=2)
        line.set_gid(f"{svg.SERIES}best")
        for state in ("finished", "stopped", "diverged"):
            _dots(axes, [(t.number, t.accuracy) for t in row.trials if t.state == state], state)
        _dots(axes, [(row.chosen.number, row.chosen.accuracy)], "chosen")
        axes.set_xlabel("trial")
        _whole_numbers(axes)
        _percent(axes, margin=0.1)
        states = ", ".join(f"{n} {state}" for state, n in states_of(row).items())
        what = "Mean validation accuracy over labels" if row.by == "labels" else "Validation accuracy"
        label = (
            f"{what} of {len(row.trials)} trials by number: {states}. Highest: "
            f"{_named(max(finished, key=lambda t: t.accuracy))}. Chosen: {_named(row.chosen)}."
        )
        found = svg.to_svg(figure, label)
    legend: list[tuple[Mark, str]] = [(state, state) for state, n in states_of(row).items() if n]  # type: ignore[misc]
    legend += [("best", "best finished so far"), ("chosen", "chosen")]
    return Drawing("Area by trial" if row.by == "labels" else "Accuracy by trial", found, tuple(legend))


def states_of(row: RowFound) -> dict[str, int]:
    """Returns how many trials ended in each way."""
    return {state: sum(t.state == state for t in row.trials) for state in ("finished", "stopped", "diverged")}


def importance_chart(row: RowFound) -> Drawing | None:
    """Draws the importance of each searched key, largest on top; None where there are too few trials to tell."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if not row.importance:
        return None
    # Optuna gives keys of equal importance in any order.
    order = {key: place for place, key in enumerate(row.space)}
    shares = dict(sorted(row.importance.items(), key=lambda one: (-round(one[1], 6), order[one[0]])))
    names = [shortened(label_of(key)) for key in shares]
    width, height = WIDE[0], _height(row)
    with svg.canvas(width, height) as (figure, axes):
        left = 0.2 + 0.085 * max(map(len, names))
        axes.set_position((left / width, 0.5 / height, 1 - (left + 0.1) / width, 1 - 0.6 / height))
        places = range(len(names))
        bars = axes.barh(places, list(shares.values()), 0.62, color=FINISHED)
        for i, (bar, share) in enumerate(zip(bars, shares.values(), strict=True)):
            bar.set_gid(f"{svg.SERIES}importance-{i}")
            axes.annotate(
                f"{100 * share:.0f}%", (share, i), (5, 0), textcoords="offset points", va="center", color=svg.MUTED
            )
        axes.set_yticks(places, names, color=svg.INK)
        # Few bars are no thicker than many.
        axes.set_ylim(max(len(names), 5) - 0.4, -0.6)
        axes.set_xlim(0, 1.16 * max(shares.values()))
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=svg.GRID, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        parts = ", ".join(f"{label_of(key)} {100 * share:.0f}%" for key, share in shares.items())
        found = svg.to_svg(figure, f"Importance of each searched key, largest first: {parts}.")
    return Drawing("Importance of each key", found)


def _height(row: RowFound) -> float:
    """Returns the inches of the two figures that stand side by side, with room for a bar a key."""
    return max(WIDE[1], 0.23 * len(row.importance) + 0.7)


def curves_chart(row: RowFound) -> Drawing:
    """Draws the validation accuracy of every trial by epoch, or of a loop by labels, and the epochs after which trials
    were stopped."""
    chosen = row.chosen
    styles: dict[str, dict[str, Any]] = {
        "finished": {"color": FINISHED, "linewidth": 1.1, "zorder": 3},
        "stopped": {"color": FAINT, "linewidth": 0.9, "zorder": 2},
        "diverged": {"color": svg.MUTED, "linewidth": 0.9, "zorder": 2, "dashes": (3, 2)},
        "chosen": {"color": CHOSEN, "linewidth": 2.2, "zorder": 5},
    }
    with svg.canvas(*WIDE) as (figure, axes):
        _rung_lines(axes, row.rungs)
        for trial in row.trials:
            if trial.accuracies:
                style = styles["chosen" if trial is chosen else trial.state]
                epochs = sorted(trial.accuracies)
                (line,) = axes.plot(epochs, [trial.accuracies[e] for e in epochs], **style)
                line.set_gid(f"{svg.SERIES}curve-{trial.number}")
        for state in ("stopped", "diverged"):
            ends = [max(t.accuracies.items()) for t in row.trials if t.state == state and t.accuracies]
            _dots(axes, ends, state, size=4, on_curve=True)
        axes.set_xlabel(row.by)
        _whole_numbers(axes)
        _percent(axes, margin=0.06)
        states = states_of(row)
        label = (
            f"Validation accuracy by {row.by} of {len(row.trials)} trials, of which {states['stopped']} were stopped "
            f"and {states['diverged']} diverged. Chosen: {_named(chosen)}."
        )
        found = svg.to_svg(figure, label)
    kinds: dict[str, tuple[Mark, str]] = {
        "finished": ("ended", "finished"),
        "stopped": ("early", "stopped"),
        "diverged": ("broken", "diverged"),
    }
    legend = [kinds[state] for state, n in states.items() if n]
    return Drawing("Learning curves", found, (*legend, ("picked", "chosen"), *_rung_legend(row)))


def correlation_chart(row: RowFound) -> Drawing | None:
    """Draws, by epoch, how well the order of the finished trials foretells their order in the end; None where there are
    too few of them."""
    epochs = sorted({epoch for t in row.finished for epoch in t.accuracies})
    found = [(epoch, value) for epoch in epochs if (value := row.correlation(epoch)) is not None]
    if not found:
        return None
    with svg.canvas(*WIDE) as (figure, axes):
        _rung_lines(axes, row.rungs)
        few = len(found) <= 40
        (line,) = axes.plot(
            *zip(*found, strict=True), color=FINISHED, linewidth=2, marker="o" if few else None, markersize=4, zorder=3
        )
        line.set_gid(f"{svg.SERIES}correlation")
        axes.set_xlabel("epoch")
        axes.set_xlim(min(epochs) - 0.3, max(epochs) + 0.3)
        axes.set_ylim(min(0.0, *(value for _, value in found)) - 0.04, 1.06)
        _whole_numbers(axes)
        label = "Rank correlation of the accuracy after each epoch with the final one: " + ", ".join(
            f"epoch {epoch} {value:.2f}" for epoch, value in found
        )
        drawn = svg.to_svg(figure, f"{label}.")
    return Drawing("Rank correlation with the final accuracy", drawn, _rung_legend(row))


def schedules_chart(row: RowFound) -> Drawing | None:
    """Draws the strengths that each member of a population has gone through; None where the row is no population."""
    from matplotlib.ticker import PercentFormatter

    if not row.schedules:
        return None
    members = {t.number: t for t in row.trials}
    with svg.canvas(*WIDE) as (figure, axes):
        for number, schedule in row.schedules.items():
            # The last strength stays in force.
            knots = [*schedule, (1.0, schedule[-1][1])]
            style: dict[str, Any] = {"color": FINISHED, "linewidth": 1.1, "zorder": 3}
            if number == row.chosen.number:
                style = {"color": CHOSEN, "linewidth": 2.4, "zorder": 5}
            elif members[number].state == "diverged":
                style = {"color": svg.MUTED, "linewidth": 0.9, "dashes": (3, 2), "zorder": 2}
            (line,) = axes.plot(*zip(*knots, strict=True), **style)
            line.set_gid(f"{svg.SERIES}schedule-{number}")
        axes.set_xlabel("progress of training")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.05, 1.05)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        path = ", ".join(f"{s:.2f} at {100 * at:.0f}%" for at, s in row.schedules[row.chosen.number])
        label = (
            f"Strength of the method by progress of training of {len(row.schedules)} members of a population. Chosen, "
            f"member {row.chosen.number}: {path}."
        )
        found = svg.to_svg(figure, label)
    legend: list[tuple[Mark, str]] = [("ended", "members"), ("picked", "chosen")]
    if states_of(row)["diverged"]:
        legend.insert(1, ("broken", "diverged"))
    return Drawing("Strength of the method", found, tuple(legend))


def front_chart(row: RowFound) -> Drawing:
    """Draws validation accuracy against balance gap of the finished trials, and the front of those that none beats in
    both."""
    front = row.front
    points = [(t.gap or 0.0, t.accuracy) for t in front]
    with svg.canvas(*WIDE) as (figure, axes):
        rest = [(t.gap or 0.0, t.accuracy) for t in row.finished if t not in front]
        _dots(axes, rest, "finished")
        (line,) = axes.plot(*zip(*points, strict=True), color=svg.INK, linewidth=1.4, marker="o", ms=5, zorder=3)
        line.set_gid(f"{svg.SERIES}front")
        _dots(axes, [(row.chosen.gap or 0.0, row.chosen.accuracy)], "chosen")
        if len(front) <= NUMBERED:
            for trial, point in zip(front, points, strict=True):
                axes.annotate(str(trial.number), point, (6, -10), textcoords="offset points", fontsize=8.5)
        axes.set_xlabel("balance gap (lower: more even)")
        _percent(axes, margin=0.1)
        label = (
            f"Validation accuracy by balance gap of {len(row.finished)} finished trials. Front, most accurate first: "
        )
        label += ", ".join(f"{_named(t)} at gap {t.gap:.3f}" for t in front)
        found = svg.to_svg(figure, f"{label}. Chosen: {_named(row.chosen)} at gap {row.chosen.gap:.3f}.")
    legend: list[tuple[Mark, str]] = [("front", "front, by number of trial"), ("chosen", "chosen")]
    return Drawing("Accuracy and balance", found, (*([("finished", "other trials")] if rest else []), *legend))  # type: ignore[arg-type]


def _dots(
    axes: Axes, points: Sequence[tuple[float, float]], kind: str, size: float | None = None, on_curve: bool = False
) -> None:
    """Marks points; what diverged, and is not on a curve, stands at the foot of the figure."""
    if not points:
        return
    styles: dict[str, dict[str, Any]] = {
        "finished": {"marker": "o", "color": FINISHED, "ms": 5, "zorder": 3},
        "stopped": {"marker": "v", "mfc": svg.SURFACE, "mec": STOPPED, "ms": 5, "zorder": 3},
        "diverged": {"marker": "x", "color": svg.MUTED, "ms": 5, "zorder": 3},
        "chosen": {"marker": "D", "color": CHOSEN, "mec": svg.SURFACE, "ms": 8, "zorder": 5},
    }
    style = styles[kind] | ({} if size is None else {"ms": size})
    if kind == "diverged" and not on_curve:
        points = [(x, 0.03) for x, _ in points]
        style["transform"] = axes.get_xaxis_transform()
    (drawn,) = axes.plot(*zip(*points, strict=True), linestyle="none", **style)
    drawn.set_gid(f"{svg.SERIES}{kind}")


def _rung_lines(axes: Axes, rungs: Sequence[int]) -> None:
    for rung in rungs:
        line = axes.axvline(rung, color=svg.MUTED, linewidth=1.2, dashes=(1, 2.5), zorder=1)
        line.set_gid(f"{svg.SERIES}rung-{rung}")


def _rung_legend(row: RowFound) -> tuple[tuple[Mark, str], ...]:
    return (("rung", "trials may be stopped"),) if row.rungs else ()


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def _percent(axes: Axes, margin: float) -> None:
    """Makes the y axis one of accuracies, when all is drawn.

    Args:
        axes: of the figure.
        margin: above and below the points, as a share of their range.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.margins(x=0.04, y=margin)
    low, high = axes.get_ylim()
    # A difference of a few items does not look like a lead.
    short = max(0.0, LEAST - (high - low))
    axes.set_ylim(low - short / 2, high + short / 2)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _named(trial: Found) -> str:
    return f"trial {trial.number} with {100 * trial.accuracy:.1f}%"
