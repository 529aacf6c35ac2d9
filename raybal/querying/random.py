"""Random queries: the baseline that every strategy has to beat."""

from __future__ import annotations

from raybal.querying.base import Candidates, Query, QueryStrategy, Request, by_hash


class Random(QueryStrategy):
    """Chooses uniformly, by a hash of (seed, id)."""

    name = "random"
    cold = True

    def select(self, candidates: Candidates, request: Request) -> Query:
        ids = by_hash(candidates, request.size, request.seed)
        return Query(ids, [0.0] * len(ids), ["chosen at random"] * len(ids))
