"""Values of searched keys, as files and people have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from raybal.balancing.base import BalancingSettings
from raybal.models.classifier import ModelSettings
from raybal.training.settings import TrainSettings


def shown(value: Any) -> str:
    """Returns a value in few digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def words(values: Mapping[str, Any]) -> str:
    """Returns values of searched keys in words."""
    return ", ".join(f"{key.removeprefix('balancing.')} {shown(value)}" for key, value in values.items())


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Returns what differs between values of searched keys, in words."""
    parts = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if old != new:
            left = "" if old is None else f"{shown(old)} → "
            parts.append(f"{key.removeprefix('balancing.')} {left}{'not used' if new is None else shown(new)}")
    return ", ".join(parts)


def shared(model: ModelSettings, train: TrainSettings) -> dict[str, dict[str, Any]]:
    """Returns what defines a model and its training, plain, without what is as by default but for the learning rate:
    {"model", "train"}."""
    found: dict[str, dict[str, Any]] = {}
    for name, own in (("model", model), ("train", train)):
        default, plain = dataclasses.asdict(type(own)()), dataclasses.asdict(own)
        lasting = {f.name for f in dataclasses.fields(own) if f.metadata.get("defines", True)}
        found[name] = {key: plain[key] for key in plain if key in lasting and plain[key] != default[key]}
    # A table without one would try several.
    found["train"] = {"learning_rate": train.learning_rate} | found["train"]
    return {name: own for name, own in found.items() if own}


def changed(settings: BalancingSettings) -> dict[str, Any]:
    """Returns plain settings without those that are as by default."""
    default = dataclasses.asdict(type(settings)(method=settings.method))
    own = dataclasses.asdict(settings)
    return {"method": settings.method} | {key: value for key, value in own.items() if value != default[key]}
