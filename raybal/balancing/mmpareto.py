"""MMPareto: fused and unimodal gradients joined without conflict.

Wei and Hu, "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance", ICML 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raybal.balancing.base import BalancingMethod, BalancingSettings, Context, fused_loss, unimodal_loss
from raybal.balancing.pace import PaceSettings
from raybal.data.batches import Batch
from raybal.settings import setting

SMALLEST_WEIGHT = 0.001


@dataclass(frozen=True)
class MMParetoSettings(BalancingSettings):
    """Settings of MMPareto. Published gamma 1.5 (SGD at 2e-3); in Kontras et al.'s runs 0.5 to 3."""

    method: str = setting("mmpareto", help="balancing method")
    pace: PaceSettings = setting(factory=PaceSettings, help="how strongly the method acts as training progresses")
    gamma: float = setting(
        1.5,
        gt=0,
        help="what the joined gradient of the encoders is multiplied by",
        search={"kind": "uniform", "low": 0.5, "high": 4.0},
    )


class MMPareto(BalancingMethod):
    """Takes, in each encoder, the gradients of the fused and of its own unimodal loss apart, and joins them.

    Where they agree they are added; where they oppose each other their least combination decreases both. It is
    then brought to the size of their plain sum, and multiplied by gamma. Heads and fusion get their plain gradients.

    Departures from the released code: both gradients are those of the whole batch over all workers before anything
    is compared; an encoder with a zero gradient keeps the sum.
    """

    name = "mmpareto"
    Settings = MMParetoSettings
    settings: MMParetoSettings
    trains_unimodal = True

    def step(self, ctx: Context, batches: list[Batch]) -> Tensor:
        encoders = {m: [p for p in group.encoder if p.requires_grad] for m, group in ctx.groups.items()}
        own = {id(p) for parameters in encoders.values() for p in parameters}
        heads = [p for group in ctx.groups.values() for p in group.unimodal_head if p.requires_grad]
        apart = own | {id(p) for p in heads}
        shared = [p for p in ctx.classifier.parameters() if p.requires_grad and id(p) not in apart]
        everywhere = [p for parameters in encoders.values() for p in parameters]
        fused = [torch.zeros_like(p) for p in (*everywhere, *shared)]
        unimodal = [torch.zeros_like(p) for p in (*everywhere, *heads)]
        losses = []
        for batch in batches:
            with ctx.autocast():
                output = ctx.classifier(batch.inputs, batch.present)
            # No encoder's gradient of the sum of all heads' losses holds anything of another modality's.
            each = unimodal_loss(output, batch)
            joint = fused_loss(output, batch)
            _add(fused, joint, [*everywhere, *shared], keep=True)
            _add(unimodal, each, [*everywhere, *heads], keep=False)
            losses.append((joint + each).detach())
        _reduce(ctx, [*fused, *unimodal])
        for p, g in zip((*shared, *heads), (*fused[len(everywhere) :], *unimodal[len(everywhere) :]), strict=True):
            p.grad = g
        self._join(ctx, encoders, fused, unimodal)
        return torch.stack(losses).sum()

    def _join(
        self, ctx: Context, encoders: dict[str, list[nn.Parameter]], fused: list[Tensor], unimodal: list[Tensor]
    ) -> None:
        strength = self.settings.pace.strength(ctx.progress)
        weights, start = [], 0
        for parameters in encoders.values():
            part = slice(start, start + len(parameters))
            start += len(parameters)
            weight = fused_weight(fused[part], unimodal[part])
            joined = combine(fused[part], unimodal[part], self.settings.gamma, weight)
            for p, g, f, u in zip(parameters, joined, fused[part], unimodal[part], strict=True):
                p.grad = f + u + strength * (g - f - u)
            weights.append(weight)
        ctx.record("fused_weight", torch.stack(weights))
        ctx.record("pace", torch.tensor(strength, dtype=torch.float64))


def fused_weight(grads_fused: Sequence[Tensor], grads_unimodal: Sequence[Tensor]) -> Tensor:
    """Returns the weight of the fused gradient beside 1 - weight of the unimodal one (a scalar): one half where the
    two agree or one is zero, else that of their combination of least norm, at most 0.999 and at least 0.001."""
    f, u = (torch.cat([g.flatten() for g in grads]) for grads in (grads_fused, grads_unimodal))
    ff, uu, fu = f @ f, u @ u, f @ u
    least = ((uu - fu) / (ff + uu - 2 * fu)).clamp(SMALLEST_WEIGHT, 1 - SMALLEST_WEIGHT)
    return torch.where(fu < 0, least, 0.5)


def combine(
    grads_fused: Sequence[Tensor], grads_unimodal: Sequence[Tensor], gamma: float, weight: Tensor | None = None
) -> list[Tensor]:
    """Returns an encoder's gradient from those of the fused and of its unimodal loss, tensor by tensor.

    Each is 2 (w f + (1 - w) u), enlarged to the norm of f + u where it is smaller, times gamma.

    Args:
        grads_fused, grads_unimodal: gradients f and u of the encoder's parameters.
        gamma: factor of the result.
        weight: w; as `fused_weight` gives it if None.
    """
    w = fused_weight(grads_fused, grads_unimodal) if weight is None else weight
    joined = []
    for f, u in zip(grads_fused, grads_unimodal, strict=True):
        g = 2 * (w * f + (1 - w) * u)
        size = g.norm()
        larger = torch.where(size > 0, (f + u).norm() / size.clamp(min=torch.finfo(size.dtype).tiny), 1.0).clamp(min=1)
        joined.append(gamma * larger * g)
    return joined


def _add(totals: list[Tensor], loss: Tensor, parameters: Sequence[nn.Parameter], *, keep: bool) -> None:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    for total, gradient in zip(totals, gradients, strict=True):
        if gradient is not None:
            total += gradient


def _reduce(ctx: Context, tensors: list[Tensor]) -> None:
    """Sums tensors over all workers, in one message."""
    if ctx.world == 1:
        return
    flat = ctx.all_reduce(torch.cat([t.flatten() for t in tensors]))()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
