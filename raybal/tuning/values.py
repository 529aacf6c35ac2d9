"""Values of searched keys, as files and people have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from raybal.balancing.base import BalancingSettings


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


def changed(settings: BalancingSettings) -> dict[str, Any]:
    """Returns plain settings without those that are as by default."""
    default = dataclasses.asdict(type(settings)(method=settings.method))
    own = dataclasses.asdict(settings)
    return {"method": settings.method} | {key: value for key, value in own.items() if value != default[key]}
