"""Whether a modality is being starved, in words and with the reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raybal.data.pool import Pool
from raybal.report.data import FUSED, ExperimentRecord, RoundRecord, heads_of
from raybal.report.state import why_no_accuracy

#: Below this part of what would be even, a modality counts as behind (its head) or little used (its contribution).
PART = 0.5


@dataclass(frozen=True)
class Verdict:
    """Whether a modality is being starved.

    Attributes:
        kind: for its looks.
        sentence: one plain sentence.
        notes: what else a reader should know before believing it.
    """

    kind: Literal["good", "warning", "unknown"]
    sentence: str
    notes: list[str]


def even_shares(pool: Pool, split: str) -> list[float]:
    """Returns the contribution that each modality would have if those that an item has shared its prediction evenly,
    averaged over a split."""
    present = pool.present[pool.positions_in(split)].astype(np.float64)
    if not len(present):
        return [1 / pool.present.shape[1]] * pool.present.shape[1]
    return (present / present.sum(1, keepdims=True).clip(min=1)).mean(0).tolist()


def judge(experiment: ExperimentRecord, pool: Pool) -> Verdict:
    """Judges whether a modality is being starved, on the newest model of which accuracy and contributions are known.

    A head is behind when its advantage over guessing (balanced accuracy above 1/classes on the test items) is less
    than half of the best unimodal head's, and the gap is more than luck. A modality is little used when its mean
    contribution is less than half of an even share: over the test items or, in a store that does not know those,
    over the candidates that the model scored. Both together are called starved.
    """
    names = pool.info.names
    if len(names) < 2:
        return Verdict("unknown", f"There is one modality, {names[0]}, so none can be starved by another.", [])
    if not experiment.tested():
        return Verdict(
            "unknown",
            "Whether a modality is being starved cannot be told: accuracy is unknown, because "
            f"{why_no_accuracy(experiment, pool)}.",
            _shares_note(experiment, names),
        )
    evidence = _evidence(experiment, pool)
    if not evidence.advantage:
        return Verdict("unknown", "Whether a modality is being starved cannot be told: no test item has one.", [])
    if not evidence.has_learned():
        return Verdict(
            "unknown",
            "Too early to tell whether a modality is being starved: no modality's own head is clearly better than "
            f"guessing (the best in round {evidence.number}, {evidence.best}, has {evidence.shown(evidence.best)} "
            f"balanced accuracy on {evidence.items:,} test items; guessing gives {_percent(evidence.chance)}).",
            [],
        )
    kind, sentence = _sentence(evidence)
    return Verdict(kind, sentence, _notes(evidence, experiment, pool))


@dataclass(frozen=True)
class _Evidence:
    """What is known of one round's model: test metrics by head and, where they were measured, contributions.

    Attributes:
        number: of the round.
        items: number of test items.
        having: about how many of them have each modality, which is how many its head was tested on.
        chance: balanced accuracy of guessing.
        heads: metrics by head.
        share: mean contribution by modality, empty if it was not measured.
        even: what it would be if modalities contributed evenly.
        where: over what it was measured.
    """

    number: int
    items: int
    having: dict[str, float]
    chance: float
    heads: dict[str, dict[str, float]]
    share: dict[str, float]
    even: dict[str, float]
    where: str

    @property
    def advantage(self) -> dict[str, float]:
        """Of each unimodal head, how far its balanced accuracy is from guessing (0) to perfect (1)."""
        return {
            m: (metrics["balanced_accuracy"] - self.chance) / (1 - self.chance)
            for m, metrics in self.heads.items()
            if m != FUSED
        }

    @property
    def best(self) -> str:
        advantage = self.advantage
        return max(advantage, key=lambda m: advantage[m])

    @property
    def behind(self) -> list[str]:
        """The heads that are behind by more than luck, worst first."""
        advantage, accuracy = self.advantage, {m: h["balanced_accuracy"] for m, h in self.heads.items()}
        error = {m: standard_error(accuracy[m], self.having[m]) for m in advantage}
        best, found = self.best, []
        for m, value in advantage.items():
            luck = 2 * math.hypot(error[best], error[m])
            if value < PART * advantage[best] and accuracy[best] - accuracy[m] > luck:
                found.append(m)
        return sorted(found, key=lambda m: advantage[m])

    @property
    def unused(self) -> list[str]:
        """The modalities that are little used, worst first."""
        ratio = {m: share / self.even[m] for m, share in self.share.items() if self.even[m] > 0}
        return sorted((m for m, r in ratio.items() if r < PART), key=lambda m: ratio[m])

    def has_learned(self) -> bool:
        """Whether the best head is better than luck: two standard errors of guessing, at least two points."""
        if not self.advantage:
            return False
        gain = self.heads[self.best]["balanced_accuracy"] - self.chance
        return gain > max(0.02, 2 * standard_error(self.chance, self.having[self.best]))

    def shown(self, head: str) -> str:
        return _percent(self.heads[head]["balanced_accuracy"])

    def used(self, modality: str) -> str:
        share, even = _percent(self.share[modality]), _percent(self.even[modality])
        return f"took {share} of the decision {self.where} (even: {even})"


def _evidence(experiment: ExperimentRecord, pool: Pool) -> _Evidence:
    """Returns the newest evidence in which accuracy and contributions are of one model, or else accuracy alone."""
    tested = {r.number: r for r in experiment.tested()}
    newest = tested[max(tested)]
    own = newest.contributions.get("test")
    if own:
        return _of_round(experiment, newest, pool, own, "test")
    found = _of_round(experiment, newest, pool, None, "train")
    models = [(experiment.model_before(r), r.pool) for r in experiment.rounds]
    scored = [(model, seen) for model, seen in models if model and seen and model.number in tested]
    if scored:
        model, seen = scored[-1]
        paired = _of_round(experiment, model, pool, seen["contribution"], "train")
        # A model that had learned nothing says nothing, and a newer one may have.
        if paired.has_learned() or not found.has_learned():
            return paired
    return found


def _of_round(
    experiment: ExperimentRecord, r: RoundRecord, pool: Pool, shares: list[float] | None, split: str
) -> _Evidence:
    test, names = r.test or {}, pool.info.names
    return _Evidence(
        number=r.number,
        items=test["items"],
        having={m: share * test["items"] for m, share in _having(pool).items()},
        chance=1 / max(len(experiment.classes), 2),
        heads=heads_of(test),
        share=dict(zip(names, shares, strict=True)) if shares else {},
        even=dict(zip(names, even_shares(pool, split), strict=True)),
        where="on the test items" if split == "test" else "in the pool",
    )


def _sentence(e: _Evidence) -> tuple[Literal["good", "warning"], str]:
    best = f"the best, {e.best}, had {e.shown(e.best)}"
    starved = [m for m in e.behind if m in e.unused or m not in e.share]
    if starved:
        m, *others = starved
        return "warning", (
            f"There are signs that {m} was being starved in round {e.number}: its own head had {e.shown(m)} balanced "
            f"accuracy where {best}"
            + (f", and it {e.used(m)}" if e.share else "")
            + (f". The same holds for {_listed(others)}." if others else ".")
        )
    if e.unused:
        m = e.unused[0]
        head = f"its own head had {e.shown(m)} balanced accuracy and {best}, yet " if m in e.heads else ""
        return "warning", f"There are signs that {m} was left out in round {e.number}: {head}it only {e.used(m)}."
    if e.behind:
        m = e.behind[0]
        return "warning", (
            f"{m} was behind but not ignored in round {e.number}: its own head had {e.shown(m)} balanced accuracy "
            f"where {best}, while it {e.used(m)}."
        )
    heads = _listed([f"{e.shown(m)} for {m}" for m in e.advantage])
    shares = _listed([f"{_percent(share)} for {m}" for m, share in e.share.items()]) if e.share else ""
    return "good", (
        f"There was no sign in round {e.number} that a modality was being starved: balanced accuracy of their own "
        f"heads was {heads}" + (f", and the share of the decision {e.where} {shares}." if shares else ".")
    )


def _notes(e: _Evidence, experiment: ExperimentRecord, pool: Pool) -> list[str]:
    names, notes = pool.info.names, []
    newest = experiment.tested()[-1]
    if newest.number != e.number:
        heads = heads_of(newest.test or {})
        listed = _listed([f"{_percent(heads[m]['balanced_accuracy'])} for {m}" for m in names if m in heads])
        notes.append(
            f"Round {newest.number} is newer, and there balanced accuracy is {listed}; contributions to its "
            "predictions have not been measured yet, so it is not what this is judged by."
        )
    elif not e.share:
        notes.append("The pool has not been scored with this model, so this rests on accuracy alone.")
    newer = heads_of(newest.test or {})
    fused = newer[FUSED]["accuracy"]
    # A head that is tested on some of the items only cannot be compared with what is tested on all.
    alone = {m: newer[m]["accuracy"] for m, share in _having(pool).items() if m in newer and share == 1}
    single, strongest = max(((accuracy, m) for m, accuracy in alone.items()), default=(0.0, ""))
    if single - fused > 2 * standard_error(single, e.items):
        notes.append(
            f"In round {newest.number} the fused prediction ({_percent(fused)} accuracy) is worse than {strongest} "
            f"alone ({_percent(single)})."
        )
    absent = [m for m in names if m not in e.heads]
    if absent:
        notes.append(f"No labelled test item has {_listed(absent)}: its head is not judged.")
    if e.behind:
        notes.append(
            "A modality that simply tells less about these classes looks the same; only a model trained on it alone "
            "could show the difference, and this store holds none."
        )
    return notes


def _shares_note(experiment: ExperimentRecord, names: Sequence[str]) -> list[str]:
    own = [r.contributions["validation"] for r in experiment.rounds if "validation" in r.contributions]
    scored = [r.pool["contribution"] for r in experiment.rounds if r.pool]
    shares, where = (own[-1], "on the validation items") if own else (scored[-1] if scored else None, "in the pool")
    if shares is None:
        return []
    listed = _listed([f"{_percent(share)} for {m}" for m, share in zip(names, shares, strict=True)])
    return [f"Contributions need no test labels: the newest model's share of the decision {where} is {listed}."]


def _having(pool: Pool) -> dict[str, float]:
    """Returns the share of the test split that has each modality."""
    present = pool.present[pool.positions_in("test")]
    shares = present.mean(0).tolist() if len(present) else [1.0] * len(pool.info.names)
    return dict(zip(pool.info.names, shares, strict=True))


def standard_error(share: float, items: float) -> float:
    """Returns one standard error of a share of items, never less than that of one item in all."""
    return math.sqrt(max(share * (1 - share), 1 / max(items, 1)) / max(items, 1))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
