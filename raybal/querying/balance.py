"""The balance of a query between modalities and classes, in numbers and as limits to it."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybal import hashing
from raybal.querying.base import Candidates, Query, QueryStrategy, QuotaSettings, Request, column_names, gather
from raybal.querying.explain import describe_items, summarise_pool
from raybal.querying.views import Columns, Shown, View

log = logging.getLogger(__name__)

Facts = dict[str, Any]


def balance_of(items: dict[str, Facts], pool: Facts) -> Facts:
    """Returns how balanced a query is.

    Args:
        items: prediction and contributions of the chosen items, by id, as of `describe_items`.
        pool: of all candidates, as of `summarise_pool`.

    Returns:
        {"contribution": each modality's mean in the query minus that in the pool, "dominated": the share of the query
        that each modality dominates, "class_entropy": of the classes predicted in the query, in nats, and
        "pool_class_entropy"}; nothing for an empty query, or without a model.
    """
    if not items or not pool:
        return {}
    # Takes most of a second to import, and few processes get here.
    from scipy.stats import entropy

    contribution = np.array([facts["contribution"] for facts in items.values()])
    strongest = np.bincount(contribution.argmax(1), minlength=contribution.shape[1])
    classes = Counter(facts["predicted"] for facts in items.values())
    return {
        "contribution": (contribution.mean(0) - pool["contribution"]).tolist(),
        "dominated": (strongest / len(items)).tolist(),
        "class_entropy": float(entropy(list(classes.values()))),
        "pool_class_entropy": float(entropy(list(pool["predicted"].values()))),
    }


def select(strategy: QueryStrategy, candidates: Candidates, request: Request) -> Query:
    """Lets a strategy choose, within the quota of its settings.

    The strategy chooses among the items that the limits allow now; they are taken in its order, and when one is no
    longer allowed it is left for later and the strategy chooses again. When the limits allow none that is left, the
    rest is chosen without them, and a warning says so.
    """
    quota = strategy.settings.quota
    if not len(candidates):
        return Query([], [], [])
    if quota == QuotaSettings():
        return strategy.select(candidates, request)
    pool = summarise_pool(candidates)
    limits = _Limits(quota, request.size, np.array(pool["contribution"]))
    columns = column_names(candidates)
    query, wanted, kept = Query([], [], []), min(request.size, pool["candidates"]), True
    while len(query.ids) < wanted:
        shown = Shown(without=query.ids, allowed=limits.allowed if kept else None)
        view = View(candidates, "within quota", shown)
        chosen = gather(candidates, query.ids, columns) if query.ids else None
        seed = hashing.digest(request.seed, len(query.ids)) if query.ids else request.seed
        found = strategy.select(
            view, dataclasses.replace(request, size=wanted - len(query.ids), seed=seed, chosen=chosen)
        )
        items = describe_items(view, found.ids)
        view.close()
        if not found.ids:
            log.warning(
                "the quota cannot be kept: %d of %d items are chosen beyond it", wanted - len(query.ids), wanted
            )
            kept = False
            continue
        for number, i in enumerate(found.ids):
            if limits.take(items[i]) or not kept:
                _append(query, found, number)
    return query


def _append(query: Query, found: Query, number: int) -> None:
    query.ids.append(found.ids[number])
    query.score.append(found.score[number])
    query.reason.append(found.reason[number])
    if found.parts:
        query.parts.append(found.parts[number])


class _Limits:
    """What may still be taken.

    Args:
        quota: the limits.
        size: of the query.
        pool: each modality's mean contribution in the pool, [M].
    """

    def __init__(self, quota: QuotaSettings, size: int, pool: NDArray[np.float64]) -> None:
        self.quota = quota
        self.size = size
        self.pool = pool
        self.dominated: Counter[int] = Counter()
        self.predicted: Counter[int] = Counter()
        self.excess = np.zeros(len(pool))

    def allowed(self, columns: Columns) -> NDArray[np.bool_]:
        """Returns which items may be taken now, bool [n], by their predictions and contributions."""
        contribution = columns["contribution"].astype(np.float64)
        found = np.ones(len(contribution), bool)
        if self.quota.dominated is not None:
            found &= ~np.isin(contribution.argmax(1), self._full(self.dominated, self.quota.dominated))
        if self.quota.predicted is not None:
            found &= ~np.isin(columns["predicted"], self._full(self.predicted, self.quota.predicted))
        if self.quota.contribution is not None:
            after = np.abs(self.excess + contribution - self.pool).max(1)
            found &= (after <= self.quota.contribution * self.size) | (after < np.abs(self.excess).max())
        return found

    def take(self, item: Facts) -> bool:
        """Counts an item and returns True, or returns False if a limit does not allow it."""
        columns = {"contribution": np.array([item["contribution"]]), "predicted": np.array([item["predicted"]])}
        if not self.allowed(columns)[0]:
            return False
        contribution = columns["contribution"][0].astype(np.float64)
        self.dominated[int(contribution.argmax())] += 1
        self.predicted[int(item["predicted"])] += 1
        self.excess += contribution - self.pool
        return True

    def _full(self, counts: Counter[int], share: float) -> list[int]:
        # 0.29 of 100 is 29; a share of a small query is one item at least.
        most = max(1, math.floor(share * self.size + 1e-9))
        return [k for k, count in counts.items() if count >= most]
