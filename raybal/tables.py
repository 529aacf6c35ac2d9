"""Tables as CSV: those that people write, and those that they read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

SEPARATORS = (",", ";", "\t")


def read_csv(content: bytes) -> pa.Table:
    """Returns a CSV file as text columns: an id or a label of digits stays what it is, and so does one called NA.

    The separator is a comma, or a semicolon or tab where the first line has no comma, as spreadsheets of some
    languages write it. Only an empty cell is null.

    Raises:
        pyarrow.ArrowInvalid: it is not CSV in UTF-8, or a column name is there twice.
    """
    first = content.split(b"\n", 1)[0].decode("utf-8", "replace")
    separator = next((s for s in SEPARATORS if s in first), ",")
    parsing = pacsv.ParseOptions(delimiter=separator, newlines_in_values=True)
    names = pacsv.open_csv(pa.BufferReader(content), parse_options=parsing).schema.names
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise pa.ArrowInvalid(f"column {repeated[0]!r} is there more than once")
    conversion = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        strings_can_be_null=True,
        null_values=[""],
        quoted_strings_can_be_null=True,
    )
    return pacsv.read_csv(pa.BufferReader(content), parse_options=parsing, convert_options=conversion)


def csv_of(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns mappings with the same keys, in the same order, as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
