"""One training step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raybal.balancing.base import BalancingMethod, Context
from raybal.data.batches import Batch


def train_step(ctx: Context, method: BalancingMethod, batches: list[Batch], clip_norm: float | None = None) -> Tensor:
    """Runs one optimizer step.

    Args:
        ctx: the run; its step count is advanced.
        method: the balancing method.
        batches: this worker's micro-batches of the step.
        clip_norm: largest gradient norm; clipping comes after the method has changed the gradients. Unimodal heads
            that are no part of the objective are clipped apart, since their size must not shrink its gradient.

    Returns:
        This worker's share of the objective (a detached scalar; the sum over workers is the batch's mean).
    """
    ctx.optimizer.zero_grad(set_to_none=True)
    loss = method.step(ctx, batches)
    method.after_backward(ctx)
    if clip_norm is not None:
        for parameters in _clipped_together(ctx, method):
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    ctx.optimizer.step()
    method.after_optimizer(ctx)
    ctx.step += 1
    return loss


def _clipped_together(ctx: Context, method: BalancingMethod) -> list[list[nn.Parameter]]:
    """Returns the parameters in the sets whose gradients have one norm."""
    everything = list(ctx.classifier.parameters())
    if method.trains_unimodal:
        return [everything]
    heads = [list(group.unimodal_head) for group in ctx.groups.values()]
    apart = {id(p) for head in heads for p in head}
    return [[p for p in everything if id(p) not in apart], *heads]
