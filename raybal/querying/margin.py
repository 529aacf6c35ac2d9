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
        best = scored.probabilities.topk(2, dim=1).values
        return {"closeness": best[:, 1] - best[:, 0]}

    def select(self, candidates: Candidates, request: Request) -> Query:
        ids, values = top_k(candidates, "closeness", request.size)
        return Query(ids, [-v for v in values], [f"margin {-v:.3f} between the two likeliest classes" for v in values])
