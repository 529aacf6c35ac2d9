"""Filling cells: training runs side by side, and what their models are worth."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import ray

from raybal.data.pool import Labelled
from raybal.errors import RaybalError
from raybal.lease import Lease
from raybal.material import Material
from raybal.resources import ResourceSettings, task_options
from raybal.store import Store
from raybal.table.cells import Cell, has_diverged
from raybal.table.summary import Summary, summarise
from raybal.table.work import Progress, work, work_alone
from raybal.tasks import as_they_end
from raybal.training.task import TrainTask
from raybal.training.worker import train

log = logging.getLogger(__name__)


class Filler:
    """Fills cells and compares them. Ray must be connected.

    Args:
        store: of the cells.
        lease: of the store, held.
        parts: returns the training and the validation items of a seed.
        resources: what may be used of the cluster.
        task: returns the training run of a cell.
        total: number of training runs in all, for the log.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        parts: Callable[[int], tuple[Labelled, Labelled]],
        resources: ResourceSettings,
        task: Callable[[Cell], TrainTask],
        total: int,
    ) -> None:
        self.store = store
        self.lease = lease
        self.parts = parts
        self.resources = resources
        self.task = task
        self.progress = Progress(total)

    def fill(self, cells: Sequence[Cell], test: Labelled | None = None) -> None:
        """Trains cells that have no marker, and measures them on test items where these are given."""
        left: dict[Cell, TrainTask] = {}
        for cell in cells:
            trained = self.store.exists(cell.trained)
            done = self.store.exists(cell.measured) or (trained and has_diverged(self.store, cell))
            if trained and (test is None or done):
                self.progress.known(cell)
                continue
            left[cell] = self.task(cell)
            if not trained and not self.store.exists(f"{cell.folder}/items.parquet"):
                left[cell].write_items(*self.parts(cell.seed))
        # Data-parallel runs have the cluster for themselves, one after the other.
        for cell, task in left.items():
            if task.settings.num_workers:
                work(self.store, cell, task, test, lambda t: train(t, self.resources))
                self._done(cell)
        alone = {cell: task for cell, task in left.items() if not task.settings.num_workers}
        if alone:
            settings = next(iter(alone.values())).settings
            remote, shared = work_alone.options(**task_options(settings, self.resources)), ray.put(test)
            for cell, _ in as_they_end({remote.remote(cell, task, shared): cell for cell, task in alone.items()}):
                self._done(cell)

    def compare(
        self,
        cells: Sequence[Cell],
        methods: Mapping[str, str],
        material: Material,
        baselines: Sequence[str] | None = None,
    ) -> Summary:
        """Fills and measures cells, the same seeds of every row, and compares the rows.

        Args:
            cells: of the comparison.
            methods: the method of each row.
            material: of the pool, for its test items.
            baselines: rows that others are compared with; None: those that tables have.

        Raises:
            RaybalError: every row has a run that diverged.
        """
        self.fill(cells, material.test)
        lost = [cell for cell in cells if has_diverged(self.store, cell)]
        for cell in lost:
            log.warning("%s: %s; the row is left out", cell.title, self.store.read_yaml(cell.trained)["diverged"])
        # Rows are compared over the same seeds, so one that lacks a seed is no row.
        left = [cell for cell in cells if cell.row not in {one.row for one in lost}]
        if not left:
            raise RaybalError("every row of the table has a run that diverged; try smaller learning_rates")
        return summarise(self.store, left, material.pool.info.names, methods, baselines)

    def _done(self, cell: Cell) -> None:
        self.lease.check()
        self.progress.done(cell, self.store)
