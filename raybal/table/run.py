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
from collections.abc import Callable
from typing import Any

from raybal import hashing
from raybal.balancing.base import METHODS
from raybal.begun import Kind
from raybal.config import defining
from raybal.data.plan import PrepareConfig
from raybal.data.prepare import DEMO, prepare
from raybal.errors import ConfigError
from raybal.lease import Lease
from raybal.material import Material
from raybal.predictor import PredictorSpec
from raybal.resources import check_place
from raybal.start import at_work, say_where
from raybal.store import Store
from raybal.table.cells import Cell
from raybal.table.config import SourceSettings, TableConfig
from raybal.table.fill import Filler
from raybal.table.page import write_page
from raybal.table.summary import Summary
from raybal.training.task import TrainTask

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
        self.material = Material(config)
        self.test = self.material.test
        config.train.resolve_device()
        self.rows = self._buildable()
        validation = self.material.parts(0)[1]
        if len(config.learning_rates) > 1 and not validation:
            raise ConfigError(
                f"learning_rates: {config.learning_rates} are compared on validation, and the pool has no validation "
                "items (its labelled items are of one group); give one rate, or a pool with a validation split"
            )
        BEGUN.check(store, self._keys, self._rows)

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
        BEGUN.write(self.store, self._keys, dataclasses.asdict(self.config), self._rows)

    @property
    def _keys(self) -> dict[str, Any]:
        keys = {k: v for k, v in defining(self.config).items() if k != "train.learning_rate"}
        return {"pool": self.material.pool.info.content_hash, **keys}

    @property
    def _rows(self) -> dict[str, dict[str, Any]]:
        return {row: defining(self.config.settings_of(row)) for row in self.rows}

    # How it is filled.

    def _spec(self, row: str, seed: int) -> PredictorSpec:
        weights = hashing.digest(self.config.seed, "weights", seed)
        balancing = self.config.settings_of(row)
        info = self.material.pool.info
        return PredictorSpec(info.modalities, self.material.classes, self.config.model, balancing, weights)

    def task(self, cell: Cell) -> TrainTask:
        """Returns the training run of a cell."""
        return TrainTask(
            store=self.store.root,
            folder=cell.folder,
            pool=self.config.pool,
            spec=self._spec(cell.row, cell.seed),
            settings=dataclasses.replace(self.config.train, learning_rate=cell.learning_rate),
            seed=hashing.digest(self.config.seed, "train", cell.seed),
            token=self.lease.token,
        )

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
        filler = Filler(self.store, self.lease, self.material.parts, config.resources, self.task, total)
        filler.fill(trials, self.material.test if len(rates) == 1 else None)
        chosen = {row: self._best(row) for row in self.rows}
        if len(rates) > 1:
            log.info("learning rates: %s", ", ".join(f"{row} {rate:g}" for row, rate in chosen.items()))
        final = [Cell(row, rate, seed) for row, rate in chosen.items() for seed in range(config.seeds)]
        return filler.compare(final, {row: config.settings_of(row).method for row in self.rows}, self.material)

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
