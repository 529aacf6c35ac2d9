"""A study as files: CSV for other tools, and one HTML page that is readable offline."""

from __future__ import annotations

import dataclasses

import yaml

from raybal.report import figures
from raybal.report.data import FUSED, place
from raybal.report.lines import Line
from raybal.report.page import template, versions
from raybal.store import Store
from raybal.study.config import BASELINE, StudyConfig
from raybal.study.summary import StrategySummary, StudySummary
from raybal.table.summary import compared, percent

NAME = "report.html"


def write_page(store: Store, summary: StudySummary, config: StudyConfig) -> str:
    """Writes `study.csv`, `curves.csv` and `report.html` into a study's store; returns where the report is."""
    store.write_bytes("study.csv", summary.rows_csv().encode())
    store.write_bytes("curves.csv", summary.curves_csv().encode())
    store.write_bytes(NAME, render(store, summary, config).encode())
    return place(store, NAME)


def render(store: Store, summary: StudySummary, config: StudyConfig) -> str:
    """Returns the page as HTML."""
    return template("study.html.jinja", points=percent, compared=compared).render(
        name=place(store).rpartition("/")[2],
        about=(
            f"{len(config.strategies)} query strategies, {', '.join(config.methods)} training, {config.seeds} seeds, "
            f"{config.label_budget:,} labels by {config.size:,} of {config.pool.rpartition('/')[2]}"
        ),
        baseline=BASELINE,
        compared_with_baseline=BASELINE in config.strategies,
        rows=summary.rows,
        modalities=summary.modalities,
        heads={FUSED: -1},
        charts={method: _charts(rows) for method, rows in summary.rows.items()},
        versions=versions(),
        settings=yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True),
        store=place(store),
    )


def _charts(rows: list[StrategySummary]) -> list[figures.Chart]:
    """Returns one figure a strategy, all on one scale, each with random queries beside it."""
    plain = next((r for r in rows if r.strategy == BASELINE), None)
    everything = [_line(r, "solid") for r in rows]
    charts = []
    for row in rows:
        lines = [_line(row, "solid")]
        if plain is not None and row is not plain:
            lines.append(_line(plain, "dashed"))
        charts.append(
            figures.line_chart(
                row.strategy,
                lines,
                [],
                x="labels",
                top=figures.top_of(everything),
                strokes={"solid": row.strategy, "dashed": BASELINE},
                small=True,
            )
        )
    return charts


def _line(row: StrategySummary, stroke: figures.Stroke) -> Line:
    values = tuple(value.mean for value in row.accuracy)
    return Line(row.strategy, tuple(row.labels), values, FUSED, stroke=stroke)
