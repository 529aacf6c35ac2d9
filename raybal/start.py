"""How a job begins: what is wrong with its settings, its store and its pool shows before a cluster is started."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from raybal.begun import Kind
from raybal.data.prepare import DEMO, demo_pool
from raybal.lease import Lease
from raybal.resources import ResourceSettings, check_place, cluster
from raybal.store import Store

log = logging.getLogger(__name__)


class JobConfig(Protocol):
    """Settings of a job that works on a pool, in a store."""

    @property
    def pool(self) -> str:
        """A folder or URI, or "demo"."""
        ...

    @property
    def store(self) -> str:
        """A folder or URI."""
        ...

    @property
    def resources(self) -> ResourceSettings:
        """What may be used of the cluster."""
        ...


C = TypeVar("C", bound=JobConfig)
W = TypeVar("W")


@contextlib.contextmanager
def at_work(
    kind: Kind, config: C, begin: Callable[[C, Store, Lease], W], make_pool: Callable[[], str] | None = None
) -> Iterator[W]:
    """Yields a job's work, with the store's lease held and Ray connected.

    Args:
        kind: of what the store holds.
        config: of the job.
        begin: makes the work of (settings with the pool's full address, store, lease, which is not held yet), and finds
            out all that is wrong with them. Called before a cluster is started, unless the pool has to be made first.
        make_pool: makes the pool, with Ray connected, and returns where it is; None where the pool is there.

    Raises:
        RaybalError: the work cannot begin.
    """
    check_place("store", config.store)
    store = Store(config.store)
    kind.read(store)
    lease = Lease(store)

    def begin_with(pool: str) -> W:
        # Workers run in other folders and on other machines.
        settings: Any = config
        return begin(dataclasses.replace(settings, pool=Store(pool).root), store, lease)

    if make_pool is None and config.pool == DEMO:
        make_pool = demo_pool
    if make_pool is None:
        check_place("pool", config.pool)
        work = begin_with(config.pool)
        with lease, cluster(config.resources):
            yield work
    else:
        with lease, cluster(config.resources):
            yield begin_with(make_pool())


def say_where(store: Store, report: str) -> None:
    """Logs where a job's store and its report are."""
    log.info("store:  %s", store.root)
    log.info("report: %s", report)
