"""Core-set: items such that none is far from a labelled one.

Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018: the k-centre
greedy, which is within a factor of two of the best cover; without the integer program that the paper adds to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from raybal.querying.base import Candidates, Query, Request
from raybal.querying.embedding import EmbeddingSettings, EmbeddingStrategy
from raybal.querying.kcentre import k_centre
from raybal.querying.shards import HeldShards, count_cells
from raybal.settings import setting


@dataclass(frozen=True)
class CoresetSettings(EmbeddingSettings):
    """Settings of the core-set strategy."""

    unit: bool = setting(False, help="scale each modality's embedding to length 1; the paper takes them as they are")


class Coreset(EmbeddingStrategy):
    """Chooses again and again the item that is farthest from all labelled and chosen ones."""

    name = "coreset"
    Settings = CoresetSettings

    def select(self, candidates: Candidates, request: Request) -> Query:
        shards = HeldShards(candidates, self.factors)
        known = request.known()
        labelled = None if known is None else self.factors(known)
        picks = k_centre(shards, request.size, request.seed, labelled=labelled)
        reasons = [f"{p.d2**0.5:.2f} away from all that is labelled or was chosen before" for p in picks]
        if labelled is None and picks:
            reasons[0] = "the first, at random: nothing is labelled"
        return Query(
            ids=shards.ids(picks),
            score=[p.d2**0.5 for p in picks],
            reason=reasons,
            cells=count_cells(shards, len(picks)) if labelled is None else None,
        )
