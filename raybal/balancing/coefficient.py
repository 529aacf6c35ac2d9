"""Methods that scale a modality's gradients, or updates, by one coefficient a step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raybal.balancing.base import BalancingMethod, BalancingSettings, Context, PacedSettings, in_full_precision
from raybal.data.batches import Batch
from raybal.models.classifier import Output
from raybal.settings import setting


@dataclass(frozen=True)
class CoefficientSettings(PacedSettings):
    """Settings that all coefficient methods share."""

    alpha: float = setting(0.5, gt=0, help="slope of the coefficient in the ratio of modality scores")
    apply_to: Literal["gradient", "update"] = setting(
        "gradient",
        help="what the coefficient multiplies: the gradient (as published; Adam cancels a steady factor), or the "
        "optimizer's update (a true per-modality learning rate with every optimizer)",
    )


class CoefficientMethod(BalancingMethod):
    """Scores each modality on the batch, turns the scores into coefficients k [M], and multiplies with them.

    A score is a sum over the whole batch, all-reduced before it becomes a coefficient: coefficients are nonlinear,
    and workers that used their own would drift apart. The reduction runs beside the backward pass.
    """

    settings: CoefficientSettings

    def __init__(self, settings: BalancingSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        self._sums: Tensor | None = None
        self._reduced: Callable[[], Tensor] | None = None
        self._before: list[tuple[list[nn.Parameter], list[Tensor], Tensor]] = []

    @abstractmethod
    def score_logits(self, ctx: Context, output: Output) -> Mapping[str, Tensor]:
        """Returns the logits {m: [B, C]} whose true-class probability scores each modality."""

    @abstractmethod
    def coefficients(self, scores: Tensor, seen: Tensor) -> Tensor:
        """Maps mean true-class probabilities [M] to coefficients [M].

        Args:
            scores: means over the rows where a modality is present.
            seen: bool [M], whether any row has it; the score of one that was not seen is no evidence, and must not
                change the others' coefficients.
        """

    @abstractmethod
    def scaled_parameters(self, ctx: Context, modality: str) -> list[nn.Parameter]:
        """Returns the parameters that a modality's coefficient acts on."""

    def after_forward(self, ctx: Context, output: Output, batch: Batch, last: bool) -> None:
        with torch.no_grad():
            rows = batch.weights[:, None] * output.present
            probability = torch.stack(
                [true_class_probability(logits, batch.labels) for logits in self.score_logits(ctx, output).values()], 1
            )
            sums = torch.stack([(probability * rows).sum(0), rows.sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums
        if last:
            self._reduced = ctx.all_reduce(self._sums)

    def after_backward(self, ctx: Context) -> None:
        assert self._reduced is not None
        sums, counts = self._reduced()
        self._sums = self._reduced = None
        strength = self.settings.pace.strength(ctx.progress)
        scores, seen = sums / counts.clamp(min=1), counts > 0
        # A modality is ahead of or behind others that were seen in the same batch, or neither.
        comparable = seen & (seen.sum() > 1)
        k = torch.where(comparable, 1 + strength * (self.coefficients(scores, seen) - 1), 1.0)
        ctx.record("coefficient", k)
        ctx.record("score", scores)
        ctx.record("pace", torch.tensor(strength, dtype=torch.float64))
        for i, m in enumerate(self.modalities):
            self._apply(ctx, self.scaled_parameters(ctx, m), k[i])

    def _apply(self, ctx: Context, parameters: list[nn.Parameter], k: Tensor) -> None:
        parameters = [p for p in parameters if p.grad is not None]
        if not parameters:
            return
        if self.settings.apply_to == "gradient":
            # In place: data-parallel training keeps gradients as views into its buckets.
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], k)
        else:
            self._before.append((parameters, [p.detach().clone() for p in parameters], k))

    @torch.no_grad()
    def after_optimizer(self, ctx: Context) -> None:
        for parameters, before, k in self._before:
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old + k * (parameter - old))
        self._before = []

    def after_epoch(self, ctx: Context, metrics: dict[str, Any]) -> None:
        assert self._reduced is None, "a step was left unfinished"


def true_class_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns softmax(logits)[label] of each row, [B], at least in float32."""
    probabilities = in_full_precision(logits.detach()).softmax(1)
    return probabilities.gather(1, labels[:, None]).squeeze(1)
