"""Entropy: the items whose fused prediction is least certain.

Shannon entropy as an uncertainty measure for active learning; see Settles, "Active Learning Literature Survey",
2009, section 3.1.
"""

from __future__ import annotations

from torch import Tensor

from raybal.balancing.base import Predictor
from raybal.querying.base import Candidates, Query, QueryStrategy, Request, Scored, top_k


class Entropy(QueryStrategy):
    """Chooses the items of largest entropy of the predicted distribution, in nats."""

    name = "entropy"

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        return {"entropy": entropy(scored.probabilities)}

    def select(self, candidates: Candidates, request: Request) -> Query:
        ids, values = top_k(candidates, "entropy", request.size)
        return Query(ids, values, [f"entropy {v:.2f} nats" for v in values])


def entropy(probabilities: Tensor) -> Tensor:
    """Returns the entropy in nats of each row of probabilities [n, C]; a probability of 0 adds 0."""
    return -probabilities.xlogy(probabilities).sum(1)
