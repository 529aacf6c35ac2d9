"""Simulated loops, each in one process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from raybal.config import LoopConfig
from raybal.experiment import Experiment
from raybal.lease import Lease
from raybal.loop import FOLDERS, Loop
from raybal.querying.local import LocalScorers
from raybal.rounds import Round, rounds_of
from raybal.store import Store

CURVE = "curve.yaml"

#: A record a round: {"labels", "validation" and "accuracy" (of the fused prediction on validation and on test items),
#: "heads" (on test items), "balance" (of the query), "seconds" (by phase)}; None is what was not measured.
Curve = list[dict[str, Any]]


class LocalLoop(Loop):
    """A loop that trains and scores in this process.

    Args:
        experiment: what it is.
        lease: of its store.
        tested: whether its models are measured on test items.
    """

    def __init__(self, experiment: Experiment, lease: Lease, *, tested: bool = True) -> None:
        super().__init__(experiment, lease)
        self.tested = tested

    @functools.cached_property
    def scorers(self) -> Any:
        """Scores and selects here."""
        return LocalScorers(self.pool.store.root, self.store.root)

    def _training_needs_scorers_gpus(self) -> bool:
        return False

    def _evaluate(self, current: Round) -> dict[str, Any]:
        if self.tested:
            return super()._evaluate(current)
        return {"labels": self.experiment.label_count(current), "test": None}


def run_loop(
    config: LoopConfig, *, tested: bool = True, begin: Callable[[LoopConfig, Store], Experiment] = Experiment
) -> Curve:
    """Runs what is left of a loop, and keeps of its store only what it found: `curve.yaml`.

    Args:
        config: of the loop, with its own store.
        tested: whether its models are measured on test items.
        begin: makes the experiment.
    """
    store = Store(config.store)
    if not store.exists(CURVE):
        with Lease(store) as lease:
            store.sweep(FOLDERS)
            experiment = begin(config, store)
            experiment.begin()
            LocalLoop(experiment, lease, tested=tested).run()
            measured = [r for r in rounds_of(store) if r.done("evaluate")]
            store.write_yaml(CURVE, [_record(r, experiment.pool.info.names) for r in measured])
    # Whoever has hundreds of loops has no room for their models and scores.
    store.clear("rounds")
    return store.read_yaml(CURVE)


def _record(r: Round, modalities: tuple[str, ...]) -> dict[str, Any]:
    facts, trained = r.facts("evaluate"), r.facts("train")
    test = facts["test"] or {}
    kept = trained["history"][trained["epoch"] - 1]["validation"] if trained["history"] else None
    return {
        "labels": facts["labels"],
        "validation": kept["fused"]["accuracy"] if kept else None,
        "accuracy": test["fused"]["accuracy"] if test else None,
        "heads": {m: v["accuracy"] if (v := test.get(m)) else None for m in modalities},
        "balance": r.facts("select").get("balance") or {},
        "seconds": {p: r.facts(p)["seconds"] for p in ("score", "select", "train")},
    }
