"""Splits by groups."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raybal.data.split import assign_groups, validation_parts

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def groups_of(sizes, seed=0):
    """One name an item, shuffled."""
    names = [f"g{k}" for k, size in enumerate(sizes) for _ in range(size)]
    return np.random.default_rng(seed).permutation(names).tolist()


def part_by_group(groups, parts):
    """The part of each group; no group may be in two."""
    found = {}
    for group, part in zip(groups, parts, strict=True):
        assert found.setdefault(group, part) == part
    return found


@settings(max_examples=100, deadline=None)
@given(SIZES, st.floats(0, 1), st.integers(0, 5))
def test_a_part_gets_its_share_within_half_of_the_largest_group(sizes, share, seed):
    groups = groups_of(sizes)
    parts = assign_groups(groups, {"train": 1 - share, "test": share}, seed)
    part_by_group(groups, parts)
    assert abs(parts.count("test") - share * len(groups)) <= max(sizes) / 2 + 1e-9


@settings(max_examples=100, deadline=None)
@given(SIZES, st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 5))
def test_several_parts_get_their_shares_within_one_group(sizes, test, val, seed):
    groups = groups_of(sizes)
    shares = {"train": 1 - test - val, "test": test, "val": val}
    parts = assign_groups(groups, shares, seed)
    part_by_group(groups, parts)
    for part, share in shares.items():
        assert abs(parts.count(part) - share * len(groups)) <= max(sizes) + 1e-9


def test_items_that_are_groups_of_their_own_reach_the_shares_exactly():
    ids = [f"i{k}" for k in range(200)]
    counts = Counter(assign_groups(ids, {"train": 0.7, "test": 0.2, "val": 0.1}, 3))
    assert counts == {"train": 140, "test": 40, "val": 20}


@given(SIZES, st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_the_order_of_rows_does_not_matter(sizes, seed):
    shares = {"train": 0.6, "test": 0.3, "val": 0.1}
    given = [groups_of(sizes, order) for order in range(3)]
    found = [part_by_group(groups, assign_groups(groups, shares, seed)) for groups in given]
    assert found[0] == found[1] == found[2]


def test_another_seed_gives_another_split_and_every_group_has_its_chance():
    groups = [f"g{k}" for k in range(20)]
    splits = [assign_groups(groups, {"train": 0.75, "test": 0.25}, seed) for seed in range(400)]
    times = np.array([[part == "test" for part in split] for split in splits]).sum(0)
    # Binomial(400, 1/4): five standard deviations.
    assert abs(times - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)
    assert len({tuple(split) for split in splits}) > 390


def test_groups_that_are_taken_stay_and_count():
    groups = [f"g{k}" for k in range(100)]
    taken = {f"g{k}": "test" for k in range(15)} | {f"g{k}": "train" for k in range(15, 40)}
    parts = assign_groups(groups, {"train": 0.8, "test": 0.2}, 1, taken=taken)
    assert parts[:40] == [taken[g] for g in groups[:40]]
    assert parts.count("test") == 20
    # Groups that no item is of do not count.
    absent = {f"other{k}": "test" for k in range(50)}
    assert assign_groups(groups, {"train": 0.8, "test": 0.2}, 1, taken=taken | absent) == parts
    assert len(taken) == 40


def test_a_part_that_has_more_than_its_share_gets_nothing_new():
    groups = [f"g{k}" for k in range(50)]
    taken = {f"g{k}": "test" for k in range(30)}
    assert assign_groups(groups, {"train": 0.8, "test": 0.2}, 1, taken=taken).count("test") == 30


def test_one_group_goes_to_one_part():
    assert assign_groups(["g"] * 9, {"train": 0.8, "test": 0.2}, 0) == ["train"] * 9
    assert assign_groups(["g"] * 9, {"train": 0.2, "test": 0.8}, 0) == ["test"] * 9
    assert assign_groups([], {"train": 0.8, "test": 0.2}, 0) == []
    assert assign_groups(["a", "b"], {"train": 1.0}, 0) == ["train", "train"]


def test_a_taken_group_may_be_in_a_part_that_gets_no_share_any_more():
    # E.g. a pool with a validation split that is extended without asking for one again.
    parts = assign_groups(["a", "b", "c", "d"], {"train": 0.5, "test": 0.5}, 0, taken={"a": "val"})
    assert parts[0] == "val"
    assert "val" not in parts[1:]


def test_validation_over_rounds():
    generator = np.random.default_rng(0)
    ids = [f"i{k}" for k in range(600)]
    groups = {i: f"g{k // 3}" for k, i in enumerate(ids)}
    arrival = generator.permutation(200).tolist()
    answered, before = [], {}
    for chunk in np.array_split(arrival, 10):
        answered += [i for g in chunk for i in ids[3 * g : 3 * g + 3]]
        parts = validation_parts(answered, groups, 0.2, 7, before)
        assert list(parts) == answered
        assert {i: parts[i] for i in before} == before
        part_by_group([groups[i] for i in answered], [parts[i] for i in answered])
        assert abs(list(parts.values()).count("validation") - 0.2 * len(answered)) <= 3 / 2
        before = parts
    assert len(before) == 600


def test_items_that_join_a_group_go_to_its_part():
    groups = {f"{g}{k}": g for g in "abcdef" for k in range(4)}
    first = [i for i in groups if i.endswith("0")]
    before = validation_parts(first, groups, 0.4, 0, {})
    assert set(before.values()) == {"train", "validation"}
    after = validation_parts(list(groups), groups, 0.4, 0, before)
    assert all(after[i] == before[groups[i] + "0"] for i in groups)


def test_the_order_of_answers_does_not_matter():
    groups = {f"i{k}": f"g{k // 2}" for k in range(60)}
    ids = list(groups)
    shuffled = np.random.default_rng(1).permutation(ids).tolist()
    assert validation_parts(ids, groups, 0.3, 5, {}) == validation_parts(shuffled, groups, 0.3, 5, {})


def test_one_group_trains(caplog):
    with caplog.at_level(logging.WARNING, "raybal"):
        assert validation_parts(["a", "b"], {"a": "g", "b": "g"}, 0.5, 0, {}) == {"a": "train", "b": "train"}
    assert "one group" in caplog.text


def test_there_is_always_something_to_train_on():
    groups = {i: i for i in "abc"}
    assert set(validation_parts("abc", groups, 0.99, 0, {}).values()) == {"train"}
    assert validation_parts([], {}, 0.2, 0, {}) == {}


def test_without_a_share_every_item_trains(caplog):
    groups = {f"i{k}": f"i{k}" for k in range(30)}
    assert set(validation_parts(list(groups), groups, 0.0, 0, {}).values()) == {"train"}
    assert validation_parts(["i1"], groups, 0.0, 0, {}) == {"i1": "train"}
    assert not caplog.records
