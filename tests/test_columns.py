"""Tensors through Arrow and Parquet and back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybal.columns import read_tensor, tensor_column, tensor_field, tensor_schema_of
from raybal.errors import DataError

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64"]
SHAPES: list[tuple[int, ...]] = [(), (1,), (5,), (2, 3), (3, 1, 4), (2, 2, 2, 2)]


def make(shape, dtype, count=7, seed=0):
    bits = np.random.default_rng(seed).integers(0, 256, (count, *shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    if dtype == "bool":
        return bits[..., 0] > 127
    values = np.ascontiguousarray(bits).view(dtype)[..., 0]
    return values if values.dtype.kind != "f" else np.nan_to_num(values)


def table_of(values, present=None, name="x"):
    field = tensor_field(name, values.shape[1:], values.dtype.name)
    return pa.table([tensor_column(values, present)], schema=pa.schema([field]))


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip_through_parquet(tmp_path, dtype, shape):
    values = make(shape, dtype)
    pq.write_table(table_of(values), tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    assert tensor_schema_of(table.schema.field("x")) == (shape, np.dtype(dtype))
    back, present = read_tensor(table, "x")
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values, strict=True)
    assert present.all()


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float64"])
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_missing_rows_are_nulls_and_come_back_as_zeros(tmp_path, dtype, shape):
    values = make(shape, dtype, count=19)
    present = np.random.default_rng(1).random(19) < 0.5
    pq.write_table(table_of(values, present), tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["x"].null_count == 19 - present.sum()
    assert table["x"].is_valid().to_pylist() == present.tolist()
    back, found = read_tensor(table, "x")
    np.testing.assert_array_equal(found, present)
    np.testing.assert_array_equal(back[present], values[present])
    assert not back[~present].any()
    assert back.dtype == values.dtype


def test_a_column_without_any_row_present():
    values, present = read_tensor(table_of(np.ones((3, 2), np.int16), np.zeros(3, bool)), "x")
    assert values.tolist() == [[0, 0]] * 3
    assert not present.any()


@pytest.mark.parametrize("low", [0, 3, 8, 11])
@pytest.mark.parametrize("with_nulls", [False, True])
def test_slices(low, with_nulls):
    # Offsets beside and across the bytes of the validity bitmap.
    values = make((2, 3), "float32", count=20)
    present = np.arange(20) % 3 != 0 if with_nulls else np.ones(20, bool)
    back, found = read_tensor(table_of(values, present).slice(low, 7), "x")
    np.testing.assert_array_equal(found, present[low : low + 7])
    np.testing.assert_array_equal(back, np.where(present[:, None, None], values, 0)[low : low + 7])


def test_chunks_with_and_without_nulls_are_joined():
    parts = [make((3,), "float16", count=n, seed=n) for n in (4, 1, 6)]
    masks = [np.ones(4, bool), np.zeros(1, bool), np.arange(6) % 2 == 0]
    tables = [table_of(v, m) for v, m in zip(parts, masks, strict=True)]
    table = pa.concat_tables([tables[0], tables[0].slice(0, 0), *tables[1:]]).slice(2)
    assert table["x"].num_chunks > 1
    back, present = read_tensor(table, "x")
    np.testing.assert_array_equal(present, np.concatenate(masks)[2:])
    np.testing.assert_array_equal(back, np.where(present[:, None], np.concatenate(parts)[2:], 0))


def test_row_groups_of_parquet(tmp_path):
    values = make((4,), "int32", count=25)
    pq.write_table(table_of(values), tmp_path / "t.parquet", row_group_size=4)
    file = pq.ParquetFile(tmp_path / "t.parquet")
    back, _ = read_tensor(file.read_row_groups([2, 5]), "x")
    np.testing.assert_array_equal(back, values[[*range(8, 12), *range(20, 24)]])


def test_no_rows():
    values, present = read_tensor(table_of(np.zeros((0, 2, 3), np.float32)), "x")
    assert (values.shape, values.dtype, present.shape) == ((0, 2, 3), np.float32, (0,))
    values, _ = read_tensor(table_of(np.zeros((4, 2), np.float16)).slice(4), "x")
    assert (values.shape, values.dtype) == ((0, 2), np.float16)


def test_pandas_reads_it(tmp_path):
    values = make((2, 3), "float16")
    present = np.arange(7) != 2
    pq.write_table(table_of(values, present), tmp_path / "t.parquet")
    frame = pd.read_parquet(tmp_path / "t.parquet")
    assert frame["x"].isna().tolist() == (~present).tolist()
    for i in np.flatnonzero(present):
        np.testing.assert_array_equal(np.frombuffer(frame["x"][i], np.float16).reshape(2, 3), values[i])


def test_no_bytes_are_copied_on_the_way_in_or_out():
    values = make((16, 16), "float32", count=50)
    column = tensor_column(values)
    assert column.buffers()[1].address == address(values)
    table = table_of(values)
    back, _ = read_tensor(table, "x")
    assert address(back) == address(values)
    part, _ = read_tensor(table.slice(10, 5), "x")
    assert address(part) == address(values[10:])


def test_arrays_in_any_memory_layout():
    base = make((4, 6), "float64", count=9)
    for values in (base[::2], base[:, :, ::-1], base.transpose(0, 2, 1), np.asfortranarray(base)):
        np.testing.assert_array_equal(read_tensor(table_of(values), "x")[0], values)


@pytest.mark.parametrize("dtype", [">f4", ">i2", "<f8"])
def test_arrays_in_any_byte_order(dtype):
    values = np.arange(6).reshape(3, 2).astype(dtype)
    np.testing.assert_array_equal(read_tensor(table_of(values), "x")[0], values)


@pytest.mark.parametrize(
    "field",
    [
        pa.field("x", pa.list_(pa.float32())),
        pa.field("x", pa.binary(8)),
        pa.field("x", pa.binary(), metadata={"shape": "2", "dtype": "float32"}),
        pa.field("x", pa.int64(), metadata={"note": "none"}),
    ],
    ids=["list", "no metadata", "variable size", "numbers"],
)
def test_other_columns_are_refused_by_name(field):
    table = pa.table([pa.array([], field.type)], schema=pa.schema([field]))
    with pytest.raises(DataError, match=r"column 'x' is not a tensor column"):
        read_tensor(table, "x")


def test_the_declared_size_must_be_that_of_the_values():
    with pytest.raises(pa.ArrowInvalid):
        pa.table([tensor_column(np.zeros((3, 4), np.float32))], schema=pa.schema([tensor_field("x", (3,), "float32")]))
