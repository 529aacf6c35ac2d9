"""Methods that act more or less strongly as training progresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from raybal.balancing.base import BalancingMethod, BalancingSettings, Context, in_full_precision
from raybal.balancing.pace import Pace, PaceSettings
from raybal.data.batches import Batch
from raybal.models.classifier import Output
from raybal.settings import setting


@dataclass(frozen=True)
class PacedSettings(BalancingSettings):
    """Settings of methods that act more or less strongly as training progresses."""

    pace: PaceSettings = setting(factory=PaceSettings, help="how strongly the method acts as training progresses")
    paces: dict[str, PaceSettings] = setting(
        factory=dict, help="paces of single modalities by name, in place of `pace`"
    )

    def begins(self, epochs: int) -> int:
        return max(int(pace.begins * epochs) for pace in (self.pace, *self.paces.values()))


class PacedMethod(BalancingMethod):
    """Base of methods with a pace, whose position is part of the checkpoint.

    Where the pace is phased out, what has to converge are the modalities' scores: those that the method compares, or
    else the true-class probabilities of the unimodal heads on the batch.
    """

    settings: PacedSettings
    #: Whether the method scores its modalities itself in every step, and tells `observe`.
    scores_modalities: ClassVar[bool] = False
    #: Whether it acts on one modality apart from the others, so that each can have a pace.
    acts_by_modality: ClassVar[bool] = True

    def __init__(self, settings: PacedSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        self.pace = Pace(settings.pace, settings.paces, modalities, self.name, by_modality=self.acts_by_modality)
        self._head_sums: Tensor | None = None
        self._heads_reduced: Callable[[], Tensor] | None = None

    def strengths(self, ctx: Context) -> Tensor:
        """Returns the strength in force in each modality, float64 [M], and records it: as one number where all
        modalities always have the same."""
        strengths = self.pace.strengths(ctx.progress, ctx.step, ctx.device)
        ctx.record("pace", strengths[0] if self.pace.single else strengths)
        return strengths

    def strength(self, ctx: Context) -> Tensor:
        """Returns the one strength of a method that does not act by modality, a float64 scalar, and records it; while
        it is phased out, that of the modality which has it longest."""
        strength = self.pace.strengths(ctx.progress, ctx.step, ctx.device).amax()
        ctx.record("pace", strength)
        return strength

    def observe(self, ctx: Context, scores: Tensor, seen: Tensor) -> None:
        """Takes in what the modalities score in this step, and records which of them is ahead.

        Args:
            scores: [M], the larger the further a modality is.
            seen: bool [M], whether it was scored.
        """
        self.pace.observe(scores, seen, ctx.step)
        leader = torch.where(seen, scores, -torch.inf).argmax()
        ctx.record("ahead", F.one_hot(leader, len(scores)).float() * seen)

    def after_forward(self, ctx: Context, output: Output, batch: Batch, last: bool) -> None:
        if self.scores_modalities or not self.pace.phases_out:
            return
        sums = score_sums(output.unimodal_logits, output.present, batch)
        self._head_sums = sums if self._head_sums is None else self._head_sums + sums
        if last:
            self._heads_reduced = ctx.workers.all_reduce(self._head_sums)

    def after_backward(self, ctx: Context) -> None:
        if self._heads_reduced is not None:
            sums, counts = self._heads_reduced()
            self._head_sums = self._heads_reduced = None
            self.observe(ctx, sums / counts.clamp(min=1), counts > 0)

    def state_dict(self) -> dict[str, Any]:
        return self.pace.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pace.load_state_dict(state)


@torch.no_grad()
def score_sums(logits: Mapping[str, Tensor], present: Tensor, batch: Batch) -> Tensor:
    """Returns [2, M]: the sum over rows of each modality's true-class probability, and the number of rows that have it.

    Args:
        logits: {m: [B, C]} that score each modality.
        present: bool [B, M].
        batch: with labels and weights of the rows.
    """
    rows = batch.weights[:, None] * present
    probability = torch.stack([true_class_probability(z, batch.labels) for z in logits.values()], 1)
    return torch.stack([(probability * rows).sum(0), rows.sum(0)])


def true_class_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns softmax(logits)[label] of each row, [B], at least in float32."""
    probabilities = in_full_precision(logits.detach()).softmax(1)
    return probabilities.gather(1, labels[:, None]).squeeze(1)
