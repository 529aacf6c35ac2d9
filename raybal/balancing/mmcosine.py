"""MMCosine: each modality's share of the logits as a scaled cosine.

Xu, Feng, Zhang, Wang and Hu, "MMCosine: Multi-Modal Cosine Loss Towards Balanced Audio-Visual Fine-Grained
Recognition", ICASSP 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybal.balancing.base import (
    BalancingMethod,
    BalancingSettings,
    Context,
    Predictor,
    in_full_precision,
    row_losses,
    unimodal_loss,
)
from raybal.data.batches import Batch
from raybal.errors import ConfigError
from raybal.models.classifier import Classifier, Output
from raybal.models.fusion import Concat, Sum
from raybal.settings import setting


@dataclass(frozen=True)
class MMCosineSettings(BalancingSettings):
    """Settings of MMCosine. Published scale: 10; in BalanceBenchmark 15."""

    method: str = setting("mmcosine", help="balancing method")
    scale: float = setting(
        10.0, gt=0, help="what the cosines are multiplied by", search={"kind": "loguniform", "low": 1.0, "high": 30.0}
    )

    published = ({"scale": 15.0},)


class MMCosine(BalancingMethod):
    """Trains and predicts with the sum over modalities of scale * cos(z_m, W_m[c]), without a bias.

    Neither the norm of an embedding nor that of a modality's weights can make one modality dominate. It needs a
    fusion head with one weight row a class and modality: concat or sum. A missing modality adds nothing.

    It has no pace: cosine logits and plain ones are two models, which predict differently, so a model trained with a
    strength between 0 and 1 would have no predictor of its own.
    """

    name = "mmcosine"
    Settings = MMCosineSettings
    settings: MMCosineSettings

    def extend(self, classifier: Classifier) -> None:
        fusion = classifier.fusion
        if not isinstance(fusion, Concat | Sum):
            raise ConfigError(
                f"balancing.method: mmcosine compares embeddings with one weight row a class and modality, which the "
                f"{fusion.name} fusion does not have; set model.fusion to concat or sum"
            )
        for name, parameter in fusion.named_parameters():
            if name.endswith("bias"):
                parameter.requires_grad_(False)

    def loss(self, ctx: Context, output: Output, batch: Batch) -> Tensor:
        logits = cosine_logits(_weights(ctx.classifier), output.embeddings, self.settings.scale)
        return row_losses(logits, batch).sum() / batch.total + unimodal_loss(output, batch)

    def predictor(self, classifier: Classifier) -> Predictor:
        return _ByCosine(classifier, self.settings.scale)


def cosine_logits(weights: Mapping[str, Tensor], embeddings: Mapping[str, Tensor], scale: float) -> Tensor:
    """Returns scale * sum_m cos(z_m, W_m[c]), [B, C], at least in float32, of weights {m: [C, d_m]} and embeddings
    {m: [B, d_m]}; an embedding of zeros adds nothing."""
    parts = [
        F.linear(F.normalize(in_full_precision(z), dim=1), F.normalize(in_full_precision(weights[m]), dim=1))
        for m, z in embeddings.items()
    ]
    return scale * torch.stack(parts).sum(0)


def _weights(classifier: Classifier) -> dict[str, Tensor]:
    fusion = classifier.fusion
    assert isinstance(fusion, Concat | Sum)
    weights = {}
    for m in classifier.modalities:
        part = fusion.parts[m]
        assert isinstance(part, nn.Linear)
        weights[m] = part.weight
    return weights


class _ByCosine(Predictor):
    def __init__(self, classifier: Classifier, scale: float) -> None:
        super().__init__(classifier)
        self.scale = scale

    def logits(self, fusion_inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        embeddings = self.classifier.pooled(fusion_inputs, present)
        return cosine_logits(_weights(self.classifier), embeddings, self.scale)
