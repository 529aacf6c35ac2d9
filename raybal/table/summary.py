"""What came out of a table: rows of intervals over seeds, compared with the baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybal.store import Store
from raybal.table.cells import Cell
from raybal.table.statistics import Comparison, Interval, compare, holm, interval
from raybal.tables import csv_of

#: Methods that others are compared with, where the table has a row of them.
BASELINES = ("multi_loss", "ensemble")
#: The method whose encoders are trained alone.
ALONE = "ensemble"


@dataclass(frozen=True)
class ModalitySummary:
    """One modality in one row.

    Attributes:
        head: accuracy of the unimodal head; None where no test item has the modality, here and below.
        probe: accuracy of a linear probe of the frozen encoder.
        left: accuracy that a probe of the same encoder trained alone has above this one: what the row leaves on the
            table. Trained alone is the row of the ensemble, at the learning rate and epoch that its fused prediction
            was chosen by; those of a single encoder's own choice may be better still.
        contribution: mean share of the fused predictions.
    """

    head: Interval | None
    probe: Interval | None
    left: Interval | None
    contribution: Interval


@dataclass(frozen=True)
class RowSummary:
    """One row of the table, over its seeds.

    Attributes:
        name, learning_rate, seeds: the row, what validation chose, and how many runs it has.
        accuracy, macro_f1, ece, nll: of the fused prediction on the test items.
        modalities: by name.
        against: the accuracy beside each baseline that the table has, by the baseline's row.
        seconds: of a training run.
        histories: of every run's epochs.
    """

    name: str
    learning_rate: float
    seeds: int
    accuracy: Interval
    macro_f1: Interval
    ece: Interval
    nll: Interval
    modalities: dict[str, ModalitySummary]
    against: dict[str, Comparison]
    seconds: Interval
    histories: list[list[dict[str, Any]]]


@dataclass(frozen=True)
class Summary:
    """All rows, best first, and the cells that they are made of.

    Attributes:
        rows: best first.
        modalities: names, in order.
        cells: one a measured run.
        baselines: rows that others are compared with.
        alone: the row whose encoders were trained alone, if there is one.
    """

    rows: list[RowSummary]
    modalities: tuple[str, ...]
    cells: list[dict[str, Any]]
    baselines: list[str]
    alone: str | None

    def lines(self) -> list[str]:
        """Returns the table as lines of text."""
        head = ["method", "rate", "accuracy", "macro-F1", "ECE"]
        head += [f"{m} {what}" for m in self.modalities for what in ("head", "probe", "left", "share")]
        head += [f"vs {b}" for b in self.baselines]
        table = [head]
        for row in self.rows:
            cells = [row.name, f"{row.learning_rate:g}", percent(row.accuracy), percent(row.macro_f1), percent(row.ece)]
            for m in self.modalities:
                one = row.modalities[m]
                cells += [percent(one.head), percent(one.probe), percent(one.left), percent(one.contribution)]
            cells += [compared(row.against.get(b)) for b in self.baselines]
            table.append(cells)
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]

    def rows_csv(self) -> str:
        """Returns one line a row, with means and halves of 95 % intervals."""
        lines = []
        for row in self.rows:
            line: dict[str, Any] = {"method": row.name, "learning_rate": row.learning_rate, "seeds": row.seeds}
            for name in ("accuracy", "macro_f1", "ece", "nll", "seconds"):
                line |= _columns(name, getattr(row, name))
            for m, one in row.modalities.items():
                for field in dataclasses.fields(one):
                    line |= _columns(f"{m}_{field.name}", getattr(one, field.name))
            for baseline in self.baselines:
                found = row.against.get(baseline)
                line |= _columns(f"against_{baseline}", found.difference if found else None)
                line[f"against_{baseline}_p"] = found.p if found else None
                line[f"against_{baseline}_p_holm"] = found.adjusted if found else None
            lines.append(line)
        return csv_of(lines)

    def cells_csv(self) -> str:
        """Returns one line a measured cell."""
        return csv_of(self.cells)


def summarise(
    store: Store,
    cells: Sequence[Cell],
    modalities: Sequence[str],
    method_of: Mapping[str, str],
    baselines: Sequence[str] | None = None,
) -> Summary:
    """Reads the measured cells of a table and compares its rows.

    Args:
        store: of the table.
        cells: measured, the same seeds of every row.
        modalities: names, in order.
        method_of: the method of each row.
        baselines: rows that others are compared with; None: the first of each of `BASELINES`.
    """
    found = {(c.row, c.seed): (c, store.read_yaml(c.trained), store.read_yaml(c.measured)) for c in cells}
    rows = list(dict.fromkeys(c.row for c in cells))
    first = {method_of[row]: row for row in reversed(rows)}
    usual = [first[method] for method in BASELINES if method in first]
    against_rows = usual if baselines is None else [row for row in baselines if row in rows]
    alone = first.get(ALONE)
    seeds = sorted({c.seed for c in cells})

    def values(row: str, of: Callable[[Any, Any], float | None]) -> list[float]:
        return [v for s in seeds if (v := of(*found[row, s][1:])) is not None]

    def over_seeds(row: str, of: Callable[[Any, Any], float | None]) -> Interval | None:
        numbers = values(row, of)
        return interval(numbers) if numbers else None

    def certain(row: str, of: Callable[[Any, Any], float | None]) -> Interval:
        return interval(values(row, of))

    def one_modality(row: str, m: str) -> ModalitySummary:
        left = None
        if alone is not None:
            own, best = (values(r, lambda _, t: t["probes"][m]) for r in (row, alone))
            left = interval([a - b for a, b in zip(best, own, strict=True)]) if own else None
        return ModalitySummary(
            over_seeds(row, lambda _, t: t["heads"][m]),
            over_seeds(row, lambda _, t: t["probes"][m]),
            left,
            certain(row, lambda _, t: t["contribution"][m]),
        )

    accuracies = {row: values(row, lambda _, t: t["fused"]["accuracy"]) for row in rows}
    against: dict[str, dict[str, Comparison]] = {row: {} for row in rows}
    for baseline in against_rows:
        others = [row for row in rows if row != baseline]
        compared_rows = [compare(accuracies[row], accuracies[baseline]) for row in others]
        for row, one, adjusted in zip(others, compared_rows, holm([c.p for c in compared_rows]), strict=True):
            against[row][baseline] = dataclasses.replace(one, adjusted=adjusted)
    summaries = [
        RowSummary(
            name=row,
            learning_rate=found[row, seeds[0]][0].learning_rate,
            seeds=len(seeds),
            accuracy=interval(accuracies[row]),
            macro_f1=certain(row, lambda _, t: t["fused"]["macro_f1"]),
            ece=certain(row, lambda _, t: t["fused"]["ece"]),
            nll=certain(row, lambda _, t: t["fused"]["nll"]),
            modalities={m: one_modality(row, m) for m in modalities},
            against=against[row],
            seconds=certain(row, lambda r, _: r["seconds"]),
            histories=[found[row, s][1]["history"] for s in seeds],
        )
        for row in rows
    ]
    lines = [_cell_line(*found[c.row, c.seed]) for c in cells]
    return Summary(sorted(summaries, key=lambda r: -r.accuracy.mean), tuple(modalities), lines, against_rows, alone)


def percent(value: Interval | None) -> str:
    """Returns an interval in percent, e.g. "85.1 ±1.2"."""
    if value is None:
        return "-"
    return f"{100 * value.mean:.1f}" + ("" if value.half is None else f" ±{100 * value.half:.1f}")


def compared(value: Comparison | None) -> str:
    """Returns a comparison in points, e.g. "+1.9 ±0.8, p 0.012" (corrected for the number of rows)."""
    if value is None:
        return "-"
    p = "" if value.adjusted is None else f", p {value.adjusted:.2g}"
    half = "" if value.difference.half is None else f" ±{100 * value.difference.half:.1f}"
    return f"{100 * value.difference.mean:+.1f}{half}{p}"


def _cell_line(cell: Cell, trained: dict[str, Any], tested: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {"method": cell.row, "learning_rate": cell.learning_rate, "seed": cell.seed}
    line |= tested["fused"] | {"epoch": trained["epoch"], "seconds": trained["seconds"]}
    for what in ("heads", "probes", "contribution"):
        line |= {f"{m}_{what.removesuffix('s')}": value for m, value in tested[what].items()}
    return line


def _columns(name: str, value: Interval | None) -> dict[str, float | None]:
    return {name: value.mean if value else None, f"{name}_half": value.half if value else None}
