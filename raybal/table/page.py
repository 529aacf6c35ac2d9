"""A table as files: CSV for other tools, and one HTML page that is readable offline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import yaml

from raybal.report import figures
from raybal.report.data import FUSED, place
from raybal.report.lines import Line, value_of
from raybal.report.page import template, versions
from raybal.report.recorded import recorded_charts
from raybal.store import Store
from raybal.table.config import TableConfig
from raybal.table.summary import RowSummary, Summary, compared, percent

NAME = "report.html"


def write_page(store: Store, summary: Summary, config: TableConfig) -> str:
    """Writes `table.csv`, `cells.csv` and `report.html` into a table's store; returns where the report is."""
    store.write_bytes("table.csv", summary.rows_csv().encode())
    store.write_bytes("cells.csv", summary.cells_csv().encode())
    store.write_bytes(NAME, render(store, summary, config).encode())
    return place(store, NAME)


def render(store: Store, summary: Summary, config: TableConfig) -> str:
    """Returns the page as HTML."""
    names = summary.modalities
    first = summary.rows[0]
    drawn = {row.name: _charts(row, names) for row in summary.rows}
    items = "all labelled items" if config.items is None else f"{config.items:,} labelled items drawn by each seed"
    rates = ", ".join(f"{rate:g}" for rate in config.learning_rates)
    return template("table.html.jinja", points=percent, compared=compared).render(
        name=place(store).rpartition("/")[2],
        about=(
            f"{len(summary.rows)} methods, {first.seeds} seeds, {config.train.epochs} epochs on {items} of "
            f"{config.pool.rpartition('/')[2]}; learning rates tried with the first seed: {rates}"
        ),
        rows=summary.rows,
        baselines=summary.baselines,
        alone=summary.alone,
        modalities=names,
        heads={FUSED: -1} | {m: k for k, m in enumerate(names)},
        charts={name: charts for name, (charts, _) in drawn.items()},
        notes={name: notes for name, (_, notes) in drawn.items()},
        versions=versions(),
        settings=yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True),
        store=place(store),
    )


def _charts(row: RowSummary, names: Sequence[str]) -> tuple[list[figures.Chart], list[str]]:
    """Returns a row's figures, and what is said instead of one."""
    accuracy = _lines(row, names, "validation")
    charts, notes = recorded_charts(row.histories, lambda of: _lines(row, names, of), names)
    if accuracy:
        top = figures.top_of(accuracy)
        charts = [figures.line_chart("Validation accuracy", accuracy, names, x="epoch", top=top, small=True), *charts]
    return charts, notes


def _lines(row: RowSummary, names: Sequence[str], of: str) -> list[Line]:
    """Returns the mean over seeds of a quantity of each head, at the epochs that have it."""
    lines = []
    for head in (FUSED, *names):
        by_epoch: dict[int, list[float]] = {}
        for history in row.histories:
            for record in history:
                value = value_of(record, of, head, names)
                if value is not None:
                    by_epoch.setdefault(record["epoch"], []).append(value)
        epochs = sorted(by_epoch)
        if epochs:
            means = tuple(float(np.mean(by_epoch[e])) for e in epochs)
            lines.append(Line(head, tuple(map(float, epochs)), means, head))
    return lines
