"""Settings: frozen dataclasses whose fields say what they mean and what they accept.

Each component keeps its settings beside its code; `raybal.config` gathers them into one tree read from YAML and the
command line, and a saved model carries its own. This module needs nothing but the standard library, so the core runs
where only torch is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from raybal.errors import ConfigError, did_you_mean

T = TypeVar("T")

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
    """Base of all settings: immutable, and checked on construction.

    Raises:
        ConfigError: a value outside its bounds or choices; the message names the field.
    """

    @classmethod
    def resolve(cls, content: Mapping[str, Any]) -> type[Settings]:
        """Returns the class that these plain values are settings of; a family of settings chooses by a name."""
        return cls

    @classmethod
    def complete(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns these plain values with those filled in that follow from them."""
        return content

    def check_typed(self, given: Mapping[str, Any]) -> None:
        """Refuses what a command line, unlike a file of settings, should not say in vain.

        Args:
            given: the plain values that it gave.

        Raises:
            ConfigError: an option that does nothing.
        """

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


def from_plain(cls: type[T], content: Mapping[str, Any], where: str = "") -> T:
    """Builds a dataclass (usually `Settings`) and those inside it from plain values, as YAML or JSON gives them.

    Args:
        cls: the dataclass.
        content: values by field name; absent fields take their defaults.
        where: dotted key of this dataclass, for messages.

    Raises:
        ConfigError: an unknown key, a missing one, or a value of a wrong type; the message names the dotted key,
            the value and what is accepted.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: {content!r} is not accepted; it must be a mapping of keys to values")
    prefix = f"{where}." if where else ""
    if issubclass(cls, Settings):
        with _under(prefix):
            cls = typing.cast("type[T]", cls.resolve(content))
            content = cls.complete(content)  # type: ignore[attr-defined]
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in content:
        if key not in fields:
            raise ConfigError(
                f"{prefix}{key}: there is no such key; {where or 'the configuration'} has "
                f"{', '.join(fields)}{did_you_mean(key, fields)}"
            )
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in content:
            raise ConfigError(f"{prefix}{name}: this key is missing; {field.metadata.get('help', 'it has no default')}")
    # A section with nothing below it is one left at its defaults.
    content = {k: v for k, v in content.items() if not (v is None and dataclasses.is_dataclass(hints[k]))}
    values = {key: _convert(hints[key], value, f"{prefix}{key}") for key, value in content.items()}
    with _under(prefix):
        return cls(**values)


@contextlib.contextmanager
def _under(prefix: str) -> Iterator[None]:
    """Puts the key of what is being built before a message that names only its field."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(prefix) else f"{prefix}{error}") from None


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in args:
            return None
        (hint,) = (a for a in args if a is not types.NoneType)
        return _convert(hint, value, key)
    if hint is Any or (origin is Literal and value is not None):
        return value  # a choice is checked on construction
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, key)
    if origin is dict and isinstance(value, Mapping):
        return {str(k): _convert(args[1], v, f"{key}.{k}") for k, v in value.items()}
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        return origin(_convert(args[0], v, f"{key}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-3 as text.
        with contextlib.suppress(ValueError):
            if math.isfinite(number := float(value)):
                return number
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    quoted = "; put it in quotes" if hint is str and isinstance(value, bool) else ""
    raise ConfigError(f"{key}: {value!r} is not accepted; it must be {describe(hint)}{quoted}")


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def describe(hint: Any) -> str:
    """Returns a type in words, e.g. "a whole number or none"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if a is types.NoneType else describe(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin is dict:
        return (
            "a mapping of names to values"
            if dataclasses.is_dataclass(args[1])
            else f"a mapping of names to {'values' if args[1] is Any else describe(args[1])}"
        )
    if origin in (list, tuple):
        return f"a list of {describe(args[0])}"
    return _WORDS.get(hint, "a mapping of keys to values")
