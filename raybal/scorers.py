"""Ray actors that score the shards of a pool and then hold the scored candidates while a query is selected."""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from raybal import memory
from raybal.errors import RaybalError
from raybal.querying.base import Holder, QueryStrategy, Request
from raybal.querying.scoring import ShardScorer, read_holder
from raybal.querying.selection import Selection, select_and_explain
from raybal.resources import ResourceSettings, scoring_options
from raybal.store import Store

log = logging.getLogger(__name__)

ATTEMPTS = 3
#: Seconds that a selection waits at most for actors to start: fewer of them hold more each, and some may never come.
STARTING = 20.0


class HolderLostError(RaybalError):
    """An actor was restarted and holds nothing any more."""


class PoolActor(ShardScorer):
    """Scores shards, and holds candidates; runs as a Ray actor. All it knows can be read again from the pool and the
    store."""

    def __init__(self, pool: str, store: str) -> None:
        super().__init__(pool, store)
        self.holder: Holder | None = None
        memory.keep_freed()

    @functools.cached_property
    def device(self) -> torch.device:
        """The GPU that Ray gave to the actor, if it did."""
        return torch.device("cuda" if ray.get_gpu_ids() else "cpu")

    def ready(self) -> None:
        """Returns when the actor has started and has found its pool and its store."""
        _ = self.pool, self.store

    def hold(self, files: list[str]) -> int:
        """Takes scored shards, at least one, in place of what was held; returns the number of items held."""
        self.holder = None
        self.holder = read_holder(self.store, files)
        return len(self.holder.ids)

    def rest(self) -> None:
        """Lets go what is held and gives back free memory: training may come before the next time."""
        self.holder = None
        memory.give_back()

    def apply(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Calls function(holder, *args)."""
        if self.holder is None:
            raise HolderLostError("a scoring actor was restarted while a query was selected")
        return function(self.holder, *args)


class ActorCandidates:
    """Candidates held by actors, or none held by none."""

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
        shards: number of shards of the pool.
        resources: what may be used.
    """

    def __init__(self, pool: str, store: str, shards: int, resources: ResourceSettings) -> None:
        self.store = Store(store)
        count, options = scoring_options(shards, resources)
        kind: Any = ray.remote(PoolActor)
        started = [kind.options(**options).remote(pool, store) for _ in range(count)]
        # On a cluster that grows, some may come late or never.
        self._starting = {actor.ready.remote(): actor for actor in started}
        self.actors: list[Any] = []
        self._expected = time.monotonic() + STARTING

    def stop(self) -> None:
        """Ends the actors and gives their resources back."""
        for actor in [*self.actors, *self._starting.values()]:
            ray.kill(actor)
        self.actors, self._starting = [], {}

    def score(self, folder: str, shards: dict[str, NDArray[np.int64]], model: str, strategy: QueryStrategy) -> None:
        """Scores what has no finished file in `folder` yet.

        Args:
            shards: positions in the pool of the items to score, each file's of one shard, by the name of the file.
            model: name of the predictor in the store.
            strategy: says what is kept of each item.
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
                file = f"{folder}/{shard}.parquet"
                running[actor.score.remote(file, shards[shard], model, strategy)] = (actor, shard)
            (ref,), _ = ray.wait([*running, *self._starting], num_returns=1)
            if ref in self._starting:
                idle += self._join(ref)
                continue
            actor, shard = running.pop(ref)
            try:
                items += ray.get(ref)
            except ray.exceptions.RayActorError as error:
                left.append(shard)
                self._drop(actor, error)
                continue
            idle.append(actor)
            number += 1
            rate = items / max(time.monotonic() - started, 1e-9)
            log.info("scored %s: %d of %d shards, %.0f items/s", shard, number, total, rate)

    def select(self, folder: str, shards: Sequence[str], request: Request, strategy: QueryStrategy) -> Selection:
        """Selects a query from scored shards and looks up what was chosen; starts over if an actor is lost meanwhile.

        Raises:
            RaybalError: no actor is left, or one is lost in every attempt.
        """
        lost: Exception | None = None
        for attempt in range(ATTEMPTS):
            if lost is not None:
                log.warning("selection starts over, attempt %d: %s", attempt + 1, _last_line(lost))
                self._drop_dead()
            try:
                candidates = self._hold(folder, shards)
                selection = select_and_explain(strategy, candidates, request)
            except (ray.exceptions.RayActorError, HolderLostError) as error:
                lost = error
                continue
            for actor in self.actors:
                actor.rest.remote()
            return selection
        raise RaybalError(f"selection lost an actor {ATTEMPTS} times: {_last_line(lost)}") from lost

    def _hold(self, folder: str, shards: Sequence[str]) -> ActorCandidates:
        """Lets as many actors as there are shards read them: those that have started, and those that do so soon."""
        if self._starting:
            soon = max(0.0, self._expected - time.monotonic())
            ready, _ = ray.wait([*self._starting], num_returns=len(self._starting), timeout=soon)
            for ref in ready:
                self._join(ref)
        while shards and not self.actors:
            (ref,), _ = ray.wait([*self._starting], num_returns=1)
            self._join(ref)
        holders = self.actors[: len(shards)]
        files = [f"{folder}/{shard}.parquet" for shard in shards]
        ray.get([a.hold.remote(files[i :: len(holders)]) for i, a in enumerate(holders)])
        return ActorCandidates(holders)

    def _join(self, ref: Any) -> list[Any]:
        """Takes an actor that has started among those that work; returns it, or none if it was lost before."""
        actor = self._starting.pop(ref)
        try:
            ray.get(ref)
        except ray.exceptions.RayActorError as error:
            self._drop(actor, error)
            return []
        self.actors.append(actor)
        return [actor]

    def _drop_dead(self) -> None:
        """Leaves out the actors that were lost for good."""
        for actor in list(self.actors):
            try:
                ray.get(actor.ready.remote())
            except ray.exceptions.RayActorError as error:
                self._drop(actor, error)

    def _drop(self, actor: Any, error: Exception) -> None:
        """Leaves out an actor that was lost more often than it may restart: the others take over.

        Raises:
            RaybalError: there is no other.
        """
        self.actors = [a for a in self.actors if a is not actor]
        if not self.actors and not self._starting:
            raise RaybalError(f"all scoring actors are lost; the last one: {_last_line(error)}") from error
        log.warning("a scoring actor is lost, %d are left: %s", len(self.actors), _last_line(error))


def _last_line(error: Exception | None) -> str:
    return str(error).strip().rpartition("\n")[2]
