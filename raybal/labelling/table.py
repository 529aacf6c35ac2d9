"""Query sheets: CSV or Parquet tables that people fill in.

A sheet has one row an item: `id`, `uri`, and an empty `label`. An annotator writes a class name, or "cannot label";
an empty cell is not answered yet. All sheets are read again at every start, so late answers and corrections count.
Conflicting answers are listed in `conflicts.csv`, whose column `resolution` settles them.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from raybal.errors import LabelError, did_you_mean, shorten
from raybal.labelling.journal import Answer, Labels
from raybal.store import Store
from raybal.tables import read_csv

FOLDER = "sheets"
CONFLICTS = "conflicts.csv"
CANNOT_LABEL = "cannot label"
_SHEET = re.compile(r"round-\d{3,}\.(csv|parquet)")

log = logging.getLogger(__name__)


class TableLabeller:
    """Writes query sheets into the store and reads what people wrote into them.

    Args:
        store: the experiment's store.
        classes: names that are accepted.
        uris: returns where the media of some items are, by id.
        sheet: "csv" or "parquet".
    """

    def __init__(
        self,
        store: Store,
        classes: Sequence[str],
        uris: Callable[[Sequence[str]], Mapping[str, str]],
        sheet: str = "csv",
    ) -> None:
        self.store = store
        self.classes = list(classes)
        self.uris = uris
        self.sheet = sheet

    def where(self, round_number: int) -> str:
        return self.store.where(self._there(round_number) or self._name(round_number))

    def ask(self, round_number: int, ids: Sequence[str]) -> None:
        name = self._name(round_number)
        if self._there(round_number) is not None:
            return
        empty = pa.array([""] * len(ids))
        uris = self.uris(ids)
        table = pa.table({"id": list(ids), "uri": [uris.get(i, "") for i in ids], "label": empty})
        if self.sheet == "parquet":
            self.store.write_table(name, table)
        else:
            self.store.write_bytes(name, _csv(table))

    def collect(self, asked: Collection[str]) -> list[Answer]:
        """Returns the answers in all sheets to the items that have been asked for.

        Raises:
            LabelError: a sheet that cannot be read, an item that was not asked for there, or a label outside the
                class list; all such cells of a sheet are named, and none of its answers is taken.
        """
        answers: list[Answer] = []
        for name in self.store.names(FOLDER):
            if name.startswith((".", "~")):
                # What file managers and office programs leave beside an open file.
                continue
            if name == CONFLICTS:
                answers += self._read(name, "resolution", asked)
            elif _SHEET.fullmatch(name):
                answers += self._read(name, "answer", asked)
            else:
                log.warning(
                    "%s is not a query sheet (round-NNN.csv or .parquet) and is not read",
                    self.store.where(f"{FOLDER}/{name}"),
                )
        return answers

    def report_conflicts(self, labels: Labels) -> str | None:
        """Writes the open conflicts as a sheet to settle them; returns where it is, or None if there are none."""
        name = f"{FOLDER}/{CONFLICTS}"
        if not labels.conflicts:
            self.store.delete(name)
            return None
        uris = self.uris(list(labels.conflicts))
        rows = [
            {
                "id": item,
                "uri": uris.get(item, ""),
                "answers": " | ".join(f"{a.label or CANNOT_LABEL} ({a.source})" for a in given),
                "resolution": "",
            }
            for item, given in labels.conflicts.items()
        ]
        self.store.write_bytes(name, _csv(pa.Table.from_pylist(rows)))
        return self.store.where(name)

    def _name(self, round_number: int, kind: str | None = None) -> str:
        return f"{FOLDER}/round-{round_number:03d}.{kind or self.sheet}"

    def _there(self, round_number: int) -> str | None:
        """The name of a round's sheet, of whatever format it was written in; None if there is none yet."""
        names = [self._name(round_number, kind) for kind in ("csv", "parquet")]
        return next((name for name in names if self.store.exists(name)), None)

    def _read(self, name: str, kind: Literal["answer", "resolution"], asked: Collection[str]) -> list[Answer]:
        path = self.store.where(f"{FOLDER}/{name}")
        column = "label" if kind == "answer" else "resolution"
        table = _table(self.store.read_bytes(f"{FOLDER}/{name}"), name, path)
        for needed in ("id", column):
            if needed not in table.column_names:
                raise LabelError(f"{path} has no column {needed!r}; it has {', '.join(table.column_names)}")
        wrong, answers = [], []
        for row, cells in enumerate(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True), 2):
            item, text = map(_text, cells)
            if not text:
                continue
            label = None if text.lower() == CANNOT_LABEL else text
            if item not in asked:
                wrong.append(f"row {row}: item {item!r} was never asked for")
            elif label is not None and label not in self.classes:
                wrong.append(f"row {row}, item {item}: {text!r}{did_you_mean(text, self.classes)}")
            else:
                answers.append(Answer(item, label, name, kind))
        if wrong:
            raise LabelError(
                f"{path}: {'; '.join(wrong[:10])}{f'; and {len(wrong) - 10} more' if len(wrong) > 10 else ''}. "
                f"Accepted: {shorten(self.classes, 40)}, or {CANNOT_LABEL!r}. No answer of this sheet was taken; "
                "correct it and run the same command again"
            )
        return answers


def _csv(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pacsv.write_csv(table, sink)
    return sink.getvalue()


def _table(content: bytes, name: str, path: str) -> pa.Table:
    """Reads a sheet, with column names in any case."""
    try:
        table = pq.read_table(io.BytesIO(content)) if name.endswith(".parquet") else read_csv(content)
    except (pa.ArrowException, OSError) as error:
        raise LabelError(f"{path} cannot be read as a table: {error}") from error
    names = [column.strip().lower() for column in table.column_names]
    repeated = [column for column in names if column and names.count(column) > 1]
    if repeated:
        raise LabelError(f"{path} has column {repeated[0]!r} more than once; leave one")
    return table.rename_columns(names)


def _text(cell: object) -> str:
    """Returns a cell as text: a whole number as one, whatever pandas made of it, and nothing for NaN."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()
