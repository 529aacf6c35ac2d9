"""Both sides of the measurements of selection do the work that they are said to do."""

import numpy as np
import pytest
import torch

from raybal.bench import select
from raybal.querying.seeding import sequential_seeding


def test_the_dense_form_chooses_what_the_factored_one_does():
    q, h = select.make_factors(300)
    uniforms = np.random.default_rng(5).random(60)
    expected = sequential_seeding(q, h, 20, uniforms).tolist()
    assert select.dense_seeding(torch.einsum("nc,nd->ncd", q, h).flatten(1), 20, np.random.default_rng(5)) == expected


def test_what_is_measured_is_a_whole_selection(monkeypatch):
    monkeypatch.setattr(select, "PICKS", 40)
    found = select._measure(3000, 1)
    assert found["passes"] >= 2
    flops = 2 * 3000 * (select.CLASSES + select.SIZE) * 40
    assert found["GFLOP/s"] * 1e9 * found["s"] == pytest.approx(flops, rel=1e-6)
    assert found["sequential s"] > 0


def test_large_pools_are_kept_in_half_precision(monkeypatch):
    whole = select.make_factors(1000)
    monkeypatch.setattr(select, "HALF", 1000)
    for one, other in zip(whole, select.make_factors(1000), strict=True):
        assert (one.dtype, other.dtype) == (torch.float32, torch.float16)
        torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=1e-3)
