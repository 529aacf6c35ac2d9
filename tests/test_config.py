"""The tree of settings from defaults, files and the command line."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest
import yaml

from raybal.balancing.base import METHODS
from raybal.balancing.mlb import MLBSettings
from raybal.balancing.ogm import OGMSettings
from raybal.config import LoopConfig, defining, parse, read_yaml
from raybal.errors import ConfigError, RaybalError, StoreError
from raybal.models.encoders import EncoderSettings
from raybal.querying.base import STRATEGIES, QuerySettings
from raybal.querying.bmmal import BMMALSettings
from raybal.settings import Settings

CONFIGS = sorted((Path(__file__).parents[1] / "jobs/configs").rglob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file; returns the arguments that read it."""

    def write(content: str | dict) -> list[str]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return ["--config", str(path)]

    return write


def read(*arguments: str) -> LoopConfig:
    return parse(LoopConfig, arguments)


def keys_of(cls: type[Settings], prefix: str = "") -> list[str]:
    """All keys that hold a value, dotted."""
    keys = []
    for field in dataclasses.fields(cls):
        hint = typing.get_type_hints(cls)[field.name]
        if dataclasses.is_dataclass(hint):
            keys += keys_of(typing.cast(type[Settings], hint), f"{prefix}{field.name}.")
        elif not any(dataclasses.is_dataclass(a) for a in typing.get_args(hint)):
            keys.append(prefix + field.name)
    return keys


def test_without_arguments_everything_is_its_default():
    assert read() == LoopConfig()


def test_every_key_is_an_option_with_hyphens_or_underscores():
    plain = {int: "7", float: "0.125", str: "text", bool: "true", list[str]: "a,b", dict[str, typing.Any]: "{}"}
    given = {}
    for key in keys_of(LoopConfig):
        *sections, name = key.split(".")
        cls: typing.Any = LoopConfig
        for section in sections:
            cls = typing.get_type_hints(cls)[section]
        hint = typing.get_type_hints(cls)[name]
        kinds = [a for a in typing.get_args(hint) if a is not type(None)]
        if typing.get_origin(hint) is typing.Literal:
            given[key] = kinds[-1]
        else:
            given[key] = plain[kinds[0] if kinds and hint not in plain else hint]
    given |= {"balancing.method": "ogm", "query.strategy": "margin", "tuning.search": "method,pace"}
    configs = [
        read(*(f"--{key}={text}" for key, text in given.items())),
        read(*(part for key, text in given.items() for part in (f"--{key.replace('_', '-')}", text))),
    ]
    assert configs[0] == configs[1]
    for key, text in given.items():
        value: typing.Any = configs[0]
        for part in key.split("."):
            value = getattr(value, part)
        assert (",".join(value) if isinstance(value, list) else str(value).lower()) == text, key


@pytest.mark.parametrize("arguments", [["--train.num-workers", "2"], ["--train.num_workers=2"]])
def test_hyphens_and_underscores_are_the_same(arguments):
    assert read(*arguments).train.num_workers == 2


def test_a_switch_needs_no_value():
    assert read("--labelling.accept-partial").labelling.accept_partial is True
    assert read("--labelling.accept-partial", "false").labelling.accept_partial is False
    config = read("--labelling.accept-partial", "--train.epochs", "3")
    assert (config.labelling.accept_partial, config.train.epochs) == (True, 3)


def test_numbers_in_yaml_and_on_the_command_line(write):
    assert read(*write("train: {learning_rate: 1e-3, weight_decay: 2E-4}")).train.learning_rate == 1e-3
    assert read("--train.learning-rate", "3e-4").train.learning_rate == 3e-4
    for arguments in (write("train: {epochs: 1e3}"), ["--train.epochs", "1e3"]):
        with pytest.raises(ConfigError, match=r"train\.epochs: '1e3' is not accepted; it must be a whole number"):
            read(*arguments)


def test_none_on_the_command_line_takes_a_value_back(write):
    arguments = write({"train": {"clip_norm": 3.0}, "model": {"encoder": {"weights": "w.pt"}}})
    config = read(*arguments, "--train.clip-norm", "none", "--model.encoder.weights", "none")
    assert config.train.clip_norm is None
    assert config.model.encoder.weights is None


@pytest.mark.parametrize("text", ["cat,dog", "cat, dog", "[cat, dog]"])
def test_lists_on_the_command_line(text):
    assert read("--labelling.classes", text).labelling.classes == ["cat", "dog"]


def test_class_names_on_the_command_line_stay_text():
    assert read("--labelling.classes", "007,010,1e3,yes,no").labelling.classes == ["007", "010", "1e3", "yes", "no"]


def test_text_on_the_command_line_is_not_read_as_anything_else():
    config = read("--store", "2024-01-01", "--pool", "1e3")
    assert (config.store, config.pool) == ("2024-01-01", "1e3")


def test_later_files_win_and_the_command_line_wins_over_files(write):
    first = write({"seed": 1, "train": {"epochs": 4, "batch_size": 8}, "label_budget": 10})
    second = write({"seed": 2, "train": {"epochs": 5}})
    config = read("--train.batch-size", "16", *first, *second)
    assert (config.seed, config.train.epochs, config.train.batch_size, config.label_budget) == (2, 5, 16, 10)
    assert read(*second, *first).seed == 1
    assert read("--seed", "9", *first).seed == read(*first, "--seed", "9").seed == 9


def test_an_empty_file_changes_nothing(write):
    assert read(*write("")) == read(*write("# nothing\n")) == LoopConfig()


def test_encoders_of_single_modalities(write):
    first = write({"model": {"encoders": {"audio": {"dim": 8}}}})
    second = write({"model": {"encoders": {"audio": {"width": 4}, "video": {"name": "resnet18"}}}})
    config = read(*first, *second)
    assert config.model.encoders == {
        "audio": EncoderSettings(dim=8, width=4),
        "video": EncoderSettings(name="resnet18"),
    }
    with pytest.raises(ConfigError, match=r"^model\.encoders\.audio\.dim: 0 .*at least 1"):
        read(*write({"model": {"encoders": {"audio": {"dim": 0}}}}))
    with pytest.raises(ConfigError, match=r"^model\.encoders\.audio\.dimm: .*did you mean 'dim'\?"):
        read(*write({"model": {"encoders": {"audio": {"dimm": 3}}}}))


def test_options_of_the_default_method_need_no_name(write):
    assert read("--balancing.alpha", "2").balancing == MLBSettings(alpha=2.0)
    assert read("--query.modulate", "both").query == BMMALSettings(strategy="bmmal", modulate="both")
    assert read(*write({"query": {"size": 7}})).query == BMMALSettings(strategy="bmmal", size=7)


@pytest.mark.parametrize("name", METHODS.names())
def test_each_method_by_name(name):
    balancing = read("--balancing.method", name).balancing
    assert type(balancing) is METHODS.get(name).Settings
    assert balancing.method == name


def test_only_methods_that_act_over_time_have_a_pace():
    assert read("--balancing.method", "ogm", "--balancing.pace.kind", "linear").balancing.pace.kind == "linear"
    for method, keys in (("joint", "method"), ("multi_loss", "method, unimodal_weight")):
        with pytest.raises(ConfigError, match=rf"^balancing\.pace: there is no such key; balancing has {keys}$"):
            read("--balancing.method", method, "--balancing.pace.kind", "linear")


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_each_strategy_by_name(name):
    query = read("--query.strategy", name, "--query.size", "5").query
    assert type(query) is STRATEGIES.get(name).Settings
    assert (query.strategy, query.size) == (name, 5)


def test_a_method_keeps_its_own_defaults():
    assert read("--balancing.method", "ogm").balancing == OGMSettings()
    assert OGMSettings().alpha != MLBSettings().alpha


def test_naming_another_method_in_a_file_replaces_the_section(write):
    mlb = write({"balancing": {"method": "mlb", "beta_max": 5.0}, "query": {"strategy": "bmmal", "modulate": "both"}})
    other = write({"balancing": {"method": "joint"}, "query": {"strategy": "random", "size": 4}})
    config = read(*mlb, *other)
    assert config.balancing == METHODS.get("joint").Settings(method="joint")
    assert config.query == QuerySettings(strategy="random", size=4)
    assert read(*other, *mlb).balancing == MLBSettings(beta_max=5.0)


def test_naming_the_same_method_in_a_later_file_keeps_its_options(write):
    first = write({"balancing": {"method": "mlb", "beta_max": 5.0}})
    second = write({"balancing": {"method": "mlb", "alpha": 3.0}})
    assert read(*first, *second).balancing == MLBSettings(alpha=3.0, beta_max=5.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--balancing.method", "mlbb"],
            ["'mlbb'", f"one of {', '.join(METHODS.names())} (did you mean 'mlb'?)"],
        ),
        (["--query.strategy", "bagde"], ["'bagde'", "badge, bald, bmmal, by_modality, ", "did you mean 'badge'?"]),
        (["--balancing.method", "joint", "--balancing.alpha", "2"], ["balancing.alpha:", "balancing has method"]),
        (["--query.strategy", "random", "--query.modulate", "weak"], ["query.modulate:", "query has strategy, size"]),
        (["--balancing.alpa", "2"], ["--balancing.alpa:", "no such option", "did you mean '--balancing.alpha'?"]),
        (["--train.epoch=2"], ["--train.epoch=2:", "no such option", "did you mean '--train.epochs'?"]),
        (["--train.optimiser", "sgd"], ["--train.optimiser:", "did you mean '--train.optimizer'?"]),
        (["train.epochs", "3"], ["train.epochs:", "no such option"]),
        (["--train.epochs", "0"], ["train.epochs: 0 ", "at least 1"]),
        (["--train.epochs", "many"], ["train.epochs: 'many' ", "a whole number"]),
        (["--train.momentum", "1"], ["train.momentum: 1.0 ", "less than 1"]),
        (["--train.optimizer", "adamm"], ["train.optimizer: 'adamm' ", "adam, adamw, sgd", "did you mean 'adam'?"]),
        (["--train.optimizer", "none"], ["train.optimizer: None ", "adam, adamw, sgd"]),
        (["--balancing.pace.start", "0.9", "--balancing.pace.end", "0.1"], ["balancing.pace.end: 0.1 ", "start (0.9)"]),
        (["--labelling.accept-partial", "maybe"], ["labelling.accept_partial: 'maybe' ", "true or false"]),
        (["--seed", "-1"], ["seed: -1 ", "at least 0"]),
        (["--labelling.classes", "[a"], ["labelling.classes: '[a' ", "a list of text or none"]),
    ],
)
def test_what_the_command_line_does_not_accept(arguments, says):
    with pytest.raises(ConfigError) as error:
        read(*arguments)
    for part in says:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"trian": {}}, ["trian:", "the configuration has pool, store", "did you mean 'train'?"]),
        ({"train": {"epoch": 3}}, ["train.epoch:", "did you mean 'epochs'?"]),
        ({"train": 5}, ["train: 5 ", "a mapping of keys to values"]),
        ({"seed": True}, ["seed: True ", "a whole number"]),
        ({"train": {"device": None}}, ["train.device: None ", "auto, cpu, cuda"]),
        ({"balancing": {"method": "joint", "alpha": 1}}, ["balancing.alpha:"]),
    ],
)
def test_what_a_file_does_not_accept(write, content, says):
    with pytest.raises(ConfigError) as error:
        read(*write(content))
    for part in says:
        assert part in str(error.value)


@pytest.mark.parametrize("value", ["mlbb", ["mlb"], None])
def test_a_method_that_does_not_exist_is_reported_under_its_key(write, value):
    with pytest.raises(ConfigError, match=rf"^balancing\.method: {re.escape(repr(value))} "):
        read(*write({"balancing": {"method": value}}))


def test_an_option_of_a_section_that_is_no_mapping(write):
    with pytest.raises(ConfigError, match=r"^train: 5 .*a mapping"):
        read(*write("train: 5\n"), "--train.epochs", "3")


def test_files_that_are_no_settings(write, tmp_path):
    with pytest.raises(ConfigError, match="must hold keys and values, and holds list"):
        read(*write("- a\n"))
    with pytest.raises(ConfigError, match=r"is not readable YAML: .* in line 2, column 1$"):
        read(*write("seed: [\n"))
    with pytest.raises(ConfigError, match=r"key 'train' is there twice in line 3, column 1$"):
        read(*write("train: {epochs: 3}\nseed: 1\ntrain: {batch_size: 4}\n"))
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "absent.yaml"))):
        read("--config", str(tmp_path / "absent.yaml"))


def test_a_file_is_found_by_any_kind_of_path(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("seed: 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("a.yaml", "./a.yaml", "~/a.yaml", str(tmp_path / "a.yaml"), (tmp_path / "a.yaml").as_uri()):
        assert read_yaml(place) == {"seed": 5}
    # Not below the current folder.
    with pytest.raises(StoreError, match=r"cannot read /a\.yaml"):
        read_yaml("/a.yaml")


def test_plain_values_are_what_they_look_like(write):
    """YAML 1.1 reads yes and 010 as true and 8."""
    config = read(*write("labelling: {classes: [yes, no, 010, 1, '2', 1.10]}\ntrain: {learning_rate: 1e-3}\nquery:\n"))
    assert config.labelling.classes == ["yes", "no", "010", "1", "2", "1.10"]
    assert config.train.learning_rate == 1e-3
    assert config.query == LoopConfig().query
    with pytest.raises(ConfigError, match=r"labelling\.classes\[0\]: True .* put it in quotes"):
        read(*write("labelling: {classes: [true, false]}\n"))
    assert read("--labelling.classes", "01,2,no").labelling.classes == ["01", "2", "no"]


def test_an_option_without_its_value_is_one_line():
    with pytest.raises(ConfigError, match=r"^argument --label-budget: expected one argument; see --help$"):
        read("--label-budget")


def test_what_defines_an_experiment():
    config = LoopConfig()
    found = defining(config)
    leaves_out = {"pool", "store", "label_budget", "train.num_workers", "train.device", "labelling.sheet", "cost.file"}
    assert not leaves_out & set(found)
    assert not any(key.startswith("resources") for key in found)
    wanted = set(keys_of(LoopConfig)) | {f"balancing.{key}" for key in keys_of(MLBSettings)}
    wanted |= {"query.proposals", "query.modulate", "query.seeding", "query.from_labelled"}
    wanted -= leaves_out | {"labelling.accept_partial"} | {k for k in wanted if k.startswith(("resources.", "stop."))}
    # A mapping does by its entries.
    assert set(found) == wanted - {"tuning.space"}
    space = {"train.weight_decay": {"kind": "uniform", "low": 0, "high": 1}}
    entries = defining(read("--tuning.space", str(space))).keys() - found.keys()
    assert entries == {"tuning.space.train.weight_decay"}
    assert found["train.epochs"] == config.train.epochs
    # It is kept as YAML and compared with what comes back.
    assert yaml.safe_load(yaml.safe_dump(found)) == found


def test_encoders_of_single_modalities_define_an_experiment(write):
    found = defining(read(*write({"model": {"encoders": {"audio": {"dim": 8}}}})))
    assert found["model.encoders.audio.dim"] == 8
    assert found.keys() - defining(LoopConfig()).keys() == {
        f"model.encoders.audio.{field.name}" for field in dataclasses.fields(EncoderSettings)
    }


@pytest.mark.parametrize("arguments", [["--resources.max-failures", "9"], ["--train.device", "cpu"], ["--store", "s"]])
def test_what_may_change_when_a_store_is_continued(arguments):
    assert read(*arguments) != LoopConfig()
    assert defining(read(*arguments)) == defining(LoopConfig())


@pytest.mark.parametrize("arguments", [["--train.epochs", "9"], ["--balancing.alpha", "9"], ["--query.size", "9"]])
def test_what_may_not_change_when_a_store_is_continued(arguments):
    assert defining(read(*arguments)) != defining(LoopConfig())


def test_help_says_what_a_key_means_to_each_method_where_that_differs(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--balancing\.initial VALUE \[mslr\] such factors .*; \[multimodal_loss\] initial proxies", text)
    assert "--balancing.alpha X [" in text
    assert " [mlb] slope of the coefficient" not in text


def test_help_tells_of_every_key_method_and_strategy(capsys):
    with pytest.raises(SystemExit) as end:
        read("--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    options = set(re.findall(r"--([\w.-]+)", text))
    for key in keys_of(LoopConfig):
        assert key.replace("_", "-") in options
    for section, registry in (("balancing", METHODS), ("query", STRATEGIES)):
        for name in registry.names():
            assert re.search(rf"\b{name}\b", text)
            for key in keys_of(registry.get(name).Settings, f"{section}."):
                assert key.replace("_", "-") in options
    described = text.partition("main settings:")[2]
    for field in dataclasses.fields(EncoderSettings):
        assert " ".join(field.metadata["help"].split()) in " ".join(described.split())


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.name)
def test_every_file_of_settings_that_is_shipped_is_accepted(file):
    content = read_yaml(str(file))
    try:
        if "output" in content or "input" in content or "preprocessing" in content:
            from raybal.data.prepare import PrepareConfig

            places = [f"--{key}=x" for key in ("input", "output") if key not in content]
            parse(PrepareConfig, ["--config", str(file), *places])
        else:
            parse(LoopConfig, ["--config", str(file)])
    except RaybalError as error:
        pytest.fail(str(error))
