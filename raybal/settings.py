"""Settings: frozen dataclasses whose fields say what they mean and what they accept.

Each component keeps its settings beside its code; `raybal.config` gathers them into one tree read from YAML
and the command line. This module needs nothing but the standard library, so the core runs where only torch is.
"""

from __future__ import annotations

import dataclasses
import operator
import typing
from typing import Any, ClassVar, Literal

from raybal.errors import ConfigError, did_you_mean

_BOUNDS = {
    "gt": (operator.gt, "greater than"),
    "ge": (operator.ge, "at least"),
    "lt": (operator.lt, "less than"),
    "le": (operator.le, "at most"),
}


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    factory: Any = dataclasses.MISSING,
    defines: bool = True,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    search: dict[str, Any] | None = None,
) -> Any:
    """Declares one field of a `Settings` class.

    Args:
        default, factory: as in `dataclasses.field`.
        help: one sentence for `--help`.
        defines: whether the key defines the experiment, so that a store cannot be continued with another value.
        gt, ge, lt, le: bounds of a number (checked when it is not None).
        search: the range a tuner may search, e.g. `{"kind": "loguniform", "low": 0.25, "high": 8}`.
    """
    bounds = {k: v for k, v in (("gt", gt), ("ge", ge), ("lt", lt), ("le", le)) if v is not None}
    metadata = {"help": help, "defines": defines, "bounds": bounds, "search": search}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of all settings: immutable, checked on construction, unknown keys refused.

    Raises:
        ConfigError: a value outside its bounds or choices; the message names the field.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            _check_choice(field.name, value, hints[field.name])
            for bound, limit in field.metadata.get("bounds", {}).items():
                test, words = _BOUNDS[bound]
                if not test(value, limit):
                    raise ConfigError(f"{field.name}: {value!r} is not accepted; it must be {words} {limit}")


def _check_choice(name: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            listed = ", ".join(str(c) for c in choices)
            raise ConfigError(
                f"{name}: {value!r} is not accepted; choose one of {listed}{did_you_mean(value, choices)}"
            )
