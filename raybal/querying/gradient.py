"""Seeding on factored gradient embeddings over all candidates: what BADGE and BMMAL share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raybal.errors import RaybalError
from raybal.querying.base import Candidates, Holder, Query, QuerySettings, QueryStrategy, Request
from raybal.querying.factors import FactorShard
from raybal.querying.seeding import Pick, rejection_seeding
from raybal.settings import setting


@dataclass(frozen=True)
class SeedingSettings(QuerySettings):
    """Settings of strategies that seed on gradient embeddings."""

    proposals: int = setting(256, ge=1, help="proposals drawn in each block of the seeding")


class GradientSeeding(QueryStrategy):
    """D-squared seeding on vec(q (x) h); a subclass says in `columns` what q [n, C] and h [n, D] are."""

    Settings = SeedingSettings
    settings: SeedingSettings

    def select(self, candidates: Candidates, request: Request) -> Query:
        candidates.map(_hold_factors)
        picks = rejection_seeding(
            _HeldShards(candidates), request.size, request.seed, proposals=self.settings.proposals
        )
        rows = [([p.row for p in picks if p.shard == s],) for s in range(len(candidates))]
        ids = [iter(answer) for answer in candidates.map(_take_ids, each=rows)]
        return Query(
            ids=[next(ids[p.shard]) for p in picks],
            score=[p.d2 for p in picks],
            reason=[_reason(pick, first=pick is picks[0]) for pick in picks],
        )


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


class _HeldShards:
    """The `FactorShard` that each holder keeps, as `rejection_seeding` calls them."""

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates

    def map(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        return self.candidates.map(_call, method, *args, each=each)


def _hold_factors(holder: Holder) -> None:
    q, h = holder.columns["q"], holder.columns["h"]
    bad = np.flatnonzero(~(np.isfinite(q).all(1) & np.isfinite(h).all(1)))
    if len(bad):
        raise RaybalError(f"the gradient factors of item {holder.ids[bad[0]]} are not finite; has training diverged?")
    holder.state["factors"] = FactorShard(torch.from_numpy(q), torch.from_numpy(h), holder.keys)


def _call(holder: Holder, method: str, *args: Any) -> Any:
    return getattr(holder.state["factors"], method)(*args)


def _take_ids(holder: Holder, rows: list[int]) -> list[str]:
    return [holder.ids[row] for row in rows]
