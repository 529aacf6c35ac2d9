"""An ensemble of modalities that are trained alone: late fusion without any joint training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raybal.balancing.base import BalancingMethod, Context, Predictor, in_full_precision, unimodal_loss
from raybal.data.batches import Batch
from raybal.models.classifier import Classifier, Output


class Ensemble(BalancingMethod):
    """Trains every encoder on its own head's loss alone and predicts with the mean of the log-probabilities.

    The mean is over the modalities that an item has. A strong baseline: in its authors' comparison it equals or beats
    MLB in several columns (Kontras et al., NeurIPS 2025, table 1).
    """

    name = "ensemble"
    trains_unimodal = True

    def extend(self, classifier: Classifier) -> None:
        classifier.fusion.requires_grad_(False)

    def loss(self, ctx: Context, output: Output, batch: Batch) -> Tensor:
        return unimodal_loss(output, batch)

    def predictor(self, classifier: Classifier) -> Predictor:
        return _Mean(classifier)


class _Mean(Predictor):
    def logits(self, fusion_inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        heads = self.classifier.unimodal_logits(self.classifier.pooled(fusion_inputs, present)).values()
        logs = torch.stack([in_full_precision(logits).log_softmax(1) for logits in heads], 1)
        there = present[:, :, None].to(logs.dtype)
        return (logs * there).sum(1) / there.sum(1).clamp(min=1)
