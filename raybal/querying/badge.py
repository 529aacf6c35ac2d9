"""BADGE: diverse items with large gradients.

Ash, Zhang, Krishnamurthy, Langford and Agarwal, "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower
Bounds", ICLR 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raybal.balancing.base import Predictor
from raybal.querying.base import Scored
from raybal.querying.gradient import GradientSeeding, residual


class BADGE(GradientSeeding):
    """D-squared seeding on the gradient that the predicted label would give the last layer: vec(q (x) z) with
    q = p - onehot(predicted) and z the concatenated pooled embeddings, whatever the fusion."""

    name = "badge"

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        z = torch.cat(list(scored.encoded.embeddings.values()), dim=1)
        return {"q": residual(scored.probabilities, scored.predicted), "h": z}
