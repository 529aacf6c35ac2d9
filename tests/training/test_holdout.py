import numpy as np
from toy import make_items

from raybal.training.holdout import hold_out


def test_a_share_is_held_out_in_proportion_and_nothing_is_lost():
    items = make_items(50)
    items.labels = np.array([0] * 30 + [1] * 17 + [2] * 2 + [3])
    train, held_out = hold_out(items, 0.1, seed=3)
    assert held_out is not None
    assert np.bincount(held_out.labels).tolist() == [3, 2]
    assert sorted(train.ids + held_out.ids) == sorted(items.ids)
    assert not set(train.ids) & set(held_out.ids)
    for part in (train, held_out):
        for k, i in enumerate(part.ids):
            at = items.ids.index(i)
            assert part.labels[k] == items.labels[at]
            assert all((part.inputs[m][k] == items.inputs[m][at]).all() for m in items.inputs)


def test_rare_classes_do_not_take_more_than_the_share():
    items = make_items(62)
    items.labels = np.repeat(np.arange(31), 2)
    train, held_out = hold_out(items, 0.1, seed=3)
    assert len(held_out) == 7
    assert len(set(held_out.labels)) == 7
    assert set(train.labels) == set(range(31))


def test_the_choice_depends_on_seed_and_ids_alone():
    items = make_items(50)
    turned = items.take(np.arange(50)[::-1])
    one, other = hold_out(items, 0.2, seed=3)[1], hold_out(turned, 0.2, seed=3)[1]
    assert sorted(one.ids) == sorted(other.ids)
    assert sorted(one.ids) != sorted(hold_out(items, 0.2, seed=4)[1].ids)


def test_nothing_is_held_out_where_nothing_can_be():
    items = make_items(6)
    assert hold_out(items, 0.0, seed=1) == (items, None)
    items.labels = np.arange(6)
    assert hold_out(items, 0.5, seed=1) == (items, None)
    items.labels = np.zeros(6, np.int64)
    train, held_out = hold_out(items, 0.99, seed=1)
    assert (len(train), len(held_out)) == (1, 5)
