"""One typed tree of settings for a job, from defaults, a YAML file and the command line, in that order."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeVar

import yaml

from raybal.balancing.base import METHODS, BalancingSettings
from raybal.balancing.mlb import MLBSettings
from raybal.data.layouts.base import LAYOUTS, LayoutSettings
from raybal.errors import ConfigError, did_you_mean
from raybal.labelling.base import LabellingSettings
from raybal.models.classifier import ModelSettings
from raybal.querying.base import STRATEGIES, QuerySettings
from raybal.querying.bmmal import BMMALSettings
from raybal.registry import Registry
from raybal.resources import ResourceSettings
from raybal.settings import Settings, describe, from_plain, setting
from raybal.store import Store, yaml_problem
from raybal.training.settings import TrainSettings

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class LoopConfig(Settings):
    """Active learning: rounds of scoring, selecting, asking, training and evaluating until the label budget is spent.

    Keys marked * may change when a store is continued; all others define the experiment.
    """

    pool: str = setting(
        "demo", defines=False, help="prepared pool, a folder or URI; demo: the built-in pool of spoken moving digits"
    )
    store: str = setting("runs/demo", defines=False, help="folder or URI that keeps everything of the experiment")
    seed: int = setting(0, ge=0, help="of everything random")
    label_budget: int = setting(300, ge=1, defines=False, help="items asked for in all; may grow when continued")
    model: ModelSettings = setting(factory=ModelSettings, help="the model")
    balancing: BalancingSettings = setting(factory=MLBSettings, help="what keeps the modalities balanced")
    train: TrainSettings = setting(factory=TrainSettings, help="how a model is trained in each round")
    query: QuerySettings = setting(factory=lambda: BMMALSettings(strategy="bmmal"), help="what chooses the next items")
    labelling: LabellingSettings = setting(factory=LabellingSettings, help="where labels come from")
    resources: ResourceSettings = setting(factory=ResourceSettings, help="what may be used of the cluster")


def parse(cls: type[S], arguments: Sequence[str] | None = None) -> S:
    """Reads a job's settings from its command line.

    Every key is an option by its dotted name (`--train.epochs 20`; hyphens and underscores are the same), and
    `--config FILE` reads a YAML file first; it may be given several times, the later one wins.

    Raises:
        ConfigError: a key or value that is not accepted.
    """
    parser = _Parser(description=cls.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML file of settings")
    listed = sys.argv[1:] if arguments is None else list(arguments)
    keys = _add_options(parser, cls, listed)
    known, unknown = parser.parse_known_args([_flag(a[2:]) if a.startswith("--") else a for a in listed])
    for argument in unknown:
        name = argument.split("=")[0]
        raise ConfigError(
            f"{argument}: there is no such option{did_you_mean(name, ['--' + k for k in keys])}; see --help"
        )
    content = _names(cls)
    for file in known.config:
        _merge(content, read_yaml(file))
    given: dict[str, Any] = {}
    for key, text in vars(known).items():
        if key != "config":
            _put(given, key, _value(text, keys[key], key))
    _merge(content, given)
    return from_plain(cls, content)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


class _Loader(yaml.SafeLoader):
    """Plain values are true, false, null, whole numbers without leading zeros, or text (yes, no, 010, 1.10), which
    settings read as what they expect; and no key is there twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"null|Null|NULL|~|", ("n", "N", "~", "")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def read_yaml(file: str) -> dict[str, Any]:
    """Reads a YAML file of settings (a path or a URI).

    Raises:
        ConfigError: it is not YAML, or does not hold keys and values.
    """
    text = Store(file).read_bytes("")
    try:
        content = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not readable YAML: {yaml_problem(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold keys and values, and holds {type(content).__name__}")
    return content


def defining(settings: Settings) -> dict[str, Any]:
    """Returns the keys that define an experiment and their values, flat: {"train.epochs": 30, ...}."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not field.metadata.get("defines", True):
            continue
        if isinstance(value, Settings):
            found |= {f"{field.name}.{key}": v for key, v in defining(value).items()}
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                keys = defining(inner) if isinstance(inner, Settings) else {"": inner}
                found |= {f"{field.name}.{name}.{key}".rstrip("."): v for key, v in keys.items()}
        else:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def _flag(key: str) -> str:
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


def _add_options(parser: argparse.ArgumentParser, cls: type[Settings], arguments: Sequence[str]) -> dict[str, Any]:
    """Adds one option a key, in a group a section; returns the type of each key."""
    options = _options(cls, "", "main settings", arguments)
    groups: dict[str, Any] = {}
    for key, option in options.items():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        groups[option.group].add_argument(
            _flag(key),
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
    family = _FAMILIES.get(cls)
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
            for name in ["NAME", *_names_below(key, arguments)]:
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
    if section not in _FAMILIES:
        return own
    chooser, registry = _FAMILIES[section]
    for name in registry.names():
        variant = registry.get(name).Settings
        for inner, option in _options(variant, f"{key}.", f"{title}, by {chooser}", arguments).items():
            if inner not in found:
                own.setdefault(inner, option).variants[name] = option
    return own


# Sections whose class a name chooses: the key of the name, and the classes.
_FAMILIES: dict[type[Settings], tuple[str, Registry[Any]]] = {
    BalancingSettings: ("method", METHODS),
    QuerySettings: ("strategy", STRATEGIES),
    LayoutSettings: ("name", LAYOUTS),
}


def _names_below(key: str, arguments: Sequence[str]) -> list[str]:
    """The names that arguments such as --model.encoders.audio.dim use below a key."""
    prefixes = (f"--{key}.", f"--{key.replace('_', '-')}.")
    found = [a[len(p) :].split(".")[0] for a in arguments for p in prefixes if a.startswith(p)]
    return [name for name in dict.fromkeys(found) if name not in ("", "NAME")]


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
        default = _shown(_names(cls).get(key.split(".")[0], {}).get(field.name, dataclasses.MISSING))
    return (text if default is None else f"{text} (default: {default})").replace("%", "%%")


def _shown(default: Any) -> str | None:
    if default is dataclasses.MISSING:
        return None
    if default is None:
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _value(text: str, hint: Any, key: str) -> Any:
    if describe(hint) in ("text", "text or none"):
        return None if text == "none" and describe(hint) != "text" else text
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is not accepted; it must be {describe(hint)}") from error
    if value == "none":
        return None
    if typing.get_origin(hint) is list or "a list" in describe(hint):
        return value if isinstance(value, list) else [part.strip() for part in text.split(",")]
    return value


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    content[name] = value


def _merge(content: dict[str, Any], more: Mapping[str, Any], where: str = "") -> None:
    """Merges settings into others, later ones winning. Naming another method, strategy or layout leaves the options of
    the one before behind, since they mean something else or nothing to it; what all of them have stays."""
    for key, value in more.items():
        old = content.get(key)
        if old is None or (not isinstance(old, dict) and not isinstance(value, Mapping)):
            content[key] = dict(value) if isinstance(value, Mapping) else value
            continue
        if value is None:
            # A section without a line below it.
            continue
        for side in (old, value):
            if not isinstance(side, Mapping):
                raise ConfigError(f"{where}{key}: {side!r} is not accepted; it must be a mapping of keys to values")
        for base, (name, _) in _FAMILIES.items():
            if isinstance(value.get(name), str) and isinstance(old.get(name), str) and value[name] != old[name]:
                shared = {field.name for field in dataclasses.fields(base)}
                for option in set(old) - shared:
                    del old[option]
        _merge(old, value, f"{where}{key}.")


def _names(cls: type[Settings]) -> dict[str, Any]:
    """Returns the default method, strategy and layout, so that their options can be given without naming them."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
            for base, (name, _) in _FAMILIES.items():
                if isinstance(default, base):
                    found[field.name] = {name: getattr(default, name)}
    return found
