"""When a loop has labels enough."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from raybal.stopping import Progress, StopSettings, expected_gain, kappa, reason_to_stop


def progress(*accuracy, agreement=None, size=50):
    return Progress([50 * (i + 1) for i in range(len(accuracy))], accuracy, agreement, size)


def test_without_a_wish_it_never_stops():
    assert reason_to_stop(progress(1.0, 1.0, 1.0, 1.0, 1.0, agreement=1.0), StopSettings()) is None


def test_an_accuracy_that_is_good_enough():
    settings = StopSettings(accuracy=0.8)
    assert reason_to_stop(progress(0.5, 0.79), settings) is None
    assert "80.0% are enough" in reason_to_stop(progress(0.5, 0.81), settings)
    # It is the newest model that has to be.
    assert reason_to_stop(progress(0.81, 0.5), settings) is None
    assert reason_to_stop(progress(None, None), settings) is None


def test_a_plateau_counts_rounds_since_the_best():
    settings = StopSettings(plateau=3)
    assert reason_to_stop(progress(0.5, 0.6, 0.602, 0.6), settings) is None
    assert "for 3 rounds" in reason_to_stop(progress(0.5, 0.6, 0.602, 0.6, 0.604), settings)
    assert reason_to_stop(progress(0.5, 0.6, 0.602, 0.606, 0.6), settings) is None


def test_agreement_of_two_models():
    settings = StopSettings(agreement=0.95)
    assert reason_to_stop(progress(0.5, agreement=0.9), settings) is None
    assert "kappa 0.960" in reason_to_stop(progress(0.5, agreement=0.96), settings)
    assert reason_to_stop(progress(0.5), settings) is None


def test_the_gain_to_expect_is_that_of_the_power_law():
    labels = np.array([50, 100, 150, 200, 250])
    accuracy = 1 - 0.1 - 2.0 * labels**-0.5
    wanted = 2.0 * (250**-0.5 - 300**-0.5)
    assert expected_gain(labels.tolist(), accuracy.tolist(), 50) == pytest.approx(wanted, abs=5e-4)
    flat = expected_gain(labels.tolist(), [0.7, 0.71, 0.70, 0.71, 0.705], 50)
    assert 0 <= flat < 0.002
    points = progress(*accuracy.tolist())
    assert reason_to_stop(points, StopSettings(expected_gain=wanted / 2)) is None
    assert "are expected to add 1.1%" in reason_to_stop(points, StopSettings(expected_gain=2 * wanted))
    # Three rounds tell nothing of a curve of three numbers.
    assert reason_to_stop(progress(0.5, 0.5, 0.5), StopSettings(expected_gain=0.5)) is None


def test_kappa_is_cohens():
    generator = np.random.default_rng(0)
    one = generator.integers(0, 4, 300)
    other = np.where(generator.random(300) < 0.7, one, generator.integers(0, 4, 300))
    assert kappa(one, other) == pytest.approx(cohen_kappa_score(one, other))
    assert kappa(one, one) == pytest.approx(1)
    assert kappa(np.zeros(5, int), np.zeros(5, int)) is None
    assert kappa(np.zeros(0, int), np.zeros(0, int)) is None
