"""What sweeps of training runs and of loops share."""

from __future__ import annotations

from raybal.store import Store
from raybal.tuning.base import SweepBase


class Bare(SweepBase):
    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def keys(self):
        return {}


def test_looks_at_test_items_are_counted_by_choice(tmp_path):
    sweep = Bare(Store(str(tmp_path)))
    assert sweep.looks() == 0
    assert sweep.looks({"mlb": 3, "joint": 0}) == 1
    # The same choice again is no other look, also to a later start.
    assert Bare(Store(str(tmp_path))).looks({"mlb": 3}) == 1
    assert sweep.looks({"joint": 1}) == 2
    assert sweep.looks({"mlb": 5, "joint": 0}) == 2
    assert sweep.looks({"mlb": 0}) == 3
    assert sweep.looks() == 3
