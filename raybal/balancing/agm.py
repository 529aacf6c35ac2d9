"""AGM: adaptive gradient modulation.

Li, Li, Hu, Zhang, Lei and Zhou, "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation", ICCV 2023.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raybal.analysis.contribution import Coalition, shares_of_players
from raybal.balancing.base import Context, in_full_precision, row_losses, unimodal_loss, with_gradient
from raybal.balancing.lookahead import LookaheadMethod
from raybal.balancing.paced import PacedSettings, true_class_probability
from raybal.data.batches import Batch
from raybal.models.classifier import Classifier, Output
from raybal.settings import setting

LARGEST_EXPONENT = 10.0
SMALLEST_PROBABILITY = 1e-8


@dataclass(frozen=True)
class AGMSettings(PacedSettings):
    """Settings of AGM. Published alpha: AV-MNIST 2.5; in Kontras et al.'s runs CREMA-D and AVE 3, UCF101 2."""

    method: str = setting("agm", help="balancing method")
    alpha: float = setting(
        1.0,
        gt=0,
        help="slope of the coefficient in the distance of a modality from its running average",
        search={"kind": "loguniform", "low": 0.1, "high": 4.0},
    )

    published = ({"alpha": 2.5}, {"alpha": 3.0}, {"alpha": 2.0})


@dataclass
class AGMState:
    """Running averages.

    Attributes:
        cross_entropies: mean over all steps so far, float64 [M].
        steps: number of steps of each modality, float64 [M]; one that a batch lacks is not counted.
    """

    cross_entropies: Tensor
    steps: Tensor


class AGM(LookaheadMethod):
    """Scales each modality's path into the fused logits by how far its lead is from its running average.

    The fused logits are cut into one marginal part a modality, their Shapley value among the masked predictions with
    nothing counted as zero; a part's gradient is multiplied by its modality's coefficient, and with it everything
    upstream along that path. Trained on the fused loss alone.

    Departures from the released code: a modality is masked at the fusion instead of running its encoder on zeros, in
    the same forward pass that is trained on instead of further ones in eval mode; for three modalities too the
    coefficient is taken before the running average is updated, with the same cap; gradients are clipped only if
    `train.clip_norm` says so; the averages are of the whole batch over all workers. Under SGD a coefficient is a
    learning rate; Adam and AdamW divide a steady one out again.
    """

    name = "agm"
    Settings = AGMSettings
    settings: AGMSettings
    scores_modalities = True

    def __init__(self, settings: AGMSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        self._state = initial_state(len(modalities))
        self._k = torch.ones(len(modalities))

    def terms(self, ctx: Context, output: Output) -> dict[str, Tensor]:
        return marginal_logits(ctx.classifier, output.fusion_inputs, output.present)

    def statistic(self, output: Output, terms: Mapping[str, Tensor], batch: Batch) -> Tensor:
        rows = batch.weights[:, None] * output.present
        losses = torch.stack([_cross_entropies(part, batch.labels) for part in terms.values()], 1)
        return torch.stack([(losses * rows).sum(0), rows.sum(0).to(losses.dtype)])

    def prepare(self, ctx: Context, sums: Tensor) -> None:
        sums, counts = sums.double()
        self._state = AGMState(self._state.cross_entropies.to(sums.device), self._state.steps.to(sums.device))
        losses = sums / counts.clamp(min=1)
        # The mean cross-entropy as a probability: the larger, the further a modality is.
        self.observe(ctx, torch.exp(-losses), counts > 0)
        k = update_coefficients(self._state, losses, self.settings.alpha, counts > 0)
        self._k = 1 + self.strengths(ctx) * (k - 1)
        ctx.record("coefficient", self._k)
        ctx.record("score", losses)

    def loss_of(self, output: Output, terms: Mapping[str, Tensor], batch: Batch) -> Tensor:
        parts = [with_gradient(part, k) for part, k in zip(terms.values(), self._k, strict=True)]
        logits = torch.stack(parts).sum(0)
        return row_losses(logits, batch).sum() / batch.total + unimodal_loss(output, batch)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"cross_entropies": self._state.cross_entropies, "steps": self._state.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._state = AGMState(state["cross_entropies"], state["steps"])


def initial_state(modalities: int) -> AGMState:
    """Returns the state before the first step."""
    return AGMState(torch.zeros(modalities, dtype=torch.float64), torch.zeros(modalities, dtype=torch.float64))


def update_coefficients(state: AGMState, cross_entropies: Tensor, alpha: float, seen: Tensor | None = None) -> Tensor:
    """Returns AGM's coefficients of a step, and takes its cross-entropies into the running averages.

    k_i = exp(alpha min(tau_i - r_i, 10)), r_i = exp(M / (M - 1) (mean_j s_j - s_i)) over the step's cross-entropies s,
    and tau_i the same over their running averages before this step, or 1 where one of them has none yet.

    Args:
        state: changed in place.
        cross_entropies: [M], mean cross-entropy of each modality's part of the logits.
        alpha: slope.
        seen: bool [M], modalities that the batch has; the others enter no ratio and keep their average.

    Returns:
        k [M], float64; 1 for a modality that was not seen, or has no other to compare with.
    """
    now = cross_entropies.double()
    seen = torch.ones_like(now, dtype=torch.bool) if seen is None else seen
    comparable = seen & (seen.sum() > 1)
    # As in the very first step, there is nothing to compare with until all of them have an average.
    known = ((state.steps > 0) | ~seen).all()
    usual = torch.where(known, _ratio(state.cross_entropies, seen), 1.0)
    k = torch.exp(alpha * (usual - _ratio(now, seen)).clamp(max=LARGEST_EXPONENT))
    state.steps = state.steps + seen
    state.cross_entropies = torch.where(
        seen, state.cross_entropies + (now - state.cross_entropies) / state.steps.clamp(min=1), state.cross_entropies
    )
    return torch.where(comparable, k, 1.0)


def _ratio(cross_entropies: Tensor, seen: Tensor) -> Tensor:
    count = seen.sum()
    mean = torch.where(seen, cross_entropies, 0.0).sum() / count.clamp(min=1)
    return torch.exp((mean - cross_entropies) * count / (count - 1).clamp(min=1))


def marginal_logits(classifier: Classifier, fusion_inputs: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
    """Returns each modality's part {m: [B, C]} of the fused logits; the parts sum to the fused logits.

    A part is the Shapley value of the modality among the logits with some modalities masked, those with all masked
    counted as zero: of two, (f - f_without + f_alone) / 2.
    """
    modalities = classifier.modalities
    values: dict[Coalition, Tensor] = {}
    for coalition in itertools.product((True, False), repeat=len(modalities)):
        mask = present & torch.tensor(coalition, device=present.device)
        if any(coalition):
            logits = in_full_precision(classifier.fuse(fusion_inputs, mask))
            # Where nothing is left the value is that of the empty coalition, whatever bias the head has.
            values[coalition] = torch.where(mask.any(1)[:, None], logits, 0.0)
        else:
            values[coalition] = torch.zeros_like(values[(True,) * len(modalities)])
    return dict(zip(modalities, shares_of_players(values).unbind(1), strict=True))


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    return -true_class_probability(logits, labels).clamp(min=SMALLEST_PROBABILITY).log()
