"""Uncertainty of each modality by itself, combined: items that at least one modality cannot tell, or that none can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from raybal.balancing.base import Predictor
from raybal.querying.base import Candidates, Query, QuerySettings, QueryStrategy, Request, Scored, finite, gather, top_k
from raybal.querying.entropy import entropy
from raybal.settings import setting

MEASURES = {
    "entropy": entropy,
    "margin": lambda p: 1 - (p.topk(2, dim=1).values @ p.new_tensor([1.0, -1.0])),
    "least_confidence": lambda p: 1 - p.amax(1),
}


@dataclass(frozen=True)
class ModalityUncertaintySettings(QuerySettings):
    """Settings of the uncertainty of single modalities."""

    measure: Literal["entropy", "margin", "least_confidence"] = setting(
        "entropy", help="what uncertainty is, of the unimodal heads' probabilities"
    )
    combine: Literal["mean", "max", "min"] = setting(
        "mean", help="mean: of all modalities; max: of the one that knows least; min: of the one that knows most"
    )


class ModalityUncertainty(QueryStrategy):
    """Chooses the items whose unimodal heads are least certain, over the modalities that they have."""

    name = "modality_uncertainty"
    Settings = ModalityUncertaintySettings
    settings: ModalityUncertaintySettings

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        logits = predictor.classifier.unimodal_logits(scored.encoded.embeddings)
        values = torch.stack([MEASURES[self.settings.measure](x.float().softmax(1)) for x in logits.values()], 1)
        present = scored.encoded.present
        if self.settings.combine == "mean":
            combined = (values * present).sum(1) / present.sum(1).clamp(min=1)
        elif self.settings.combine == "max":
            combined = values.masked_fill(~present, 0.0).amax(1)
        else:
            combined = values.masked_fill(~present, torch.inf).amin(1).nan_to_num(posinf=0.0)
        return {"uncertainty": combined, "uncertainties": values}

    def select(self, candidates: Candidates, request: Request) -> Query:
        ids, values = top_k(candidates, "uncertainty", request.size)
        each: Any = finite(gather(candidates, ids, ["uncertainties"]), "uncertainties") if ids else []
        what = f"{self.settings.combine} {self.settings.measure.replace('_', ' ')} of its modalities"
        return Query(
            ids,
            values,
            [f"{what}: {v:.3f}" for v in values],
            parts=[{f"modality_{i}": float(v) for i, v in enumerate(row)} for row in each],
        )
