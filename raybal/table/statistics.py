"""Means over seeds with their uncertainty, and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval by Student's t; None with one value."""

    mean: float
    half: float | None


@dataclass(frozen=True)
class Comparison:
    """One row against another over the same seeds.

    Attributes:
        difference: the mean difference and its interval.
        p: of a paired two-sided t test; None with one seed, or where all differences are equal.
        adjusted: p by Holm's correction over all rows that are compared.
    """

    difference: Interval
    p: float | None
    adjusted: float | None = None


def interval(values: Sequence[float]) -> Interval:
    """Returns the mean of values and its 95 % interval."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Interval(float(array.mean()), None)
    half = stats.t.ppf((1 + LEVEL) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return Interval(float(array.mean()), float(half))


def compare(values: Sequence[float], others: Sequence[float]) -> Comparison:
    """Compares two rows of values of the same seeds, in the same order."""
    differences = np.asarray(values, np.float64) - np.asarray(others, np.float64)
    p = None
    # Equal differences differ in their last bits.
    if len(differences) > 1 and np.ptp(differences) > 1e-9:
        p = float(stats.ttest_rel(values, others).pvalue)
    return Comparison(interval(differences.tolist()), p)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Returns p values corrected for their number (Holm, 1979); None stays None and does not count."""
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted
