"""Items that are too many for memory."""

import os

import numpy as np
import pytest
from toy import make_items

from raybal.bench.toy import make_pool
from raybal.data import room
from raybal.data.pool import Pool
from raybal.errors import DataError


def test_items_in_a_file_are_the_items_in_memory(tmp_path, monkeypatch):
    make_pool(str(tmp_path / "pool"), 12, shards=3)
    pool, rows = Pool(str(tmp_path / "pool")), np.array([7, 0, 11, 3])
    wanted = pool.items(pool.ids_at(rows))
    before = make_items(20).take(rows)
    monkeypatch.setattr(room, "total_memory", lambda: 0)
    found = pool.items(pool.ids_at(rows))
    monkeypatch.setattr(room, "CHUNK", 1)
    taken = make_items(20).take(rows)
    for m, array in wanted.inputs.items():
        assert type(found.inputs[m]) is np.ndarray
        assert isinstance(found.inputs[m].base, np.memmap)
        np.testing.assert_array_equal(found.inputs[m], array)
    for m, array in before.inputs.items():
        np.testing.assert_array_equal(taken.inputs[m], array)


def test_nothing_is_written_where_there_is_no_room(monkeypatch):
    with pytest.raises(DataError, match=r"1048576\.0 GiB of items are too many .*TMPDIR"):
        room.room((2**50,), np.uint8)


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [(str(2**28), 2**28), ("max", None), (str(2**60), None), (None, None)],
    ids=["limited", "unlimited", "more than there is", "no container"],
)
def test_a_container_has_what_it_is_given(limit, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "CGROUP_LIMIT", tmp_path / "memory.max")
    if limit is not None:
        room.CGROUP_LIMIT.write_text(limit + "\n")
    assert room.total_memory() == (wanted or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
