"""Pace: how strongly a balancing method acts as training progresses.

A pace gives a strength in [0, 1]; a coefficient k then acts as 1 + strength * (k - 1), so strength 0 is the method's
own baseline and strength 1 the method as published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from raybal.errors import ConfigError, did_you_mean
from raybal.settings import Settings, setting

#: How much of the smoothed scores a step keeps.
MEMORY = 0.9


@dataclass(frozen=True)
class PaceSettings(Settings):
    """How strongly the method acts over training; progress runs from 0 to 1."""

    kind: Literal["constant", "window", "linear", "cosine", "knots"] = setting(
        "constant",
        help="constant: `final` throughout; window: `final` from start to end and `initial` elsewhere; "
        "linear, cosine: a ramp from `initial` at start to `final` at end; knots: straight lines between `strengths` "
        "at `knots`",
    )
    start: float = setting(0.0, ge=0, le=1, help="progress at which the window or ramp starts")
    end: float = setting(1.0, ge=0, le=1, help="progress at which the window or ramp ends")
    initial: float = setting(0.0, ge=0, le=1, help="strength before")
    final: float = setting(1.0, ge=0, le=1, help="strength after (window: inside)")
    knots: list[float] = setting(factory=list, help="ascending progress values, e.g. 0,0.2,0.8; kind knots only")
    strengths: list[float] = setting(factory=list, help="the strength at each knot, e.g. 0,1,0.5; kind knots only")
    phase_out: float | None = setting(
        None,
        gt=0,
        help="ends the method for good once the modalities have converged: when a modality's score is, over "
        "`phase_out_steps` steps, within this share of the others' mean (0.1: 10 %); none: never",
    )
    phase_out_steps: int = setting(
        50, ge=1, help="steps for which the ratio has to stay, and over which the strength then falls to 0"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end < self.start:
            raise ConfigError(f"end: {self.end} is not accepted; it must be at least start ({self.start})")
        unused = {"constant": ("start", "end", "initial"), "knots": ("start", "end", "initial", "final")}
        for name in unused.get(self.kind, ()):
            if getattr(self, name) != getattr(type(self), name):
                raise ConfigError(f"{name}: {getattr(self, name)} has no meaning for kind {self.kind}; set kind too")
        for name in ("knots", "strengths"):
            values = getattr(self, name)
            if values and self.kind != "knots":
                raise ConfigError(f"{name}: {values} is for kind knots, and kind is {self.kind}")
            if any(not 0 <= v <= 1 for v in values):
                raise ConfigError(f"{name}: {values} is not accepted; every value must be between 0 and 1")
        if self.kind == "knots" and not self.knots:
            raise ConfigError("knots: kind knots needs at least one, e.g. 0,0.5,1, and as many strengths")
        if len(self.knots) != len(self.strengths):
            raise ConfigError(f"strengths: {self.strengths} is not accepted; the {len(self.knots)} knots need one each")
        if any(b <= a for a, b in pairwise(self.knots)):
            raise ConfigError(f"knots: {self.knots} is not accepted; they must ascend")

    @property
    def begins(self) -> float:
        """The progress at which the strength begins to change, or to be above 0."""
        if self.kind != "knots":
            return 0.0 if self.kind == "constant" else self.start
        first = next((i for i, strength in enumerate(self.strengths) if strength > 0), 0)
        return self.knots[first - 1] if first else 0.0

    def strength(self, progress: float) -> float:
        """Returns the strength in [0, 1] at a training progress in [0, 1), without phase-out."""
        if self.kind == "constant":
            return self.final
        if self.kind == "knots":
            return _between(self.knots, self.strengths, progress)
        if self.kind == "window":
            return self.final if self.start <= progress < self.end else self.initial
        if progress < self.start:
            return self.initial
        if progress >= self.end:
            return self.final
        ratio = (progress - self.start) / (self.end - self.start)
        if self.kind == "cosine":
            ratio = (1 - math.cos(math.pi * ratio)) / 2
        return self.initial + ratio * (self.final - self.initial)


class Pace:
    """The strength of a method in each modality, and what it needs to remember.

    Args:
        pace: of every modality.
        paces: of single modalities by name, in place of `pace`.
        modalities: names, in order.
        method: the method's name, for messages.
        by_modality: whether modalities can have strengths of their own.

    Raises:
        ConfigError: a pace that the method cannot have.
    """

    def __init__(
        self,
        pace: PaceSettings,
        paces: Mapping[str, PaceSettings],
        modalities: Sequence[str],
        method: str,
        *,
        by_modality: bool,
    ) -> None:
        for name in paces:
            if not by_modality:
                raise ConfigError(f"balancing.paces: {method} acts on all modalities together; set balancing.pace")
            if name not in modalities:
                raise ConfigError(
                    f"balancing.paces.{name}: the pool has no such modality; it has {', '.join(modalities)}"
                    f"{did_you_mean(name, modalities)}"
                )
        self.settings = [paces.get(m, pace) for m in modalities]
        self.phases_out = any(s.phase_out is not None for s in self.settings)
        #: Whether one number says it all.
        self.single = not paces and not self.phases_out
        count = len(modalities)
        self._scores = torch.zeros(count, dtype=torch.float64)
        self._steps = torch.zeros(count, dtype=torch.float64)
        self._within = torch.zeros(count, dtype=torch.float64)
        self._since = torch.full((count,), -1.0, dtype=torch.float64)

    def strengths(self, progress: float, step: int, device: torch.device | str = "cpu") -> Tensor:
        """Returns the strength of each modality, float64 [M], at a progress in [0, 1) and a number of steps done."""
        planned = _row([s.strength(progress) for s in self.settings], device)
        if not self.phases_out:
            return planned
        self._to(device)
        over = _row([s.phase_out_steps for s in self.settings], device)
        left = (1 - (step - self._since) / over).clamp(0, 1)
        return torch.where(self._since >= 0, planned * left, planned)

    def observe(self, scores: Tensor, seen: Tensor, step: int) -> None:
        """Takes in a step's scores [M], the larger the further a modality is, of those that were seen (bool [M])."""
        if not self.phases_out:
            return
        device = scores.device
        self._to(device)
        scores = scores.double()
        fresh = self._steps == 0
        smoothed = torch.where(fresh, scores, MEMORY * self._scores + (1 - MEMORY) * scores)
        self._scores = torch.where(seen, smoothed, self._scores)
        self._steps = self._steps + seen
        known = self._steps > 0
        others = (torch.where(known, self._scores, 0.0).sum() - self._scores) / (known.sum() - 1).clamp(min=1)
        # Nothing is near a tolerance that is not a number.
        tolerance = _row([math.nan if s.phase_out is None else s.phase_out for s in self.settings], device)
        near = known & (known.sum() > 1) & ((self._scores / others.clamp(min=1e-12) - 1).abs() <= tolerance)
        self._within = torch.where(seen, torch.where(near, self._within + 1, 0.0), self._within)
        needed = _row([s.phase_out_steps for s in self.settings], device)
        self._since = torch.where((self._since < 0) & (self._within >= needed), float(step), self._since)

    def state_dict(self) -> dict[str, Any]:
        """Returns where the pace stands, for a resumed run; nothing where the progress says it all."""
        if not self.phases_out:
            return {}
        return {f"pace.{name}": getattr(self, f"_{name}") for name in ("scores", "steps", "within", "since")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; other entries are left alone."""
        if self.phases_out:
            for name in ("scores", "steps", "within", "since"):
                setattr(self, f"_{name}", state[f"pace.{name}"])

    def _to(self, device: torch.device | str) -> None:
        for name in ("_scores", "_steps", "_within", "_since"):
            setattr(self, name, getattr(self, name).to(device))


def _row(values: Sequence[float], device: torch.device | str) -> Tensor:
    """Returns float64 [M] on a device. Filled there: a copy from here would wait for all that the device has to do."""
    return torch.stack([torch.full((), v, dtype=torch.float64, device=device) for v in values])


def _between(knots: Sequence[float], values: Sequence[float], at: float) -> float:
    if at <= knots[0]:
        return values[0]
    for (left, right), (low, high) in zip(pairwise(knots), pairwise(values), strict=True):
        if at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return values[-1]
