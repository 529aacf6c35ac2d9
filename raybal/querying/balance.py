"""The balance of a query between modalities and classes, in numbers and as limits to it."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybal import hashing
from raybal.querying.base import (
    Candidates,
    Holder,
    Query,
    QueryStrategy,
    QuotaSettings,
    Request,
    column_names,
    gather,
    rows_of,
)
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
    longer allowed it is left for later and the strategy chooses again. When the limits together allow none that is
    left, one is given up for the rest of the query, and a warning says by how much it was missed.
    """
    quota = strategy.settings.quota
    if not len(candidates):
        return Query([], [], [])
    if quota == QuotaSettings():
        return strategy.select(candidates, request)
    pool = summarise_pool(candidates)
    limits = _Limits(quota, request.size, np.array(pool["contribution"]))
    columns = column_names(candidates)
    query, wanted = Query([], [], []), min(request.size, pool["candidates"])
    while len(query.ids) < wanted:
        shown = Shown(without=query.ids, allowed=limits.allowed)
        view = View(candidates, "within quota", shown)
        chosen = gather(candidates, query.ids, columns) if query.ids else None
        seed = hashing.digest(request.seed, len(query.ids)) if query.ids else request.seed
        found = strategy.select(
            view, dataclasses.replace(request, size=wanted - len(query.ids), seed=seed, chosen=chosen)
        )
        items = describe_items(view, found.ids)
        view.close()
        if not found.ids:
            limits.give_up(candidates, query.ids)
        for number, i in enumerate(found.ids):
            if limits.take(items[i]):
                _append(query, found, number)
    for name, found_value in limits.missed().items():
        log.warning("query.quota.%s: %.3f was not kept; it is %.3f", name, getattr(quota, name), found_value)
    if not any(query.parts):
        query.parts.clear()
    return query


def _append(query: Query, found: Query, number: int) -> None:
    query.ids.append(found.ids[number])
    query.score.append(found.score[number])
    query.reason.append(found.reason[number])
    # Some know parts only once there is something to compare with.
    query.parts.append(found.parts[number] if found.parts else {})


def _some_left(holder: Holder, allowed: Callable[[Columns], NDArray[np.bool_]], chosen: list[str]) -> bool:
    found = allowed(holder.columns)
    found[rows_of(holder, chosen)] = False
    return bool(found.any())


class _Limits:
    """What may still be taken.

    Args:
        quota: the limits.
        size: of the query.
        pool: each modality's mean contribution in the pool, [M].
    """

    def __init__(self, quota: QuotaSettings, size: int, pool: NDArray[np.float64]) -> None:
        self.quota = quota
        #: Those that are kept up, in the order in which they are given up.
        self.kept = [name for name in ("contribution", "predicted", "dominated") if getattr(quota, name) is not None]
        self.size = size
        self.pool = pool
        self.dominated: Counter[int] = Counter()
        self.predicted: Counter[int] = Counter()
        self.excess = np.zeros(len(pool))

    def allowed(self, columns: Columns) -> NDArray[np.bool_]:
        """Returns which items may be taken now, bool [n], by their predictions and contributions."""
        contribution = columns["contribution"].astype(np.float64)
        found = np.ones(len(contribution), bool)
        if self.quota.dominated is not None and "dominated" in self.kept:
            found &= ~np.isin(contribution.argmax(1), self._full(self.dominated, self.quota.dominated))
        if self.quota.predicted is not None and "predicted" in self.kept:
            found &= ~np.isin(columns["predicted"], self._full(self.predicted, self.quota.predicted))
        if self.quota.contribution is not None and "contribution" in self.kept:
            found &= np.abs(self.excess + contribution - self.pool).max(1) <= self.quota.contribution * self.size
        return found

    def give_up(self, candidates: Candidates, chosen: list[str]) -> None:
        """Gives up the first limit without which there is an item to take beside those chosen; all, if none is that."""
        kept, self.kept = self.kept, []
        for name in kept:
            self.kept = [other for other in kept if other != name]
            if any(candidates.map(_some_left, self.allowed, chosen)):
                return
        self.kept = []

    def missed(self) -> dict[str, float]:
        """Returns what came of the limits that were given up and not kept by chance, by name."""
        count = max(sum(self.predicted.values()), 1)
        came = {
            "dominated": max(self.dominated.values(), default=0) / count,
            "predicted": max(self.predicted.values(), default=0) / count,
            "contribution": float(np.abs(self.excess).max()) / count,
        }
        limits = {name: getattr(self.quota, name) for name in came if name not in self.kept}
        return {name: came[name] for name, most in limits.items() if most is not None and came[name] > most}

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
        # 0.29 of 100 is 29. Of what a small share allows none, the first is taken all the same.
        most = math.floor(share * self.size + 1e-9)
        return [k for k, count in counts.items() if count >= most]
