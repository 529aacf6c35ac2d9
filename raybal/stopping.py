"""When a loop has labels enough, beside the label budget.

Everything is decided on validation items and on predictions for candidates; test items are never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybal.settings import Settings, setting

#: Rounds that a curve of three numbers is fitted to, at least.
FEWEST = 4


@dataclass(frozen=True)
class StopSettings(Settings):
    """When the loop ends before the label budget is spent; each alone is enough."""

    accuracy: float | None = setting(
        None, gt=0, le=1, defines=False, help="validation accuracy that is good enough; none: any more is welcome"
    )
    plateau: int | None = setting(
        None, ge=1, defines=False, help="rounds without a new best validation accuracy; none: however many"
    )
    plateau_gain: float = setting(
        0.005, ge=0, defines=False, help="how much better than the best a validation accuracy must be to be new"
    )
    agreement: float | None = setting(
        None,
        gt=0,
        le=1,
        defines=False,
        help="Cohen's kappa of two successive models' predictions for the candidates from which on labels change "
        "nothing (0.99 is usual); none: never",
    )
    expected_gain: float | None = setting(
        None,
        gt=0,
        defines=False,
        help="gain of validation accuracy by the next query, extrapolated from the rounds so far, that is worth asking "
        "for; none: any",
    )


@dataclass(frozen=True)
class Progress:
    """What is known of the rounds so far, in order.

    Attributes:
        labels: number of labels of each round's model.
        accuracy: its fused accuracy on validation items, or None without any.
        agreement: of the last model's predictions for the candidates with those of the one before it, or None.
        size: items of the next query.
    """

    labels: Sequence[int]
    accuracy: Sequence[float | None]
    agreement: float | None
    size: int


def reason_to_stop(progress: Progress, settings: StopSettings) -> str | None:
    """Returns why a loop should stop, in words, or None if it should go on."""
    known = [(n, a) for n, a in zip(progress.labels, progress.accuracy, strict=True) if a is not None]
    if settings.accuracy is not None and known and known[-1][1] >= settings.accuracy:
        return f"validation accuracy is {_percent(known[-1][1])}, and {_percent(settings.accuracy)} are enough"
    if settings.plateau is not None and (rounds := _since_best(known, settings.plateau_gain)) >= settings.plateau:
        return f"validation accuracy has not risen by {_percent(settings.plateau_gain)} for {rounds} rounds"
    if settings.agreement is not None and progress.agreement is not None and progress.agreement >= settings.agreement:
        return f"two successive models agree on the candidates (kappa {progress.agreement:.3f})"
    if settings.expected_gain is not None and len(known) >= FEWEST:
        gain = expected_gain([n for n, _ in known], [a for _, a in known], progress.size)
        if gain < settings.expected_gain:
            return f"the next {progress.size} labels are expected to add {_percent(gain)} of validation accuracy"
    return None


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _since_best(known: Sequence[tuple[int, float]], gain: float) -> int:
    best, since = -np.inf, 0
    for _, accuracy in known:
        best, since = (accuracy, 0) if accuracy > best and accuracy >= best + gain else (best, since + 1)
    return since


def expected_gain(labels: Sequence[int], accuracy: Sequence[float], size: int) -> float:
    """Returns by how much accuracy is expected to rise with so many more labels.

    The power law 1 - a - b n^-c (a, b, c >= 0) is fitted to the rounds by least squares, the usual form of learning
    curves (Cortes et al., NeurIPS 1994).

    Args:
        labels, accuracy: of at least four rounds.
        size: labels to come.
    """
    # Takes most of a second to import, and few loops get here.
    from scipy.optimize import least_squares

    n = np.asarray(labels, np.float64) / labels[-1]
    wanted = np.asarray(accuracy, np.float64)

    def curve(p: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 - p[0] - p[1] * x ** -p[2]

    starts = [(max(0.0, 1 - wanted[-1] - 0.1), 0.1, c) for c in (0.25, 0.5, 1.0)]
    fits = [least_squares(lambda p: curve(p, n) - wanted, start, bounds=([0, 0, 0.01], [1, 1, 5])) for start in starts]
    best = min(fits, key=lambda fit: fit.cost).x
    now, later = curve(best, np.array([1.0, (labels[-1] + size) / labels[-1]]))
    return float(max(later - now, 0.0))


def kappa(one: NDArray[np.integer], other: NDArray[np.integer]) -> float | None:
    """Returns Cohen's kappa of two classifications of the same items; None where both put all into one class, which
    two models that have learnt nothing do too.

    Bloodgood and Vijay-Shanker (CoNLL 2009) stop by it; they average over several pairs of models on a fixed set, where
    the loop takes the last pair on the candidates that are left.

    Args:
        one, other: class indices [n].
    """
    if not len(one):
        return None
    size = int(max(one.max(), other.max())) + 1
    shares = [np.bincount(x, minlength=size) / len(x) for x in (one, other)]
    chance = float(shares[0] @ shares[1])
    agreed = float((one == other).mean())
    return None if chance >= 1 else (agreed - chance) / (1 - chance)
