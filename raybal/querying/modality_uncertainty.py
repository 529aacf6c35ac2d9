"""Uncertainty of each modality by itself, combined: items that at least one modality cannot tell, or that none can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raybal.balancing.base import Predictor
from raybal.querying.base import (
    Candidates,
    Query,
    QuerySettings,
    QueryStrategy,
    Request,
    Scored,
    column_names,
    finite,
    gather,
    top_k,
)  # fmt: skip
from raybal.querying.entropy import entropy
from raybal.querying.margin import margin
from raybal.settings import setting

#: Before the name of a modality, the column of its uncertainty; and what it has where the modality is missing.
OF, MISSING = "uncertainty_", -1.0
MEASURES = {
    "entropy": entropy,
    "margin": lambda p: 1 - margin(p),
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
        own = torch.where(present, values, MISSING)
        return {"uncertainty": combined, **{f"{OF}{m}": own[:, i] for i, m in enumerate(logits)}}

    def select(self, candidates: Candidates, request: Request) -> Query:
        ids, values = top_k(candidates, "uncertainty", request.size)
        own = [name for name in column_names(candidates) if name.startswith(OF)]
        found = gather(candidates, ids, own)
        each = {name.removeprefix(OF): finite(found, name) for name in own} if ids else {}
        what = f"{self.settings.combine} {self.settings.measure.replace('_', ' ')} of its modalities"
        return Query(
            ids,
            values,
            [f"{what}: {v:.3f}" for v in values],
            parts=[
                {m: float(column[row]) for m, column in each.items() if column[row] != MISSING}
                for row in range(len(ids))
            ],
        )
