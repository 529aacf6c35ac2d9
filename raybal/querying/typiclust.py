"""TypiClust: the most typical item of each cluster that has no label yet.

Hacohen, Dekel and Weinshall, "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets", ICML 2022.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raybal.querying.base import Candidates, Query, Request
from raybal.querying.clusters import k_means
from raybal.querying.distances import exact_distances
from raybal.querying.embedding import EmbeddingSettings, EmbeddingStrategy
from raybal.querying.factors import FactorShard, Rows
from raybal.querying.shards import HeldShards, Joined, LocalShards, Pick, Shards, merge, rest
from raybal.settings import setting

NEIGHBOURS = 20
#: Clusters of so many items or fewer are outliers, as in the released code.
OUTLIERS = 5


@dataclass(frozen=True)
class TypiClustSettings(EmbeddingSettings):
    """Settings of TypiClust."""

    clusters: int = setting(500, ge=1, help="most clusters")
    members: int = setting(
        4000, ge=2, help="items of a cluster among which typical ones are looked for; of more, chosen by hash"
    )


class TypiClust(EmbeddingStrategy):
    """Clusters labelled items and candidates into as many clusters as both have items after the query (at most
    `clusters`); takes again and again the cluster with the fewest labels, the largest among equals, and of it the item
    with the smallest mean distance to its nearest neighbours there: 20, or half of the cluster's candidates if they are
    fewer than 40. Of clusters of up to 5 items, which the released code drops, it takes some when no other is left."""

    name = "typiclust"
    Settings = TypiClustSettings
    settings: TypiClustSettings
    cold = True

    def select(self, candidates: Candidates, request: Request) -> Query:
        shards = HeldShards(candidates, self.factors)
        others: list[FactorShard] = []
        if (held := request.known()) is not None:
            others.append(FactorShard(*self.factors(held), held.keys))
        known = LocalShards(others)
        labelled = sum(len(shard) for shard in others)
        count = min(self.settings.clusters, labelled + request.size)
        sizes = k_means(Joined([shards, known]), count, request.seed).sizes
        labels = sum(known.map("cells", len(sizes)), np.zeros(len(sizes), np.int64))
        picks, reasons, typicality = list[Pick](), list[str](), list[float]()

        def rank(number: int) -> tuple[bool, int, int, int]:
            return sizes[number] <= OUTLIERS, labels[number], -sizes[number], number

        queue = sorted(map(rank, range(len(sizes))))
        while queue and len(picks) < request.size:
            number = queue[0][-1]
            found = _most_typical(shards, number, self.settings.members)
            if found is None:
                heapq.heappop(queue)
                continue
            pick, distance = found
            picks.append(pick)
            typicality.append(1 / max(distance, 1e-12))
            reasons.append(f"typical of a cluster of {sizes[number]} items, {labels[number]} of them labelled")
            labels[number] += 1
            heapq.heapreplace(queue, rank(number))
        more = rest(shards, request.size - len(picks), request.seed)
        return Query(
            ids=shards.ids(picks + more),
            score=typicality + [0.0] * len(more),
            reason=reasons + ["at random"] * len(more),
        )


def _most_typical(shards: Shards, number: int, limit: int) -> tuple[Pick, float] | None:
    """Takes the free item of a cluster with the smallest mean distance to its neighbours there; None if none is
    free. Returns the distance too."""
    answers: list[Rows] = shards.map("free_members", number, limit)
    rows, shard = merge(answers, lambda r: np.argsort(r.key), limit)
    if not len(rows.row):
        return None
    distances = exact_distances(rows.q, rows.h, rows.q, rows.h).sqrt()
    mean = _mean_of_nearest(distances, min(NEIGHBOURS, max(len(rows.row) // 2, 1)))
    best = int(mean.argmin())
    shards.map("take", each=[(rows.row[[best]] if shard[best] == s else [],) for s in range(len(shards))])
    return Pick(int(shard[best]), int(rows.row[best]), float(rows.d2[best]), 0.0), float(mean[best])


def _mean_of_nearest(distances: torch.Tensor, count: int) -> NDArray[np.float64]:
    """Returns the mean distance of each item to its nearest others, [n]; infinite for one that is alone."""
    if len(distances) < 2:
        return np.full(len(distances), np.inf)
    own = distances.clone().fill_diagonal_(torch.inf)
    return own.topk(min(count, len(own) - 1), dim=1, largest=False).values.mean(1).numpy()
