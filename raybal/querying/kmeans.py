"""K-means: the items in the middle of as many clusters as are asked for.

A usual baseline of diverse queries, e.g. in Ash et al., ICLR 2020, and Shen et al., ACM MM 2023.
"""

from __future__ import annotations

from raybal.querying.base import Candidates, Query, Request
from raybal.querying.clusters import central_items, k_means
from raybal.querying.embedding import EmbeddingStrategy
from raybal.querying.shards import HeldShards, rest


class KMeans(EmbeddingStrategy):
    """Clusters all candidates and chooses, of each cluster, the item nearest to its centre; the largest cluster first.

    Where equal items leave clusters empty, items at random make up for them.
    """

    name = "kmeans"

    def select(self, candidates: Candidates, request: Request) -> Query:
        shards = HeldShards(candidates, self.factors)
        clusters = k_means(shards, request.size, request.seed)
        picks = central_items(shards, len(clusters.sizes))
        sizes = clusters.sizes[clusters.sizes > 0]
        order = (-sizes).argsort(kind="stable")
        picks, counts = [picks[i] for i in order], sizes[order].tolist()
        reasons = [f"nearest to the centre of a cluster of {count} items" for count in counts]
        more = rest(shards, request.size - len(picks), request.seed)
        return Query(
            ids=shards.ids(picks + more),
            score=[float(count) for count in counts] + [0.0] * len(more),
            reason=reasons + ["equal to an item chosen before; at random"] * len(more),
            parts=[{"distance_to_centre": p.d2**0.5} for p in picks + more],
        )
