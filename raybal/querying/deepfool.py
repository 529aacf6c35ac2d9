"""DeepFool: the items nearest to a boundary of the linear head.

Ducoffe and Precioso, "Adversarial Active Learning for Deep Networks: a Margin Based Approach", arXiv 1802.09841, 2018,
after Moosavi-Dezfooli, Fawzi and Frossard, CVPR 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raybal.balancing.base import Predictor
from raybal.errors import ConfigError
from raybal.querying.base import Candidates, Query, QueryStrategy, Request, Scored, top_k


class DeepFool(QueryStrategy):
    """Chooses the items whose embeddings are nearest to another class: min_k |f_k - f_y| / ||w_k - w_y||.

    For a linear head this is the distance itself, without iterations; embeddings of missing modalities cannot move.
    """

    name = "deepfool"

    def check(self, predictor: Predictor) -> None:
        if predictor.linear_weights() is None:
            raise ConfigError(
                "query.strategy: deepfool needs logits that are linear in the embeddings; take "
                "--model.fusion concat or sum with a balancing method that predicts through it"
            )

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        weights = predictor.linear_weights()
        assert weights is not None
        encoded = scored.encoded
        logits = predictor.logits(encoded.fusion_inputs, encoded.present).double()
        squares = torch.stack([pairwise_squares(w) for w in weights.values()])
        return {"nearness": -boundary_distances(logits, squares, encoded.present)}

    def select(self, candidates: Candidates, request: Request) -> Query:
        ids, values = top_k(candidates, "nearness", request.size)
        return Query(ids, values, [f"its embedding is {-v:.3f} away from being another class" for v in values])


def pairwise_squares(weights: Tensor) -> Tensor:
    """Returns ||w_k - w_l||^2 [C, C] of a modality's weights [C, d], in float64."""
    return torch.cdist(weights.double(), weights.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


def boundary_distances(logits: Tensor, squares: Tensor, present: Tensor) -> Tensor:
    """Returns the distance [n] of each embedding to the nearest boundary of its predicted class.

    Args:
        logits: [n, C].
        squares: ||w_k - w_l||^2 of each modality, [M, C, C].
        present: bool [n, M].
    """
    best, predicted = logits.max(1, keepdim=True)
    between = torch.einsum("nm,mnc->nc", present.to(squares.dtype), squares[:, predicted[:, 0]])
    distances = (best - logits) / between.sqrt()
    # Classes of equal weights have no boundary between them.
    distances = distances.masked_fill(between <= 0, torch.inf).scatter(1, predicted, torch.inf)
    return distances.amin(1).clamp(max=1e30)
