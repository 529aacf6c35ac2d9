"""Cells of Parquet files with media inside, a few at a time: a file may be one row group of many gigabytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybal.errors import DataError
from raybal.store import Store

BATCH_BYTES = 8 * 2**20
_BUFFER_BYTES = 2**20


@contextmanager
def parquet_errors(path: str) -> Iterator[None]:
    """Turns what pyarrow says of a Parquet file that it cannot read into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def read_cells(place: str, columns: Sequence[str], rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields the cells of ascending rows of a Parquet file, {column: value}: bytes, numbers as an array, or None.

    Raises:
        DataError: the file cannot be read.
    """
    wanted = np.asarray(rows, np.int64)
    with parquet_errors(place):
        file = _open(place)
        ends = np.cumsum([file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)])
        for group in np.unique(np.searchsorted(ends, wanted, side="right")).tolist():
            start = int(ends[group - 1]) if group else 0
            inside = wanted[(wanted >= start) & (wanted < ends[group])]
            for batch in _batches(file, group, columns):
                here = inside[(inside >= start) & (inside < start + batch.num_rows)] - start
                for row in here.tolist():
                    yield {column: _value(batch.column(column)[row]) for column in columns}
                start += batch.num_rows
                if start > inside[-1]:
                    break


def read_values(place: str, column: str) -> Iterator[Any]:
    """Yields the cells of a column that hold something, in order.

    Raises:
        DataError: the file cannot be read.
    """
    with parquet_errors(place):
        file = _open(place)
        for group in range(file.num_row_groups):
            for batch in _batches(file, group, [column]):
                for row in np.flatnonzero(batch.column(column).is_valid()).tolist():
                    yield _value(batch.column(column)[row])


def hash_cells(cells: Mapping[str, Any]) -> str:
    """Returns a hash of the media cells of one item, of numbers as the float32 that they are prepared as."""
    state = hashlib.blake2b(digest_size=8)
    for column, value in sorted(cells.items()):
        if value is None:
            continue
        try:
            content = value if isinstance(value, bytes) else np.asarray(value, np.float32)
            shape = content.shape if isinstance(content, np.ndarray) else (len(content),)
        except (TypeError, ValueError):  # lists of unequal lengths, or with empty cells
            content, shape = repr(value).encode(), ()
        state.update(f"{column} {shape} ".encode())
        state.update(content if isinstance(content, bytes) else np.ascontiguousarray(content).data)
    return state.hexdigest()


def _open(place: str) -> pq.ParquetFile:
    # Mapped or buffered, a column is read page by page, and else a whole row group at once.
    store = Store(place)
    if store.is_local:
        return pq.ParquetFile(store.path(), memory_map=True)
    return pq.ParquetFile(store.path(), filesystem=store.filesystem, buffer_size=_BUFFER_BYTES)


def _batches(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    content = file.metadata.row_group(group)
    chunks = [content.column(i) for i in range(content.num_columns)]
    size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns)
    rows = max(1, min(4096, BATCH_BYTES * content.num_rows // max(size, 1)))
    return file.iter_batches(batch_size=rows, row_groups=[group], columns=list(columns), use_threads=False)


def _value(cell: pa.Scalar) -> Any:
    kind = cell.type
    if cell.is_valid and hasattr(cell, "values") and not pa.types.is_nested(kind.value_type):
        return cell.values.to_numpy(zero_copy_only=False)
    return cell.as_py()
