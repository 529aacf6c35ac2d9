"""MLB: multi-loss gradient modulation.

Kontras, Chatzichristos, Blaschko and De Vos, "Improving Multimodal Learning with Multi-Loss Gradient Modulation",
BMVC 2024 (arXiv 2405.07930).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raybal.balancing.base import Context, multi_loss, unimodal_weight
from raybal.balancing.coefficient import CoefficientSettings, ScoredMethod
from raybal.data.batches import Batch
from raybal.models.classifier import Output
from raybal.settings import setting

SCORE_FLOOR = 1e-8


@dataclass(frozen=True)
class MLBSettings(CoefficientSettings):
    """Settings of MLB. Published alpha / beta_max with Adam: CREMA-D ResNet-18 0.5 / 10, CREMA-D Conformer 5 / 2,
    AVE 2 / 1, UCF101 2 / 0.5."""

    method: str = setting("mlb", help="balancing method")
    alpha: float = setting(
        0.5,
        gt=0,
        help="slope of the coefficient in the ratio of modality scores",
        search={"kind": "loguniform", "low": 0.25, "high": 8.0},
    )
    beta_max: float = setting(
        2.0,
        gt=0,
        help="ceiling of the acceleration of a weak modality (1: deceleration only; below 1: a weak one is "
        "decelerated too; 10 to 20 in several papers' runs)",
        search={"kind": "choice", "values": [1.0, 2.0, 5.0, 10.0, 20.0]},
    )
    unimodal_weight: float = unimodal_weight()

    published = (
        {"alpha": 0.5, "beta_max": 10.0},
        {"alpha": 5.0, "beta_max": 2.0},
        {"alpha": 2.0, "beta_max": 1.0},
        {"alpha": 2.0, "beta_max": 0.5},
    )

    @classmethod
    def search_space(cls, epochs: int, given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """In place of alpha, the slope alpha (beta_max - 1) with which a modality that falls behind is accelerated: the
        two trade off. At beta_max 1 nothing is accelerated, and alpha is searched itself."""
        space = super().search_space(epochs, given)
        ceiling = given.get("beta_max", space["beta_max"])
        slope = {"kind": "loguniform", "low": 0.25, "high": 32.0}
        if "alpha" in given or (ceiling["kind"] != "choice" and ceiling["low"] <= 1):
            return space
        own_alpha = space.pop("alpha")
        if ceiling["kind"] != "choice":
            return {**space, "slope": slope}
        found = dict(space)
        for key, own, values in (
            ("slope", slope, [c for c in ceiling["values"] if c > 1]),
            ("alpha", own_alpha, [c for c in ceiling["values"] if c <= 1]),
        ):
            if values:
                found[key] = {**own, "when": {"balancing.beta_max": values}}
        return found

    @classmethod
    def from_search(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(values)
        if "slope" in found:
            found["alpha"] = found.pop("slope") / (found.get("beta_max", cls.beta_max) - 1)
        return found

    @classmethod
    def to_search(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**values, "slope": values["alpha"] * (values["beta_max"] - 1)}


class MLB(ScoredMethod):
    """Accelerates modalities that are behind and decelerates those ahead, on L = CE_fused + w sum_m CE_m.

    The same coefficient multiplies the gradients of the fused and of the unimodal loss, in the modality's encoder,
    its unimodal head and its slice of the fusion layer; the shared fusion bias and everything after the slices are
    left alone. Balancing fades by itself as the ratios approach 1; `pace` can end it earlier.

    Departures from the released code: a score is clamped from below at 1e-8 instead of dividing by zero; the
    coefficient comes from the whole batch over all workers and micro-batches and is applied once a step; parameters
    are chosen by modality, not by parts of their names.
    """

    name = "mlb"
    Settings = MLBSettings
    settings: MLBSettings
    trains_unimodal = True

    def score_logits(self, ctx: Context, output: Output) -> Mapping[str, Tensor]:
        return output.unimodal_logits

    def coefficients(self, scores: Tensor, seen: Tensor) -> Tensor:
        return modulation_coefficients(scores, self.settings.alpha, self.settings.beta_max, seen)

    def loss(self, ctx: Context, output: Output, batch: Batch) -> Tensor:
        return multi_loss(output, batch, self.settings.unimodal_weight)

    def scaled_parameters(self, ctx: Context, modality: str) -> list[nn.Parameter]:
        return list(ctx.groups[modality].all)


def modulation_coefficients(
    scores: Tensor, alpha: float, beta_max: float | None = None, seen: Tensor | None = None
) -> Tensor:
    """Returns MLB's coefficients.

    With r_i = mean of the other modalities' scores / s_i:
    k_i = 1 + (beta_i - 1) tanh(alpha (r_i - 1)), beta_i = beta_max where r_i > 1 and 2 elsewhere.

    Args:
        scores: [M], mean true-class probability of each modality's own head; clamped from below at 1e-8.
        alpha: slope.
        beta_max: ceiling for modalities that are behind; None is the released code's default, 2.
        seen: bool [M], modalities that have a score; all without it. The others enter no ratio.

    Returns:
        k [M], between 1 - tanh(alpha) and 1 for modalities ahead, between 1 and beta_max for those behind; 1 for one
        that was not seen, or has no other to compare with.
    """
    seen = torch.ones_like(scores, dtype=torch.bool) if seen is None else seen
    scores = scores.clamp(min=SCORE_FLOOR)
    others = torch.where(seen, scores, 0.0).sum() - scores
    count = seen.sum() - 1
    ratio = torch.where(seen & (count > 0), others / count.clamp(min=1) / scores, 1.0)
    return _coefficients(ratio, alpha, beta_max)


def regression_coefficients(errors: Tensor, alpha: float, beta_max: float | None = None) -> Tensor:
    """Returns MLB's coefficients of a regression: as `modulation_coefficients`, with r_i = s_i over the mean of the
    other modalities' errors, so that the larger error is the modality that is behind.

    Args:
        errors: [M], mean squared error of each modality's own head; clamped from below at 1e-8.
        alpha, beta_max: as in `modulation_coefficients`.

    Returns:
        k [M].
    """
    errors = errors.clamp(min=SCORE_FLOOR)
    others = (errors.sum() - errors) / max(len(errors) - 1, 1)
    return _coefficients(torch.where(others > 0, errors / others, 1.0), alpha, beta_max)


def _coefficients(ratio: Tensor, alpha: float, beta_max: float | None) -> Tensor:
    behind = torch.full_like(ratio, (2.0 if beta_max is None else beta_max) - 1)
    return 1 + torch.where(ratio > 1, behind, 1.0) * torch.tanh(alpha * (ratio - 1))
