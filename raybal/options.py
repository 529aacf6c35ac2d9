"""Settings as options of the command line: one a key, with the help that its field carries."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raybal.balancing.base import METHODS, BalancingSettings
from raybal.data.layouts.base import LAYOUTS, LayoutSettings
from raybal.errors import ConfigError
from raybal.querying.base import STRATEGIES, QuerySettings
from raybal.registry import Registry
from raybal.settings import Settings, describe


def flag(key: str) -> str:
    """Returns the option of a key, with hyphens for underscores (what follows an equals sign stays as it is)."""
    name, mark, value = key.partition("=")
    return f"--{name.replace('_', '-')}{mark}{value}"


@dataclass
class _Option:
    """One key as the command line shows it.

    Attributes:
        field, hint: its field and type.
        group: the title that it stands under.
        names: of all methods there are, for a key that chooses one.
        variants: the option as each method has it, for a key that not all have.
    """

    field: dataclasses.Field[Any]
    hint: Any
    group: str
    names: list[str]
    variants: dict[str, _Option] = dataclasses.field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether what is accepted depends on the method."""
        return len({variant.hint for variant in self.variants.values()}) > 1


def add_options(parser: argparse.ArgumentParser, cls: type[Settings], arguments: Sequence[str]) -> dict[str, Any]:
    """Adds one option a key, in a group a section; returns the type of each key."""
    options = _options(cls, "", "main settings", arguments)
    groups: dict[str, Any] = {}
    for key, option in options.items():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        groups[option.group].add_argument(
            flag(key),
            dest=key,
            default=argparse.SUPPRESS,
            metavar=_metavar(option),
            nargs="?" if option.hint is bool else None,
            const="true" if option.hint is bool else None,
            help=_help(key, option, cls),
        )
    return {key: option.hint for key, option in options.items()}


def _options(cls: type[Settings], prefix: str, group: str, arguments: Sequence[str]) -> dict[str, _Option]:
    """Returns all keys of a class of settings, those of every method and strategy included."""
    found: dict[str, _Option] = {}
    hints = typing.get_type_hints(cls)
    family = FAMILIES.get(cls)
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        title = f"{key}: {field.metadata['help']}"
        if dataclasses.is_dataclass(hint):
            section = typing.cast(type[Settings], hint)
            found |= _options(section, f"{key}.", title, arguments)
            found |= _options_of_variants(section, key, key, arguments, found)
        elif _holds_settings(hint):
            # A section a name, and the names are the user's: those on this command line.
            section = typing.get_args(hint)[1]
            for name in ["NAME", *_names_below(key, section, arguments)]:
                found |= _options(section, f"{key}.{name}.", title, arguments)
                found |= _options_of_variants(section, f"{key}.{name}", f"{key}.NAME", arguments, found)
        else:
            found[key] = _Option(field, hint, group, family[1].names() if family and family[0] == field.name else [])
    return found


def _options_of_variants(
    section: type[Settings], key: str, title: str, arguments: Sequence[str], found: dict[str, _Option]
) -> dict[str, _Option]:
    """Returns the keys that only some methods or strategies of a section have, and which."""
    own: dict[str, _Option] = {}
    if section not in FAMILIES:
        return own
    chooser, registry = FAMILIES[section]
    for name in registry.names():
        variant = registry.get(name).Settings
        for inner, option in _options(variant, f"{key}.", f"{title}, by {chooser}", arguments).items():
            if inner not in found:
                own.setdefault(inner, option).variants[name] = option
    return own


# Sections whose class a name chooses: the key of the name, and the classes.
FAMILIES: dict[type[Settings], tuple[str, Registry[Any]]] = {
    BalancingSettings: ("method", METHODS),
    QuerySettings: ("strategy", STRATEGIES),
    LayoutSettings: ("name", LAYOUTS),
}


def _names_below(key: str, section: type[Settings], arguments: Sequence[str]) -> list[str]:
    """The names that arguments such as --model.encoders.audio.dim use below a key; a method's or strategy's own may be
    typed with hyphens.

    Raises:
        ConfigError: two names differ in hyphens and underscores only, which options do not tell apart.
    """
    prefixes = (f"--{key}.", f"--{key.replace('_', '-')}.")
    typed = [a[len(p) :].split(".")[0] for a in arguments for p in prefixes if a.startswith(p)]
    chooser, known = (FAMILIES[section][0], FAMILIES[section][1].names()) if section in FAMILIES else ("", [])
    if chooser and chooser in typed:
        raise ConfigError(f"{key}.{chooser}: there may be several, each with a name; it is {key}.NAME.{chooser}")
    found = dict.fromkeys(u if (u := name.replace("-", "_")) in known else name for name in typed)
    names = [name for name in found if name not in ("", "NAME")]
    for name in names:
        if any(name != other and flag(name) == flag(other) for other in names):
            raise ConfigError(f"{key}.{name}: another name differs from it in - and _ only; give both in a file")
    return names


def _holds_settings(hint: Any) -> bool:
    return any(dataclasses.is_dataclass(a) for a in typing.get_args(hint))


def _metavar(option: _Option) -> str:
    hint = option.hint
    if option.differs:
        return "VALUE"
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(str(a) for a in typing.get_args(hint))
    return {"a whole number": "N", "a number": "X", "text": "TEXT", "true or false": "true|false"}.get(
        describe(hint).removesuffix(" or none"), "VALUE"
    )


def _help(key: str, option: _Option, cls: type[Settings]) -> str:
    """Says what a key means, which methods have it, and its default."""
    field = option.field
    text = field.metadata["help"]
    if not field.metadata.get("defines", True):
        text = f"* {text}"
    default = _shown(field.default)
    if option.variants:
        defaults = {name: _shown(variant.field.default) for name, variant in option.variants.items()}
        text = f"[{', '.join(defaults)}] {text}"
        if option.differs:
            text = "; ".join(f"[{name}] {variant.field.metadata['help']}" for name, variant in option.variants.items())
        if len(set(defaults.values())) > 1:
            default = ", ".join(f"{value} with {name}" for name, value in defaults.items())
    elif option.names:
        text = f"{text}: {', '.join(option.names)}"
        default = _shown(default_names(cls).get(key.split(".")[0], {}).get(field.name, dataclasses.MISSING))
    return (text if default is None else f"{text} (default: {default})").replace("%", "%%")


def _shown(default: Any) -> str | None:
    if default is dataclasses.MISSING:
        return None
    if default is None:
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def default_names(cls: type[Settings]) -> dict[str, Any]:
    """Returns the default method, strategy and layout, so that their options can be given without naming them."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
            for base, (name, _) in FAMILIES.items():
                if isinstance(default, base):
                    found[field.name] = {name: getattr(default, name)}
    return found
