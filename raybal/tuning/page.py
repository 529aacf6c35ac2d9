"""A sweep as files: CSV for other tools, and one HTML page that is readable offline."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shlex
from dataclasses import dataclass

import yaml

from raybal.report.data import place
from raybal.report.page import template, versions
from raybal.store import Store
from raybal.table.statistics import Comparison, compare, holm
from raybal.table.summary import Summary, compared, percent
from raybal.tuning.charts import (
    Drawing,
    correlation_chart,
    curves_chart,
    front_chart,
    history_chart,
    importance_chart,
    label_of,
    ramp,
    schedules_chart,
    states_of,
)
from raybal.tuning.config import TuneConfig
from raybal.tuning.parallel import parallel_charts
from raybal.tuning.summary import Found, LoopsSummary, RowFound, SweepSummary, published
from raybal.tuning.values import shown, words

NAME = "report.html"


@dataclass(frozen=True)
class Rung:
    """What stopping trials after an epoch did.

    Attributes:
        epoch: after which trials may be stopped.
        stopped: number of those that were.
        finished: number of those that went on to the end.
        correlation: of their accuracies then with the final ones, by rank; None with too few.
    """

    epoch: int
    stopped: int
    finished: int
    correlation: float | None


def write_page(store: Store, summary: SweepSummary, config: TuneConfig) -> str:
    """Writes `trials.csv`, the tables of a final comparison if there is one, and `report.html` into a sweep's store;
    returns where the report is."""
    store.write_bytes("trials.csv", summary.trials_csv().encode())
    if summary.final is not None:
        store.write_bytes("table.csv", summary.final.rows_csv().encode())
        store.write_bytes("cells.csv", summary.final.cells_csv().encode())
    store.write_bytes(NAME, render(store, summary, config).encode())
    return place(store, NAME)


def render(store: Store, summary: SweepSummary, config: TuneConfig) -> str:
    """Returns the page as HTML."""
    balance = len(summary.modalities) > 1
    final = summary.final
    accuracy = {row.name: row.accuracy for row in final.rows} if final else {}
    page = template("tune.html.jinja", points=percent, compared=compared, shown=shown, key=label_of, shade=_shade)
    return page.render(
        name=place(store).rpartition("/")[2],
        about=_about(summary, config),
        config=config,
        rows=summary.rows,
        states={row.name: states_of(row) for row in summary.rows},
        seconds={row.name: sum(t.seconds for t in row.trials) for row in summary.rows},
        balance=balance,
        final=final,
        looks=summary.looks,
        accuracy=accuracy,
        pairs=[] if final is None else published_pairs(final, [row.name for row in summary.rows]),
        drawings={row.name: _drawings(row, balance) for row in summary.rows},
        rungs={row.name: rungs_of(row) for row in summary.rows},
        finalists={row.name: _finalists(row) for row in summary.rows},
        tuned={row.name: store.read_bytes(_tuned(row)).decode() for row in summary.rows},
        commands={row.name: _commands(store, row, config) for row in summary.rows},
        versions=_versions(),
        settings=yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True),
        store=place(store),
    )


def write_loops_page(store: Store, summary: LoopsSummary, config: TuneConfig) -> str:
    """Writes `trials.csv`, `curves.csv` if there is a final comparison, and `report.html` into the store of a sweep of
    loops; returns where the report is."""
    store.write_bytes("trials.csv", summary.trials_csv().encode())
    if summary.chosen:
        store.write_bytes("curves.csv", summary.curves_csv().encode())
    store.write_bytes(NAME, render_loops(store, summary, config).encode())
    return place(store, NAME)


def render_loops(store: Store, summary: LoopsSummary, config: TuneConfig) -> str:
    """Returns the page of a sweep of loops as HTML."""
    row = summary.row
    page = template(
        "loops.html.jinja", points=percent, compared=compared, shown=shown, key=label_of, shade=_shade, words=words
    )
    return page.render(
        name=place(store).rpartition("/")[2],
        about=(
            f"{len(row.trials)} loops of {config.loop.label_budget:,} labels on {config.pool.rpartition('/')[2]}, "
            f"{config.train.epochs} epochs a round"
        ),
        config=config,
        row=row,
        areas=summary.areas,
        gain=summary.gain,
        since=summary.since,
        looks=summary.looks,
        drawn=_drawings(row, balance=False),
        finalists=_finalists(row),
        tuned=store.read_bytes(_tuned(row)).decode(),
        command=_command(store, row, config, "al_loop", "runs/tuned"),
        versions=_versions(),
        settings=yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True),
        store=place(store),
    )


def rungs_of(row: RowFound) -> list[Rung]:
    """Returns what stopping did at each rung of a row."""

    def last(trial: Found) -> int:
        return max(trial.accuracies, default=0)

    return [
        Rung(
            epoch,
            sum(t.state == "stopped" and last(t) == epoch for t in row.trials),
            sum(epoch in t.accuracies for t in row.finished),
            row.correlation(epoch),
        )
        for epoch in row.rungs
    ]


def published_pairs(final: Summary, names: list[str]) -> list[tuple[str, str, Comparison]]:
    """Returns (row, row of its published settings, test accuracy of the one beside that of the other, paired by seed).

    Args:
        final: table of both.
        names: of the sweep's rows; those that lack either in the table are left out.
    """
    accuracies: dict[str, dict[int, float]] = {}
    for cell in final.cells:
        accuracies.setdefault(cell["method"], {})[cell["seed"]] = cell["accuracy"]
    found = {}
    for name in names:
        tuned, before = accuracies.get(name, {}), accuracies.get(published(name), {})
        seeds = sorted(tuned.keys() & before.keys())
        if seeds:
            found[name] = compare([tuned[s] for s in seeds], [before[s] for s in seeds])
    adjusted = holm([one.p for one in found.values()])
    return [
        (n, published(n), dataclasses.replace(c, adjusted=p)) for (n, c), p in zip(found.items(), adjusted, strict=True)
    ]


def _shade(shade: int) -> str:
    """Returns a shade of the figures for the keys of their legends."""
    return f"var(--phase-{ramp(shade)})"


def _about(summary: SweepSummary, config: TuneConfig) -> str:
    rows, counts = len(summary.rows), sorted({len(row.trials) for row in summary.rows})
    items = "all labelled items" if config.items is None else f"{config.items:,} labelled items"
    stopping = "stopped early by successive halving" if any(row.rungs for row in summary.rows) else "none stopped early"
    return (
        f"{rows} {'row' if rows == 1 else 'rows'}, {' or '.join(map(str, counts))} trials each of up to "
        f"{config.train.epochs} epochs on {items} of {config.pool.rpartition('/')[2]}, {stopping}; searched: "
        f"{', '.join(config.search)}"
    )


def _drawings(row: RowFound, balance: bool) -> dict[str, list[Drawing]]:
    """Returns a row's figures by where they stand."""
    correlation = correlation_chart(row)
    importance = importance_chart(row)
    schedules = schedules_chart(row)
    # Without two encoders to compare, every gap is 0.
    measured = balance and any(t.gap for t in row.finished)
    return {
        "history": [history_chart(row)],
        "importance": [importance] if importance else [],
        "parallel": parallel_charts(row),
        "curves": [curves_chart(row)],
        "correlation": [correlation] if correlation else [],
        "front": [front_chart(row)] if measured else [],
        "schedules": [schedules] if schedules else [],
    }


def _tuned(row: RowFound) -> str:
    return f"tuned/{row.name}.yaml"


def _finalists(row: RowFound) -> list[tuple[int, list[float]]]:
    """Returns the accuracies of the finalists over seeds by number, best first."""
    return sorted(row.finalists.items(), key=lambda one: -sum(one[1]))


def _versions() -> list[tuple[str, str]]:
    return [*versions(), ("optuna", importlib.metadata.version("optuna"))]


def _commands(store: Store, row: RowFound, config: TuneConfig) -> str:
    """Returns the command lines that go on with what was found, in stores of their own."""
    jobs = (("train", f"runs/{row.name}-tuned"), ("al_loop", f"runs/{row.name}-loop"))
    return "\n".join(_command(store, row, config, job, own) for job, own in jobs)


def _command(store: Store, row: RowFound, config: TuneConfig, job: str, own: str) -> str:
    parts = ["python", f"jobs/{job}.py", "--config", place(store, _tuned(row)), "--pool", config.pool, "--store", own]
    return shlex.join(parts)
