"""What settings accept, and what they say when they do not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybal.errors import ConfigError
from raybal.settings import Settings, describe, from_plain, setting


@dataclass(frozen=True)
class Leaf(Settings):
    rate: float = setting(0.5, gt=0, lt=1, help="a rate")
    low: float = setting(1.0, ge=0, help="lower end")
    high: float = setting(2.0, le=10, help="upper end")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high < self.low:
            raise ConfigError(f"high: {self.high} is not accepted; it must be at least low ({self.low})")


@dataclass(frozen=True)
class Tree(Settings):
    name: str = setting(help="what it is called")
    count: int = setting(3, ge=1, help="how many")
    limit: float | None = setting(None, gt=0, help="a limit")
    kind: Literal["small", "large"] = setting("small", help="which")
    on: bool = setting(False, help="whether")
    classes: list[str] | None = setting(None, help="names")
    pair: tuple[float, ...] = setting((1.0, 2.0), help="numbers")
    leaf: Leaf = setting(factory=Leaf, help="a section")
    leaves: dict[str, Leaf] = setting(factory=dict, help="sections by name")


@dataclass(frozen=True)
class Shape(Settings):
    shape: str = setting(help="which shape")

    @classmethod
    def resolve(cls, content: Mapping[str, Any]) -> type[Settings]:
        return {"circle": Circle, "square": Square}.get(content["shape"], cls)


@dataclass(frozen=True)
class Circle(Shape):
    radius: float = setting(1.0, help="radius")


@dataclass(frozen=True)
class Square(Shape):
    side: float = setting(1.0, help="side")


@dataclass(frozen=True)
class Drawing(Settings):
    first: Shape = setting(factory=lambda: Circle(shape="circle"), help="a shape")


def test_plain_values_become_settings_at_every_depth():
    tree = from_plain(
        Tree, {"name": "x", "leaf": {"rate": 0.25}, "leaves": {"a": {"high": 3}, "b": {}}, "pair": [1, 2, 3]}
    )
    assert tree == Tree(name="x", leaf=Leaf(rate=0.25), leaves={"a": Leaf(high=3.0), "b": Leaf()}, pair=(1.0, 2.0, 3.0))
    assert all(type(value) is float for value in tree.pair)
    assert type(tree.leaves["a"].high) is float


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"nmae": "x"}, ["nmae", "no such key", "did you mean 'name'?", "leaves"]),
        ({"name": "x", "leaf": {"rat": 1}}, ["leaf.rat:", "no such key", "leaf has rate, low, high", "'rate'?"]),
        ({"name": "x", "leaves": {"a": {"hihg": 1}}}, ["leaves.a.hihg:", "'high'?"]),
        ({}, ["name:", "missing", "what it is called"]),
        ({"name": "x", "count": 0}, ["count: 0 ", "at least 1"]),
        ({"name": "x", "count": 1.5}, ["count: 1.5 ", "a whole number"]),
        ({"name": "x", "count": 4.0}, ["count: 4.0 ", "a whole number"]),
        ({"name": "x", "count": "3"}, ["count: '3' ", "a whole number"]),
        ({"name": "x", "count": True}, ["count: True ", "a whole number"]),
        ({"name": "x", "count": None}, ["count: None ", "a whole number"]),
        ({"name": "x", "leaf": {"rate": True}}, ["leaf.rate: True ", "a number"]),
        ({"name": "x", "leaf": {"rate": "fast"}}, ["leaf.rate: 'fast' ", "a number"]),
        ({"name": "x", "leaf": {"rate": 0}}, ["leaf.rate: 0.0 ", "greater than 0"]),
        ({"name": "x", "leaf": {"rate": 1}}, ["leaf.rate: 1.0 ", "less than 1"]),
        ({"name": "x", "leaf": {"low": -1}}, ["leaf.low: -1.0 ", "at least 0"]),
        ({"name": "x", "leaf": {"high": 11}}, ["leaf.high: 11.0 ", "at most 10"]),
        ({"name": "x", "leaf": {"rate": float("nan")}}, ["leaf.rate: nan "]),
        ({"name": "x", "leaf": {"low": 5, "high": 4}}, ["leaf.high: 4.0 ", "at least low (5.0)"]),
        ({"name": "x", "leaves": {"b": {"low": 5, "high": 4}}}, ["leaves.b.high: 4.0 "]),
        ({"name": "x", "leaf": 4}, ["leaf: 4 ", "a mapping"]),
        ({"name": "x", "leaves": ["a"]}, ["leaves: ['a'] ", "a mapping of names"]),
        ({"name": "x", "leaves": {"a": 3}}, ["leaves.a: 3 ", "a mapping"]),
        ({"name": "x", "kind": "lage"}, ["kind: 'lage' ", "small, large", "did you mean 'large'?"]),
        ({"name": "x", "kind": ["small"]}, ["kind: ['small'] ", "small, large"]),
        ({"name": "x", "kind": None}, ["kind: None ", "small, large"]),
        ({"name": "x", "on": 1}, ["on: 1 ", "true or false"]),
        ({"name": "x", "on": "yes"}, ["on: 'yes' ", "true or false"]),
        ({"name": True}, ["name: True ", "text"]),
        ({"name": "x", "classes": "cat"}, ["classes: 'cat' ", "a list of text"]),
        ({"name": "x", "classes": ["cat", False]}, ["classes[1]: False ", "text"]),
        ({"name": "x", "pair": [1, "b"]}, ["pair[1]: 'b' ", "a number"]),
        ({"name": "x", "limit": -1}, ["limit: -1.0 ", "greater than 0"]),
    ],
)
def test_what_is_not_accepted_is_named_with_its_key_and_value(content, says):
    with pytest.raises(ConfigError) as error:
        from_plain(Tree, content)
    for part in says:
        assert part in str(error.value)


def test_the_key_of_the_section_that_is_read_comes_first():
    with pytest.raises(ConfigError, match=r"^model\.leaf\.rate: 2\.0 "):
        from_plain(Tree, {"name": "x", "leaf": {"rate": 2}}, "model")
    with pytest.raises(ConfigError, match=r"^model: 3 "):
        from_plain(Tree, 3, "model")  # type: ignore[arg-type]


@given(st.floats(1, 10))
def test_a_number_is_read_from_any_notation(value):
    for text in (repr(value), f"{value:.17e}", value):
        assert from_plain(Leaf, {"high": text}).high == value


@pytest.mark.parametrize("text", ["1e-3", "1E-3", ".001", "0.001"])
def test_text_that_yaml_leaves_is_a_number(text):
    # YAML 1.1 reads 1e-3 as text.
    assert from_plain(Leaf, {"rate": text}).rate == 0.001


def test_none_is_a_value_only_where_it_is_said():
    assert from_plain(Tree, {"name": "x", "limit": None, "classes": None}).limit is None
    assert from_plain(Tree, {"name": "x", "limit": 3}).limit == 3.0


def test_numbers_are_names_where_text_is_wanted():
    assert from_plain(Tree, {"name": 7, "classes": [1, 2.5, "c"]}) == Tree(name="7", classes=["1", "2.5", "c"])


def test_settings_made_in_code_are_checked_too():
    with pytest.raises(ConfigError, match=r"^rate: 3 .*less than 1"):
        Leaf(rate=3)
    with pytest.raises(ConfigError, match=r"^rate: -1 .*greater than 0"):
        dataclasses.replace(Leaf(), rate=-1)
    with pytest.raises(ConfigError, match=r"^kind: 'tiny'"):
        Tree(name="x", kind="tiny")  # type: ignore[arg-type]


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Leaf().rate = 0.1  # type: ignore[misc]


def test_a_family_is_chosen_by_its_name():
    assert from_plain(Drawing, {"first": {"shape": "square", "side": 4}}).first == Square(shape="square", side=4.0)
    assert from_plain(Drawing, {}).first == Circle(shape="circle")
    with pytest.raises(ConfigError, match=r"first\.radius: there is no such key; first has shape, side"):
        from_plain(Drawing, {"first": {"shape": "square", "radius": 4}})


def test_what_settings_say_of_themselves_builds_them_again():
    tree = Tree(name="x", limit=2.0, classes=["a"], leaf=Leaf(rate=0.1), leaves={"v": Leaf(low=0.0)})
    assert from_plain(Tree, dataclasses.asdict(tree)) == tree


def test_bounds_take_their_limits_as_they_say():
    assert Leaf(low=0).low == 0
    assert Leaf(high=10).high == 10
    assert Leaf(rate=math.nextafter(1, 0)).rate < 1
    for rate in (0, 1):
        with pytest.raises(ConfigError):
            Leaf(rate=rate)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or none"),
        (Literal["a", "b"], "one of a, b"),
        (list[str] | None, "a list of text or none"),
        (dict[str, float], "a mapping of names to a number"),
        (dict[str, Leaf], "a mapping of names to values"),
        (tuple[int, ...], "a list of a whole number"),
        (Leaf, "a mapping of keys to values"),
    ],
)
def test_types_in_words(hint, words):
    assert describe(hint) == words
