"""Running a study loop by loop.

study.yaml                                what it was last started with
loops/<method>/<strategy>/<seed>/         a loop's store; when it has ended, only what it found is kept: curve.yaml
curves.csv, study.csv                     every loop's rounds, and every strategy's area under the curve
report.html                               tables and figures
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from dataclasses import dataclass
from typing import Any

import ray
import torch

from raybal import memory
from raybal.begun import Kind
from raybal.data.prepare import DEMO, demo_pool
from raybal.errors import ConfigError
from raybal.experiment import Experiment
from raybal.lease import Lease
from raybal.loop import FOLDERS, Loop
from raybal.querying.local import LocalScorers
from raybal.resources import check_place, cluster, task_options
from raybal.rounds import rounds_of
from raybal.store import Store
from raybal.study.config import StudyConfig
from raybal.study.page import write_page
from raybal.study.summary import StudySummary, summarise
from raybal.tasks import as_they_end

BEGUN = Kind("study", format=1)
CURVE = "curve.yaml"

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


class LocalLoop(Loop):
    """A loop that trains and scores in this process."""

    @functools.cached_property
    def scorers(self) -> Any:
        """Scores and selects here."""
        return LocalScorers(self.pool.store.root, self.store.root)

    def _training_needs_scorers_gpus(self) -> bool:
        return False


def run_study(config: StudyConfig) -> StudySummary:
    """Runs what is left of a study, writes its files and prints its tables.

    Raises:
        RaybalError: the study cannot begin or continue.
    """
    check_place("store", config.store)
    store = Store(config.store)
    BEGUN.read(store)
    with Lease(store) as lease, cluster(config.resources):
        if config.pool == DEMO:
            config = dataclasses.replace(config, pool=demo_pool())
        else:
            check_place("pool", config.pool)
            config = dataclasses.replace(config, pool=Store(config.pool).root)
        cells = [
            Cell(method, strategy, seed)
            for seed in range(config.seeds)
            for method in config.methods
            for strategy in config.strategies
        ]
        # What settings can get wrong shows before anything is run.
        for cell in [cell for cell in cells if cell.seed == 0]:
            experiment = _experiment(store, cell, config)
        if experiment.test is None:
            raise ConfigError(f"pool: {config.pool} has no labelled test items, which a study is about")
        defines = {"pool": experiment.pool.info.content_hash, "label_budget": config.label_budget}
        if (begun := BEGUN.read(store)) is not None:
            BEGUN.refuse_changes(store, begun["defines"], defines)
        BEGUN.write(store, defines, dataclasses.asdict(config))
        _run(store, config, cells, lease)
        summary = summarise({(c.method, c.strategy, c.seed): store.read_yaml(c.curve) for c in cells}, config)
    report = write_page(store, summary, config)
    for line in summary.lines():
        log.info("%s", line)
    log.info("store:  %s", store.root)
    log.info("report: %s", report)
    return summary


def _experiment(store: Store, cell: Cell, config: StudyConfig) -> Experiment:
    own = Store(store.path(cell.folder))
    return Experiment(config.loop(cell.strategy, cell.method, cell.seed, own.root), own)


def _run(store: Store, config: StudyConfig, cells: list[Cell], lease: Lease) -> None:
    left = [cell for cell in cells if not store.exists(cell.curve)]
    for cell in set(cells) - set(left):
        # A driver that died between a loop's last two steps.
        store.clear(f"{cell.folder}/rounds")
    started, done = time.monotonic(), len(cells) - len(left)
    if done:
        log.info("%d of %d loops are done", done, len(cells))
    remote = run_cell.options(**task_options(config.resources, config.train.device))
    for cell, curve in as_they_end({remote.remote(store.root, cell, config): cell for cell in left}):
        lease.check()
        done += 1
        minutes = (len(cells) - done) * (time.monotonic() - started) / (done - len(cells) + len(left)) / 60
        log.info(
            "%d of %d: %s: %.1f%% with %d labels, about %.0f min left",
            done, len(cells), cell.title, 100 * curve[-1]["accuracy"], curve[-1]["labels"], minutes,
        )  # fmt: skip


@ray.remote
def run_cell(root: str, cell: Cell, config: StudyConfig) -> list[dict[str, Any]]:
    """Runs what is left of one loop as a Ray task; returns its curve."""
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    logging.basicConfig(level=logging.WARNING)
    try:
        return work(Store(root), cell, config)
    finally:
        memory.give_back()


def work(store: Store, cell: Cell, config: StudyConfig) -> list[dict[str, Any]]:
    """Runs what is left of one loop; returns one record a round: labels, test accuracy of the fused prediction and of
    each head, and how balanced the query was."""
    if store.exists(cell.curve):
        return store.read_yaml(cell.curve)
    own = Store(store.path(cell.folder))
    with Lease(own) as lease:
        own.sweep(FOLDERS)
        experiment = _experiment(store, cell, config)
        experiment.begin()
        LocalLoop(experiment, lease).run()
        curve = []
        for r in rounds_of(own):
            facts, balance = r.facts("evaluate"), r.facts("select").get("balance") or {}
            test = facts["test"] or {}
            curve.append(
                {
                    "labels": facts["labels"],
                    "accuracy": test["fused"]["accuracy"],
                    "heads": {m: v["accuracy"] if (v := test[m]) else None for m in experiment.pool.info.names},
                    "balance": balance,
                    "seconds": {p: r.facts(p)["seconds"] for p in ("score", "select", "train")},
                }
            )
        store.write_yaml(cell.curve, curve)
    # A study has hundreds of loops: models and scores would fill a disk.
    own.clear("rounds")
    return curve
