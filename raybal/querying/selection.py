"""A query together with what can be said of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raybal.querying.balance import balance_of, select
from raybal.querying.base import Candidates, Query, QueryStrategy, Request
from raybal.querying.explain import describe_items, explain_items, summarise_pool


@dataclass(frozen=True)
class Selection:
    """A query beside the pool it was chosen from.

    Attributes:
        query: the items chosen.
        items: prediction, confidence, contributions of each of them, what it stands for and what labelled item is
            nearest, by id; none where nothing was scored.
        pool: number, mean contribution, dominance and predicted classes of all candidates; nothing where nothing was
            scored or no candidate is left.
        balance: how balanced the query is.
    """

    query: Query
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    pool: dict[str, Any] = field(default_factory=dict)
    balance: dict[str, Any] = field(default_factory=dict)

    def of(self, query: Query) -> Selection:
        """Returns what can be said of a part of the query. How many items each stands for is not known then."""
        items = {i: {k: v for k, v in f.items() if k != "stands_for"} for i in query.ids if (f := self.items.get(i))}
        balance = balance_of(items, self.pool) if self.balance else {}
        return Selection(query, items, self.pool, balance)

    def without_predictions(self) -> Selection:
        """Returns what is left where the model was not trained: where items lie, but not what they are."""
        kept = ("stands_for", "nearest_labelled", "labelled_distance")
        return Selection(self.query, {i: {k: f[k] for k in kept if k in f} for i, f in self.items.items()})


def select_and_explain(strategy: QueryStrategy, candidates: Candidates, request: Request) -> Selection:
    """Selects a query and looks up what was chosen."""
    query = select(strategy, candidates, request)
    items, pool = describe_items(candidates, query.ids), summarise_pool(candidates)
    balance = balance_of(items, pool)
    for i, facts in explain_items(candidates, strategy, query, request.labelled).items():
        items[i] |= facts
    return Selection(query, items, pool, balance)
