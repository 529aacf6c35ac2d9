"""Reading what a user has: a manifest, Parquet with media inside, or a bare folder of media files.

Columns by name and type:

    id                     text, unique
    label, group, split    optional
    uri                    a clip; its tracks become the modalities "video" and "audio" (or "image")
    <name>_uri             one file a modality, called <name>
    media                  like uri, with the file's bytes in the cell
    <name>, bytes          like <name>_uri, with the file's bytes in the cell
    <name>, list of numbers             precomputed features [d]
    <name>, list of lists of numbers    a precomputed sequence [T, d]

Everything else is left alone.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raybal.data.cells import parquet_errors
from raybal.data.files import fingerprint
from raybal.data.folder import media_names
from raybal.data.sources import PLAIN, Source, find_sources, source_kind
from raybal.errors import DataError, did_you_mean, shorten
from raybal.store import Store, join, storage_errors
from raybal.tables import read_csv

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass
class Manifest:
    """What a user wants prepared.

    Attributes:
        table: id (text), label (text or null), group (text or null), split (text or null), and the uri columns, in
            the order of the input. uris are absolute.
        sources: the columns that media come from.
        files: Parquet files that hold media columns, empty for a manifest of uris.
        file_rows: number of rows of each of them.
        fingerprints: size and time of every input file, by path.
    """

    table: pa.Table
    sources: tuple[Source, ...]
    files: tuple[str, ...]
    file_rows: tuple[int, ...]
    fingerprints: dict[str, str]


def read_manifest(place: str) -> Manifest:
    """Reads a manifest (CSV or Parquet), Parquet files with media, or a folder.

    A folder may hold `manifest.csv` or `manifest.parquet`, or Parquet files with media, or just media files: then
    each is an item whose id is its path in the folder.

    Raises:
        DataError: there is nothing to read, a column is missing or wrong, or ids repeat.
        StoreError: the storage refuses.
    """
    folder, name = _open(place)
    if name is not None:
        return _read_files(folder, [name])
    names = folder.names()
    for candidate in ("manifest.csv", "manifest.parquet"):
        if candidate in names:
            return _read_files(folder, [candidate])
    tables = [n for n in names if n.lower().endswith(".parquet")]
    if tables:
        return _read_files(folder, tables)
    return _bare_folder(folder)


def _open(place: str) -> tuple[Store, str | None]:
    """Returns (folder, name of the file in it or None if the place is a folder)."""
    store = Store(place)
    with storage_errors("look for", place):
        kind = store.filesystem.get_file_info(store.path()).type
    if kind == pafs.FileType.NotFound:
        raise DataError(f"there is no file or folder {place}")
    if kind == pafs.FileType.Directory:
        return store, None
    if "://" not in store.root:
        folder, _, name = store.root.rpartition("/")
        return Store(folder or "/"), name
    head, mark, options = store.root.partition("?")
    folder, _, name = head.rpartition("/")
    return Store(f"{folder}{mark}{options}"), urllib.parse.unquote(name)


def _read_files(folder: Store, names: Sequence[str]) -> Manifest:
    tables: list[pa.Table] = []
    files, rows, fingerprints = [], [], {}
    sources: tuple[Source, ...] | None = None
    for name in names:
        path = folder.where(name)
        table, found, count = _read_one(folder, name)
        if sources is not None and set(found) != set(sources):
            raise DataError(f"{folder.path(name)} has other media columns than {folder.path(names[0])}")
        sources = sources or found
        tables.append(table if not tables else table.select(tables[0].column_names))
        if any(s.kind != "uri" for s in found):
            files.append(path)
            rows.append(count)
        with storage_errors("look for", folder.path(name)):
            fingerprints[path] = fingerprint(folder.filesystem.get_file_info(folder.path(name)))
    assert sources is not None
    table = check_table(pa.concat_tables(tables), folder.path(names[0]))
    return Manifest(table, sources, tuple(files), tuple(rows), fingerprints)


def _read_one(folder: Store, name: str) -> tuple[pa.Table, tuple[Source, ...], int]:
    """Returns (the table without media cells, its sources, its number of rows)."""
    path = folder.path(name)
    if name.lower().endswith(".csv"):
        try:
            table = read_csv(folder.read_bytes(name))
        except pa.ArrowInvalid as error:
            raise DataError(f"{path} cannot be read as CSV: {error}") from error
        schema = table.schema
    elif name.lower().endswith(".parquet"):
        with parquet_errors(path):
            file = pq.ParquetFile(path, filesystem=folder.filesystem)
            schema = file.schema_arrow
            if repeated := [name for name in set(schema.names) if schema.names.count(name) > 1]:
                raise DataError(f"{path}: column {repeated[0]!r} is there more than once")
            light = [f.name for f in schema if f.name in PLAIN or source_kind(f) == "uri"]
            table = file.read(columns=light)
    else:
        raise DataError(f"{path} is not a manifest; give a .csv or .parquet file, or a folder")
    if "id" not in schema.names:
        raise DataError(
            f"{path} has no column 'id'{did_you_mean('id', schema.names)}; it has {', '.join(schema.names)}"
        )
    sources = find_sources(schema, path)
    table = _plain(table, path)
    uris = [s.column for s in sources if s.kind == "uri"]
    for column in uris:
        absolute = pa.array(_absolute(table[column].to_pylist(), folder), pa.string())
        table = table.set_column(table.schema.get_field_index(column), column, absolute)
    return table.select(["id", "label", "group", "split", *uris]), sources, len(table)


def _plain(table: pa.Table, path: str) -> pa.Table:
    """Brings id, label, group and split to text without spaces around it; absent ones are null."""
    for column in PLAIN:
        if column not in table.column_names:
            table = table.append_column(column, pa.nulls(len(table), pa.string()))
            continue
        values = table[column]
        kind = values.type
        try:
            if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                raise pa.ArrowTypeError
            texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
        except pa.ArrowException as error:
            raise DataError(f"{path}: column {column!r} must be text or numbers, and is {kind}") from error
        if column != "id":
            texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
        table = table.set_column(table.schema.get_field_index(column), column, texts)
    return table


def _absolute(uris: Sequence[str | None], folder: Store) -> list[str | None]:
    def one(uri: str | None) -> str | None:
        if not uri:
            return None
        return uri if "://" in uri or uri.startswith("/") else join(folder.root, uri)

    return [one(u) for u in uris]


def check_table(table: pa.Table, path: str) -> pa.Table:
    """Returns the table of a manifest with its splits named as raybal names them.

    Raises:
        DataError: it has no rows, an id is empty or there twice, or a split is none.
    """
    if not len(table):
        raise DataError(f"{path} has no rows")
    ids = table["id"]
    empty = pc.or_kleene(pc.is_null(ids), pc.equal(pc.fill_null(ids, ""), ""))
    if pc.any(empty).as_py():
        row = np.flatnonzero(np.asarray(empty.to_pylist()))[0]
        raise DataError(f"{path}: the id in row {row + 1} is empty")
    counts = pc.value_counts(ids.combine_chunks())
    repeated = [c["values"] for c in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist()]
    if repeated:
        raise DataError(f"{path}: {len(repeated)} ids occur more than once: {shorten(repeated)}; ids must be unique")
    if table["split"].null_count == len(table):
        return table
    names: Mapping[str, str] = _SPLIT_NAMES
    splits = [names.get(str(s).strip().lower()) for s in table["split"].to_pylist()]
    if None in splits:
        row = splits.index(None)
        raise DataError(
            f"{path}: item {ids[row].as_py()} has split {table['split'][row].as_py()!r}; "
            "every item needs one of train, val, test (or leave the column out)"
        )
    return table.set_column(table.schema.get_field_index("split"), "split", pa.array(splits, pa.string()))


def _bare_folder(folder: Store) -> Manifest:
    names = media_names(folder)
    nothing = pa.nulls(len(names), pa.string())
    uris = pa.array(_absolute(names, folder), pa.string())
    table = pa.table({"id": names, "label": nothing, "group": nothing, "split": nothing, "uri": uris})
    return Manifest(table, (Source("uri", "uri", None),), (), (), {})
