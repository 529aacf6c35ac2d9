"""What came out of a study: areas under learning curves, compared with random queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raybal.study.config import BASELINE, StudyConfig
from raybal.study.loops import Curve
from raybal.table.statistics import Comparison, Interval, compare, holm, interval
from raybal.table.summary import compared, percent
from raybal.tables import csv_of


@dataclass(frozen=True)
class StrategySummary:
    """One strategy with one method, over seeds.

    Attributes:
        strategy, method: their names.
        labels: after each round, mean over seeds.
        accuracy: test accuracy after each round.
        area: mean test accuracy over the labels asked for: the area under the curve by the trapezoid rule, divided by
            its width.
        last: test accuracy after the last round.
        against: area beside that of random queries, paired by seed; None for these, and where there are none.
        seconds: of scoring and selecting in a round, mean.
        contribution: of each modality in a query minus that in the pool it was chosen from, mean over loops and rounds;
            empty where no query was chosen with a model.
        class_entropy: of the classes predicted in a query, in nats, mean likewise; None where there is none.
    """

    strategy: str
    method: str
    labels: list[float]
    accuracy: list[Interval]
    area: Interval
    last: Interval
    against: Comparison | None
    seconds: float
    contribution: list[float]
    class_entropy: float | None

    @property
    def verdict(self) -> str:
        """Whether it beats random queries, in words."""
        if self.against is None or self.against.difference.half is None:
            return ""
        if self.against.adjusted is None or self.against.adjusted >= 0.05:
            return "not told from random"
        return "better than random" if self.against.difference.mean > 0 else "worse than random"


@dataclass(frozen=True)
class StudySummary:
    """All strategies by method, best first, the curves of all loops, and the names of the modalities."""

    rows: dict[str, list[StrategySummary]]
    curves: list[dict[str, Any]]
    modalities: list[str]

    def lines(self) -> list[str]:
        """Returns the tables as lines of text."""
        found = []
        for method, rows in self.rows.items():
            table = [["strategy", "area", "last round", f"area beside {BASELINE}", ""]]
            table += [[r.strategy, percent(r.area), percent(r.last), compared(r.against), r.verdict] for r in rows]
            widths = [max(len(line[i]) for line in table) for i in range(5)]
            found.append(f"{method}:")
            found += [
                "  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table
            ]
        return found

    def rows_csv(self) -> str:
        """Returns one line a strategy and method, with means and halves of 95 % intervals."""
        lines = []
        for method, rows in self.rows.items():
            for r in rows:
                line: dict[str, Any] = {"method": method, "strategy": r.strategy}
                for name, value in (("area", r.area), ("last", r.last)):
                    line |= {name: value.mean, f"{name}_half": value.half}
                found = r.against
                line["against_random"] = found.difference.mean if found else None
                line["against_random_half"] = found.difference.half if found else None
                line["against_random_p"] = found.p if found else None
                line["against_random_p_holm"] = found.adjusted if found else None
                line["seconds_a_round"] = r.seconds
                line["class_entropy"] = r.class_entropy
                for i, m in enumerate(self.modalities):
                    line[f"{m}_contribution_minus_pool"] = r.contribution[i] if r.contribution else None
                lines.append(line)
        return csv_of(lines)

    def curves_csv(self) -> str:
        """Returns one line a loop and round."""
        return csv_of(self.curves)


def area(curve: Curve, of: str = "accuracy", since: float = 0.0) -> float:
    """Returns the mean accuracy over the labels of a curve, by the trapezoid rule; of one round, its accuracy.

    Args:
        curve: of a loop.
        of: "accuracy", on test items, or "validation".
        since: labels before which nothing counts.
    """
    labels, accuracy = np.array([r["labels"] for r in curve], np.float64), np.array([r[of] for r in curve])
    if labels[0] < since:
        begun = np.interp(since, labels, accuracy)
        labels, accuracy = np.append(since, labels[labels > since]), np.append(begun, accuracy[labels > since])
    if len(curve) < 2 or labels[-1] <= labels[0]:
        return float(accuracy[-1])
    return float(np.trapezoid(accuracy, labels) / (labels[-1] - labels[0]))


def summarise(curves: Mapping[tuple[str, str, int], Curve], config: StudyConfig) -> StudySummary:
    """Compares the strategies of a study.

    Args:
        curves: by method, strategy and seed.
        config: of the study.
    """
    rows: dict[str, list[StrategySummary]] = {}
    for method in config.methods:
        areas = {s: [area(curves[method, s, seed]) for seed in range(config.seeds)] for s in config.strategies}
        others = [s for s in config.strategies if s != BASELINE] if BASELINE in areas else []
        plain = [compare(areas[s], areas[BASELINE]) for s in others]
        against = {
            s: dataclasses.replace(c, adjusted=p)
            for s, c, p in zip(others, plain, holm([c.p for c in plain]), strict=True)
        }
        found = [
            _row(method, s, [curves[method, s, seed] for seed in range(config.seeds)], areas[s], against.get(s))
            for s in config.strategies
        ]
        rows[method] = sorted(found, key=lambda r: -r.area.mean)
    lines = [
        {"method": method, "strategy": strategy, "seed": seed, "round": number, **_flat(record)}
        for (method, strategy, seed), curve in curves.items()
        for number, record in enumerate(curve)
    ]
    names = list(next(iter(curves.values()))[-1]["heads"])
    return StudySummary(rows, lines, names)


def _row(
    method: str, strategy: str, curves: Sequence[Curve], areas: list[float], against: Comparison | None
) -> StrategySummary:
    rounds = range(min(map(len, curves)))
    seconds = [r["seconds"]["score"] + r["seconds"]["select"] for curve in curves for r in curve[1:]]
    balance = [r["balance"] for curve in curves for r in curve if r["balance"]]
    return StrategySummary(
        strategy=strategy,
        method=method,
        labels=[float(np.mean([curve[k]["labels"] for curve in curves])) for k in rounds],
        accuracy=[interval([curve[k]["accuracy"] for curve in curves]) for k in rounds],
        area=interval(areas),
        last=interval([curve[-1]["accuracy"] for curve in curves]),
        against=against,
        seconds=float(np.mean(seconds)) if seconds else 0.0,
        contribution=np.mean([b["contribution"] for b in balance], axis=0).tolist() if balance else [],
        class_entropy=float(np.mean([b["class_entropy"] for b in balance])) if balance else None,
    )


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "labels": record["labels"],
        "accuracy": record["accuracy"],
        **{f"{m}_accuracy": value for m, value in record["heads"].items()},
        **{f"{p}_seconds": value for p, value in record["seconds"].items()},
    }
