"""OGM: on-the-fly gradient modulation.

Peng, Wei, Deng, Wang and Hu, "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raybal.balancing.base import Context
from raybal.balancing.coefficient import CoefficientSettings, ScoredMethod
from raybal.errors import ConfigError
from raybal.models.classifier import Output
from raybal.settings import setting


@dataclass(frozen=True)
class OGMSettings(CoefficientSettings):
    """Settings of OGM. Published alpha: CREMA-D 0.8, VGGSound 0.1 (epochs 0 to 50 of 100, both included: `pace` window
    to 0.51). In Kontras et al.'s runs CREMA-D 1, AVE 0.6, UCF101 0.8, throughout."""

    method: str = setting("ogm", help="balancing method")
    alpha: float = setting(
        0.8,
        gt=0,
        help="slope of the coefficient in the ratio of modality scores",
        search={"kind": "loguniform", "low": 0.1, "high": 2.0},
    )

    published = (
        {"alpha": 0.1, "pace": {"kind": "window", "end": 0.51}},
        {"alpha": 0.6},
        {"alpha": 1.0},
    )

    parameters: Literal["encoder", "convolutions"] = setting(
        "encoder", help="what is modulated in the encoder: all of it, or only 4-D weights as in the authors' code"
    )


class OGM(ScoredMethod):
    """Decelerates the modality that is ahead, on the fused loss alone, in its encoder only.

    A modality's score is the true-class probability of its share of the fused logits: W_m z_m + b / M of a concat
    fusion, W_m z_m + b_m of a sum fusion; for a fusion that is not a sum of such shares, of the fused logits with
    every other modality masked.

    Departures from the released code: one coefficient from the whole batch over all workers; the shares of a sum
    fusion keep the whole of their own bias, so that they add up to the fused logits, where versions of the released
    code halve it.
    """

    name = "ogm"
    Settings = OGMSettings
    settings: OGMSettings

    def __init__(self, settings: OGMSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        if len(modalities) != 2:
            raise ConfigError(
                f"balancing.method: {self.name} takes exactly two modalities and the pool has {len(modalities)} "
                f"({', '.join(modalities)}); mlb takes any number"
            )

    def score_logits(self, ctx: Context, output: Output) -> Mapping[str, Tensor]:
        partial = ctx.classifier.fusion.partial_logits(output.embeddings)
        if partial is not None:
            return partial
        logits = {}
        for i, m in enumerate(self.modalities):
            only = torch.zeros_like(output.present)
            only[:, i] = output.present[:, i]
            logits[m] = ctx.classifier.fuse(output.fusion_inputs, only)
        return logits

    def coefficients(self, scores: Tensor, seen: Tensor) -> Tensor:
        # Of two modalities, one that was not seen leaves nothing to compare: the caller gives both 1.
        return modulation_coefficients(scores, self.settings.alpha)

    def scaled_parameters(self, ctx: Context, modality: str) -> list[nn.Parameter]:
        encoder = ctx.groups[modality].encoder
        return [p for p in encoder if self.settings.parameters == "encoder" or p.dim() == 4]


def modulation_coefficients(score_sums: Tensor, alpha: float) -> Tensor:
    """Returns OGM's coefficients: k_i = 1 - tanh(alpha relu(rho_i)) where rho_i > 1, else 1, with rho_i = s_i / s_j.

    Args:
        score_sums: [2], sums (or means) over the batch of the true-class probability; clamped from below at 1e-8.
        alpha: slope.
    """
    scores = score_sums.clamp(min=1e-8)
    ratio = scores / scores.flip(0)
    return torch.where(ratio > 1, 1 - torch.tanh(alpha * ratio), torch.ones_like(ratio))
