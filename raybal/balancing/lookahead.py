"""Methods whose loss depends on a statistic of the whole batch, which must be known before the backward pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from raybal.balancing.base import Context, no_sync
from raybal.balancing.paced import PacedMethod
from raybal.data.batches import Batch
from raybal.models.classifier import Output


class LookaheadMethod(PacedMethod):
    """Sums a statistic over all workers and micro-batches, then takes the losses.

    With one micro-batch the statistic comes from the forward pass that is trained on. With several, a first forward
    pass without gradients runs over all of them (and leaves the running statistics of batch norm as they were), so
    that accumulation changes nothing (with dropout, nothing but its noise).
    """

    @abstractmethod
    def terms(self, ctx: Context, output: Output) -> Mapping[str, Tensor]:
        """Returns what both the statistic and the loss are made of, {m: [B, ...]}."""

    @abstractmethod
    def statistic(self, output: Output, terms: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Returns sums over these rows, of any shape, without gradients; filling rows have weight 0."""

    @abstractmethod
    def prepare(self, ctx: Context, sums: Tensor) -> None:
        """Takes in the statistic of the whole batch; called once a step, before any loss."""

    @abstractmethod
    def loss_of(self, output: Output, terms: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Returns the objective's share of these rows, as `loss` does."""

    def step(self, ctx: Context, batches: list[Batch]) -> Tensor:
        if len(batches) > 1:
            self._look(ctx, batches)
        losses = []
        for i, batch in enumerate(batches):
            with no_sync(ctx.module, i == len(batches) - 1):
                with ctx.autocast():
                    output = ctx.module(batch.inputs, batch.present, detach_heads=not self.trains_unimodal)
                    terms = self.terms(ctx, output)
                if len(batches) == 1:
                    with torch.no_grad():
                        sums = self.statistic(output, terms, batch)
                    self.prepare(ctx, ctx.workers.sum(sums))
                loss = self.loss_of(output, terms, batch)
                (loss * ctx.workers.world).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _look(self, ctx: Context, batches: list[Batch]) -> None:
        buffers = [(buffer, buffer.clone()) for buffer in ctx.classifier.buffers()]
        total: Tensor | None = None
        for batch in batches:
            with ctx.autocast():
                output = ctx.classifier(batch.inputs, batch.present)
                terms = self.terms(ctx, output)
            sums = self.statistic(output, terms, batch)
            total = sums if total is None else total + sums
        for buffer, before in buffers:
            buffer.copy_(before)
        assert total is not None
        self.prepare(ctx, ctx.workers.sum(total))
