"""OGM-GE: on-the-fly gradient modulation with generalisation enhancement.

Peng, Wei, Deng, Wang and Hu, "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from raybal import hashing
from raybal.balancing.base import Context
from raybal.balancing.ogm import OGM, OGMSettings
from raybal.settings import setting


@dataclass(frozen=True)
class OGMGESettings(OGMSettings):
    """Settings of OGM-GE: those of OGM."""

    method: str = setting("ogm_ge", help="balancing method")


class OGMGE(OGM):
    """OGM, and Gaussian noise on every modulated gradient, with the spread that its tensor had before.

    Departures from the released code, beside those of OGM: the noise is drawn from (seed, step, parameter), so that
    workers stay equal, and its spread is that of the reduced gradient.
    """

    name = "ogm_ge"
    Settings = OGMGESettings

    def after_backward(self, ctx: Context) -> None:
        if self.pace.single and self.settings.pace.strength(ctx.progress) == 0:
            super().after_backward(ctx)
            return
        modulated = [
            (p, i, hashing.digest("ge", ctx.seed, ctx.step, m, n))
            for i, m in enumerate(self.modalities)
            for n, p in enumerate(self.scaled_parameters(ctx, m))
            if p.grad is not None and p.numel() > 1
        ]
        spread = [p.grad.std() + 1e-8 for p, *_ in modulated if p.grad is not None]
        super().after_backward(ctx)
        strengths = self.pace.strengths(ctx.progress, ctx.step, ctx.device)
        for (parameter, i, seed), scale in zip(modulated, spread, strict=True):
            assert parameter.grad is not None
            generator = torch.Generator(parameter.device).manual_seed(seed)
            noise = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=parameter.dtype)
            parameter.grad.add_(strengths[i].to(scale) * scale * noise)
