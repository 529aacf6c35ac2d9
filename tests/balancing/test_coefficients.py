"""Coefficients against recorded outputs of the authors' code."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raybal.balancing import mlb, ogm
from raybal.balancing.paced import true_class_probability


def test_mlb_coefficients_equal_the_authors(vectors):
    data = vectors("mlb_coeff_2mod")
    labels = torch.from_numpy(data["label"])
    for step in range(5):
        scores = torch.stack(
            [
                true_class_probability(torch.from_numpy(data[f"logits_{m}"][step]).double(), labels).mean()
                for m in ("a", "v")
            ]
        )
        np.testing.assert_allclose(scores, data["scores"][step], rtol=1e-10)
        for a, alpha in enumerate(data["alphas"]):
            for b, beta in enumerate(data["betas_max"]):
                k = mlb.modulation_coefficients(scores, float(alpha), float(beta) or None)
                np.testing.assert_allclose(k, data["k"][step, a, b], rtol=1e-10, atol=1e-10)


def test_mlb_regression_coefficients_equal_the_authors(vectors):
    data = vectors("mlb_coeff_3mod_regression")
    errors = torch.from_numpy(((data["preds"][..., 0] - data["target"]) ** 2).mean(1))
    np.testing.assert_allclose(errors, data["mse"], rtol=1e-10)
    for a, alpha in enumerate(data["alphas"]):
        np.testing.assert_allclose(mlb.regression_coefficients(errors, float(alpha)), data["k"][a], rtol=1e-10)


def test_mlb_regression_calls_the_larger_error_behind():
    k = mlb.regression_coefficients(torch.tensor([1.0, 3.0]), 0.5, 10.0)
    assert k.tolist() == pytest.approx([1 + np.tanh(0.5 * (1 / 3 - 1)), 1 + 9 * np.tanh(0.5 * 2)])
    assert mlb.regression_coefficients(torch.zeros(3), 0.5).tolist() == [1.0, 1.0, 1.0]


def test_ogm_coefficients_equal_the_authors(vectors):
    data = vectors("ogm_coeff")
    for step, sums in enumerate(torch.from_numpy(data["score_sums"]).double()):
        for a, alpha in enumerate(data["alphas"]):
            k = ogm.modulation_coefficients(sums, float(alpha))
            np.testing.assert_allclose(k, data["k"][step, a], rtol=1e-10, atol=1e-10)


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=5),
    st.floats(0.1, 8),
    st.sampled_from([0.5, 1.0, 2.0, 10.0, 20.0]),
)
def test_mlb_coefficients_stay_in_their_range(scores, alpha, beta_max):
    k = mlb.modulation_coefficients(torch.tensor(scores, dtype=torch.float64), alpha, beta_max)
    assert torch.isfinite(k).all()
    low = min(1 - np.tanh(alpha), beta_max)
    assert (k >= low - 1e-9).all()
    assert (k <= max(beta_max, 1) + 1e-9).all()


def test_mlb_clamps_a_score_of_zero_instead_of_shifting_it():
    # Both at zero are equal, so nothing is modulated; an epsilon added to the denominator alone would not give 1.
    assert mlb.modulation_coefficients(torch.zeros(2), 5.0).tolist() == [1.0, 1.0]
    # Above the floor the coefficient is the formula's to the last digit.
    scores = torch.tensor([1e-7, 3e-7], dtype=torch.float64)
    expected = [1 + np.tanh(0.5 * (3 - 1)), 1 + np.tanh(0.5 * (1 / 3 - 1))]
    np.testing.assert_allclose(mlb.modulation_coefficients(scores, 0.5), expected, rtol=1e-12)


def test_mlb_permutes_with_the_modalities():
    scores = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    order = torch.tensor([2, 0, 1])
    k = mlb.modulation_coefficients(scores, 1.0, 5.0)
    torch.testing.assert_close(mlb.modulation_coefficients(scores[order], 1.0, 5.0), k[order])


@pytest.mark.parametrize("beta_max", [0.3, 1.3, 2.3, 10.1])
def test_mlb_keeps_the_precision_of_its_scores(beta_max):
    scores = torch.tensor([0.2, 0.5], dtype=torch.float64)
    k = mlb.modulation_coefficients(scores, 0.5, beta_max)
    expected = [1 + (beta_max - 1) * np.tanh(0.5 * (2.5 - 1)), 1 + np.tanh(0.5 * (0.4 - 1))]
    np.testing.assert_allclose(k, expected, rtol=1e-14)


@pytest.mark.parametrize("score", [0.0, 0.9])
def test_mlb_compares_only_what_was_seen(score):
    scores = torch.tensor([0.2, score, 0.5], dtype=torch.float64)
    k = mlb.modulation_coefficients(scores, 2.0, 10.0, torch.tensor([True, False, True]))
    two = mlb.modulation_coefficients(scores[[0, 2]], 2.0, 10.0)
    torch.testing.assert_close(k[[0, 2]], two, rtol=0, atol=1e-15)
    assert k[1] == 1.0
    alone = mlb.modulation_coefficients(scores, 2.0, 10.0, torch.tensor([True, False, False]))
    assert alone.tolist() == [1.0, 1.0, 1.0]


def test_a_single_modality_is_left_alone():
    assert mlb.modulation_coefficients(torch.tensor([0.3]), 2.0, 10.0).tolist() == [1.0]


@pytest.mark.parametrize("scores", [[1.0, 1.0], [0.25, 0.25]])
def test_equal_scores_are_left_alone(scores):
    assert mlb.modulation_coefficients(torch.tensor(scores), 2.0, 10.0).tolist() == [1.0, 1.0]
    assert ogm.modulation_coefficients(torch.tensor(scores), 0.8).tolist() == [1.0, 1.0]
