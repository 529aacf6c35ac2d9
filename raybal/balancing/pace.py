"""Pace: how strongly a balancing method acts as training progresses.

A pace gives a strength in [0, 1]; a coefficient k then acts as 1 + strength * (k - 1), so strength 0 is the method's
own baseline and strength 1 the method as published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from raybal.errors import ConfigError
from raybal.settings import Settings, setting


@dataclass(frozen=True)
class PaceSettings(Settings):
    """How strongly the method acts over training; progress runs from 0 to 1."""

    kind: Literal["constant", "window", "linear", "cosine"] = setting(
        "constant",
        help="constant: `final` throughout; window: `final` from start to end and `initial` elsewhere; "
        "linear, cosine: a ramp from `initial` at start to `final` at end",
    )
    start: float = setting(0.0, ge=0, le=1, help="progress at which the window or ramp starts")
    end: float = setting(1.0, ge=0, le=1, help="progress at which the window or ramp ends")
    initial: float = setting(0.0, ge=0, le=1, help="strength before")
    final: float = setting(1.0, ge=0, le=1, help="strength after (window: inside)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end < self.start:
            raise ConfigError(f"end: {self.end} is not accepted; it must be at least start ({self.start})")

    def strength(self, progress: float) -> float:
        """Returns the strength in [0, 1] at a training progress in [0, 1)."""
        if self.kind == "constant":
            return self.final
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
