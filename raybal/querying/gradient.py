"""Seeding on factored gradient embeddings over all candidates: what BADGE and BMMAL share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raybal.querying.approximate import oversampled_seeding, partitioned_seeding
from raybal.querying.base import Candidates, Holder, Query, QuerySettings, QueryStrategy, Request
from raybal.querying.seeding import rejection_seeding
from raybal.querying.shards import HeldShards, Pick, count_cells
from raybal.settings import setting


@dataclass(frozen=True)
class SeedingSettings(QuerySettings):
    """Settings of strategies that seed on gradient embeddings."""

    proposals: int = setting(512, ge=1, help="proposals drawn in each block of the seeding")
    seeding: Literal["exact", "oversampled", "partitioned"] = setting(
        "exact",
        help="exact D-squared seeding, or an approximation for very large queries: k-means||, or in parts and then "
        "among what the parts chose",
    )
    from_labelled: bool = setting(False, help="items that have a label already count as chosen")


class GradientSeeding(QueryStrategy):
    """D-squared seeding on vec(q (x) h); a subclass says in `columns` what q [n, C] and h [n, D] are."""

    Settings = SeedingSettings
    settings: SeedingSettings

    def factors(self, holder: Holder) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(holder.columns["q"]), torch.from_numpy(holder.columns["h"])

    def select(self, candidates: Candidates, request: Request) -> Query:
        shards = HeldShards(candidates, self.factors)
        known = request.known(labelled=self.settings.from_labelled)
        labelled = None if known is None else self.factors(known)
        picks = self._seed(shards, request, labelled)
        exact = self.settings.seeding == "exact"
        return Query(
            ids=shards.ids(picks),
            score=[p.d2 for p in picks],
            reason=[_reason(p, first=labelled is None and p is picks[0]) for p in picks],
            parts=[{"gradient_norm": p.norm**0.5, "distance": p.d2**0.5} for p in picks],
            cells=count_cells(shards, len(picks)) if exact and labelled is None else None,
        )

    def _seed(self, shards: HeldShards, request: Request, labelled: tuple[Tensor, Tensor] | None) -> list[Pick]:
        size, seed = request.size, request.seed
        if self.settings.seeding == "oversampled":
            return oversampled_seeding(shards, size, seed, labelled=labelled)
        if self.settings.seeding == "partitioned":
            return partitioned_seeding(shards, size, seed, labelled=labelled)
        return rejection_seeding(shards, size, seed, labelled=labelled, proposals=self.settings.proposals)


def _reason(pick: Pick, *, first: bool) -> str:
    norm = f"gradient norm {pick.norm**0.5:.2f}"
    if first:
        return f"{norm}, the largest"
    if pick.d2 == 0:
        return f"{norm}, equal to an item chosen before; at random"
    return f"{norm}, {pick.d2**0.5:.2f} away from all that was chosen before it"


def residual(probabilities: Tensor, predicted: Tensor) -> Tensor:
    """Returns q = p - onehot(predicted), [n, C]: the gradient of the predicted class's loss by the logits."""
    return probabilities - F.one_hot(predicted, probabilities.shape[1]).to(probabilities.dtype)


def multilabel_residual(probabilities: Tensor) -> Tensor:
    """Returns q = p - [p >= 0.5], [n, C]: the gradient of the binary losses of the labels predicted by sigmoid
    probabilities, the same for BADGE and BMMAL."""
    return probabilities - (probabilities >= 0.5).to(probabilities.dtype)
