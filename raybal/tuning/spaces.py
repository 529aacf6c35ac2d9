"""What a sweep may change, and in what range.

A dimension is one number or choice, under the dotted key of a row's settings (`balancing.alpha`, `train.learning_rate`,
one number of a list as `balancing.pace.strengths[2]`). Ranges are declared where the settings are; a user narrows,
fixes or adds some.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raybal.balancing.base import BalancingSettings
from raybal.errors import ConfigError, did_you_mean
from raybal.models.fusion import FUSIONS
from raybal.settings import Settings, setting

#: Values by key: those of searched keys, or of settings.
Values = dict[str, Any]
GROUPS = ("method", "pace", "paces", "learning_rate", "weight_decay", "fusion")
#: What paces of all kinds have.
OF_ALL_KINDS = ("phase_out", "phase_out_steps")
#: Progress at which the strengths of a searched pace of knots are.
KNOTS = (0.0, 1 / 3, 2 / 3, 1.0)


@dataclass(frozen=True)
class Dimension(Settings):
    """One number or choice of a sweep."""

    kind: Literal["loguniform", "uniform", "int", "choice"] = setting("choice", help="how it is drawn")
    low: float | None = setting(None, help="smallest value; kinds loguniform, uniform, int")
    high: float | None = setting(None, help="largest value")
    values: list[Any] = setting(factory=list, help="what is chosen from; a single one fixes the key")
    when: dict[str, list[Any]] = setting(factory=dict, help="looked at only where other keys have one of these values")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "choice":
            if not self.values:
                raise ConfigError("values: kind choice needs at least one")
            if (self.low, self.high) != (None, None):
                raise ConfigError("low, high: kind choice has values; give kind uniform, loguniform or int")
            return
        if self.values:
            raise ConfigError(f"values: {self.values} is for kind choice, and kind is {self.kind}")
        if self.low is None or self.high is None or not self.low <= self.high:
            raise ConfigError(f"low, high: {self.low} and {self.high} are not accepted; give both, low first")
        if self.kind == "loguniform" and self.low <= 0:
            raise ConfigError(f"low: {self.low} is not accepted; kind loguniform needs one above 0")

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value; of a kind that has them."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    @property
    def largest(self) -> Any:
        """The largest value."""
        return max(self.values) if self.kind == "choice" else self.bounds[1]

    def takes(self, value: Any) -> bool:
        """Returns whether a value lies in the range."""
        if self.kind == "choice":
            return value in self.values
        low, high = self.bounds
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


Space = dict[str, Dimension]

_RAMPS, _SPANS = ["linear", "cosine"], ["linear", "cosine", "window"]
SHARED: dict[str, Space] = {
    "learning_rate": {"train.learning_rate": Dimension("loguniform", 1e-5, 1e-2)},
    "weight_decay": {"train.weight_decay": Dimension("loguniform", 1e-6, 1e-2)},
    "fusion": {"model.fusion": Dimension("choice", values=list(FUSIONS))},
}


def pace_space(key: str) -> Space:
    """Returns the dimensions of the pace under a key. Everything begins in the first 30 % of a run, so that what ends
    early has been seen at work."""
    kind = f"{key}.kind"
    space = {
        kind: Dimension("choice", values=["constant", "window", "linear", "cosine", "knots"]),
        f"{key}.start": Dimension("uniform", 0.0, 0.3, when={kind: _SPANS}),
        f"{key}.end": Dimension("uniform", 0.5, 1.0, when={kind: _SPANS}),
        f"{key}.initial": Dimension("uniform", 0.0, 1.0, when={kind: _RAMPS}),
        f"{key}.final": Dimension("uniform", 0.0, 1.0, when={kind: [*_RAMPS, "constant"]}),
    }
    for i in range(len(KNOTS)):
        space[f"{key}.strengths[{i}]"] = Dimension("uniform", 0.0, 1.0, when={kind: ["knots"]})
    return space


def space_of(
    settings: BalancingSettings,
    groups: Sequence[str],
    given: Mapping[str, Dimension],
    epochs: int,
    modalities: Sequence[str] = (),
) -> Space:
    """Returns the dimensions of a row, conditions first.

    Args:
        settings: of the row, for the ranges that its method declares.
        groups: which of `GROUPS` are searched.
        given: a user's own dimensions by key, in place of those declared, or beside them.
        epochs: of a training run.
        modalities: that have paces of their own, if these are searched.

    Raises:
        ConfigError: a condition on a key that is not searched, or conditions that go round in a circle.
    """
    space: Space = {}
    if "method" in groups:
        space |= declared(settings, epochs, given)
    fields = {f.name for f in dataclasses.fields(settings)}
    if "pace" in groups and "pace" in fields:
        space |= pace_space("balancing.pace")
    if "paces" in groups and "paces" in fields:
        for m in modalities:
            space |= pace_space(f"balancing.paces.{m}")
    for group, dimensions in SHARED.items():
        if group in groups:
            space |= dimensions
    return with_given(space, given)


def declared(settings: BalancingSettings, epochs: int, given: Mapping[str, Dimension]) -> Space:
    """Returns the dimensions that a method declares.

    Args:
        settings: of the method.
        epochs: of a training run.
        given: a user's own dimensions by key, which may change what others are of use.
    """
    own = {k.removeprefix("balancing."): dataclasses.asdict(d) for k, d in given.items() if k.startswith("balancing.")}
    return {f"balancing.{key}": Dimension(**found) for key, found in settings.search_space(epochs, own).items()}


def with_given(space: Space, given: Mapping[str, Dimension]) -> Space:
    """Returns a space with a user's dimensions in place of others, under the same conditions where they name none, or
    beside them; conditions first.

    Raises:
        ConfigError: a condition on a key that is not searched, or conditions that go round in a circle.
    """
    space = dict(space)
    for key, dimension in given.items():
        when = dimension.when or (space[key].when if key in space else {})
        space[key] = dataclasses.replace(dimension, when=when)
    for key, dimension in space.items():
        for other in dimension.when:
            if other not in space:
                raise ConfigError(
                    f"space.{key}.when: {other} is not searched; searched are {', '.join(space)}"
                    f"{did_you_mean(other, space)}"
                )
    ordered: Space = {}
    left = dict(space)
    while left:
        ready = [key for key, d in left.items() if all(other in ordered for other in d.when)]
        if not ready:
            raise ConfigError(f"space: the conditions of {', '.join(left)} go round in a circle")
        for key in ready:
            ordered[key] = left.pop(key)
    return ordered


def draw(space: Space, ask: Callable[[str, Dimension], Any]) -> Values:
    """Returns a value of each dimension whose conditions hold.

    Args:
        space: dimensions, conditions first.
        ask: returns a value.
    """
    values: Values = {}
    for key, dimension in space.items():
        if all(values.get(other) in accepted for other, accepted in dimension.when.items()):
            values[key] = ask(key, dimension)
    return values


def samples(space: Space) -> Iterator[Values]:
    """Yields values of a space: the first and the last of every dimension, and every choice with the first of
    others."""

    def end(dimension: Dimension, last: bool) -> Any:
        if dimension.kind == "choice":
            return dimension.values[-1 if last else 0]
        return (int if dimension.kind == "int" else float)(dimension.bounds[last])

    yield draw(space, lambda _, dimension: end(dimension, False))
    yield draw(space, lambda _, dimension: end(dimension, True))
    for key, dimension in space.items():
        for value in dimension.values:
            fixed = {key: value}
            yield draw(space, lambda k, d, fixed=fixed: fixed.get(k, end(d, False)))  # type: ignore[misc]


def tops(space: Space) -> Iterator[Values]:
    """Yields values of a space with every number at its largest: every choice of words with the first of others."""
    choices = [(key, value) for key, dimension in space.items() for value in dimension.values]
    for chosen in choices or [("", None)]:

        def top(key: str, dimension: Dimension, chosen: tuple[str, Any] = chosen) -> Any:
            if dimension.kind != "choice":
                return (int if dimension.kind == "int" else float)(dimension.bounds[1])
            if key == chosen[0]:
                return chosen[1]
            numbers = all(isinstance(value, (int, float)) for value in dimension.values)
            return max(dimension.values) if numbers else dimension.values[0]

        yield draw(space, top)


def corners(space: Space) -> Iterator[Values]:
    """Yields values of a space with which settings may not fit together: every choice with the first of others, and
    with every number at its upper end."""
    numbers = [key for key, dimension in space.items() if dimension.kind != "choice"]
    choices = [(key, value) for key, dimension in space.items() for value in dimension.values]
    for chosen in choices or [("", None)]:
        for number in numbers:

            def end(key: str, dimension: Dimension, chosen: tuple[str, Any] = chosen, number: str = number) -> Any:
                if dimension.kind == "choice":
                    return chosen[1] if key == chosen[0] else dimension.values[0]
                return (int if dimension.kind == "int" else float)(dimension.bounds[key == number])

            yield draw(space, end)


def settings_from(values: Mapping[str, Any], kind: type[BalancingSettings]) -> dict[str, Any]:
    """Returns values of searched keys as plain settings by section: {"balancing": {...}, "train": {...}, ...}.

    Args:
        values: by dotted key.
        kind: the settings of the row's method.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        match = re.fullmatch(r"(\w+)\[(\d+)\]", name)
        if match:
            row = place.setdefault(match[1], [])
            row += [None] * (int(match[2]) + 1 - len(row))
            row[int(match[2])] = value
        else:
            place[name] = value
    if own := nested.get("balancing"):
        for pace in (own.get("pace", {}), *own.get("paces", {}).values()):
            if pace.get("kind") == "knots":
                pace.setdefault("knots", list(KNOTS[: len(pace["strengths"])]))
        nested["balancing"] = kind.from_search(own)
    return nested


def same(one: Any, other: Any) -> bool:
    """Returns whether plain settings are equal, numbers to their last digits."""
    a, b = flat(one), flat(other)
    return a.keys() == b.keys() and all(
        math.isclose(a[k], b[k], rel_tol=1e-9) if isinstance(a[k], float) and isinstance(b[k], float) else a[k] == b[k]
        for k in a
    )


def values_in(space: Space, settings: Mapping[str, Any], kind: type[BalancingSettings]) -> Values | None:
    """Returns where settings lie in a space; None if they do not.

    Args:
        space: conditions first.
        settings: plain settings by section.
        kind: the settings of the row's method.
    """
    found = flat({**settings, "balancing": kind.to_search(settings["balancing"])})
    if any(key not in found for key in space if not space[key].when):
        return None
    values = draw(space, lambda key, dimension: found.get(key))
    return values if all(space[key].takes(value) for key, value in values.items()) else None


def flat(content: Any, key: str = "") -> Values:
    """Returns plain settings by dotted key; of a list also each value by its place."""
    if isinstance(content, Mapping) and content:
        return {k: v for name, own in content.items() for k, v in flat(own, f"{key}.{name}" if key else name).items()}
    if isinstance(content, list):
        return {f"{key}[{i}]": value for i, value in enumerate(content)} | {key: content}
    return {key: content}


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns plain settings with others in their place, section by section; of a section that says its kind only what
    all kinds have is kept."""
    found = dict(base)
    for key, value in own.items():
        inner = found.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            if "kind" in value:
                inner = {name: inner[name] for name in OF_ALL_KINDS if name in inner}
            value = merged(inner, value)
        found[key] = value
    return found
