"""Least confidence: the items whose likeliest class is least likely.

Lewis and Gale, "A Sequential Algorithm for Training Text Classifiers", SIGIR 1994.
"""

from __future__ import annotations

from torch import Tensor

from raybal.balancing.base import Predictor
from raybal.querying.base import Candidates, Query, QueryStrategy, Request, Scored, top_k


class LeastConfidence(QueryStrategy):
    """Chooses the items with the smallest probability of the predicted class."""

    name = "least_confidence"

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        return {"doubt": 1 - scored.probabilities.amax(1)}

    def select(self, candidates: Candidates, request: Request) -> Query:
        ids, values = top_k(candidates, "doubt", request.size)
        return Query(ids, values, [f"the likeliest class has only {100 * (1 - v):.1f}%" for v in values])
