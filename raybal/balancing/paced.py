"""Methods that act more or less strongly as training progresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from raybal.balancing.base import BalancingMethod, BalancingSettings, Context
from raybal.balancing.pace import Pace, PaceSettings
from raybal.settings import setting


@dataclass(frozen=True)
class PacedSettings(BalancingSettings):
    """Settings of methods that act more or less strongly as training progresses."""

    pace: PaceSettings = setting(factory=PaceSettings, help="how strongly the method acts as training progresses")
    paces: dict[str, PaceSettings] = setting(
        factory=dict, help="paces of single modalities by name, in place of `pace`"
    )


class PacedMethod(BalancingMethod):
    """Base of methods with a pace, whose position is part of the checkpoint."""

    settings: PacedSettings
    #: Whether the method scores its modalities in every step (`pace.observe`), which phase-out needs.
    scores_modalities: ClassVar[bool] = False
    #: Whether it acts on one modality apart from the others, so that each can have a pace.
    acts_by_modality: ClassVar[bool] = True

    def __init__(self, settings: PacedSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        self.pace = Pace(
            settings.pace,
            settings.paces,
            modalities,
            self.name,
            scored=self.scores_modalities,
            by_modality=self.acts_by_modality,
        )

    def strengths(self, ctx: Context) -> Tensor:
        """Returns the strength in force in each modality, float64 [M], and records it: as one number where all
        modalities always have the same."""
        strengths = self.pace.strengths(ctx.progress, ctx.step, ctx.device)
        ctx.record("pace", strengths[0] if self.pace.single else strengths)
        return strengths

    def strength(self, ctx: Context) -> float:
        """Returns the one strength of a method that does not act by modality, and records it."""
        strength = self.settings.pace.strength(ctx.progress)
        ctx.record("pace", torch.tensor(strength, dtype=torch.float64))
        return strength

    def state_dict(self) -> dict[str, Any]:
        return self.pace.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pace.load_state_dict(state)
