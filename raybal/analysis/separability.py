"""How well the classes of items lie apart in an embedding: the purity of clusters that know nothing of them."""

from __future__ import annotations

import torch
from torch import Tensor

from raybal.analysis.clustering import k_means, scale_columns
from raybal.workers import Workers


def purity(clusters: Tensor, labels: Tensor) -> float:
    """Returns the share of items that are of their cluster's most frequent class, in (0, 1].

    Args:
        clusters, labels: [n] of integers, any numbering.
    """
    _, rows = clusters.unique(return_inverse=True)
    _, columns = labels.unique(return_inverse=True)
    return _purity(_contingency(rows, columns, int(rows.max()) + 1, int(columns.max()) + 1))


def separability(
    embeddings: Tensor, labels: Tensor, classes: int, restarts: int, seed: int, workers: Workers | None = None
) -> float:
    """Returns the purity of as many k-means clusters of embeddings as there are classes, each column scaled to [-1, 1].

    Args:
        embeddings, labels: this worker's part, [n, d] and int64 [n] in 0..classes-1.

    Raises:
        ValueError: fewer items than classes over all workers.
        ArithmeticError: embeddings that are not finite.
    """
    workers = workers or Workers()
    clusters = k_means(scale_columns(embeddings, workers), classes, restarts=restarts, seed=seed, workers=workers)
    return _purity(workers.sum(_contingency(clusters.assignment, labels, classes, classes)))


def _contingency(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Returns how often each pair of a row and a column occurs, float64 [height, width]."""
    counts = torch.zeros(height, width, dtype=torch.float64, device=rows.device)
    return counts.index_put_((rows, columns), torch.ones_like(rows, dtype=torch.float64), accumulate=True)


def _purity(counts: Tensor) -> float:
    return float(counts.amax(1).sum() / counts.sum())
