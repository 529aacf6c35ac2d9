"""Intervals and comparisons beside plain formulas and scikit-learn's probe."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from raybal.analysis.probe import PENALTIES, _fit, linear_probe
from raybal.table.statistics import compare, holm, interval


def test_an_interval_is_students():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3
    # t at 97.5 % with four degrees of freedom, from a printed table.
    assert found.half == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5), rel=1e-3)
    assert interval([0.7]).half is None


def test_a_comparison_is_paired():
    found = compare([0.80, 0.90, 0.70, 0.75], [0.78, 0.89, 0.67, 0.71])
    differences = np.array([0.02, 0.01, 0.03, 0.04])
    assert found.difference.mean == pytest.approx(0.025)
    t = differences.mean() / (differences.std(ddof=1) / 2)
    assert t == pytest.approx(3.873, rel=1e-3)
    # Two-sided p of t = 3.873 with three degrees of freedom: 1 - the closed form of its distribution.
    angle = math.atan(t / math.sqrt(3))
    assert found.p == pytest.approx(1 - 2 / math.pi * (angle + math.sin(angle) * math.cos(angle)), rel=1e-6)
    assert compare([0.5], [0.4]).p is None
    same = compare([0.52, 0.57], [0.50, 0.55])
    assert same.p is None
    assert same.difference.half == pytest.approx(0.0, abs=1e-9)


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_correction_keeps_the_order_and_never_lowers(ps):
    found = holm(ps)
    assert all(a >= p for a, p in zip(found, ps, strict=True))
    order = np.argsort(ps, kind="stable")
    assert all(found[a] <= found[b] for a, b in itertools.pairwise(order.tolist()))


def _embeddings(count, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, count)
    rows = np.eye(4)[labels].repeat(3, 1) + generator.normal(size=(count, 12)) * np.linspace(0.5, 20, 12)
    return torch.from_numpy(rows).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_probe_is_scikit_learns_regression(penalty, monkeypatch):
    monkeypatch.setattr("raybal.analysis.probe.PENALTIES", (penalty,))
    train, test = _embeddings(120, 0), _embeddings(200, 1)
    found = linear_probe(train, train, test[0], 4)
    scale = StandardScaler().fit(train[0].numpy())
    model = LogisticRegression(C=1 / (penalty * 120), max_iter=5000, tol=1e-8)
    model.fit(rows := scale.transform(train[0].numpy()), train[1].numpy())
    assert (found.numpy() == model.predict(scale.transform(test[0].numpy()))).all()
    weights = _fit(torch.from_numpy(rows).double(), train[1], 4, penalty).numpy()
    wanted = np.concatenate([model.coef_, (model.intercept_ - model.intercept_.mean())[:, None]], 1)
    # Adding one number to all intercepts changes nothing.
    weights[:, -1] -= weights[:, -1].mean()
    assert np.abs(weights - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_validation_chooses_the_penalty_of_a_probe():
    """Twelve items in twelve dimensions: only the strongest penalty generalises."""
    train, validation, test = _embeddings(12, 2), _embeddings(300, 3), _embeddings(300, 4)
    chosen = linear_probe(train, validation, test[0], 4)
    found = {p: (_with(train, p, test) == test[1]).double().mean() for p in PENALTIES}
    assert (chosen == test[1]).double().mean() >= max(found.values()) - 0.03
    assert max(found.values()) > min(found.values())


def _with(train, penalty, test):
    from raybal.analysis import probe

    before, probe.PENALTIES = probe.PENALTIES, (penalty,)
    try:
        return linear_probe(train, train, test[0], 4)
    finally:
        probe.PENALTIES = before
