"""Margin: the items whose two likeliest classes are closest.

Scheffer, Decomain and Wrobel, "Active Hidden Markov Models for Information Extraction", IDA 2001.
"""

from __future__ import annotations

from torch import Tensor

from raybal.balancing.base import Predictor
from raybal.querying.base import Candidates, Query, QueryStrategy, Request, Scored, top_k


class Margin(QueryStrategy):
    """Chooses the items with the smallest difference between the two largest class probabilities."""

    name = "margin"

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        return {"closeness": -margin(scored.probabilities)}

    def select(self, candidates: Candidates, request: Request) -> Query:
        ids, values = top_k(candidates, "closeness", request.size)
        return Query(ids, [-v for v in values], [f"margin {-v:.3f} between the two likeliest classes" for v in values])


def margin(probabilities: Tensor) -> Tensor:
    """Returns the difference [n] between the two largest of each item's class probabilities [n, C]."""
    best = probabilities.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]
