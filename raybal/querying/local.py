"""Scoring and selecting in this process, for simulations of small pools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raybal.querying.base import LocalCandidates, QueryStrategy, Request
from raybal.querying.scoring import ShardScorer, read_holder
from raybal.querying.selection import Selection, select_and_explain
from raybal.store import Store


class LocalScorers:
    """What `Scorers` does, without actors.

    Args:
        pool, store: roots.
    """

    def __init__(self, pool: str, store: str) -> None:
        self.store = Store(store)
        self._worker = ShardScorer(pool, store)

    def score(self, folder: str, shards: dict[str, NDArray[np.int64]], model: str, strategy: QueryStrategy) -> None:
        """Scores what has no finished file in `folder` yet, as `Scorers.score`."""
        done = {name.removesuffix(".parquet") for name in self.store.names(folder)}
        for shard, positions in shards.items():
            if shard not in done:
                self._worker.score(f"{folder}/{shard}.parquet", positions, model, strategy)

    def select(self, folder: str, shards: Sequence[str], request: Request, strategy: QueryStrategy) -> Selection:
        """Selects a query from scored shards, as `Scorers.select`."""
        holder = read_holder(self.store, [f"{folder}/{shard}.parquet" for shard in shards])
        return select_and_explain(strategy, LocalCandidates([holder]), request)

    def stop(self) -> None:
        """Does nothing: there is nothing to end."""
