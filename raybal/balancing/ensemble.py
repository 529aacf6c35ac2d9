"""An ensemble of modalities that are trained alone: late fusion without any joint training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raybal.balancing.base import Predictor, in_full_precision
from raybal.balancing.unimodal import TrainedAlone
from raybal.models.classifier import Classifier


class Ensemble(TrainedAlone):
    """Modalities trained alone, of which the mean of the log-probabilities predicts.

    The mean is over the modalities that an item has. A strong baseline: in its authors' comparison it equals or beats
    MLB in several columns (Kontras et al., NeurIPS 2025, table 1).
    """

    name = "ensemble"

    def predictor(self, classifier: Classifier) -> Predictor:
        return _Mean(classifier)


class _Mean(Predictor):
    def logits(self, fusion_inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        heads = self.classifier.unimodal_logits(self.classifier.pooled(fusion_inputs, present)).values()
        logs = torch.stack([in_full_precision(logits).log_softmax(1) for logits in heads], 1)
        there = present[:, :, None].to(logs.dtype)
        return (logs * there).sum(1) / there.sum(1).clamp(min=1)
