"""Running a study loop by loop.

study.yaml                                what it was last started with
loops/<method>/<strategy>/<seed>/         a loop's store; when it has ended, only what it found is kept: curve.yaml
curves.csv, study.csv                     every loop's rounds, and every strategy's area under the curve
report.html                               tables and figures
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import ray

from raybal.begun import Kind
from raybal.config import LoopConfig
from raybal.errors import ConfigError
from raybal.experiment import Experiment
from raybal.lease import Lease
from raybal.resources import task_options
from raybal.start import at_work, say_where
from raybal.store import Store
from raybal.study.config import StudyConfig
from raybal.study.fill import fill_loops
from raybal.study.loops import CURVE, Curve, run_loop
from raybal.study.page import write_page
from raybal.study.summary import StudySummary, summarise
from raybal.tasks import ready_to_train

BEGUN = Kind("study", format=1)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One loop of a study."""

    method: str
    strategy: str
    seed: int

    @property
    def folder(self) -> str:
        """loops/<method>/<strategy>/<seed>."""
        return f"loops/{self.method}/{self.strategy}/{self.seed}"

    @property
    def curve(self) -> str:
        """The file of what it found, written when it has ended."""
        return f"{self.folder}/{CURVE}"

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.strategy} with {self.method}, seed {self.seed}"


def run_study(config: StudyConfig) -> StudySummary:
    """Runs what is left of a study, writes its files and prints its tables.

    Raises:
        RaybalError: the study cannot begin or continue.
    """
    with at_work(BEGUN, config, Study) as study:
        summary = study.run()
    report = write_page(study.store, summary, study.config)
    for line in summary.lines():
        log.info("%s", line)
    say_where(study.store, report)
    return summary


class Study:
    """A study of strategies, methods and seeds over one pool.

    Args:
        config: its settings.
        store: where it lies.
        lease: of the store, held before anything is run.

    Raises:
        ConfigError, DataError, StoreError: it cannot begin, or cannot continue with these settings.
    """

    def __init__(self, config: StudyConfig, store: Store, lease: Lease) -> None:
        self.config = config
        self.store = store
        self.lease = lease
        self.cells = [
            Cell(method, strategy, seed)
            for seed in range(config.seeds)
            for method in config.methods
            for strategy in config.strategies
        ]
        # What settings can get wrong shows before anything is run.
        for cell in [cell for cell in self.cells if cell.seed == 0]:
            loop = loop_of(cell, config, store)
            experiment = Experiment(loop, Store(loop.store))
        if experiment.test is None:
            raise ConfigError(f"pool: {config.pool} has no labelled test items, which a study is about")
        if (items := len(experiment.pool.positions_in("train"))) <= (first := config.initial_size or config.size):
            raise ConfigError(
                f"{'size' if config.initial_size is None else 'initial_size'}: {first} is not accepted; pool "
                f"{config.pool} has {items} items to ask for, of which the first, random query would take all"
            )
        self._defines = {"pool": experiment.pool.info.content_hash, "label_budget": config.label_budget}
        BEGUN.check(store, self._defines)

    def run(self) -> StudySummary:
        """Runs the loops that have not ended, and compares all. Ray must be connected."""
        store, config = self.store, self.config
        BEGUN.write(store, self._defines, dataclasses.asdict(config))
        remote = run_cell.options(**task_options(config.train, config.resources))
        curves = fill_loops(self.cells, store, self.lease, lambda cell: remote.remote(loop_of(cell, config, store)))
        found = {(c.method, c.strategy, c.seed): curve for c, curve in zip(self.cells, curves, strict=True)}
        return summarise(found, config)


def loop_of(cell: Cell, config: StudyConfig, store: Store) -> LoopConfig:
    """Returns the settings of one loop of a study."""
    return config.loop(cell.strategy, cell.method, cell.seed, store.where(cell.folder))


@ray.remote
def run_cell(config: LoopConfig) -> Curve:
    """Runs what is left of one loop as a Ray task; returns its curve."""
    # What one loop warns of is no news in a hundred of them.
    with ready_to_train(logging.ERROR):
        return run_loop(config)
