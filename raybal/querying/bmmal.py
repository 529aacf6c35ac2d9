"""BMMAL: BADGE whose gradient embeddings are modulated by the modalities' dominance.

Shen, Huang, Yin, Zou, Rajan and See, "Towards Balanced Active Learning for Multimodal Classification", ACM MM 2023
(arXiv 2306.08306).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raybal.balancing.base import Predictor
from raybal.querying.base import Scored
from raybal.querying.gradient import GradientSeeding, SeedingSettings, residual
from raybal.settings import setting

Modulate = Literal["weak", "strong", "both"]


@dataclass(frozen=True)
class BMMALSettings(SeedingSettings):
    """Settings of BMMAL."""

    modulate: Modulate = setting(
        "weak",
        help="whose block of the gradient embedding shrinks with the dominance: the weak modality's (as the authors' "
        "code does), the strong one's, or both",
    )


class BMMAL(GradientSeeding):
    """D-squared seeding on vec(q (x) [r_1 z_1; ...; r_M z_M]), r_m from each modality's contribution to the prediction.

    An item that one modality decides alone loses gradient norm, so items whose modalities share the decision are
    preferred. With every r_m = 1 it is BADGE. More than two modalities, and equal contributions where nothing
    contributes, are raybal's own extension; at two modalities it is the authors' code.
    """

    name = "bmmal"
    Settings = BMMALSettings
    settings: BMMALSettings

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        scale = modulation(scored.contributions, self.settings.modulate, scored.encoded.present)
        return {
            "q": residual(scored.probabilities, scored.predicted),
            "h": modulated(scored.encoded.embeddings, scale),
        }


def modulation(shares: Tensor, modulate: Modulate = "weak", present: Tensor | None = None) -> Tensor:
    """Returns the scale r [n, M] of each modality's block, from contributions [n, M].

    For two modalities with dominance rho = |c_1 - c_2|: "weak" scales the weaker block by 1 - rho and leaves the
    stronger, "strong" the other way round, "both" scales both by 1 - rho.

    Only modalities that are present (bool [n, M]; all without it) are stronger or weaker than one another: a single
    one keeps its whole block, and the empty block of a missing one has scale 1.
    """
    present = torch.ones_like(shares, dtype=torch.bool) if present is None else present
    largest = shares.masked_fill(~present, -torch.inf).amax(1, keepdim=True)
    smallest = shares.masked_fill(~present, torch.inf).amin(1, keepdim=True)
    if modulate == "weak":
        scale = 1 - (largest - shares)
    elif modulate == "strong":
        scale = 1 - (shares - smallest)
    else:
        scale = (1 - (largest - smallest)).expand_as(shares)
    return torch.where(present, scale, 1.0)


def modulated(embeddings: Mapping[str, Tensor], scale: Tensor) -> Tensor:
    """Returns the embeddings {m: [n, d_m]}, each scaled by its column of scale [n, M], concatenated to [n, D]."""
    return torch.cat([z * scale[:, i : i + 1].to(z.dtype) for i, z in enumerate(embeddings.values())], dim=1)
