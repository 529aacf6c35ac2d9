"""Values of searched keys in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shown(value: Any) -> str:
    """Returns a value in few digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Returns what differs between values of searched keys, in words."""
    parts = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if old != new:
            left = "" if old is None else f"{shown(old)} → "
            parts.append(f"{key.removeprefix('balancing.')} {left}{'not used' if new is None else shown(new)}")
    return ", ".join(parts)
