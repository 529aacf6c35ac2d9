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

from raybal.balancing.base import BalancingSettings
from raybal.balancing.mlb import MLBSettings
from raybal.costs import CostSettings
from raybal.errors import ConfigError, did_you_mean
from raybal.labelling.base import LabellingSettings
from raybal.models.classifier import ModelSettings
from raybal.options import FAMILIES, add_options, default_names, flag
from raybal.querying.base import QuerySettings
from raybal.querying.bmmal import BMMALSettings
from raybal.resources import ResourceSettings
from raybal.settings import Settings, describe, from_plain, setting
from raybal.stopping import StopSettings
from raybal.store import Store, yaml_problem
from raybal.training.settings import TrainSettings
from raybal.tuning.config import RetuneSettings

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
    label_budget: int = setting(
        300, ge=1, defines=False, help="what may be asked for in all, items or as `cost` says; may grow when continued"
    )
    cost: CostSettings = setting(factory=CostSettings, help="what an item costs of the label budget")
    model: ModelSettings = setting(factory=ModelSettings, help="the model")
    balancing: BalancingSettings = setting(factory=MLBSettings, help="what keeps the modalities balanced")
    train: TrainSettings = setting(factory=TrainSettings, help="how a model is trained in each round")
    query: QuerySettings = setting(factory=lambda: BMMALSettings(strategy="bmmal"), help="what chooses the next items")
    tuning: RetuneSettings = setting(factory=RetuneSettings, help="tuning of the method's settings between rounds")
    stop: StopSettings = setting(factory=StopSettings, help="when to end before the label budget is spent")
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
    keys = add_options(parser, cls, listed)
    known, unknown = parser.parse_known_args([flag(a[2:]) if a.startswith("--") else a for a in listed])
    for argument in unknown:
        name = argument.split("=")[0]
        hint = did_you_mean(name, ["--" + k for k in keys])
        if (wanted := name[2:].replace("-", "_").replace(".", ".NAME.", 1)) in add_options(_Parser(), cls, []):
            hint = f"; settings of a row have its name before them: {flag(wanted)}"
        raise ConfigError(f"{argument}: there is no such option{hint}; see --help")
    content = default_names(cls)
    for file in known.config:
        _merge(content, read_yaml(file))
    given: dict[str, Any] = {}
    for key, text in vars(known).items():
        if key != "config":
            _put(given, key, _value(text, keys[key], key))
    _merge(content, given)
    settings = from_plain(cls, content)
    settings.check_typed(given)
    return settings


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
        parts = [part.strip() for part in text.split(",")]
        if isinstance(value, list):
            return value
        return parts if "a list of text" in describe(hint) else [yaml.load(part, Loader=_Loader) for part in parts]
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
        for base, (name, _) in FAMILIES.items():
            if isinstance(value.get(name), str) and isinstance(old.get(name), str) and value[name] != old[name]:
                shared = {field.name for field in dataclasses.fields(base)}
                for option in set(old) - shared:
                    del old[option]
        _merge(old, value, f"{where}{key}.")
