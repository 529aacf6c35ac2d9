"""Every modality fills a share of the query, by a strategy that sees nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raybal import hashing
from raybal.balancing.base import Predictor
from raybal.errors import ConfigError, did_you_mean
from raybal.models.classifier import Classifier, Encoded
from raybal.querying.base import (
    Candidates,
    Holder,
    Query,
    QuerySettings,
    QueryStrategy,
    Request,
    Scored,
    build_strategy,
    by_hash,
    column_names,
    gather,
    joined,
)  # fmt: skip
from raybal.querying.views import Shown, View
from raybal.settings import setting


@dataclass(frozen=True)
class ByModalitySettings(QuerySettings):
    """Settings of queries that the modalities share."""

    inner: str = setting("margin", help="the strategy by which each modality chooses, with its default settings")
    shares: dict[str, float] = setting(factory=dict, help="share of the query by modality; equal ones without it")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner == ByModality.name:
            raise ConfigError(f"inner: {self.inner!r} is not accepted; it must be a strategy of its own")
        if any(share < 0 for share in self.shares.values()) or (self.shares and not sum(self.shares.values())):
            raise ConfigError(f"shares: {self.shares} is not accepted; shares are not negative, and one is above 0")


class ByModality(QueryStrategy):
    """Lets each modality, in turn, fill its share of the query by the inner strategy on the predictions of its own
    head and on its own embedding. Items that lack a modality are not its to choose; what it cannot fill, the next does.
    """

    name = "by_modality"
    Settings = ByModalitySettings
    settings: ByModalitySettings

    def __init__(self, settings: ByModalitySettings) -> None:
        super().__init__(settings)
        self.inner = build_strategy(settings.inner, settings)

    def check(self, predictor: Predictor) -> None:
        names = predictor.classifier.modalities
        for name in self.settings.shares:
            if name not in names:
                raise ConfigError(
                    f"query.shares.{name}: the pool has no such modality; it has {', '.join(names)}"
                    f"{did_you_mean(name, names)}"
                )
        for name in names:
            self.inner.check(OneModality(predictor.classifier, name))

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, m in enumerate(predictor.classifier.modalities):
            alone = OneModality(predictor.classifier, m)
            own = {m: scored.encoded.embeddings[m]}
            encoded = Encoded(own, own, scored.encoded.present[:, i : i + 1])
            probabilities = alone.logits(own, encoded.present).float().softmax(1)
            seen = Scored(encoded, probabilities, probabilities.argmax(1), torch.ones_like(probabilities[:, :1]))
            # An inner strategy may have no columns; that the modality is there is said by this one.
            found[f"{m}.there"] = encoded.present[:, 0].to(torch.uint8)
            found |= {f"{m}.{name}": column for name, column in self.inner.columns(alone, seen).items()}
        return found

    def select(self, candidates: Candidates, request: Request) -> Query:
        names = _modalities(candidates)
        query = Query([], [], [])
        for i, (m, wanted) in enumerate(_divided(request.size, names, self.settings.shares).items()):
            self._choose(query, candidates, request, i, m, wanted)
        # What some could not fill, others may; items without any modality of use come at random.
        for i, m in enumerate(names):
            self._choose(query, candidates, request, i, m, request.size - len(query.ids))
        chosen = set(query.ids)
        more = [i for i in by_hash(candidates, request.size + len(chosen), request.seed) if i not in chosen]
        more = more[: request.size - len(chosen)]
        _extend(query, Query(more, [0.0] * len(more), ["no modality could choose it; at random"] * len(more)))
        return query

    def _choose(self, query: Query, candidates: Candidates, request: Request, i: int, m: str, wanted: int) -> None:
        if wanted <= 0:
            return
        shown = Shown(prefix=f"{m}.", present=i)
        view = View(candidates, f"view of {m}", dataclasses.replace(shown, without=query.ids))
        # What other modalities chose counts as chosen, as this one sees it.
        chosen = joined(request.chosen, gather(candidates, query.ids, column_names(candidates)))
        own = dataclasses.replace(
            request,
            size=wanted,
            seed=hashing.digest(request.seed, m, len(query.ids)),
            labelled=_seen(request.labelled, shown),
            chosen=_seen(chosen, shown),
        )
        found = self.inner.select(view, own)
        view.close()
        _extend(query, dataclasses.replace(found, reason=[f"{m}: {reason}" for reason in found.reason]))


class OneModality(Predictor):
    """Predicts with one modality's own head.

    Args:
        classifier: of all modalities.
        modality: the one that is seen.
    """

    def __init__(self, classifier: Classifier, modality: str) -> None:
        super().__init__(_Alone(classifier, modality))  # type: ignore[arg-type]

    def logits(self, fusion_inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        return self.classifier.fuse(fusion_inputs, present)

    def linear_weights(self) -> dict[str, Tensor] | None:
        (m,) = self.classifier.modalities
        head = self.classifier.unimodal_heads[m]
        assert isinstance(head, nn.Linear)
        return {m: head.weight}


class _Alone:
    """What strategies ask of a classifier, of one modality."""

    def __init__(self, classifier: Classifier, modality: str) -> None:
        self.modalities = (modality,)
        self.classes = classifier.classes
        self.unimodal_heads = classifier.unimodal_heads

    def unimodal_logits(self, embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: self.unimodal_heads[m](embeddings[m]) for m in self.modalities}

    def fuse(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        (m,) = self.modalities
        return self.unimodal_heads[m](inputs[m])


def _seen(holder: Holder | None, shown: Shown) -> Holder | None:
    seen = holder and shown.of(holder)
    return seen if seen and seen.ids else None


def _extend(query: Query, more: Query) -> None:
    query.ids += more.ids
    query.score += more.score
    query.reason += more.reason
    query.parts += more.parts or [{}] * len(more.ids)


def _modalities(candidates: Candidates) -> list[str]:
    """Returns the modalities that have columns of their own, in order."""
    parts = candidates.map(_prefixes)
    return parts[0] if parts else []


def _prefixes(holder: Holder) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in holder.columns if "." in name))


def _divided(size: int, names: list[str], shares: Mapping[str, float]) -> dict[str, int]:
    """Returns how many items each modality chooses; the largest remainders are rounded up."""
    given = np.array([shares.get(m, 0.0) if shares else 1.0 for m in names])
    exact = size * given / max(given.sum(), 1e-12)
    whole = np.floor(exact).astype(int)
    for i in np.argsort(whole - exact, kind="stable")[: size - int(whole.sum())]:
        whole[i] += 1
    return dict(zip(names, whole.tolist(), strict=True))
