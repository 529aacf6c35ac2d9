"""The work of one cell, where it is done, and how far a table is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import ray

from raybal.data.pool import Labelled
from raybal.errors import DivergedError
from raybal.store import Store
from raybal.table.cells import Cell, has_diverged, measure
from raybal.tasks import ready_to_train
from raybal.training.checkpoint import Checkpoints
from raybal.training.task import TrainTask

#: Seconds after which a training run says how far it is.
SIGN_OF_LIFE = 60.0

log = logging.getLogger(__name__)


@ray.remote
def work_alone(cell: Cell, task: TrainTask, test: Labelled | None) -> None:
    """Does what a cell has left to do as a Ray task, with the CPUs or the GPU that the task has."""
    with ready_to_train():
        log.setLevel(logging.INFO)
        work(Store(task.store), cell, task, test, lambda t: t.run(on_epoch=_sign_of_life(cell, t.settings.epochs)))


def work(
    store: Store, cell: Cell, task: TrainTask, test: Labelled | None, training: Callable[[TrainTask], dict[str, Any]]
) -> None:
    """Does what a cell has left to do, and marks it.

    Args:
        store: of the table.
        cell, task: what is trained.
        test: items to measure the trained model on; None leaves it unmeasured.
        training: runs the task.
    """
    # A task that outlives its driver does no harm: whoever writes a marker has trained the same.
    if not store.exists(cell.trained):
        try:
            result = training(task)
            result["seconds"] = round(sum(record["seconds"] for record in result["history"]), 3)
        except DivergedError as error:
            # Another start would end the same way; the table goes on without this cell.
            result = {"diverged": str(getattr(error, "cause", None) or error)}
        store.write_yaml(cell.trained, result)
        for kind in ("epoch", "best"):
            # The model is kept; what only a resumed run would need is not.
            Checkpoints(store, cell.folder).keep_only(kind, None)
    if test is not None and not store.exists(cell.measured) and not has_diverged(store, cell):
        store.write_yaml(cell.measured, measure(task, test))


def _sign_of_life(cell: Cell, epochs: int) -> Callable[[dict[str, Any]], None]:
    """Returns a function that logs, of every epoch that is given to it, one in a minute."""
    said = time.monotonic()

    def on_epoch(record: dict[str, Any]) -> None:
        nonlocal said
        if time.monotonic() - said > SIGN_OF_LIFE:
            said = time.monotonic()
            log.info("%s: epoch %d of %d, loss %.3f", cell.title, record["epoch"], epochs, record["loss"])

    return on_epoch


class Progress:
    """Says how far a table is, and how long the rest may take."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._seen: set[Cell] = set()
        self._done = 0
        self._started = time.monotonic()

    def known(self, cell: Cell) -> None:
        """Counts a cell that an earlier start finished."""
        self._seen.add(cell)

    def done(self, cell: Cell, store: Store) -> None:
        """Counts and logs a cell that has just been trained; one that was only measured has been counted before."""
        if cell in self._seen:
            return
        self._seen.add(cell)
        self._done += 1
        result = store.read_yaml(cell.trained)
        if "diverged" in result:
            log.warning("%d of %d: %s diverged", len(self._seen), self.total, cell.title)
            return
        kept = result["history"][result["epoch"] - 1]["validation"]
        shown = f"validation {100 * kept['fused']['accuracy']:.1f}%  " if kept else ""
        left = (self.total - len(self._seen)) * (time.monotonic() - self._started) / self._done
        log.info(
            "%d of %d: %s  %s%.0f s, about %.0f min left",
            len(self._seen), self.total, cell.title, shown, result["seconds"], left / 60,
        )  # fmt: skip
