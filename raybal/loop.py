"""The round state machine.

A round scores the unlabelled pool with the last round's model, selects a query, asks for its labels, now and then tunes
settings if that is wanted, trains, and evaluates. Each of these phases ends with a marker in the store; starting the
same command again skips what has a marker and repeats the rest, which gives the same result because every phase is a
function of what came before it.

    experiment.yaml    what defines the experiment, and all settings
    lease.yaml         which driver is at work
    labels/            the label journal
    sheets/            query sheets, with the table labeller
    rounds/003/        one round (raybal.rounds)
    rounds/003/tune/   the trials of a tuning (raybal.tuning.inside)
    ended.yaml         why the last start ended, if it did not stop to wait for people
    report.html        the report, and tensorboard/ beside it
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raybal import hashing, memory
from raybal.config import LoopConfig
from raybal.errors import shorten
from raybal.experiment import BEGUN, Experiment
from raybal.labelling.journal import Answer, Journal, Labels
from raybal.lease import Lease
from raybal.predictor import load_predictor, save_predictor
from raybal.querying.base import Query, Request
from raybal.querying.scoring import read_holder
from raybal.querying.selection import Selection
from raybal.report.page import write_report
from raybal.resources import capacity
from raybal.rounds import ENDED, LABELLED, PHASES, Round, asked_in, seconds_left, settings_in_force
from raybal.scorers import Scorers
from raybal.start import at_work, say_where
from raybal.stopping import Progress, kappa, reason_to_stop
from raybal.store import Store
from raybal.training.evaluate import evaluate, mean_contributions
from raybal.training.task import TrainTask
from raybal.training.worker import train

FOLDERS = ("labels", "sheets", "rounds", "tensorboard")

log = logging.getLogger(__name__)


class WaitingForLabels(Exception):  # noqa: N818 - not an error: the loop goes on when the answers are there
    """People have to answer before the loop can go on."""


def run_loop(config: LoopConfig) -> None:
    """Runs an experiment from its settings: connects to Ray, takes the store's lease, runs rounds, writes the report.

    Raises:
        RaybalError: the experiment cannot begin or continue.
    """
    with at_work(BEGUN, config, _begin) as loop:
        store, experiment = loop.store, loop.experiment
        store.sweep(FOLDERS)
        experiment.begin()
        try:
            loop.run()
        except WaitingForLabels as waiting:
            log.info("%s", waiting)
        report = write_report(store, experiment.pool, experiment.sidecar)
    say_where(store, report)


def _begin(config: LoopConfig, store: Store, lease: Lease) -> Loop:
    return Loop(Experiment(config, store), lease)


class Loop:
    """Runs the rounds of an experiment. Ray must be connected.

    Args:
        experiment: what is run.
        lease: of its store, held before anything is run.
    """

    def __init__(self, experiment: Experiment, lease: Lease) -> None:
        self.experiment = experiment
        self.config = experiment.config
        self.pool = experiment.pool
        self.store = experiment.store
        self.lease = lease
        self.journal = Journal(self.store)
        self.labeller = experiment.labeller
        self._scorers: Scorers | None = None

    def run(self) -> None:
        """Runs rounds until there is a reason to end, such as the label budget.

        Raises:
            WaitingForLabels: people have to answer first.
        """
        if self.experiment.initial:
            log.info("the manifest labels %d training items; they are not asked for", len(self.experiment.initial))
        memory.keep_freed()
        try:
            self._collect()
            if not (Round(self.store, 0).done("train") or self._training_needs_scorers_gpus()):
                # The actors start while the first round trains.
                _ = self.scorers
            self.store.delete(ENDED)
            number = 0
            while (why := self._round(Round(self.store, number))) is None:
                number += 1
            self.store.write_yaml(ENDED, {"why": why})
            log.info("the loop ends: %s", why)
        finally:
            self._stop_scorers()
            memory.give_back()

    def _round(self, current: Round) -> str | None:
        """Runs what a round has left to do, or returns why nothing is asked for in it."""
        exhausted = current.number > 0 and not current.done("select") and self.experiment.why_exhausted(current)
        if exhausted:
            return exhausted
        left = [phase for phase in PHASES if not current.done(phase)]
        for phase in left:
            if phase in ("score", "select") and (why := self._reason_to_stop(current)):
                return why
            started = time.monotonic()
            log.info("round %d: %s", current.number, phase)
            facts = getattr(self, f"_{phase}")(current)
            self.lease.check()
            current.finish(phase, {**facts, "seconds": round(time.monotonic() - started, 3)})
        memory.give_back()
        test = current.facts("evaluate")["test"]
        if left and test:
            shown = "  ".join(f"{h} {100 * v['accuracy']:.1f}%" for h, v in test.items() if isinstance(v, dict))
            log.info("round %d: test accuracy  %s", current.number, shown)
        return None

    # Phases. Each returns plain facts for its marker. The first round has no model to score and choose with.

    def _score(self, current: Round) -> dict[str, Any]:
        model = current.model_before
        if model is None:
            if not self.experiment.chooses_initially(current):
                return {"items": 0}
            # An untrained model tells nothing of classes, but its embeddings say what is alike.
            model = f"{current.folder}/initial.safetensors"
            weights = self.experiment.spec.build()[0].state_dict()
            save_predictor(self.store, model, self.experiment.spec, {f"model.{k}": v for k, v in weights.items()})
        candidates = self.experiment.candidates(current)
        shards = self._by_shard(candidates)
        labelled = self._by_shard(self.experiment.labelled(current), LABELLED)
        self.scorers.score(current.scores, shards | labelled, model, self.experiment.strategy(current))
        return {"items": len(candidates), "shards": sorted(shards), "labelled": sorted(labelled)}

    def _by_shard(self, positions: NDArray[np.int64], prefix: str = "") -> dict[str, NDArray[np.int64]]:
        shard_of = self.pool.shard_of[positions]
        return {prefix + self.pool.shards[s]: positions[shard_of == s] for s in np.unique(shard_of)}

    def _select(self, current: Round) -> dict[str, Any]:
        size, seed = self.experiment.size(current), self.experiment.seed("query", current)
        scored = current.facts("score")
        if not scored["items"]:
            ids = self.pool.ids_at(self.experiment.candidates(current))
            chosen = [ids[p] for p in hashing.order(ids, seed)[:size]]
            selection = Selection(Query(chosen, [0.0] * len(chosen), ["no model yet: at random"] * len(chosen)))
        else:
            files = [f"{current.scores}/{name}.parquet" for name in scored["labelled"]]
            labelled = read_holder(self.store, files) if files else None
            request = Request(size, seed, len(self.experiment.classes), labelled)
            strategy = self.experiment.strategy(current)
            selection = self.scorers.select(current.scores, scored["shards"], request, strategy)
            if current.model_before is None:
                selection = selection.without_predictions()
        # Where items cost differently, the last query may be more than the label budget lets it be.
        wanted = selection.query
        query = wanted.only(self.experiment.affordable(current, wanted.ids))
        over = sorted(set(wanted.ids) - set(query.ids))
        if over:
            selection = selection.of(query)
        table = _query_table(query, selection.items, self.pool.info.names)
        self.store.write_table(f"{current.folder}/query.parquet", table)
        cost = self.experiment.cost(query.ids)
        facts = {"passed_over": float(self.experiment.costs[self.pool.positions(over)].min())} if over else {}
        return {"items": len(table), "cost": cost, **facts, "pool": selection.pool, "balance": selection.balance}

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
        if missing and not labels.known:
            raise WaitingForLabels(
                "waiting for labels: no item has a label yet, so there is nothing to train on. Fill in "
                f"{self.labeller.where(current.number)} and run the same command again"
            )
        return {
            "asked": len(ids),
            "unanswered": missing,
            "cannot_label": [i for i in ids if i in labels.label and labels.label[i] is None],
            "conflicts": sorted(labels.conflicts),
        }

    def _tune(self, current: Round) -> dict[str, Any]:
        tuning = self.config.tuning
        if tuning.every is None or current.number == 0 or current.number % tuning.every:
            return {}
        parts = self._training(current).read_labels() if self._has_items(current) else ()
        if not parts or not all(parts):
            log.warning("no tuning in this round: there are no labelled items to validate by")
            return {"skipped": "no labelled items to validate by"}
        seconds = seconds_left(current, tuning.share)
        if seconds <= 0:
            log.info("no tuning in this round: it has had its share of the time")
            return {"skipped": "tuning has had its share of the time"}
        if capacity("GPU") > 0:
            self._stop_scorers()
        earlier = [Round(self.store, number) for number in range(current.number)]
        tuned = [r for r in earlier if r.done("tune") and r.facts("tune").get("trials")]
        store = Store(self.store.where(f"{current.folder}/tune"))
        plan = self.experiment.tuning_plan(store, current)
        # Ray Tune and Optuna take seconds to import, and most loops do not tune.
        from raybal.tuning.inside import retune

        return retune(
            plan, parts, settings_in_force(current), tuned[-1] if tuned else None, seconds, tuning.seeds, self.lease
        )

    def _train(self, current: Round) -> dict[str, Any]:
        if self._training_needs_scorers_gpus():
            self._stop_scorers()
        if not self._has_items(current):
            log.warning("none of the items asked for could be labelled; the next round asks for others at random")
            return {"items": {"train": 0, "validation": 0}, "history": [], "epoch": None}
        result = train(self._training(current), self.config.resources)
        parts = list(current.trained_on().values())
        return {"items": {part: parts.count(part) for part in ("train", "validation")}, **result}

    def _training(self, current: Round) -> TrainTask:
        spec, settings = self.experiment.settings_in(current)
        return TrainTask(
            store=self.store.root,
            folder=current.training,
            pool=self.pool.store.root,
            spec=spec,
            settings=settings,
            seed=self.experiment.seed("train", current),
            token=self.lease.token,
            warm=current.model_before if self.config.train.round_start == "warm" else None,
        )

    def _has_items(self, current: Round) -> bool:
        """Returns whether a round has items to train on. They are written once: answers that come later must not change
        what is under way."""
        if not self.store.exists(f"{current.training}/items.parquet"):
            known = self.journal.read().known
            if not known:
                return False
            self._training(current).write_items(*self.experiment.training_items(current, known))
        return True

    def _evaluate(self, current: Round) -> dict[str, Any]:
        parts = current.trained_on()
        facts: dict[str, Any] = {"labels": self.experiment.label_count(current), "test": None}
        if not parts:
            return facts
        device = self.config.train.resolve_device()
        predictor, _ = load_predictor(self.store, current.model, device)
        if self.experiment.test is not None:
            facts["test"] = evaluate(predictor, self.experiment.test, device)
        validating = [i for i, part in parts.items() if part == "validation"]
        looked_at = {
            "validation": self.pool.items(validating) if validating else None,
            "test": self.experiment.test,
        }
        facts["contribution"] = {
            name: None if items is None else mean_contributions(predictor, items, device)
            for name, items in looked_at.items()
        }
        return facts

    def _reason_to_stop(self, current: Round) -> str | None:
        """Returns why no more labels are wanted, or None."""
        earlier = [Round(self.store, number) for number in range(current.number)]
        # A round whose items nobody could label trains on those of the one before, and tells nothing of more labels.
        trained = {self.experiment.label_count(r): r for r in earlier if r.facts("train")["history"]}
        progress = Progress(
            labels=list(trained),
            accuracy=[_validation_accuracy(r.facts("train")) for r in trained.values()],
            agreement=self._agreement(current),
            size=self.experiment.size(current),
        )
        return reason_to_stop(progress, self.config.stop)

    def _agreement(self, current: Round) -> float | None:
        """Returns how far the last two models agree on what both have scored, once they have."""
        if self.config.stop.agreement is None or not current.done("score"):
            return None
        last, before = current.trained_before, current.before.trained_before
        if last is None or before is None or self.experiment.label_count(last) == self.experiment.label_count(before):
            return None
        one, other = (r.predictions(r.facts("score")["shards"]) for r in (current, current.before))
        # A larger budget may have brought candidates that were too dear before.
        one = one.filter(pc.is_in(one["id"], other["id"]))
        found = pc.index_in(one["id"], other["id"])
        return kappa(one["predicted"].to_numpy(), other["predicted"].take(found).to_numpy())

    # What the phases use.

    @property
    def scorers(self) -> Scorers:
        """The scoring actors, started when they are first needed."""
        if self._scorers is None:
            roots = self.pool.store.root, self.store.root
            self._scorers = Scorers(*roots, len(self.pool.shards), self.config.resources)
        return self._scorers

    def _training_needs_scorers_gpus(self) -> bool:
        return self.config.train.num_workers > 0 and capacity("GPU") > 0

    def _stop_scorers(self) -> None:
        if self._scorers is not None:
            self._scorers.stop()
            self._scorers = None

    def _collect(self) -> Labels:
        """Takes in all answers that are there; returns what stands."""
        given = [Answer(i, label, "manifest") for i, label in self.experiment.initial.items()]
        new = self.journal.add(given + self.labeller.collect(set(asked_in(self.store))))
        labels = self.journal.read()
        if new:
            log.info("labels: %d new answers, %d items labelled", len(new), len(labels.known))
        where = self.labeller.report_conflicts(labels)
        if where is not None:
            log.warning(
                "%d items have conflicting answers (%s); their first answer stands until %s is filled in",
                len(labels.conflicts),
                shorten(labels.conflicts),
                where,
            )
        return labels


def _validation_accuracy(facts: dict[str, Any]) -> float | None:
    """Returns the validation accuracy of the model that a training phase kept, or None without validation items."""
    kept = facts["history"][facts["epoch"] - 1]["validation"]
    return kept["fused"]["accuracy"] if kept else None


def _query_table(query: Query, items: Mapping[str, dict[str, Any]], modalities: Sequence[str]) -> pa.Table:
    rows = [items.get(i, {}) for i in query.ids]
    columns = {
        "id": pa.array(query.ids, pa.string()),
        "score": pa.array(query.score, pa.float64()),
        "reason": pa.array(query.reason, pa.string()),
        "predicted": pa.array([r.get("predicted") for r in rows], pa.int32()),
        "confidence": pa.array([r.get("confidence") for r in rows], pa.float64()),
        "stands_for": pa.array([r.get("stands_for") for r in rows], pa.int64()),
        "nearest_labelled": pa.array([r.get("nearest_labelled") for r in rows], pa.string()),
        "labelled_distance": pa.array([r.get("labelled_distance") for r in rows], pa.float64()),
    }
    for k, m in enumerate(modalities):
        shares = [r["contribution"][k] if "contribution" in r else None for r in rows]
        columns[f"contribution_{m}"] = pa.array(shares, pa.float64())
    for name in dict.fromkeys(name for part in query.parts for name in part):
        columns[f"score_{name}"] = pa.array([part.get(name) for part in query.parts], pa.float64())
    return pa.table(columns)
