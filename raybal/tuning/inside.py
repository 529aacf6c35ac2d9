"""Tuning inside a loop: on the labels that a round has, with a share of the loop's time.

rounds/003/tune/optuna.log                        its trials
rounds/003/tune/trials/<method>/<trial>/0/        their training runs, as long as it is under way
rounds/003/tune.yaml                              what changed, and what it cost
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.storages import JournalStorage

from raybal.config import LoopConfig
from raybal.data.pool import Labelled, Pool
from raybal.lease import Lease
from raybal.rounds import Round, TunedSettings
from raybal.store import Store
from raybal.table.cells import Cell, validation_accuracy
from raybal.table.fill import Filler
from raybal.training.task import TrainTask
from raybal.tuning.config import TuneConfig
from raybal.tuning.journal import JOURNAL, StoreJournal
from raybal.tuning.spaces import Values, merged
from raybal.tuning.summary import Found, RowFound
from raybal.tuning.trial import Plan, TrialRun
from raybal.tuning.trials import ended, search
from raybal.tuning.values import changes

#: Trials of the last tuning that are tried again.
CARRIED = 3

log = logging.getLogger(__name__)


def plan_of(config: LoopConfig, pool: Pool, classes: Sequence[str], store: Store, seed: int) -> Plan:
    """Returns what a tuning searches.

    Args:
        config: of the loop, with the settings in force.
        pool: that it learns from.
        classes: class names.
        store: of the trials.
        seed: of the suggestions and the initial weights.

    Raises:
        ConfigError: there is nothing to search, or a range is not accepted.
    """
    own, tuning = config.balancing, config.tuning
    sweep = TuneConfig(
        pool=pool.store.root,
        store=store.root,
        seed=seed,
        methods=[own.method],
        trials=tuning.trials,
        search=tuning.search,
        space=tuning.space,
        model=config.model,
        balancing={own.method: own},
        train=dataclasses.replace(config.train, round_start="fresh"),
        resources=config.resources,
    )
    plan = Plan(sweep, own.method, own, {}, pool.info.modalities, tuple(classes), None, {})
    return plan.searching(tuning.search, sweep.dimensions)


def retune(
    plan: Plan,
    parts: tuple[Labelled, Labelled],
    before: TunedSettings,
    earlier: Round | None,
    seconds: float,
    seeds: int,
    lease: Lease,
) -> dict[str, Any]:
    """Searches better settings than those in force, which are the first trial; returns facts for the round's marker.

    The best of many trials is the best by chance too, so it has to beat the settings in force over several seeds, on
    the same items.

    Args:
        plan: what is searched.
        parts: training and validation items of the round.
        before: what an earlier tuning has set of the settings in force, plain, by section.
        earlier: the round of the last tuning, whose best trials are tried again; None where there was none.
        seconds: that it may take; a little more if the last trials are longer than those before.
        seeds: over which the best trial has to beat the settings in force.
        lease: of the loop's store.

    Returns:
        {"trials", "epochs", "before": {"trial", "values", "accuracy" (mean over seeds)}, "after": the same, of what
        holds from now on, "settings": these, plain, by section}.
    """
    store = Store(plan.config.store)
    # Where they lie outside of the space they are tried all the same.
    first = [plan.values_of(plan.own) or {}]
    first += [values for values in _best_of(earlier, plan) if values not in first]
    journal = StoreJournal(store, JOURNAL, lease.check)
    config, more = plan.config, 2 * (seeds - 1)
    # The comparison is as long as so many trials.
    seconds *= config.trials / (config.trials + more)
    found = search(plan, parts, store, journal, config.trials, first=first, seconds=seconds, spared=0)
    old = next((t for t in found.trials if t.number == 0), None)
    best = next(iter(found.best(1)), old)
    facts: dict[str, Any] = {"trials": len(found.trials), "epochs": found.epochs, "settings": before}
    if old is not None and best is not None:
        facts["epochs"] += more * config.train.epochs * (best.number != old.number)
        over = _over_seeds(plan, parts, [old, best], seeds, lease)
        after = best if over[best.number] > over[old.number] else old
        facts["before"], facts["after"] = (
            {"trial": t.number, "values": t.values, "accuracy": over[t.number]} for t in (old, after)
        )
        if after is not old:
            facts["settings"] = merged(before, plan.chosen(best.values))
            log.info(
                "tuning: validation %.1f%% over %d seeds with the settings before, %.1f%% with those of trial %d: %s",
                100 * over[old.number], seeds, 100 * over[best.number], best.number, changes(old.values, best.values),
            )  # fmt: skip
        else:
            log.info("tuning: none of %d trials beats the settings in force over %d seeds", len(found.trials), seeds)
    # What only a tuning that goes on would need.
    for folder in ("ray", "trials"):
        store.clear(folder)
    return facts


def _over_seeds(
    plan: Plan, parts: tuple[Labelled, Labelled], trials: Sequence[Found], seeds: int, lease: Lease
) -> dict[int, float]:
    """Returns the mean validation accuracy of trials over seeds, by number; of a single one what it has reached."""
    store = Store(plan.config.store)
    if len({t.number for t in trials}) < 2:
        return {t.number: t.accuracy for t in trials}
    runs = {plan.run_of(f"{t.number:04d}", t.values, seed): t for t in trials for seed in range(seeds)}

    def task(cell: Cell) -> TrainTask:
        assert isinstance(cell, TrialRun)
        return plan.task(cell, runs[cell].values)

    Filler(store, lease, lambda seed: parts, plan.config.resources, task, len(runs)).fill(list(runs))
    found: dict[int, list[float]] = {}
    for run, trial in runs.items():
        found.setdefault(trial.number, []).append(validation_accuracy(store, run))
    return {number: sum(values) / len(values) for number, values in found.items()}


def _best_of(earlier: Round | None, plan: Plan) -> list[Values]:
    """Returns the best values of an earlier tuning."""
    if earlier is None:
        return []
    journal = StoreJournal(Store(earlier.store.where(f"{earlier.folder}/tune")), JOURNAL)
    study = optuna.load_study(study_name=plan.row, storage=JournalStorage(journal))
    found = RowFound(plan.row, plan.own.method, plan.space, ended(study, plan.space), [])
    return [trial.values for trial in found.best(CARRIED)]
