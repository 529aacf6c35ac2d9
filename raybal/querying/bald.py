"""BALD: the items on whose class the models that dropout makes of this one disagree most.

Houlsby, Huszar, Ghahramani and Lengyel, arXiv 1112.5745, 2011; with dropout as in Gal, Islam and Ghahramani, "Deep
Bayesian Active Learning with Image Data", ICML 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raybal import hashing
from raybal.balancing.base import Predictor
from raybal.querying.base import Candidates, Query, QuerySettings, QueryStrategy, Request, Scored, top_k
from raybal.querying.entropy import entropy
from raybal.settings import setting


@dataclass(frozen=True)
class BALDSettings(QuerySettings):
    """Settings of BALD."""

    passes: int = setting(10, ge=2, help="passes with dropout over the fusion head")
    dropout: float = setting(0.5, gt=0, lt=1, help="share of each modality's embedding that a pass drops")


class BALD(QueryStrategy):
    """Chooses the items with the largest mutual information of class and model.

    Dropout acts on what the fusion head reads, whether or not the model was trained with it, and only while items are
    scored. A pass drops the same numbers of every item's embedding, in every round: each pass is one model, and what an
    item scores does not depend on the items beside it.
    """

    name = "bald"
    Settings = BALDSettings
    settings: BALDSettings

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        inputs, present = scored.encoded.fusion_inputs, scored.encoded.present
        passes = []
        for number in range(self.settings.passes):
            dropped = {m: x * _mask(m, number, x, self.settings.dropout) for m, x in inputs.items()}
            passes.append(predictor.logits(dropped, present).float().softmax(1))
        return {"information": mutual_information(torch.stack(passes))}

    def select(self, candidates: Candidates, request: Request) -> Query:
        ids, values = top_k(candidates, "information", request.size)
        return Query(ids, values, [f"{v:.3f} nats of disagreement under dropout" for v in values])


def mutual_information(probabilities: Tensor) -> Tensor:
    """Returns H(mean_t p_t) - mean_t H(p_t) in nats, [n], of T models' class probabilities [T, n, C]."""
    return entropy(probabilities.mean(0)) - torch.stack([entropy(p) for p in probabilities]).mean(0)


def _mask(modality: str, number: int, like: Tensor, dropout: float) -> Tensor:
    """Returns one pass's mask [d] of a modality, scaled so that its mean is 1."""
    generator = torch.Generator().manual_seed(hashing.digest("bald", modality, number))
    kept = torch.rand(like.shape[-1], generator=generator) >= dropout
    return (kept / (1 - dropout)).to(like)
