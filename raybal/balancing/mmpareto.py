"""MMPareto: fused and unimodal gradients joined without conflict.

Wei and Hu, "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance", ICML 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raybal.balancing.base import Context, fused_loss, unimodal_loss
from raybal.balancing.paced import PacedMethod, PacedSettings
from raybal.data.batches import Batch
from raybal.settings import setting

SMALLEST_WEIGHT = 0.001


@dataclass(frozen=True)
class MMParetoSettings(PacedSettings):
    """Settings of MMPareto. Published gamma 1.5 (SGD at 2e-3). In Kontras et al.'s runs with ResNet-18 CREMA-D 1.5, AVE
    0.5, UCF101 3; with Conformers CREMA-D 2, AVE 3."""

    method: str = setting("mmpareto", help="balancing method")
    gamma: float = setting(
        1.5,
        gt=0,
        help="what the joined gradient of the encoders is multiplied by",
        search={"kind": "uniform", "low": 0.5, "high": 4.0},
    )

    published = ({"gamma": 0.5}, {"gamma": 2.0}, {"gamma": 3.0})


class MMPareto(PacedMethod):
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
        trained = [p for p in ctx.classifier.parameters() if p.requires_grad]
        fused, unimodal = ({p: torch.zeros_like(p) for p in trained} for _ in range(2))
        losses = []
        for i, batch in enumerate(batches):
            with ctx.autocast():
                output = ctx.classifier(batch.inputs, batch.present)
            self.after_forward(ctx, output, batch, i == len(batches) - 1)
            # No encoder's gradient of the sum of all heads' losses holds anything of another modality's.
            joint, heads = fused_loss(output, batch), unimodal_loss(output, batch)
            _add(fused, joint, keep=True)
            _add(unimodal, heads, keep=False)
            losses.append((joint + heads).detach())
        _reduce(ctx, [*fused.values(), *unimodal.values()])
        for p in trained:
            p.grad = fused[p] + unimodal[p]
        self._join(ctx, fused, unimodal)
        return torch.stack(losses).sum()

    def _join(
        self, ctx: Context, fused: Mapping[nn.Parameter, Tensor], unimodal: Mapping[nn.Parameter, Tensor]
    ) -> None:
        weights = []
        for m, strength in zip(self.modalities, self.strengths(ctx), strict=True):
            encoder = [p for p in ctx.groups[m].encoder if p in fused]
            f, u = [fused[p] for p in encoder], [unimodal[p] for p in encoder]
            weights.append(fused_weight(f, u))
            for p, joined in zip(encoder, combine(f, u, self.settings.gamma, weights[-1]), strict=True):
                assert p.grad is not None
                p.grad.lerp_(joined, strength.to(joined))
        ctx.record("fused_weight", torch.stack(weights))


def fused_weight(grads_fused: Sequence[Tensor], grads_unimodal: Sequence[Tensor]) -> Tensor:
    """Returns the weight of the fused gradient beside 1 - weight of the unimodal one (a scalar): one half where the
    two agree or one is zero, else that of their combination of least norm, at most 0.999 and at least 0.001."""
    f, u = (torch.cat([g.flatten() for g in grads]) for grads in (grads_fused, grads_unimodal))
    ff, uu, fu = f @ f, u @ u, f @ u
    least = ((uu - fu) / (ff + uu - 2 * fu)).clamp(SMALLEST_WEIGHT, 1 - SMALLEST_WEIGHT)
    return torch.where((fu <= 0) & (ff > 0) & (uu > 0), least, 0.5)


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


def _add(totals: Mapping[nn.Parameter, Tensor], loss: Tensor, *, keep: bool) -> None:
    gradients = torch.autograd.grad(loss, list(totals), retain_graph=keep, allow_unused=True)
    for total, gradient in zip(totals.values(), gradients, strict=True):
        if gradient is not None:
            total += gradient


def _reduce(ctx: Context, tensors: list[Tensor]) -> None:
    """Sums tensors over all workers, in one message."""
    if ctx.workers.world == 1:
        return
    flat = ctx.workers.sum(torch.cat([t.flatten() for t in tensors]))
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
