"""Tensors in Arrow and Parquet columns.

A column of equal-shaped tensors is a FixedSizeBinary column whose field metadata holds dtype and shape. It reads
and writes at memory speed, has no per-value overhead, and pandas, DuckDB and pyarrow open it without Ray; any
list-like type stores bytes as 32-bit integers with levels and is an order of magnitude slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raybal.errors import DataError


def tensor_field(name: str, shape: Sequence[int], dtype: str) -> pa.Field:
    """Returns the field of a column whose rows are tensors of this shape and numpy dtype."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    metadata = {"dtype": np.dtype(dtype).name, "shape": ",".join(str(int(s)) for s in shape)}
    return pa.field(name, pa.binary(size), metadata=metadata)


def tensor_column(values: NDArray, present: NDArray[np.bool_] | None = None) -> pa.Array:
    """Returns an Arrow array over values [n, ...] without copying a contiguous one.

    Args:
        values: n tensors; rows that are not present must still be there, as zeros.
        present: bool [n]; False rows become nulls.
    """
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    size = int(np.prod(values.shape[1:], dtype=np.int64)) * values.dtype.itemsize
    validity = None
    if present is not None and not present.all():
        validity = pa.py_buffer(np.packbits(present, bitorder="little").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(size), len(values), [validity, pa.py_buffer(values.reshape(-1).view(np.uint8))]
    )


def tensor_schema_of(field: pa.Field) -> tuple[tuple[int, ...], np.dtype]:
    """Returns (shape, dtype) of a tensor field.

    Raises:
        DataError: the field is not a tensor column.
    """
    metadata = field.metadata or {}
    if b"shape" not in metadata or not pa.types.is_fixed_size_binary(field.type):
        raise DataError(f"column {field.name!r} is not a tensor column (type {field.type}, no shape in its metadata)")
    text = metadata[b"shape"].decode()
    shape = tuple(int(s) for s in text.split(",")) if text else ()
    return shape, np.dtype(metadata[b"dtype"].decode())


def read_tensor(table: pa.Table, name: str) -> tuple[NDArray, NDArray[np.bool_]]:
    """Returns (values [n, ...], present [n]) of a tensor column; null rows are zeros.

    The values are a read-only view of Arrow's memory when the column is one chunk without nulls.
    """
    if name not in table.column_names:
        raise DataError(f"there is no column {name!r}; there are {', '.join(table.column_names)}")
    shape, dtype = tensor_schema_of(table.schema.field(name))
    chunks = [_chunk_to_numpy(chunk, shape, dtype) for chunk in table.column(name).chunks if len(chunk)]
    if not chunks:
        return np.zeros((0, *shape), dtype), np.zeros(0, bool)
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate([c[0] for c in chunks]), np.concatenate([c[1] for c in chunks])


def _chunk_to_numpy(
    chunk: pa.FixedSizeBinaryArray, shape: tuple[int, ...], dtype: np.dtype
) -> tuple[NDArray, NDArray[np.bool_]]:
    size = chunk.type.byte_width
    data = np.frombuffer(chunk.buffers()[1], dtype=np.uint8, count=len(chunk) * size, offset=chunk.offset * size)
    values = data.view(dtype).reshape(len(chunk), *shape)
    # Arrow's memory is shared: writing here would change the table, or the file behind it.
    values.flags.writeable = False
    present = np.ones(len(chunk), bool)
    if chunk.null_count:
        present = chunk.is_valid().to_numpy(zero_copy_only=False)
        values = np.where(present.reshape(-1, *[1] * len(shape)), values, np.zeros((), dtype))
    return values, present
