"""Filling a table cell by cell.

    table.yaml                     what defines the table, and all settings of this start
    rows/<row>.yaml                the settings that a row was begun with
    cells/<row>/<rate>/<seed>/     a training run: items, checkpoints, model, and the markers train.yaml, measure.yaml
    cells.csv, table.csv           every measured cell, and every finished row
    report.html                    the table with its figures

Cells are independent: without data-parallel workers each is one Ray task on one CPU (or one GPU), as many at a time as
the cluster has. A cell with a marker is not run again, and one that was interrupted goes on at its last epoch.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import ray

from raybal import hashing
from raybal.balancing.base import METHODS
from raybal.begun import Kind
from raybal.config import defining
from raybal.data.plan import PrepareConfig
from raybal.data.pool import Labelled, Pool, Sidecar
from raybal.data.prepare import DEMO, prepare
from raybal.data.split import split_validation
from raybal.errors import ConfigError, DataError, RaybalError
from raybal.lease import Lease
from raybal.predictor import PredictorSpec
from raybal.resources import check_place, task_options
from raybal.start import at_work, say_where
from raybal.store import Store
from raybal.table.cells import Cell, has_diverged
from raybal.table.config import SourceSettings, TableConfig
from raybal.table.page import write_page
from raybal.table.summary import Summary, summarise
from raybal.table.work import Progress, work, work_alone
from raybal.tasks import as_they_end
from raybal.training.task import TrainTask
from raybal.training.worker import train

BEGUN = Kind("table", format=1, hint="give the old value, or choose another store, or another name for a row")
FOLDERS = ("cells", "rows")

log = logging.getLogger(__name__)


def run_table(config: TableConfig) -> Summary:
    """Fills a table, writes its files and prints it.

    Raises:
        RaybalError: the table cannot begin or continue.
    """
    with at_work(BEGUN, config, Table, _maker(config)) as table:
        store = table.store
        store.sweep(FOLDERS)
        table.begin()
        summary = table.run()
    report = write_page(store, summary, table.config)
    for line in summary.lines():
        log.info("%s", line)
    say_where(store, report)
    return summary


def _maker(config: TableConfig) -> Callable[[], str] | None:
    """Returns what prepares the pool if the table begins with a data set, else None."""
    source = config.source
    if source.input is None:
        if source != SourceSettings():
            raise ConfigError(
                "source.input: this key is missing, and other keys of source are set; say where the data set is, and "
                "in pool where its pool is to be"
                if config.pool == DEMO or not Store(config.pool).exists()
                else "source: the pool is there, and without source.input nothing of this is looked at"
            )
        return None
    if config.pool == DEMO:
        raise ConfigError("pool: this key is missing; say where the pool of source.input is to be")
    check_place("pool", config.pool)
    check_place("source.input", source.input)
    plan = PrepareConfig(
        input=source.input,
        output=Store(config.pool).root,
        layout=source.layout,
        preprocessing=source.preprocessing,
        test_share=source.test_share,
        max_damage=source.max_damage,
    )

    def make() -> str:
        prepare(plan)
        return plan.output

    return make


class Table:
    """A table of methods and seeds over one pool. Ray must be connected.

    Args:
        config: its settings.
        store: where it lies.
        lease: of the store, held before anything is written.

    Raises:
        ConfigError, DataError, StoreError: it cannot begin, or cannot continue with these settings.
    """

    def __init__(self, config: TableConfig, store: Store, lease: Lease) -> None:
        self.config = config
        self.store = store
        self.lease = lease
        self.pool = Pool(config.pool)
        self.sidecar = Sidecar(config.pool)
        if self.pool.info.classes is None:
            raise DataError(f"pool {config.pool} knows no classes: its manifest has no labels to train with")
        self.classes = self.pool.info.classes
        if len(self.classes) < 2:
            raise DataError(f"pool {config.pool} has one class, {self.classes[0]!r}: there is nothing to tell apart")
        self.test = self._labelled("test")
        if not self.test:
            raise DataError(
                f"pool {config.pool} has no labelled test items, which a table is about; prepare it from a manifest "
                "with a split column, or with a --test-share above 0"
            )
        config.train.resolve_device()
        self.rows = self._buildable()
        validation = self.parts(0)[1]
        if len(config.learning_rates) > 1 and not validation:
            raise ConfigError(
                f"learning_rates: {config.learning_rates} are compared on validation, and the pool has no validation "
                "items (its labelled items are of one group); give one rate, or a pool with a validation split"
            )
        self._check()

    def _buildable(self) -> list[str]:
        """Returns the rows: those that were asked for, or all methods that can be built as they are.

        Raises:
            ConfigError: a row that was asked for, or one with settings of its own, cannot be built, or none can.
        """
        rows, problem = [], ""
        for row in self.config.methods or METHODS.names():
            try:
                self._spec(row, 0).build()
                rows.append(row)
            except ConfigError as error:
                problem = re.sub(r"^balancing\.", f"balancing.{row}.", str(error))
                settings = self.config.settings_of(row)
                if self.config.methods is not None or settings != type(settings)(method=row):
                    raise ConfigError(problem) from error
                log.warning("%s is left out: %s", row, problem)
        if not rows:
            raise ConfigError(problem)
        return rows

    # What it is.

    def begin(self) -> None:
        """Writes what defines the table and its rows."""
        BEGUN.write(self.store, self._keys, dataclasses.asdict(self.config))
        for row in self.rows:
            self.store.write_yaml(f"rows/{row}.yaml", defining(self.config.settings_of(row)))

    @property
    def _keys(self) -> dict[str, Any]:
        keys = {k: v for k, v in defining(self.config).items() if k != "train.learning_rate"}
        return {"pool": self.pool.info.content_hash, **keys}

    def _check(self) -> None:
        begun = BEGUN.read(self.store)
        if begun is not None:
            BEGUN.refuse_changes(self.store, begun["defines"], self._keys)
        for row in self.rows:
            name = f"rows/{row}.yaml"
            if self.store.exists(name):
                now = defining(self.config.settings_of(row))
                BEGUN.refuse_changes(self.store, self.store.read_yaml(name), now, f"balancing.{row}.")

    # What it learns from.

    @cached_property
    def _known(self) -> Labelled:
        known = self._labelled("train")
        if not known:
            raise DataError(f"pool {self.config.pool} has no labelled training items")
        return known

    def parts(self, seed: int) -> tuple[Labelled, Labelled]:
        """Returns (training items, validation items) of a seed: the same for all rows."""
        known, wanted = self._known, self.config.items
        validation = self._labelled("val")
        if not validation:
            groups = self.sidecar.groups([i for i, _ in known])
            seed_of_split = hashing.digest(self.config.seed, "validation")
            known, validation = split_validation(known, groups, self.config.validation_share, seed_of_split)
        if wanted is not None and wanted < len(known):
            order = hashing.order([i for i, _ in known], hashing.digest(self.config.seed, "items", seed))
            known = [known[p] for p in order[:wanted]]
        return known, validation

    def _labelled(self, split: str) -> Labelled:
        ids = self.pool.ids_at(self.pool.positions_in(split))
        return self.sidecar.labelled(ids, self.classes, f"the {split} split")

    def _spec(self, row: str, seed: int) -> PredictorSpec:
        weights = hashing.digest(self.config.seed, "weights", seed)
        balancing = self.config.settings_of(row)
        return PredictorSpec(self.pool.info.modalities, self.classes, self.config.model, balancing, weights)

    def task(self, cell: Cell) -> TrainTask:
        """Returns the training run of a cell."""
        return TrainTask(
            store=self.store.root,
            folder=cell.folder,
            pool=self.pool.store.root,
            spec=self._spec(cell.row, cell.seed),
            settings=dataclasses.replace(self.config.train, learning_rate=cell.learning_rate),
            seed=hashing.digest(self.config.seed, "train", cell.seed),
            token=self.lease.token,
        )

    # How it is filled.

    def run(self) -> Summary:
        """Fills what is missing and returns what came out."""
        others = sorted({name.removesuffix(".yaml") for name in self.store.names("rows")} - set(self.rows))
        if others:
            log.info("rows that are not asked for now, and so not in the table: %s", ", ".join(others))
        config = self.config
        rates = config.learning_rates
        trials = [Cell(row, rate, 0) for row in self.rows for rate in rates]
        total = len(trials) + len(self.rows) * (config.seeds - 1)
        log.info(
            "table: %d methods, %d seeds, %d learning rates: %d training runs of %d epochs",
            len(self.rows), config.seeds, len(rates), total, config.train.epochs,
        )  # fmt: skip
        progress = Progress(total)
        self._fill(trials, progress, final=len(rates) == 1)
        chosen = {row: self._best(row) for row in self.rows}
        if len(rates) > 1:
            log.info("learning rates: %s", ", ".join(f"{row} {rate:g}" for row, rate in chosen.items()))
        final = [Cell(row, rate, seed) for row, rate in chosen.items() for seed in range(config.seeds)]
        self._fill(final, progress, final=True)
        lost = [cell for cell in final if has_diverged(self.store, cell)]
        for cell in lost:
            log.warning("%s: %s; the row is left out", cell.title, self.store.read_yaml(cell.trained)["diverged"])
        # Rows are compared over the same seeds, so one that lacks a seed is no row.
        left = [cell for cell in final if cell.row not in {one.row for one in lost}]
        if not left:
            raise RaybalError("every row of the table has a run that diverged; try smaller learning_rates")
        methods = {row: config.settings_of(row).method for row in self.rows}
        return summarise(self.store, left, self.pool.info.names, methods)

    def _best(self, row: str) -> float:
        """Returns the learning rate with the best validation accuracy, then likelihood, of the first seed."""
        if len(self.config.learning_rates) == 1:
            return self.config.learning_rates[0]

        def score(rate: float) -> tuple[float, float]:
            result = self.store.read_yaml(Cell(row, rate, 0).trained)
            if "diverged" in result:
                return (-1.0, -rate)
            kept = result["history"][result["epoch"] - 1]["validation"]
            return (kept["fused"]["accuracy"], -kept["fused"]["nll"])

        return max(self.config.learning_rates, key=score)

    def _fill(self, cells: Sequence[Cell], progress: Progress, *, final: bool) -> None:
        """Trains cells that have no marker; measures them if they are final."""
        left = []
        for cell in cells:
            trained = self.store.exists(cell.trained)
            measured = self.store.exists(cell.measured) or (trained and has_diverged(self.store, cell))
            if trained and (not final or measured):
                progress.known(cell)
                continue
            if not trained and not self.store.exists(f"{cell.folder}/items.parquet"):
                self.task(cell).write_items(*self.parts(cell.seed))
            left.append(cell)
        if not left:
            return
        if self.config.train.num_workers:
            self._one_by_one(left, progress, final)
        else:
            self._side_by_side(left, progress, final)

    def _one_by_one(self, cells: Sequence[Cell], progress: Progress, final: bool) -> None:
        for cell in cells:
            task = self.task(cell)
            work(self.store, cell, task, self.test if final else None, lambda t: train(t, self.config.resources))
            self.lease.check()
            progress.done(cell, self.store)

    def _side_by_side(self, cells: Sequence[Cell], progress: Progress, final: bool) -> None:
        remote = work_alone.options(**task_options(self.config.resources, self.config.train.device))
        test = ray.put(self.test if final else None)
        for cell, _ in as_they_end({remote.remote(cell, self.task(cell), test): cell for cell in cells}):
            self.lease.check()
            progress.done(cell, self.store)
