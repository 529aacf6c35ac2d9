"""Ray actors that score the shards of a pool and then hold the scored candidates while a query is selected."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from raybal import hashing
from raybal.data.pool import Pool
from raybal.errors import RaybalError
from raybal.predictor import load_predictor
from raybal.querying.base import STRATEGIES, Holder, Query, QuerySettings, Request
from raybal.querying.scoring import read_columns, score_shard
from raybal.resources import ResourceSettings, scoring_options
from raybal.store import Store

log = logging.getLogger(__name__)

ATTEMPTS = 3


class HolderLostError(RaybalError):
    """An actor was restarted and holds nothing any more."""


@ray.remote
class PoolActor:
    """Scores shards, and holds candidates. All it knows can be read again from the pool and the store."""

    def __init__(self, pool: str, store: str, settings: QuerySettings) -> None:
        self.pool = Pool(pool)
        self.store = Store(store)
        self.settings = settings
        self.strategy = STRATEGIES.get(settings.strategy)(settings)
        self.device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self.model: tuple[str, Any] = ("", None)
        self.holder: Holder | None = None

    def ready(self) -> None:
        """Returns when the actor has started."""

    def score(self, folder: str, shard: str, positions: NDArray[np.int64], model: str) -> int:
        """Writes the scores of one shard's items to `folder`; returns how many they are."""
        if self.model[0] != model:
            self.model = (model, load_predictor(self.store, model, self.device)[0])
        table = score_shard(
            self.pool,
            positions,
            self.model[1],
            self.strategy,
            device=self.device,
            batch_size=self.settings.batch_size,
        )
        self.store.write_table(f"{folder}/{shard}.parquet", table, compression="none")
        return len(table)

    def hold(self, folder: str, shards: list[str]) -> int:
        """Reads scored shards into memory; returns the number of items held."""
        holders = [self.store.read_table(f"{folder}/{shard}.parquet") for shard in shards]
        ids = [i for table in holders for i in table["id"].to_pylist()]
        parts = [read_columns(table) for table in holders]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}
        self.holder = Holder(ids, hashing.hash_ids(ids), columns)
        return len(ids)

    def apply(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Calls function(holder, *args)."""
        if self.holder is None:
            raise HolderLostError("a scoring actor was restarted while a query was selected")
        return function(self.holder, *args)


class ActorCandidates:
    """Candidates held by actors."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = actors

    def __len__(self) -> int:
        return len(self.actors)

    def map(self, function: Callable[..., Any], *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        own = each or [()] * len(self.actors)
        return ray.get([a.apply.remote(function, (*args, *more)) for a, more in zip(self.actors, own, strict=True)])


class Scorers:
    """The actors of one driver. They start in the background, are used as they come, and live until `stop`.

    Args:
        pool, store: roots.
        settings: of the query.
        shards: number of shards of the pool.
        resources: what may be used.
    """

    def __init__(
        self, pool: str, store: str, settings: QuerySettings, shards: int, resources: ResourceSettings
    ) -> None:
        self.settings = settings
        self.store = Store(store)
        count, options = scoring_options(shards, resources)
        kind: Any = PoolActor
        started = [kind.options(**options).remote(pool, store, settings) for _ in range(count)]
        # On a cluster that grows, some may come late or never.
        self._starting = {actor.ready.remote(): actor for actor in started}
        self.actors: list[Any] = []

    def stop(self) -> None:
        """Ends the actors and gives their resources back."""
        for actor in [*self.actors, *self._starting.values()]:
            ray.kill(actor)
        self.actors, self._starting = [], {}

    def score(self, folder: str, shards: dict[str, NDArray[np.int64]], model: str) -> None:
        """Scores every shard that has no finished file in `folder` yet.

        Args:
            shards: positions in the pool of the items to score, by shard.
            model: name of the predictor in the store.
        """
        done = {name.removesuffix(".parquet") for name in self.store.names(folder)}
        left = deque(shard for shard in shards if shard not in done)
        if len(left) < len(shards):
            log.info("scoring continues: %d of %d shards are done", len(shards) - len(left), len(shards))
        total, started, items, number = len(left), time.monotonic(), 0, 0
        idle = list(self.actors)
        running: dict[Any, tuple[Any, str]] = {}
        while left or running:
            while left and idle:
                actor, shard = idle.pop(), left.popleft()
                running[actor.score.remote(folder, shard, shards[shard], model)] = (actor, shard)
            (ref,), _ = ray.wait([*running, *self._starting], num_returns=1)
            if ref in self._starting:
                idle.append(self._joined(ref))
                continue
            actor, shard = running.pop(ref)
            try:
                items += ray.get(ref)
            except ray.exceptions.RayActorError:
                # Lost more often than it may restart: the others take over.
                self.actors.remove(actor)
                left.append(shard)
                if not self.actors and not self._starting:
                    raise
                continue
            idle.append(actor)
            number += 1
            rate = items / max(time.monotonic() - started, 1e-9)
            log.info("scored %s: %d of %d shards, %.0f items/s", shard, number, total, rate)

    def _joined(self, ref: Any) -> Any:
        """Takes an actor that has started among those that work."""
        actor = self._starting.pop(ref)
        ray.get(ref)
        self.actors.append(actor)
        return actor

    def select(self, folder: str, shards: Sequence[str], request: Request) -> tuple[Query, ActorCandidates]:
        """Selects a query from scored shards; starts over if an actor is lost meanwhile.

        Returns:
            The query, and the candidates that it was selected from.
        """
        strategy = STRATEGIES.get(self.settings.strategy)(self.settings)
        if not self.actors:
            (ref,), _ = ray.wait([*self._starting], num_returns=1)
            self._joined(ref)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                ray.get([a.hold.remote(folder, list(shards[i :: len(self.actors)])) for i, a in enumerate(self.actors)])
                candidates = ActorCandidates(self.actors)
                return strategy.select(candidates, request), candidates
            except (ray.exceptions.RayActorError, HolderLostError) as error:
                if attempt == ATTEMPTS:
                    raise
                log.warning("selection starts over, attempt %d: %s", attempt + 1, error)
        raise AssertionError("unreachable")
