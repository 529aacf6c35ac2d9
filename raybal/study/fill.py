"""Running loops side by side, each in a process of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from raybal.lease import Lease
from raybal.store import Store
from raybal.study.loops import CURVE, Curve
from raybal.tasks import as_they_end

log = logging.getLogger(__name__)


class StoredLoop(Protocol):
    """A loop whose store lies inside that of many."""

    @property
    def folder(self) -> str:
        """The folder of its store, inside that of all loops."""
        ...

    @property
    def title(self) -> str:
        """How messages call it."""
        ...


R = TypeVar("R", bound=StoredLoop)


def fill_loops(runs: Sequence[R], store: Store, lease: Lease, submit: Callable[[R], Any]) -> list[Curve]:
    """Runs the loops that have not ended, and returns the curves of all, in order. Ray must be connected.

    Args:
        runs: of the loops.
        store: of all.
        lease: of the store, held.
        submit: starts a loop as a Ray task.
    """
    folders = list(dict.fromkeys(run.folder for run in runs))
    left = {run.folder: run for run in runs if not store.exists(f"{run.folder}/{CURVE}")}
    for folder in set(folders) - set(left):
        # A driver that died between a loop's last two steps.
        store.clear(f"{folder}/rounds")
    total, done, started = len(folders), len(folders) - len(left), time.monotonic()
    if done:
        log.info("%d of %d loops are done", done, total)
    for run, curve in as_they_end({submit(run): run for run in left.values()}):
        lease.check()
        done += 1
        minutes = (total - done) * (time.monotonic() - started) / (done - total + len(left)) / 60
        last = curve[-1]
        # Loops that are tried do not look at test items.
        accuracy = last["validation"] if last["accuracy"] is None else last["accuracy"]
        log.info(
            "%d of %d: %s: %.1f%% with %d labels, about %.0f min left",
            done, total, run.title, 100 * accuracy, last["labels"], minutes,
        )  # fmt: skip
    return [store.read_yaml(f"{run.folder}/{CURVE}") for run in runs]
