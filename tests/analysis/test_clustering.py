"""K-means over workers beside scikit-learn's, and one worker beside several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.preprocessing import MinMaxScaler
from toy import Threads

from raybal.analysis.clustering import k_means, scale_columns
from raybal.workers import Workers


def make_rows(count=300, k=6, d=5, spread=0.6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(k, d, generator=generator)
    rows = centres[torch.arange(count) % k] + spread * torch.randn(count, d, generator=generator)
    return rows[torch.randperm(count, generator=generator)]


@pytest.mark.parametrize("k", [2, 6, 20])
def test_inertia_is_as_low_as_scikit_learns(k):
    rows = make_rows()
    found = k_means(rows, k, restarts=10, seed=1)
    wanted = KMeans(k, n_init=10, random_state=0).fit(rows.numpy()).inertia_
    assert found.inertia <= 1.02 * wanted
    distances = torch.cdist(rows.double(), found.centres.double()).square()
    assert torch.equal(found.assignment, distances.argmin(1))
    assert found.inertia == pytest.approx(float(distances.min(1).values.sum()), rel=1e-4)


def test_at_the_end_every_centre_is_the_mean_of_its_rows():
    rows = make_rows(spread=0.3)
    found = k_means(rows, 6, restarts=3, seed=1)
    for c in range(6):
        torch.testing.assert_close(found.centres[c], rows[found.assignment == c].mean(0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sizes", [(150, 150), (10, 200, 0, 90)])
def test_workers_find_what_one_process_finds(sizes):
    rows = make_rows().double()
    alone = k_means(rows, 6, restarts=3, seed=4)
    parts = rows.split(list(sizes))
    found = Threads(len(sizes)).run(lambda w: k_means(parts[w.rank], 6, restarts=3, seed=4, workers=w))
    assert torch.equal(torch.cat([f.assignment for f in found]), alone.assignment)
    for one in found:
        torch.testing.assert_close(one.centres, alone.centres)
        assert one.inertia == pytest.approx(alone.inertia)


def test_columns_are_scaled_over_all_workers():
    rows = torch.cat([make_rows(30), torch.full((30, 1), 3.0)], 1)
    wanted = MinMaxScaler((-1, 1)).fit_transform(rows.numpy())
    np.testing.assert_allclose(scale_columns(rows), wanted, atol=1e-6)
    parts = rows.split([7, 0, 23])
    found = Threads(3).run(lambda w: scale_columns(parts[w.rank], w))
    assert torch.equal(torch.cat(found), scale_columns(rows))


def test_equal_rows_and_as_many_clusters_as_rows():
    same = k_means(torch.ones(10, 2), 3, restarts=2, seed=0)
    assert same.inertia == 0
    assert torch.isfinite(same.centres).all()
    rows = make_rows(8)
    assert k_means(rows, 8, restarts=2, seed=0).assignment.unique().numel() == 8


def test_an_empty_cluster_takes_the_farthest_row():
    """Two far groups and three starts in one place: the third cluster has to come from somewhere."""
    from raybal.analysis.clustering import _lloyd

    rows = torch.cat([torch.zeros(5, 1), torch.full((5, 1), 10.0), torch.tensor([[14.0]])])
    found = _lloyd(rows, torch.tensor([[0.0], [10.0], [100.0]]), 0.0, Workers())
    assert sorted(found.centres.flatten().tolist()) == [0.0, 10.0, 14.0]
    assert found.inertia == 0


def test_what_cannot_be_clustered_is_refused():
    with pytest.raises(ValueError, match="2 rows cannot make 3 clusters"):
        k_means(torch.zeros(2, 4), 3, restarts=1, seed=0)
    with pytest.raises(ArithmeticError, match="1 values are not finite"):
        k_means(torch.tensor([[0.0], [np.nan], [1.0]]), 2, restarts=1, seed=0)
