"""What a sweep may change."""

from __future__ import annotations

import dataclasses
import json
import random
from types import SimpleNamespace

import pytest

from raybal.balancing.base import METHODS, BalancingSettings
from raybal.balancing.mlb import MLBSettings
from raybal.config import parse
from raybal.errors import ConfigError
from raybal.settings import from_plain
from raybal.training.settings import TrainSettings
from raybal.tuning.config import TuneConfig
from raybal.tuning.spaces import Dimension, corners, draw, merged, samples, settings_from, space_of, values_in
from raybal.tuning.trial import Plan

ALL = ["method", "pace", "learning_rate", "weight_decay", "fusion"]


def settings_of(method: str) -> BalancingSettings:
    return METHODS.get(method).Settings(method=method)


def base_of(settings: BalancingSettings) -> dict:
    train = {"learning_rate": 1e-3, "weight_decay": 1e-4}
    return {"balancing": dataclasses.asdict(settings), "train": train, "model": {"fusion": "concat"}}


def first_values(settings: BalancingSettings, space) -> list[dict]:
    return Plan(TuneConfig(), "row", settings, space, (), (), "", {}).first_values()


def random_values(space, seed: int) -> dict:
    generator = random.Random(seed)

    def ask(key, dimension):
        if dimension.kind == "choice":
            return generator.choice(dimension.values)
        if dimension.kind == "int":
            return generator.randint(*map(int, dimension.bounds))
        return generator.uniform(*dimension.bounds)

    return draw(space, ask)


@pytest.mark.parametrize("method", METHODS.names())
def test_all_that_a_space_holds_are_settings_of_the_method_and_are_found_again(method):
    settings = settings_of(method)
    space = space_of(settings, [*ALL, "paces"], {}, 20, ["audio", "video"])
    base = base_of(settings)
    for values in [*samples(space), *(random_values(space, seed) for seed in range(50))]:
        chosen = merged(base, settings_from(values, type(settings)))
        built = from_plain(BalancingSettings, chosen["balancing"])
        assert type(built) is type(settings)
        found = values_in(space, {**chosen, "balancing": dataclasses.asdict(built)}, type(settings))
        assert found == pytest.approx(values) if found is None else found.keys() == values.keys()
        assert all(found[k] == pytest.approx(v) if isinstance(v, float) else found[k] == v for k, v in values.items())


def test_a_condition_decides_what_is_asked():
    space = space_of(settings_of("mlb"), ["method"], {}, 20)
    asked = []
    draw(space, lambda key, dimension: asked.append(key) or {"balancing.beta_max": 1.0}.get(key, 0.5))
    assert asked == ["balancing.beta_max", "balancing.unimodal_weight", "balancing.alpha"]
    asked.clear()
    draw(space, lambda key, dimension: asked.append(key) or {"balancing.beta_max": 5.0}.get(key, 0.5))
    assert asked == ["balancing.beta_max", "balancing.unimodal_weight", "balancing.slope"]


def test_slope_and_ceiling_stand_for_alpha():
    found = settings_from({"balancing.beta_max": 5.0, "balancing.slope": 8.0}, MLBSettings)
    assert found == {"balancing": {"beta_max": 5.0, "alpha": 2.0}}
    plain = space_of(settings_of("mlb"), ["method"], {"balancing.alpha": Dimension("uniform", 1.0, 3.0)}, 20)
    assert set(plain) == {"balancing.beta_max", "balancing.unimodal_weight", "balancing.alpha"}
    assert plain["balancing.alpha"] == Dimension("uniform", 1.0, 3.0)


def test_published_values_come_first_and_those_outside_a_range_do_not():
    settings = settings_of("mlb")
    first = first_values(settings, space_of(settings, ["method", "pace", "learning_rate"], {}, 20))
    weight = {"balancing.unimodal_weight": 1.0}
    rest = {"balancing.pace.kind": "constant", "balancing.pace.final": 1.0, "train.learning_rate": 1e-3, **weight}
    assert first == [
        # The default first; beta_max 0.5 of UCF101 is outside.
        {"balancing.beta_max": 2.0, "balancing.slope": 0.5, **rest},
        {"balancing.beta_max": 10.0, "balancing.slope": 4.5, **rest},
        {"balancing.beta_max": 2.0, "balancing.slope": 5.0, **rest},
        {"balancing.beta_max": 1.0, "balancing.alpha": 2.0, **rest},
    ]
    narrow = space_of(settings, ["method"], {"balancing.alpha": Dimension("uniform", 1.0, 3.0)}, 20)
    assert first_values(settings, narrow) == [{"balancing.beta_max": 1.0, "balancing.alpha": 2.0, **weight}]
    own = MLBSettings(alpha=2.5)
    assert first_values(own, narrow)[0] == {"balancing.beta_max": 2.0, "balancing.alpha": 2.5, **weight}


def rounded(settings: BalancingSettings) -> dict:
    """Plain settings without the last digits of numbers."""
    return json.loads(json.dumps(dataclasses.asdict(settings)), parse_float=lambda text: round(float(text), 9))


@pytest.mark.parametrize("method", METHODS.names())
def test_published_settings_are_tried_wherever_their_keys_are_searched(method):
    settings = settings_of(method)
    space = space_of(settings, ["method", "pace"], {}, 90)
    tried = [
        merged(base_of(settings), settings_from(v, type(settings)))["balancing"] for v in first_values(settings, space)
    ]
    built = [from_plain(BalancingSettings, one) for one in tried]
    for own in ({}, *settings.published):
        wanted = from_plain(BalancingSettings, {"method": method, **own})
        keys = {key for key in own if key != "pace"}
        searched = {key.split(".")[1] for key in space} | ({"alpha"} if method == "mlb" else set())
        outside = method == "mlb" and own.get("beta_max") == 0.5
        if keys <= searched and not outside:
            assert rounded(wanted) in map(rounded, built)
        else:
            assert rounded(wanted) not in map(rounded, built)


def test_published_settings_are_tried_too_where_every_modality_has_a_pace():
    settings = METHODS.get("ogm").Settings(method="ogm")
    modalities = tuple(SimpleNamespace(name=name) for name in ("audio", "video"))
    space = space_of(settings, ["method", "paces"], {}, 20, ["audio", "video"])
    found = Plan(TuneConfig(), "row", settings, space, modalities, (), "", {}).first_values()
    assert len(found) == 1 + len(settings.published)
    windows = [own["pace"] for own in settings.published if "pace" in own]
    assert windows
    for m in ("audio", "video"):
        kinds = [values[f"balancing.paces.{m}.kind"] for values in found]
        assert kinds.count("window") == sum(w["kind"] == "window" for w in windows)


def test_what_ends_a_pace_of_any_kind_stays_where_its_kind_is_searched():
    own = from_plain(BalancingSettings, {"method": "mlb", "pace": {"phase_out": 0.1, "phase_out_steps": 7}})
    plan = Plan(TuneConfig(), "row", own, space_of(own, ["pace"], {}, 20), (), (), "", {})
    for values in samples(plan.space):
        pace = plan.settings(values)[0].pace
        assert (pace.phase_out, pace.phase_out_steps) == (0.1, 7)
        assert pace.kind == values["balancing.pace.kind"]


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ({"values": [1.5, 3.0]}, {"beta_max", "slope"}),
        ({"values": [3.0]}, {"beta_max", "slope"}),
        ({"values": [0.5, 1.0]}, {"beta_max", "alpha"}),
        ({"values": [1.0, 4.0]}, {"beta_max", "slope", "alpha"}),
        ({"kind": "uniform", "low": 1.5, "high": 20.0}, {"beta_max", "slope"}),
        ({"kind": "uniform", "low": 0.5, "high": 20.0}, {"beta_max", "alpha"}),
    ],
)
def test_alpha_is_searched_whatever_the_ceilings(given, keys):
    dimension = from_plain(Dimension, given)
    settings = settings_of("mlb")
    space = space_of(settings, ["method"], {"balancing.beta_max": dimension}, 20)
    assert set(space) == {f"balancing.{key}" for key in (*keys, "unimodal_weight")}
    for seed in range(20):
        values = random_values(space, seed)
        assert len(values) == 3
        assert "alpha" in settings_from(values, MLBSettings)["balancing"]


def test_a_condition_stays_where_a_key_is_narrowed():
    given = {"balancing.slope": Dimension("loguniform", 1.0, 2.0), "balancing.pace.end": Dimension("uniform", 0.6, 0.7)}
    plain = space_of(settings_of("mlb"), ["method", "pace"], {}, 20)
    space = space_of(settings_of("mlb"), ["method", "pace"], given, 20)
    for key, dimension in given.items():
        assert space[key] == dataclasses.replace(dimension, when=plain[key].when)
        assert space[key].when


def test_corners_hold_what_does_not_fit_together():
    space = space_of(settings_of("mlb"), ["pace"], {"balancing.pace.start": Dimension("uniform", 0.0, 0.9)}, 20)
    kinds = {
        (v["balancing.pace.kind"], v.get("balancing.pace.start"), v.get("balancing.pace.end")) for v in corners(space)
    }
    assert ("window", 0.9, 0.5) in kinds
    with pytest.raises(
        ConfigError, match=r"row: balancing\.pace\.end: 0\.5 is not accepted; it must be at least start"
    ):
        Plan(TuneConfig(), "row", settings_of("mlb"), {}, (), (), "", {}).searching(
            ["pace"], {"balancing.pace.start": Dimension("uniform", 0.0, 0.9)}
        )


@pytest.mark.parametrize(
    ("own", "groups", "given", "grace"),
    [
        ({}, ["method"], {}, 7),
        ({}, ["pace"], {}, 7),
        ({"pace": {"kind": "window", "start": 0.6}}, ["method"], {}, 13),
        ({"pace": {"kind": "window", "start": 0.6}}, ["pace"], {}, 7),
        ({}, ["pace"], {"balancing.pace.start": Dimension("choice", values=[0.2, 0.5])}, 11),
        ({"paces": {"audio": {"kind": "window", "start": 0.8}}}, ["method"], {}, 17),
        ({"pace": {"kind": "knots", "knots": [0.2, 0.6, 1], "strengths": [0, 0, 1]}}, ["learning_rate"], {}, 13),
        ({"pace": {"kind": "knots", "knots": [0.6, 1], "strengths": [0.5, 1]}}, ["learning_rate"], {}, 7),
        # The first diagnosis follows the ninth epoch; intervals that are searched end at 7.
        ({"method": "diagnosing_relearning", "interval": 8}, ["learning_rate"], {}, 10),
        ({"method": "diagnosing_relearning"}, ["method"], {}, 9),
        ({"method": "diagnosing_relearning", "interval": 40}, ["learning_rate"], {}, 20),
        ({"method": "joint"}, ["learning_rate"], {}, 7),
    ],
)
def test_no_trial_is_stopped_before_its_pace_has_begun(own, groups, given, grace):
    settings = from_plain(BalancingSettings, {"method": "mlb", **own})
    config = from_plain(TuneConfig, {"train": {"epochs": 20}})
    plan = Plan(config, "row", settings, space_of(settings, groups, given, 20), (), (), "", {})
    assert plan.grace == grace
    fixed = dataclasses.replace(config, stopping=dataclasses.replace(config.stopping, grace=3))
    assert dataclasses.replace(plan, config=fixed).grace == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"space": {"train.epochs": 5}}, r"space\.train\.epochs: all trials have the same; give --train\.epochs"),
        ({"space": {"train.num_workers": 2}}, r"space\.train\.num_workers: .* give --train\.num-workers"),
        (
            {"methods": ["mlb-published"], "balancing": {"mlb-published": {"method": "mlb"}}},
            "methods: 'mlb-published' is not accepted",
        ),
        ({"stopping": {"grace": 21}, "train": {"epochs": 20}}, r"stopping\.grace: 21 is not accepted"),
        ({"population": {"members": 4, "interval": 5}, "train": {"epochs": 5}}, r"population\.interval: 5"),
    ],
)
def test_what_would_break_a_comparison_is_refused(content, message):
    with pytest.raises(ConfigError, match=message):
        from_plain(TuneConfig, content)


@pytest.mark.parametrize("method", METHODS.names())
def test_what_is_published_is_accepted(method):
    for own in settings_of(method).published:
        from_plain(BalancingSettings, {"method": method, **own})


def test_intervals_of_relearning_are_shares_of_the_run():
    assert space_of(settings_of("diagnosing_relearning"), ["method"], {}, 90)["balancing.interval"].values == [
        5, 10, 15, 20, 30,
    ]  # fmt: skip
    assert space_of(settings_of("diagnosing_relearning"), ["method"], {}, 18)["balancing.interval"].values == [
        1, 2, 3, 4, 6,
    ]  # fmt: skip


@pytest.mark.parametrize(("epochs", "interval"), [(15, 3), (30, 7), (90, 20)])
def test_what_was_published_of_relearning_is_tried_as_a_share_of_the_run(epochs, interval):
    settings = settings_of("diagnosing_relearning")
    space = space_of(settings, ["method"], {}, epochs)
    config = TuneConfig(train=TrainSettings(epochs=epochs))
    first = Plan(config, "row", settings, space, (), (), "", {}).first_values()
    assert [(v["balancing.interval"], v["balancing.scale"]) for v in first] == [(interval, 3.0), (interval, 5.0)]
    # One that was given for this run is no share of another.
    own = dataclasses.replace(settings, interval=epochs // 2)
    assert Plan(config, "row", own, space, (), (), "", {}).first_values() == []


def test_every_modality_has_a_pace_of_its_own():
    space = space_of(settings_of("mlb"), ["paces"], {}, 20, ["audio", "video"])
    assert {key.split(".")[2] for key in space} == {"audio", "video"}
    values = random_values(space, 0) | {
        "balancing.paces.audio.kind": "knots",
        **{f"balancing.paces.audio.strengths[{i}]": 0.1 * i for i in range(4)},
    }
    found = settings_from(values, MLBSettings)["balancing"]["paces"]["audio"]
    assert found["strengths"] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert found["knots"] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_a_user_narrows_fixes_and_extends():
    text = """{
        train.weight_decay: 1e-4,
        balancing.alpha: {kind: uniform, low: 1, high: 3},
        train.momentum: {kind: uniform, low: 0, high: 0.9, when: {train.batch_size: [16]}},
        train.batch_size: {values: [16, 32]},
    }"""
    config = parse(TuneConfig, ["--space", text])
    space = space_of(settings_of("mlb"), ["method", "weight_decay"], config.dimensions, 20)
    assert space["train.weight_decay"] == Dimension("choice", values=[1e-4])
    assert space["balancing.alpha"] == Dimension("uniform", 1.0, 3.0)
    values = random_values(space, 1) | {"train.batch_size": 16}
    assert settings_from(values, MLBSettings)["train"]["weight_decay"] == 1e-4
    keys = list(space)
    assert keys.index("train.batch_size") < keys.index("train.momentum")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "uniform", "low": 3, "high": 1}, "low, high: 3.0 and 1.0 are not accepted"),
        ({"kind": "loguniform", "low": 0, "high": 1}, "kind loguniform needs one above 0"),
        ({"values": []}, "kind choice needs at least one"),
        ({"kind": "uniform", "low": 0, "high": 1, "values": [1]}, "is for kind choice, and kind is uniform"),
        ({"low": 0, "high": 1, "values": [1]}, "kind choice has values"),
        ({"kind": "unifrom", "low": 0, "high": 1}, "did you mean 'uniform'"),
    ],
)
def test_a_range_that_is_none_is_refused(given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_plain(TuneConfig, {"space": {"train.momentum": given}})
    assert str(caught.value).startswith("space.train.momentum")


def test_conditions_are_on_searched_keys_and_end_somewhere():
    on = {"train.momentum": Dimension("uniform", 0.0, 0.9, when={"train.optimiser": ["sgd"]})}
    with pytest.raises(ConfigError, match=r"train\.optimiser is not searched"):
        space_of(settings_of("joint"), ["learning_rate"], on, 20)
    circle = {
        "train.a": Dimension("choice", values=[1], when={"train.b": [1]}),
        "train.b": Dimension("choice", values=[1], when={"train.a": [1]}),
    }
    with pytest.raises(ConfigError, match=r"train\.a, train\.b go round in a circle"):
        space_of(settings_of("joint"), [], circle, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--search", "method,learning-rate"],
            r"search: 'learning-rate' is not accepted.*did you mean 'learning_rate'",
        ),
        (["--methods", "mlb,mlb"], "methods: 'mlb' is there twice"),
        (["--methods", "multi_loss", "--balancing.mlb.alpha", "3"], r"balancing\.mlb: the sweep has no such row"),
        (["--train.round-start", "warm"], r"train\.round_start: a sweep has no rounds"),
        (["--objective", "gap"], r"objective: 'gap' is not accepted"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse(TuneConfig, arguments)
