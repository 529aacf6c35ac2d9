"""MSLR: a learning rate of each modality's own.

Yao and Mihalcea, "Modality-specific learning rates for effective multimodal additive late-fusion", Findings of ACL
2022; the adaptive rule as in the baselines of Kontras et al. (BMVC 2024) and of AGM (ICCV 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raybal.balancing.base import Context
from raybal.balancing.coefficient import CoefficientMethod, CoefficientSettings
from raybal.errors import ConfigError, did_you_mean
from raybal.settings import setting


@dataclass(frozen=True)
class MSLRSettings(CoefficientSettings):
    """Settings of MSLR. Published window / start of audio and video: default 5 / 0.9 and 1.1; CREMA-D 20 / 0.7 and
    1.3; AVE 10 / 0.7 and 1.3 (Kontras et al.)."""

    method: str = setting("mslr", help="balancing method")
    window: int = setting(
        5,
        ge=1,
        help="epochs whose mean accuracy the last one is compared with",
        search={"kind": "choice", "values": [3, 5, 10, 20]},
    )
    skew: float = setting(
        0.9,
        gt=0,
        lt=2,
        help="factor of audio's learning rate until a window is known; that of video is 2 - skew, and of any other 1",
        search={"kind": "uniform", "low": 0.5, "high": 1.5},
    )
    initial: dict[str, float] = setting(
        factory=dict, help="such factors by name, in place of those that skew gives, e.g. '{image: 1.3, audio: 0.7}'"
    )
    apply_to: Literal["gradient", "update"] = setting(
        "update",
        help="what the factor multiplies: the optimizer's update (a learning rate with every optimizer), or the "
        "gradient as in released versions (Adam cancels a steady factor)",
    )
    holdout_share: float = setting(
        0.1, gt=0, lt=1, help="share of the labelled training items that accuracy is measured on, not trained on"
    )

    published = (
        {"window": 20, "skew": 0.7},
        {"window": 10, "skew": 0.7},
    )


class MSLR(CoefficientMethod):
    """Multiplies a modality's learning rate by how its accuracy compares with that of its last epochs.

    Until a window of epochs is known the factor is the modality's initial one. Trained on the fused loss; the factor
    acts on the modality's encoder and its slice of the fusion layer.

    Departures from the released code: accuracy is measured on training items that are held out for it, where the
    released code takes the validation items that also choose the model; the factor acts on the update by default,
    since on gradients Adam divides it out again.
    """

    name = "mslr"
    Settings = MSLRSettings
    settings: MSLRSettings

    def __init__(self, settings: MSLRSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        for name, factor in settings.initial.items():
            if factor <= 0:
                raise ConfigError(f"balancing.initial.{name}: {factor:g} is not accepted; it must be greater than 0")
            if name not in modalities:
                raise ConfigError(
                    f"balancing.initial.{name}: the pool has no such modality; it has {', '.join(modalities)}"
                    f"{did_you_mean(name, modalities)}"
                )
        start = {"audio": settings.skew, "video": 2 - settings.skew} | settings.initial
        self._initial = torch.tensor([start.get(m, 1.0) for m in modalities], dtype=torch.float64)
        self._history = torch.zeros(0, len(modalities), dtype=torch.float64)
        self._k = self._initial

    @property
    def holdout_share(self) -> float:
        return self.settings.holdout_share

    def before_epoch(self, ctx: Context) -> None:
        if ctx.epoch > len(self._history) and ctx.held_out is not None:
            found = ctx.evaluate(ctx.classifier, ctx.held_out)
            accuracy = [found[m]["accuracy"] if found[m] else 0.0 for m in self.modalities]
            self._history = torch.cat([self._history, torch.tensor([accuracy], dtype=torch.float64)])
            ctx.record("score", self._history[-1])
        self._k = multipliers(self._history, self.settings.window, self._initial).to(ctx.device)

    def step_coefficients(self, ctx: Context) -> Tensor:
        return self._k

    def scaled_parameters(self, ctx: Context, modality: str) -> list[nn.Parameter]:
        group = ctx.groups[modality]
        return [*group.encoder, *group.fusion_slice]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"history": self._history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._history = state["history"].cpu()


def multipliers(accuracy_history: Tensor, window: int, initial: Tensor) -> Tensor:
    """Returns the factors of the modalities' learning rates for the epoch after a history.

    With N the window: initial_i * a_i / mean of a_i over the N epochs before the last one; initial_i while fewer than
    N + 1 epochs are known, or where that mean is 0.

    Args:
        accuracy_history: [E, M], accuracy of each modality's own head after each epoch so far.
        window: N.
        initial: [M].

    Returns:
        [M].
    """
    if len(accuracy_history) <= window:
        return initial.clone()
    before = accuracy_history[-window - 1 : -1].mean(0)
    factor = accuracy_history[-1] / torch.where(before > 0, before, 1.0)
    return torch.where(before > 0, initial * factor, initial)
