"""OGM-GE: on-the-fly gradient modulation with generalisation enhancement.

Peng, Wei, Deng, Wang and Hu, "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    workers stay equal, and its spread is that of the reduced gradient. With `apply_to: update` it goes through the
    optimizer with the gradient, so that it is modulated too.
    """

    name = "ogm_ge"
    Settings = OGMGESettings

    def modulate(
        self, ctx: Context, modality: str, parameters: list[nn.Parameter], k: Tensor, strength: Tensor
    ) -> None:
        # Each tensor's number, gradient and spread, before anything is scaled.
        noisy: list[tuple[int, Tensor, Tensor]] = []
        if not (self.pace.single and self.settings.pace.strength(ctx.progress) == 0):
            for n, p in enumerate(parameters):
                if p.grad is not None and p.numel() > 1:
                    noisy.append((n, p.grad, p.grad.std() + 1e-8))
        super().modulate(ctx, modality, parameters, k, strength)

        def disturb(one: tuple[int, Tensor, Tensor]) -> None:
            n, gradient, spread = one
            seed = hashing.digest("ge", ctx.seed, ctx.step, modality, n)
            generator = torch.Generator(gradient.device).manual_seed(seed)
            noise = torch.randn(gradient.shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
            gradient.addcmul_(strength.to(spread) * spread, noise)

        # Drawing keeps a single core busy, so tensors are taken side by side; each has random numbers of its own.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(disturb, noisy))
