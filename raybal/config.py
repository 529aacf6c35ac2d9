"""One typed tree of settings for a job, from defaults, a YAML file and the command line, in that order."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from raybal.balancing.base import METHODS, BalancingSettings
from raybal.balancing.mlb import MLBSettings
from raybal.errors import ConfigError, did_you_mean
from raybal.labelling.base import LabellingSettings
from raybal.models.classifier import ModelSettings
from raybal.querying.base import STRATEGIES, QuerySettings
from raybal.querying.bmmal import BMMALSettings
from raybal.resources import ResourceSettings
from raybal.settings import Settings, describe, from_plain, setting
from raybal.store import Store
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


def parse(cls: type[S], arguments: Sequence[str] | None = None, *, epilog: str = "") -> S:
    """Reads a job's settings from its command line.

    Every key is an option by its dotted name (`--train.epochs 20`; hyphens and underscores are the same), and
    `--config FILE` reads a YAML file first; it may be given several times, the later one wins.

    Raises:
        ConfigError: a key or value that is not accepted.
    """
    parser = argparse.ArgumentParser(
        description=cls.__doc__, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML file of settings")
    keys = _add_options(parser, cls)
    known, unknown = parser.parse_known_args(None if arguments is None else list(arguments))
    for argument in unknown:
        name = argument.split("=")[0]
        raise ConfigError(
            f"{argument}: there is no such option{did_you_mean(name, ['--' + k for k in keys])}; see --help"
        )
    content: dict[str, Any] = {}
    for file in known.config:
        _merge(content, read_yaml(file))
    for key, text in vars(known).items():
        if key != "config":
            _put(content, key, _value(text, keys[key], key))
    return from_plain(cls, _named(cls, content))


def read_yaml(file: str) -> dict[str, Any]:
    """Reads a YAML file of settings (a path or a URI).

    Raises:
        ConfigError: it does not hold keys and values.
    """
    content = Store(file).read_yaml("")
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
                found |= {f"{field.name}.{name}.{key}": v for key, v in defining(inner).items()}
        else:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def _add_options(parser: argparse.ArgumentParser, cls: type[Settings]) -> dict[str, Any]:
    """Adds one option a key, in a group a section; returns the type of each key."""
    keys: dict[str, Any] = {}

    def add(group: Any, cls: type[Settings], prefix: str, where: str) -> None:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            key, hint = f"{prefix}{field.name}", hints[field.name]
            if dataclasses.is_dataclass(hint):
                section = typing.cast(type[Settings], hint)
                title = f"{key}: {field.metadata['help']}"
                add(parser.add_argument_group(title), section, f"{key}.", where)
                for name, variant in _variants(section):
                    group_of = parser.add_argument_group(f"{key}, when it is {name}")
                    add(group_of, variant, f"{key}.", name)
            elif key not in keys and not _holds_settings(hint):
                keys[key] = hint
                star = "" if field.metadata.get("defines", True) else "* "
                group.add_argument(
                    *dict.fromkeys((f"--{key.replace('_', '-')}", f"--{key}")),
                    dest=key,
                    default=argparse.SUPPRESS,
                    metavar=_metavar(hint),
                    nargs="?" if hint is bool else None,
                    const="true" if hint is bool else None,
                    help=_help(field, hint, star),
                )

    add(parser.add_argument_group("main settings"), cls, "", "")
    return keys


def _variants(section: type[Settings]) -> list[tuple[str, type[Settings]]]:
    """The settings of each method or strategy, where a section has them."""
    if section is BalancingSettings:
        return [(name, METHODS.get(name).Settings) for name in METHODS.names()]
    if section is QuerySettings:
        return [(name, STRATEGIES.get(name).Settings) for name in STRATEGIES.names()]
    return []


def _holds_settings(hint: Any) -> bool:
    return any(dataclasses.is_dataclass(a) for a in typing.get_args(hint))


def _metavar(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(str(a) for a in typing.get_args(hint))
    return {"a whole number": "N", "a number": "X", "text": "TEXT", "true or false": "true|false"}.get(
        describe(hint).removesuffix(" or none"), "VALUE"
    )


def _help(field: dataclasses.Field[Any], hint: Any, star: str) -> str:
    default = field.default
    if default is dataclasses.MISSING:
        names = {"method": METHODS.names, "strategy": STRATEGIES.names}.get(field.name)
        return f"{star}{field.metadata['help']}" + (f": {', '.join(names())}" if names else "")
    shown = "none" if default is None else str(default).lower() if isinstance(default, bool) else default
    return f"{star}{field.metadata['help']} (default: {shown})".replace("%", "%%")


def _value(text: str, hint: Any, key: str) -> Any:
    if describe(hint) in ("text", "text or none"):
        return None if text == "none" and describe(hint) != "text" else text
    try:
        value = yaml.safe_load(text)
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


def _merge(content: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Merges settings into others. A section that names another method or strategy replaces the whole section, since
    the options of one do not fit another."""
    for key, value in more.items():
        old = content.get(key)
        named = isinstance(value, Mapping) and any(n in value for n in ("method", "strategy"))
        if isinstance(value, Mapping) and isinstance(old, dict) and not named:
            _merge(old, value)
        else:
            content[key] = dict(value) if isinstance(value, Mapping) else value


def _named(cls: type[Settings], content: dict[str, Any]) -> dict[str, Any]:
    """Fills in the default method and strategy, so that their options can be given without naming them."""
    filled = dict(content)
    for field in dataclasses.fields(cls):
        if field.default_factory is dataclasses.MISSING or field.name not in filled:
            continue
        default = field.default_factory()
        for name in ("method", "strategy"):
            if hasattr(default, name) and isinstance(filled[field.name], Mapping):
                filled[field.name] = {name: getattr(default, name), **filled[field.name]}
    return filled
