"""How far an experiment is, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raybal.data.pool import Pool
from raybal.errors import shorten
from raybal.report.data import ExperimentRecord, place
from raybal.rounds import PHASES
from raybal.store import Store


@dataclass(frozen=True)
class State:
    """How far an experiment is.

    Attributes:
        kind: for its looks.
        title: in a word or two.
        detail: what it is waiting for, or what comes next.
    """

    kind: Literal["finished", "waiting", "progress"]
    title: str
    detail: str


def state_of(experiment: ExperimentRecord, store: Store) -> State:
    """Returns how far an experiment is."""
    if not experiment.rounds:
        return State("progress", "Just begun", "No round has begun yet.")
    last = experiment.rounds[-1]
    following = [phase for phase in PHASES if phase not in last.facts]
    if experiment.ended is not None:
        return State("finished", "Finished", f"{experiment.ended[:1].upper()}{experiment.ended[1:]}.")
    if not following:
        return State("progress", "In progress", f"Round {last.number} is finished; round {last.number + 1} comes next.")
    if following[0] == "ask" and experiment.settings.get("labelling", {}).get("labeller", "oracle") != "oracle":
        return State("waiting", "Waiting for labels", _waiting_for(experiment, store))
    done = len(PHASES) - len(following)
    return State(
        "progress",
        "In progress",
        f"Round {last.number}: {done} of {len(PHASES)} phases are finished; the next is {following[0]}.",
    )


def _waiting_for(experiment: ExperimentRecord, store: Store) -> str:
    last = experiment.rounds[-1]
    ids = last.query.ids if last.query else []
    missing = sum(i not in experiment.labels.label for i in ids)
    sheet = next((s for s in experiment.sheets if s.startswith(f"round-{last.number:03d}.")), None)
    where = place(store, f"sheets/{sheet}") if sheet else "its query sheet"
    if not missing:
        return f"All {len(ids)} items of round {last.number} are answered; run the same command again to go on."
    return (
        f"{missing} of the {len(ids)} items of round {last.number} have no answer yet. "
        f"Fill in {where} and run the same command again."
    )


def why_no_accuracy(experiment: ExperimentRecord, pool: Pool) -> str:
    """Says in half a sentence why there is no test accuracy."""
    if not any(r.has_model for r in experiment.rounds):
        tried = any("train" in r.facts for r in experiment.rounds)
        return "there is no label that a model could be trained on" if tried else "no model has been trained yet"
    if not any(r.has_model and "evaluate" in r.facts for r in experiment.rounds):
        return "no model has been evaluated yet"
    count = len(pool.positions_in("test"))
    if not count:
        return "the pool has no test split"
    return f"none of the pool's {count:,} test items has a label"


def why_no_model(experiment: ExperimentRecord) -> str | None:
    """Says which rounds ended without a model, and why; None if there is no such round."""
    rounds = [str(r.number) for r in experiment.rounds if "train" in r.facts and not r.has_model]
    if not rounds:
        return None
    which = f"Round {rounds[0]} has" if len(rounds) == 1 else f"Rounds {shorten(rounds, 10)} have"
    return (
        f"{which} no model: none of the items asked for by then could be labelled, so nothing could be trained on. "
        "Queries are chosen at random until there is a model."
    )
