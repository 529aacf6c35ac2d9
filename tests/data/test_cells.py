"""Cells of Parquet files, a few at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybal.data import cells
from raybal.data.cells import hash_cells, read_cells, read_values
from raybal.errors import DataError

COUNT = 50


@pytest.fixture
def table():
    generator = np.random.default_rng(0)
    return pa.table(
        {
            "id": [str(i) for i in range(COUNT)],
            "media": [None if i % 7 == 3 else generator.bytes(100 + i) for i in range(COUNT)],
            "x": pa.array([None if i % 5 == 2 else generator.normal(size=3) for i in range(COUNT)]),
            "steps": pa.array([generator.normal(size=(1 + i % 3, 2)).tolist() for i in range(COUNT)]),
        }
    )


@pytest.fixture(params=[COUNT, 7, 1])
def place(request, table, tmp_path):
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=request.param)
    return str(tmp_path / "t.parquet")


@pytest.mark.parametrize("rows", [range(COUNT), [0], [COUNT - 1], [3, 4, 20, 21, 22, 49], []])
@pytest.mark.parametrize("batch", [1, 400, 10**6])
def test_the_rows_asked_for(place, table, rows, batch, monkeypatch):
    monkeypatch.setattr(cells, "BATCH_BYTES", batch)
    found = list(read_cells(place, ["media", "x", "steps"], rows))
    for row, values in zip(rows, found, strict=True):
        assert values["media"] == table["media"][row].as_py()
        assert values["steps"] == table["steps"][row].as_py()
        if values["x"] is None:
            assert table["x"][row].as_py() is None
        else:
            np.testing.assert_array_equal(values["x"], table["x"][row].as_py())


def test_the_cells_that_hold_something(place, table):
    assert list(read_values(place, "media")) == table["media"].drop_null().to_pylist()
    assert len(list(read_values(place, "x"))) == COUNT - table["x"].null_count


def test_no_more_than_a_batch_is_held(tmp_path):
    """One row group of 100 MB, of which 64 rows are wanted."""
    media = [np.random.default_rng(i).bytes(2**20) for i in range(100)]
    schema = pa.schema([("media", pa.binary())])
    with pq.ParquetWriter(tmp_path / "t.parquet", schema, compression="none", write_batch_size=1) as writer:
        writer.write_table(pa.table({"media": media}), row_group_size=100)
    pool = pa.default_memory_pool()
    base, most = pool.bytes_allocated(), 0
    for number, values in enumerate(read_cells(str(tmp_path / "t.parquet"), ["media"], range(20, 84))):
        assert values["media"] == media[20 + number]
        most = max(most, pool.bytes_allocated() - base)
    assert number == 63
    assert most < 20 * 2**20


def test_looking_at_some_values_does_not_read_all(tmp_path, monkeypatch):
    pq.write_table(pa.table({"x": pa.array(np.ones((5000, 100)).tolist())}), tmp_path / "t.parquet")
    monkeypatch.setattr(cells, "BATCH_BYTES", 2**12)
    base = pa.default_memory_pool().bytes_allocated()
    values = read_values(str(tmp_path / "t.parquet"), "x")
    assert len(list(itertools.islice(values, 10))) == 10
    assert pa.default_memory_pool().bytes_allocated() - base < 3 * 2**20


@pytest.mark.parametrize(
    "use", [lambda p: list(read_cells(p, ["media"], [40])), lambda p: list(read_values(p, "media"))]
)
def test_damaged_pages_are_said(table, tmp_path, use):
    place = tmp_path / "t.parquet"
    pq.write_table(table, place, compression="gzip")
    content = bytearray(place.read_bytes())
    content[600:3000] = bytes(2400)
    place.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as Parquet: "):
        use(str(place))


def test_hashes_tell_content_and_not_its_type():
    number = [1.0, 2.0]
    same = [number, np.array(number), np.array(number, np.float32), pa.array([number])[0].values.to_numpy()]
    assert len({hash_cells({"x": value}) for value in same}) == 1
    different = [{}, {"x": b"12"}, {"x": b"1", "y": b"2"}, {"x": b"1", "z": b"2"}, {"x": number}, {"x": [[1.0, 2.0]]}]
    different += [{"x": [[1.0], [2.0]]}, {"x": [[1.0], [2.0, 3.0]]}, {"x": [[1.0], [2.0, 4.0]]}, {"y": number}]
    assert len({hash_cells(values) for values in different}) == len(different)
    assert hash_cells({"x": number, "y": None}) == hash_cells({"x": number})
