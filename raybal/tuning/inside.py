"""Tuning inside a loop: on the labels that a round has, with a share of the loop's time.

rounds/003/tune/optuna.log                        its trials
rounds/003/tune/trials/<method>/<trial>/0/        their training runs, as long as it is under way
rounds/003/tune.yaml                              what changed, and what it cost
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.storages import JournalStorage

from raybal.config import LoopConfig
from raybal.data.pool import Labelled, Pool
from raybal.rounds import Round, TunedSettings
from raybal.store import Store
from raybal.tuning.config import TuneConfig
from raybal.tuning.journal import JOURNAL, StoreJournal
from raybal.tuning.spaces import Values, merged
from raybal.tuning.summary import Found, RowFound
from raybal.tuning.trial import Plan
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
    check: Callable[[], None],
) -> dict[str, Any]:
    """Searches better settings than those in force, which are the first trial; returns facts for the round's marker.

    Args:
        plan: what is searched.
        parts: training and validation items of the round.
        before: what an earlier tuning has set of the settings in force, plain, by section.
        earlier: the round of the last tuning, whose best trials are tried again; None where there was none.
        seconds: that it may take; a little more if the last trials are longer than those before.
        check: raises a StoreError where another driver has taken over.

    Returns:
        {"trials", "epochs", "before": {"values", "accuracy"}, "after": the same, "settings": those that hold from now
        on, plain, by section}.
    """
    store = Store(plan.config.store)
    # Where they lie outside of the space they are tried all the same.
    first = [plan.values_of({}) or {}]
    first += [values for values in _best_of(earlier, plan) if values not in first]
    journal = StoreJournal(store, JOURNAL, check)
    found = search(plan, parts, store, journal, plan.config.trials, first=first, seconds=seconds)
    # What only a tuning that goes on would need.
    for folder in ("ray", "trials"):
        store.clear(folder)
    old = next((t for t in found.trials if t.number == 0), None)
    best = next(iter(found.best(1)), old)
    facts = {"trials": len(found.trials), "epochs": found.epochs, "settings": before}
    if old is None or best is None:
        return facts
    facts |= {"before": _facts(old), "after": _facts(best)}
    if best.number != old.number:
        facts["settings"] = merged(before, plan.chosen(best.values))
        log.info(
            "tuning: validation %.1f%% with the settings before, %.1f%% with those of trial %d: %s",
            100 * old.accuracy, 100 * best.accuracy, best.number, changes(old.values, best.values),
        )  # fmt: skip
    else:
        log.info("tuning: none of %d trials beats the settings in force", len(found.trials))
    return facts


def _facts(trial: Found) -> dict[str, Any]:
    return {"trial": trial.number, "values": trial.values, "accuracy": trial.accuracy}


def _best_of(earlier: Round | None, plan: Plan) -> list[Values]:
    """Returns the best values of an earlier tuning."""
    if earlier is None:
        return []
    journal = StoreJournal(Store(earlier.store.where(f"{earlier.folder}/tune")), JOURNAL)
    study = optuna.load_study(study_name=plan.row, storage=JournalStorage(journal))
    found = RowFound(plan.row, plan.own.method, plan.space, ended(study, plan.space), [])
    return [trial.values for trial in found.best(CARRIED)]
