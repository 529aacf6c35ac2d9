"""The round state machine.

A round scores the unlabelled pool with the last round's model, selects a query, asks for its labels, trains, and
evaluates. Each of these phases ends with a marker in the store; starting the same command again skips what has a
marker and repeats the rest, which gives the same result because every phase is a function of what came before it.

    experiment.yaml                  what defines the experiment, and all settings
    lease.yaml                       which driver is at work
    labels/                          the label journal
    sheets/                          query sheets, with the table labeller
    rounds/003/scores/<shard>.parquet
    rounds/003/query.parquet         the items asked for, with the reason for each
    rounds/003/train/                items, checkpoints, model
    rounds/003/<phase>.yaml          the phase's marker: what it did and how long it took
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import raybal
from raybal import hashing
from raybal.config import LoopConfig, defining
from raybal.data.batches import Items
from raybal.data.pool import Pool, Sidecar
from raybal.data.prepare import DEMO, demo_pool
from raybal.data.split import validation_parts
from raybal.errors import ConfigError, DataError, StoreError, shorten
from raybal.labelling.base import Labeller
from raybal.labelling.journal import Answer, Journal, Labels
from raybal.labelling.oracle import Oracle
from raybal.labelling.table import TableLabeller
from raybal.lease import Lease
from raybal.predictor import PredictorSpec, load_predictor
from raybal.querying.actors import Scorers
from raybal.querying.base import Query, Request
from raybal.querying.explain import describe_items, summarise_pool
from raybal.report.page import write_report
from raybal.resources import cluster, inside_uploaded_directory
from raybal.store import Store
from raybal.training.evaluate import evaluate
from raybal.training.task import MODEL, TrainTask
from raybal.training.worker import train

FORMAT = 1
PHASES = ("score", "select", "ask", "train", "evaluate")

log = logging.getLogger(__name__)


class WaitingForLabels(Exception):  # noqa: N818 - not an error: the loop goes on when the answers are there
    """People have to answer before the loop can go on."""


@dataclasses.dataclass
class Round:
    """One round of an experiment: its number and its folder in the store."""

    store: Store
    number: int

    @property
    def folder(self) -> str:
        """The round's folder."""
        return f"rounds/{self.number:03d}"

    def done(self, phase: str) -> bool:
        """Returns whether a phase is finished."""
        return self.store.exists(f"{self.folder}/{phase}.yaml")

    def facts(self, phase: str) -> dict[str, Any]:
        """Returns what a finished phase reported."""
        return self.store.read_yaml(f"{self.folder}/{phase}.yaml")

    def query(self) -> pa.Table:
        """Returns the items asked for."""
        return self.store.read_table(f"{self.folder}/query.parquet")

    @property
    def model(self) -> str:
        """The name of the round's model in the store."""
        return f"{self.folder}/train/{MODEL}"


def rounds_of(store: Store) -> list[Round]:
    """Returns the rounds that have begun, in order."""
    return [Round(store, int(name)) for name in store.names("rounds")]


class Loop:
    """One experiment. Ray must be connected.

    Args:
        config: its settings.
        lease: of the store, held.

    Raises:
        ConfigError, DataError, StoreError: the experiment cannot begin or continue.
    """

    def __init__(self, config: LoopConfig, lease: Lease) -> None:
        self.config = config
        self.lease = lease
        self.store = lease.store
        self.pool = Pool(config.pool)
        self.sidecar = Sidecar(config.pool)
        self.classes = self._classes()
        self._check_experiment()
        self.journal = Journal(self.store)
        self.labeller = self._labeller()
        self._scorers: Scorers | None = None

    def run(self) -> None:
        """Runs rounds until the label budget is spent or no item is left.

        Raises:
            WaitingForLabels: people have to answer first.
        """
        try:
            self._collect()
            if self.initial:
                log.info("the manifest labels %d of the training items; they are not asked for", len(self.initial))
            if self.config.train.num_workers == 0:
                # The actors start while the first round trains.
                _ = self.scorers
            number = 0
            while True:
                current = Round(self.store, number)
                if not current.done("select") and number > 0 and self._left() == 0:
                    break
                self._round(current)
                number += 1
        finally:
            if self._scorers is not None:
                self._scorers.stop()

    def _round(self, current: Round) -> None:
        left = [phase for phase in PHASES if not current.done(phase)]
        for phase in left:
            started = time.monotonic()
            log.info("round %d: %s", current.number, phase)
            facts = getattr(self, f"_{phase}")(current)
            self.lease.check()
            facts = {**facts, "seconds": round(time.monotonic() - started, 3)}
            self.store.write_yaml(f"{current.folder}/{phase}.yaml", facts)
        test = current.facts("evaluate")["test"]
        if left and test:
            shown = "  ".join(f"{h} {100 * v['accuracy']:.1f}%" for h, v in test.items() if isinstance(v, dict))
            log.info("round %d: test accuracy  %s", current.number, shown)

    # Phases. Each returns plain facts for its marker.

    def _score(self, current: Round) -> dict[str, Any]:
        if self._is_cold(current):
            return {"items": 0}
        candidates = self._candidates(current)
        shards = self._by_shard(candidates)
        model = Round(self.store, current.number - 1).model
        self.scorers.score(f"{current.folder}/scores", shards, model)
        return {"items": len(candidates), "shards": sorted(shards)}

    def _select(self, current: Round) -> dict[str, Any]:
        size = self._size(current)
        seed = hashing.digest(self.config.seed, "query", current.number)
        if self._is_cold(current):
            ids = self.pool.ids_at(self._candidates(current))
            chosen = [ids[p] for p in hashing.order(ids, seed)[:size]]
            query, about, summary = Query(chosen, [0.0] * len(chosen), ["first round: at random"] * len(chosen)), {}, {}
        else:
            shards = current.facts("score")["shards"]
            query, candidates = self.scorers.select(f"{current.folder}/scores", shards, Request(size, seed))
            about, summary = describe_items(candidates, query.ids), summarise_pool(candidates)
            if self.config.train.num_workers > 0:
                # Training workers need what the actors reserve.
                self._stop_scorers()
        self.store.write_table(f"{current.folder}/query.parquet", _query_table(query, about, self.pool.info.names))
        return {"items": len(query.ids), "pool": summary}

    def _ask(self, current: Round) -> dict[str, Any]:
        ids = current.query()["id"].to_pylist()
        self.labeller.ask(current.number, ids)
        labels = self._collect()
        missing = [i for i in ids if i not in labels.label]
        if missing and not (self.config.labelling.accept_partial and len(missing) < len(ids)):
            raise WaitingForLabels(
                f"waiting for labels: {len(missing)} of the {len(ids)} items of round {current.number} have no answer. "
                f"Fill in {self.labeller.where(current.number)} and run the same command again"
                + ("" if len(missing) == len(ids) else ", or go on without them with --labelling.accept-partial")
            )
        if not labels.known:
            raise WaitingForLabels("waiting for labels: no item has a label yet; there is nothing to train on")
        return {
            "asked": len(ids),
            "unanswered": missing,
            "cannot_label": [i for i in ids if i in labels.label and labels.label[i] is None],
            "conflicts": sorted(labels.conflicts),
        }

    def _train(self, current: Round) -> dict[str, Any]:
        config, folder = self.config, f"{current.folder}/train"
        spec = PredictorSpec(
            modalities=self.pool.info.modalities,
            classes=self.classes,
            model=config.model,
            balancing=config.balancing,
            seed=hashing.digest(config.seed, "weights"),
        )
        warm = config.train.round_start == "warm" and current.number > 0
        task = TrainTask(
            store=self.store.root,
            folder=folder,
            pool=config.pool,
            spec=spec,
            settings=config.train,
            seed=hashing.digest(config.seed, "train", current.number),
            token=self.lease.token,
            warm=Round(self.store, current.number - 1).model if warm else None,
        )
        if not self.store.exists(f"{folder}/items.parquet"):
            # Written once: answers that come later must not change a training run that is under way.
            task.write_items(*self._training_items(current))
        result = train(task, config.resources)
        counts = self.store.read_table(f"{folder}/items.parquet")["part"].to_pylist()
        return {
            "items": {part: counts.count(part) for part in ("train", "validation")},
            "epoch": result["epoch"],
            "history": result["history"],
        }

    def _evaluate(self, current: Round) -> dict[str, Any]:
        if self._test is None:
            return {"labels": self._label_count(current), "test": None}
        device = self.config.train.resolve_device()
        predictor, _ = load_predictor(self.store, current.model, device)
        return {"labels": self._label_count(current), "test": evaluate(predictor, self._test, device)}

    # What the phases are made of.

    @property
    def scorers(self) -> Scorers:
        """The scoring actors, started when they are first needed."""
        if self._scorers is None:
            config = self.config
            self._scorers = Scorers(config.pool, self.store.root, config.query, len(self.pool.shards), config.resources)
        return self._scorers

    def _stop_scorers(self) -> None:
        if self._scorers is not None:
            self._scorers.stop()
            self._scorers = None

    def _is_cold(self, current: Round) -> bool:
        """Whether there is no model yet to choose with."""
        return current.number == 0

    def _asked(self, before: int) -> list[str]:
        """The ids of all queries before a round, in order."""
        return [
            i
            for r in rounds_of(self.store)
            if r.number < before and r.done("select")
            for i in r.query()["id"].to_pylist()
        ]

    def _candidates(self, current: Round) -> NDArray[np.int64]:
        """Positions of the items that may be asked for: in the training split, never asked, without a label."""
        out = set(self._asked(current.number)) | set(self.initial)
        positions = self.pool.positions_in("train")
        if not out:
            return positions
        return positions[~np.isin(positions, self.pool.positions(sorted(out)))]

    def _by_shard(self, positions: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        shard_of = self.pool.shard_of[positions]
        return {self.pool.shards[s]: positions[shard_of == s] for s in np.unique(shard_of)}

    def _left(self) -> int:
        """How many items may still be asked for."""
        asked = self._asked(10**9)
        out = len(set(asked) | set(self.initial))
        return min(self.config.label_budget - len(asked), len(self.pool.positions_in("train")) - out)

    def _size(self, current: Round) -> int:
        query = self.config.query
        wanted = query.size
        if current.number == 0:
            wanted = query.initial_size or (0 if self.initial else query.size)
        left = self.config.label_budget - len(self._asked(current.number))
        return min(wanted, left, len(self._candidates(current)))

    @cached_property
    def initial(self) -> dict[str, str]:
        """Labels that the manifest gives from the start (with the table labeller only)."""
        if self.config.labelling.labeller == "oracle":
            return {}
        return self.sidecar.labels(self.pool.ids_at(self.pool.positions_in("train")))

    def _collect(self) -> Labels:
        """Takes in all answers that are there; returns what stands."""
        new = self.journal.add(
            [Answer(i, label, "manifest") for i, label in self.initial.items()]
            + self.labeller.collect(set(self._asked(10**9)))
        )
        labels = self.journal.read()
        if new:
            log.info("labels: %d new answers, %d items labelled", len(new), len(labels.known))
        if isinstance(self.labeller, TableLabeller):
            where = self.labeller.report_conflicts(labels)
            if where:
                log.warning(
                    "%d items have conflicting answers (%s); their first answer stands until %s is filled in",
                    len(labels.conflicts),
                    shorten(labels.conflicts),
                    where,
                )
        return labels

    def _training_items(self, current: Round) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        index = {name: i for i, name in enumerate(self.classes)}
        known = {i: index[label] for i, label in self.journal.read().known.items()}
        absent = sorted(set(index.values()) - set(known.values()))
        if absent:
            log.warning("no label yet of class %s", shorten([self.classes[k] for k in absent], 10))
        if self._fixed_validation:
            return list(known.items()), self._fixed_validation
        before = {}
        if current.number > 0:
            table = self.store.read_table(f"{Round(self.store, current.number - 1).folder}/train/items.parquet")
            parts_before = zip(table["id"].to_pylist(), table["part"].to_pylist(), strict=True)
            before = {i: part for i, part in parts_before if i in known}
        ids = list(known)
        share, seed = self.config.labelling.validation_share, hashing.digest(self.config.seed, "validation")
        parts = validation_parts(
            ids, self.sidecar.groups(ids), share, seed, {i: p for i, p in before.items() if i in known}
        )
        return (
            [(i, known[i]) for i in ids if parts[i] == "train"],
            [(i, known[i]) for i in ids if parts[i] == "validation"],
        )

    @cached_property
    def _fixed_validation(self) -> list[tuple[str, int]]:
        """The labelled items of the pool's own validation split, if it has one."""
        return self._labelled("val")

    @cached_property
    def _test(self) -> Items | None:
        """The labelled test items, or None. Read for the record only: no decision sees them."""
        pairs = self._labelled("test")
        if not pairs:
            return None
        return self.pool.items([i for i, _ in pairs], [k for _, k in pairs])

    def _labelled(self, split: str) -> list[tuple[str, int]]:
        ids = self.pool.ids_at(self.pool.positions_in(split))
        ids = list(self.sidecar.labels(ids)) if ids else []
        return list(zip(ids, self.sidecar.class_indices(ids, self.classes, f"the {split} split"), strict=True))

    def _label_count(self, current: Round) -> int:
        return len(self.store.read_table(f"{current.folder}/train/items.parquet")) - len(self._fixed_validation)

    def _classes(self) -> tuple[str, ...]:
        given, known = self.config.labelling.classes, self.pool.info.classes
        if given is None and known is None:
            raise ConfigError(
                "labelling.classes: the pool knows no class names, so they must be given, e.g. "
                "--labelling.classes cat,dog"
            )
        classes = tuple(given or known or ())
        if len(set(classes)) < 2 or len(set(classes)) < len(classes):
            raise ConfigError(f"labelling.classes: {list(classes)} is not accepted; give two or more different names")
        return classes

    def _labeller(self) -> Labeller:
        settings = self.config.labelling
        if settings.labeller == "oracle":
            return Oracle(self.sidecar, self.classes, self.pool.ids_at(self.pool.positions_in("train")))
        return TableLabeller(self.store, self.classes, self.sidecar.uris, settings.sheet)

    def _check_experiment(self) -> None:
        """Begins the store, or checks that it was begun with the same experiment."""
        if not len(self.pool.positions_in("train")):
            raise DataError(f"pool {self.config.pool} has no item in its train split")
        keys = {"pool": self.pool.info.content_hash, "classes": list(self.classes), **defining(self.config)}
        if not self.store.exists("experiment.yaml"):
            self.store.write_yaml(
                "experiment.yaml",
                {
                    "format": FORMAT,
                    "raybal": raybal.__version__,
                    "defines": keys,
                    "settings": dataclasses.asdict(self.config),
                },
            )
            return
        begun = self.store.read_yaml("experiment.yaml")
        if begun["format"] != FORMAT:
            raise StoreError(
                f"store {self.store.root} was written in format {begun['format']} by raybal {begun['raybal']}; "
                f"this is raybal {raybal.__version__}, which reads format {FORMAT}. Use that version, or another store"
            )
        for key in dict.fromkeys([*begun["defines"], *keys]):
            old, new = begun["defines"].get(key), keys.get(key)
            if old != new:
                raise StoreError(
                    f"store {self.store.root} was begun with {key} = {old}, and now it is {new}. An experiment "
                    "cannot change in the middle: give the old value, or choose another store"
                )
        asked = len(self._asked(10**9))
        if self.config.label_budget < asked:
            raise ConfigError(f"label_budget: {self.config.label_budget} is not accepted; {asked} items were asked for")
        # What may change has perhaps changed.
        self.store.write_yaml("experiment.yaml", begun | {"settings": dataclasses.asdict(self.config)})


def _query_table(query: Query, about: dict[str, dict[str, Any]], modalities: Sequence[str]) -> pa.Table:
    unknown: dict[str, Any] = {"predicted": None, "confidence": None, "contribution": [None] * len(modalities)}
    rows = [about.get(i, unknown) for i in query.ids]
    columns = {
        "id": pa.array(query.ids, pa.string()),
        "score": pa.array(query.score, pa.float64()),
        "reason": pa.array(query.reason, pa.string()),
        "predicted": pa.array([r["predicted"] for r in rows], pa.int32()),
        "confidence": pa.array([r["confidence"] for r in rows], pa.float64()),
    }
    for k, m in enumerate(modalities):
        columns[f"contribution_{m}"] = pa.array([r["contribution"][k] for r in rows], pa.float64())
    return pa.table(columns)


def run_loop(config: LoopConfig) -> None:
    """Runs an experiment from its settings: connects to Ray, takes the store's lease, runs rounds, writes the report.

    Raises:
        RaybalError: the experiment cannot begin or continue.
    """
    _check_places(config)
    store = Store(config.store)
    with Lease(store) as lease, cluster(config.resources):
        if config.pool == DEMO:
            config = dataclasses.replace(config, pool=demo_pool())
        loop = Loop(config, lease)
        try:
            loop.run()
        except WaitingForLabels as waiting:
            log.info("%s", waiting)
        report = write_report(store, loop.pool, loop.sidecar)
    log.info("store:  %s", store.root)
    log.info("report: %s", report)


def _check_places(config: LoopConfig) -> None:
    """A store inside the copied working directory of a submitted job would be lost with the job."""
    for key in ("store", "pool"):
        place = getattr(config, key)
        if inside_uploaded_directory() and "://" not in place and not os.path.isabs(place) and place != DEMO:
            raise ConfigError(
                f"{key}: {place!r} is not accepted in a submitted job: it would lie in the uploaded copy of the "
                "working directory, which is thrown away; give an absolute path or a URI"
            )
