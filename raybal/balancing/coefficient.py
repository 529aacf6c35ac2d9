"""Methods that scale a modality's gradients, or updates, by one coefficient a step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from raybal.balancing.base import Context
from raybal.balancing.paced import PacedMethod, PacedSettings, score_sums
from raybal.data.batches import Batch
from raybal.models.classifier import Output
from raybal.settings import setting


@dataclass(frozen=True)
class CoefficientSettings(PacedSettings):
    """Settings that all coefficient methods share."""

    apply_to: Literal["gradient", "update"] = setting(
        "gradient",
        help="what the coefficient multiplies: the gradient (as published; Adam cancels a steady factor), or the "
        "optimizer's update (a true per-modality learning rate with every optimizer)",
    )


class CoefficientMethod(PacedMethod):
    """Multiplies each modality's gradients, or updates, by its coefficient once a step.

    On gradients, what a coefficient does depends on the optimizer: under SGD it is a learning rate, while Adam and
    AdamW divide a steady factor out again and feel only its changes and its size beside weight decay and clipping.
    On updates it is a learning rate under all of them.
    """

    settings: CoefficientSettings

    def __init__(self, settings: CoefficientSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        self._before: list[tuple[list[nn.Parameter], list[Tensor], Tensor]] = []

    @abstractmethod
    def step_coefficients(self, ctx: Context) -> Tensor:
        """Returns the step's coefficients k [M], before the pace."""

    @abstractmethod
    def scaled_parameters(self, ctx: Context, modality: str) -> list[nn.Parameter]:
        """Returns the parameters that a modality's coefficient acts on."""

    def after_backward(self, ctx: Context) -> None:
        super().after_backward(ctx)
        k, strengths = self.step_coefficients(ctx), self.strengths(ctx)
        k = (1 + strengths * (k.double() - 1)).to(k.dtype)
        ctx.record("coefficient", k)
        for i, m in enumerate(self.modalities):
            self.modulate(ctx, m, self.scaled_parameters(ctx, m), k[i], strengths[i])

    def modulate(
        self, ctx: Context, modality: str, parameters: list[nn.Parameter], k: Tensor, strength: Tensor
    ) -> None:
        """Multiplies a modality's gradients by k now, or its updates once the optimizer has stepped."""
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


class ScoredMethod(CoefficientMethod):
    """Scores each modality on the batch and turns the scores into coefficients.

    A score is a sum over the whole batch, all-reduced before it becomes a coefficient: coefficients are nonlinear,
    and workers that used their own would drift apart. The reduction runs beside the backward pass.
    """

    scores_modalities: ClassVar[bool] = True

    def __init__(self, settings: CoefficientSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        self._sums: Tensor | None = None
        self._reduced: Callable[[], Tensor] | None = None

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

    def after_forward(self, ctx: Context, output: Output, batch: Batch, last: bool) -> None:
        with torch.no_grad():
            sums = score_sums(self.score_logits(ctx, output), output.present, batch)
        self._sums = sums if self._sums is None else self._sums + sums
        if last:
            self._reduced = ctx.workers.all_reduce(self._sums)

    def step_coefficients(self, ctx: Context) -> Tensor:
        assert self._reduced is not None
        sums, counts = self._reduced()
        self._sums = self._reduced = None
        scores, seen = sums / counts.clamp(min=1), counts > 0
        self.observe(ctx, scores, seen)
        ctx.record("score", scores)
        # A modality is ahead of or behind others that were seen in the same batch, or neither.
        return torch.where(seen & (seen.sum() > 1), self.coefficients(scores, seen), 1.0)
