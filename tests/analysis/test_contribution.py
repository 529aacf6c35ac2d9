"""Shapley values against recorded ones of BalanceBenchmark's."""

import numpy as np
import pytest
import torch

from raybal.analysis.contribution import shares_of_players


@pytest.mark.parametrize("case", ["two", "two_harm", "three"])
def test_shapley_values_of_accuracy_equal_the_recorded_ones(case, vectors):
    data = vectors("dr_shapley")
    names = [str(m) for m in data[f"{case}_modalities"]]
    values = {}
    for coalition, accuracy in zip(data[f"{case}_coalitions"], data[f"{case}_acc"], strict=True):
        members = {m for m in names if m in str(coalition)}
        values[tuple(m in members for m in names)] = torch.tensor([[accuracy]], dtype=torch.float64)
    assert len(values) == int(data[f"{case}_passes"]) == 2 ** len(names)
    found = shares_of_players(values)[0, :, 0]
    np.testing.assert_allclose(found, data[f"{case}_shapley"], rtol=0, atol=1e-12)
