"""What came out of a sweep."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial
from scipy import stats

from raybal.study.loops import Curve
from raybal.study.summary import area
from raybal.table.statistics import Comparison, Interval, compare, interval
from raybal.table.summary import Summary, compared, percent
from raybal.tables import csv_of
from raybal.tuning.config import PUBLISHED
from raybal.tuning.search import distribution
from raybal.tuning.spaces import Space, Values
from raybal.tuning.values import words

#: With fewer finished trials than this nothing is said about the importance of keys.
FEWEST = 5


def published(row: str) -> str:
    """Returns the name in a final table of a row's published settings."""
    return f"{row}-{PUBLISHED}"


@dataclass(frozen=True)
class Found:
    """A trial that has ended.

    Attributes:
        number: in its study.
        values: of the searched keys.
        accuracies: on validation, by epoch; of a loop, by the number of labels.
        result: of one that was trained to the end, {"epoch", "seconds" (of training), "nll", "probes", "gap"}, of a
            loop {"epoch", "area", "gap"}, or {"diverged": why}; None where it was stopped.
        inside: epochs that the method trained copies of the model for.
        seconds: that it took, starting included.
    """

    number: int
    values: Values
    accuracies: dict[int, float]
    result: dict[str, Any] | None
    inside: int = 0
    seconds: float = 0.0

    @property
    def state(self) -> str:
        """ "finished", "stopped" or "diverged"."""
        if self.result is None:
            return "stopped"
        return "diverged" if "diverged" in self.result else "finished"

    @property
    def accuracy(self) -> float:
        """Validation accuracy of the epoch that is kept, or of a loop its mean over labels; of a trial that was
        stopped, the best that it reached."""
        if self.state == "finished":
            assert self.result is not None
            return self.result.get("area", self.accuracies[self.result["epoch"]])
        return max(self.accuracies.values(), default=0.0) if self.state == "stopped" else 0.0

    @property
    def gap(self) -> float | None:
        """The balance gap; None where it was not measured."""
        return self.result["gap"] if self.result is not None and self.state == "finished" else None

    @property
    def order(self) -> tuple[float, float]:
        """By which trials are ranked: accuracy, then likelihood."""
        return self.accuracy, -float((self.result or {}).get("nll", 0.0))


@dataclass(frozen=True)
class RowFound:
    """The trials of a row.

    Attributes:
        name, method: of the row.
        space: that was searched.
        trials: in order of their numbers.
        rungs: epochs after which trials were stopped, ascending.
        finalists: validation accuracies over seeds of the best trials, by number.
        exploits: of a population: who took over whom, with values before and after.
        schedules: of a population: the strengths that each member has gone through, by number.
    """

    name: str
    method: str
    space: Space
    trials: list[Found]
    rungs: list[int]
    finalists: dict[int, list[float]] = field(default_factory=dict)
    exploits: list[dict[str, Any]] = field(default_factory=list)
    schedules: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    @property
    def by(self) -> str:
        """What trials advance by: "epoch", or "labels" where they are loops."""
        return "labels" if any("area" in (t.result or {}) for t in self.trials) else "epoch"

    def best(self, count: int) -> list[Found]:
        """Returns the best finished trials, of different values, best first."""
        found: list[Found] = []
        for trial in sorted(self.finished, key=lambda t: t.order, reverse=True):
            if all(trial.values != other.values for other in found):
                found.append(trial)
        return found[:count]

    @property
    def finished(self) -> list[Found]:
        """The trials that were trained to the end."""
        return [t for t in self.trials if t.state == "finished"]

    @property
    def chosen(self) -> Found:
        """The finalist that is best on average."""
        number = max(self.finalists, key=lambda n: float(np.mean(self.finalists[n])))
        return next(t for t in self.trials if t.number == number)

    @property
    def score(self) -> float:
        """Its mean validation accuracy over seeds."""
        return float(np.mean(self.finalists[self.chosen.number]))

    @property
    def epochs(self) -> int:
        """Epochs trained in all trials, those of copies that the method trains among them."""
        return sum(len(t.accuracies) for t in self.trials) + self.inside

    @property
    def inside(self) -> int:
        """Epochs that the method trained copies of the model for, in all trials."""
        return sum(t.inside for t in self.trials)

    @property
    def front(self) -> list[Found]:
        """The finished trials that no other beats in both accuracy and balance gap, most accurate first."""
        front: list[Found] = []
        for trial in sorted((t for t in self.finished if t.gap is not None), key=lambda t: (-t.accuracy, t.gap)):
            if not front or trial.gap < front[-1].gap:  # type: ignore[operator]
                front.append(trial)
        return front

    @cached_property
    def importance(self) -> dict[str, float]:
        """How far the values of the best trials differ from those of all, by searched key, as shares, largest first
        (PED-ANOVA, Watanabe et al. 2023); empty where there are too few trials to tell. Keys that not every trial has
        are left out."""
        count = len(self.finished)
        if count < FEWEST:
            # Optuna would call all keys equally important.
            return {}
        # Of which at least five are the best, as far as that is less than half.
        best = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.25, 5 / count)))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize")
        # A trial of settings outside of the space has none of its keys.
        for trial in (t for t in self.finished if t.values):
            values = {key: value for key, value in trial.values.items() if key in self.space}
            own = {key: distribution(self.space[key]) for key in values}
            study.add_trial(
                create_trial(state=TrialState.COMPLETE, value=trial.accuracy, params=values, distributions=own)
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = optuna.importance.get_param_importances(study, evaluator=best)
            except (RuntimeError, ValueError):
                return {}
        return {key: float(value) for key, value in found.items() if np.isfinite(value)}

    def correlation(self, epoch: int) -> float | None:
        """Returns Spearman's rank correlation between the accuracy after an epoch and that of the epoch that is kept,
        over the finished trials; None with fewer than three or where all are equal."""
        pairs = [(t.accuracies[epoch], t.accuracy) for t in self.finished if epoch in t.accuracies]
        if len(pairs) < 3:
            return None
        early, final = zip(*pairs, strict=True)
        if len(set(early)) < 2 or len(set(final)) < 2:
            return None
        return float(stats.spearmanr(early, final).statistic)


@dataclass(frozen=True)
class SweepSummary:
    """What came out of a sweep of training runs.

    Attributes:
        rows: of trials.
        final: the table on test items, if there is one.
        modalities: their names.
        looks: how many different choices test items have been looked at for.
    """

    rows: list[RowFound]
    final: Summary | None
    modalities: tuple[str, ...]
    looks: int = 1

    def lines(self) -> list[str]:
        """Returns what came out as lines of text."""
        found = []
        for row in self.rows:
            chosen = row.chosen
            inside = f" ({row.inside} of them inside the method)" if row.inside else ""
            values = words(chosen.values)
            seeds = len(row.finalists[chosen.number])
            found.append(
                f"{row.name}: {len(row.trials)} trials, {len(row.finished)} to the end, {row.epochs} epochs{inside}; "
                f"best trial {chosen.number}, validation {100 * row.score:.1f}% over {seeds} seeds: {values}"
            )
        return [*found, *(self.final.lines() if self.final else [])]

    def trials_csv(self) -> str:
        """Returns one line a trial."""
        return trials_csv(self.rows)


def trials_csv(rows: Sequence[RowFound]) -> str:
    """Returns one line a trial of some rows; `seconds` is all that a trial took, `training_seconds` what it trained."""
    keys = list(dict.fromkeys(key for row in rows for key in row.space))
    lines = []
    for row in rows:
        for t in row.trials:
            line: dict[str, Any] = {"row": row.name, "trial": t.number, "state": t.state, "accuracy": t.accuracy}
            line |= {"gap": t.gap, "epochs": len(t.accuracies), "seconds": t.seconds}
            line["training_seconds"] = (t.result or {}).get("seconds")
            lines.append(line | {key: t.values.get(key) for key in keys})
    return csv_of(lines)


@dataclass(frozen=True)
class LoopsSummary:
    """What came out of a sweep of whole loops.

    Attributes:
        row: the trials.
        chosen, first: curves of the choice and of the first trial, the baseline, with the same fresh seeds.
        since: labels from which on areas count.
        looks: how many different choices test items have been looked at for.
    """

    row: RowFound
    chosen: list[Curve]
    first: list[Curve]
    since: int
    looks: int = 1

    @property
    def areas(self) -> list[tuple[str, Interval, Interval]]:
        """(name, mean test accuracy over the labels, that after the last round), of the choice and of the baseline;
        none without fresh seeds."""
        both = (("chosen", self.chosen), ("first trial", self.first)) if self.chosen else ()
        return [
            (name, interval(self._areas(curves)), interval([c[-1]["accuracy"] for c in curves]))
            for name, curves in both
        ]

    @property
    def gain(self) -> Comparison | None:
        """The area of the choice beside that of the baseline, paired by seed; None where these are the same."""
        if not self.chosen or self.row.chosen.values == self.row.trials[0].values:
            return None
        return compare(self._areas(self.chosen), self._areas(self.first))

    def _areas(self, curves: list[Curve]) -> list[float]:
        return [area(curve, since=self.since) for curve in curves]

    def lines(self) -> list[str]:
        """Returns what came out as lines of text."""
        row, chosen = self.row, self.row.chosen
        found = [
            f"{len(row.trials)} loops; best trial {chosen.number}, area {100 * row.score:.1f}% on validation over "
            f"{len(row.finalists[chosen.number])} seeds: {words(chosen.values)}"
        ]
        for name, whole, last in self.areas:
            found.append(f"{name}: area {percent(whole)} on test items, {percent(last)} after the last round")
        if self.chosen:
            gain = compared(self.gain) if self.gain else "the same: no trial is better than the first"
            found.append(f"chosen minus first trial: {gain}")
        return found

    def trials_csv(self) -> str:
        """Returns one line a trial."""
        return trials_csv([self.row])

    def curves_csv(self) -> str:
        """Returns one line a loop and round of the final comparison."""
        return csv_of(
            [
                {"loop": name, "seed": seed, "round": number, "labels": r["labels"], "accuracy": r["accuracy"]}
                for name, curves in (("chosen", self.chosen), ("first trial", self.first))
                for seed, curve in enumerate(curves)
                for number, r in enumerate(curve)
            ]
        )
