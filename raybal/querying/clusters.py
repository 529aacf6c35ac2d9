"""K-means over all candidates, the same for any number of shards.

Sums over items are taken in whole steps (int64), so they do not depend on the order in which they are added; the
clusters are then those of one process, whatever lies where.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybal.querying.factors import Rows
from raybal.querying.seeding import rejection_seeding
from raybal.querying.shards import Pick, Shards, merge, rows_of

#: Steps that the largest value has: sums of 2^27 items fit into 63 bits.
STEPS = 2.0**34


@dataclass(frozen=True)
class Clusters:
    """The result of k-means.

    Attributes:
        centres: float32 [k, D].
        sizes: number of items in each, int64 [k].
    """

    centres: Tensor
    sizes: NDArray[np.int64]


def k_means(shards: Shards, k: int, seed: int, *, iterations: int = 20) -> Clusters:
    """Clusters plain embeddings by Euclidean distance: k-means++, whose first centre is the item of largest norm, and
    Lloyd's iterations.

    Afterwards every shard's `nearest` is the cluster of each of its items. A cluster that becomes empty stays where
    it was.

    Args:
        shards: of embeddings, q = [1].
        k: number of clusters; as many as there are items if there are fewer.
        seed: of the start.
        iterations: at most so many.
    """
    centres = rows_of(shards, rejection_seeding(shards, k, seed)).h.float()
    shards.map("release")
    step = max(shards.map("magnitude"), default=0.0) / STEPS or 1.0
    sums = np.zeros(0)
    for _ in range(iterations):
        shards.map("assign", torch.ones(len(centres), 1), centres)
        before, sums = sums, sum(shards.map("sums", len(centres), step))
        if np.array_equal(before, sums):
            break
        sizes = sums[:, -1:]
        means = torch.from_numpy((sums[:, :-1] * step / np.maximum(sizes, 1)).astype(np.float32))
        centres = torch.where(torch.from_numpy(sizes > 0), means, centres)
    shards.map("assign", torch.ones(len(centres), 1), centres)
    sizes = sum(shards.map("cells", len(centres)), np.zeros(len(centres), np.int64))
    return Clusters(centres, sizes)


def central_items(shards: Shards, size: int) -> list[Pick]:
    """Returns the item nearest to the centre of each cluster, the smaller key among equals, and takes them: in order
    of the clusters, without those that are empty."""
    answers: list[Rows] = shards.map("closest", size)
    total = sum(len(a.row) for a in answers)
    rows, shard = merge(answers, lambda r: np.lexsort((r.key, r.d2, r.nearest)), total)
    first = np.unique(rows.nearest, return_index=True)[1]
    rows, shard = rows[first], shard[first]
    shards.map("take", each=[(rows.row[shard == s],) for s in range(len(shards))])
    return [
        Pick(int(s), int(row), float(d2), float(norm))
        for s, row, d2, norm in zip(shard, rows.row, rows.d2, rows.norm, strict=True)
    ]
