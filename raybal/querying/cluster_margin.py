"""Cluster-Margin: uncertain items from many clusters.

Citovsky, DeSalvo, Gentile, Karydas, Rajagopalan, Rostamizadeh and Kumar, "Batch Active Learning at Scale", NeurIPS
2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raybal import hashing
from raybal.balancing.base import Predictor
from raybal.errors import RaybalError
from raybal.querying.base import Candidates, Query, Request, Scored, top_k
from raybal.querying.embedding import EmbeddingSettings, EmbeddingStrategy
from raybal.querying.margin import margin
from raybal.settings import setting

#: All pairs of this many items take 1.6 GB.
LARGEST = 20_000


@dataclass(frozen=True)
class ClusterMarginSettings(EmbeddingSettings):
    """Settings of Cluster-Margin."""

    factor: float = setting(
        10.0, ge=1, help="items of smallest margin that are clustered, as a multiple of `size`; 20,000 at most"
    )
    spread: float = setting(1.25, gt=0, help="clusters, as a multiple of `size`")
    unit: bool = setting(False, help="scale each modality's embedding to length 1; the paper takes them as they are")


class ClusterMargin(EmbeddingStrategy):
    """Takes the items of smallest margin, clusters them by average linkage, and goes round the clusters, the smallest
    first, with a random item of each.

    The paper clusters the whole pool once, before training; here the items of smallest margin are clustered in every
    round, in the embeddings of its model.
    """

    name = "cluster_margin"
    Settings = ClusterMarginSettings
    settings: ClusterMarginSettings

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        return {"closeness": -margin(scored.probabilities), **super().columns(predictor, scored)}

    def select(self, candidates: Candidates, request: Request) -> Query:
        if request.size > LARGEST:
            raise RaybalError(f"cluster_margin can choose {LARGEST} items at a time at most, not {request.size}")
        wanted = min(max(round(self.settings.factor * request.size), request.size), LARGEST)
        ids, closeness = top_k(candidates, "closeness", wanted)
        clusters = self._clusters(candidates, ids, max(1, round(self.settings.spread * request.size)))
        sizes = np.bincount(clusters)
        chosen = _round_robin(ids, clusters, request.size, request.seed)
        return Query(
            ids=[ids[i] for i in chosen],
            score=[-closeness[i] for i in chosen],
            reason=[
                f"margin {-closeness[i]:.3f}, of a cluster of {sizes[clusters[i]]} uncertain items" for i in chosen
            ],
            parts=[{"margin": -closeness[i], "cluster_size": float(sizes[clusters[i]])} for i in chosen],
        )

    def _clusters(self, candidates: Candidates, ids: list[str], count: int) -> NDArray[np.int64]:
        """Returns the cluster of each of these items, [n], numbered from 0."""
        from scipy.cluster.hierarchy import fcluster, linkage

        if len(ids) < 2:
            return np.zeros(len(ids), np.int64)
        _, z = self.embeddings(candidates, ids)
        return fcluster(linkage(z.double().numpy(), "average"), count, "maxclust").astype(np.int64) - 1


def _round_robin(ids: list[str], clusters: NDArray[np.int64], size: int, seed: int) -> list[int]:
    """Returns positions of one item of each cluster in turn, the smallest cluster first, until there are enough."""
    members: dict[int, list[int]] = {}
    for i in hashing.order(ids, seed).tolist():
        members.setdefault(int(clusters[i]), []).append(i)
    # The first item in hash order tells clusters of one size apart.
    queues = [iter(m) for m in sorted(members.values(), key=len)]
    chosen: list[int] = []
    while len(chosen) < min(size, len(ids)):
        for queue in queues:
            item = next(queue, None)
            if item is not None and len(chosen) < size:
                chosen.append(item)
    return chosen
