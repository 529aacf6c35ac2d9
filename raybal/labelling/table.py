"""Query sheets: CSV or Parquet tables that people fill in.

A sheet has one row an item: `id`, `uri`, and an empty `label`. An annotator writes a class name, or "cannot label";
an empty cell is not answered yet. All sheets are read again at every start, so late answers and corrections count.
Conflicting answers are listed in `conflicts.csv`, whose column `resolution` settles them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from raybal.errors import LabelError, did_you_mean, shorten
from raybal.labelling.journal import Answer, Labels
from raybal.store import Store

FOLDER = "sheets"
CONFLICTS = "conflicts.csv"
CANNOT_LABEL = "cannot label"


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
        return self.store.path(self._name(round_number))

    def ask(self, round_number: int, ids: Sequence[str]) -> None:
        name = self._name(round_number)
        if any(self.store.exists(f"{FOLDER}/round-{round_number:03d}.{kind}") for kind in ("csv", "parquet")):
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
            if name == CONFLICTS:
                answers += self._read(name, "resolution", asked)
            elif name.startswith("round-"):
                answers += self._read(name, "answer", asked)
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
        return self.store.path(name)

    def _name(self, round_number: int) -> str:
        return f"{FOLDER}/round-{round_number:03d}.{self.sheet}"

    def _read(self, name: str, kind: Literal["answer", "resolution"], asked: Collection[str]) -> list[Answer]:
        path = self.store.path(f"{FOLDER}/{name}")
        column = "label" if kind == "answer" else "resolution"
        table = _table(self.store.read_bytes(f"{FOLDER}/{name}"), name, path)
        for needed in ("id", column):
            if needed not in table.column_names:
                raise LabelError(f"{path} has no column {needed!r}; it has {', '.join(table.column_names)}")
        cells = list(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))
        wrong, answers = [], []
        for row, (item, cell) in enumerate(cells, 2):
            text = ("" if cell is None else str(cell)).strip()
            if not text:
                continue
            if text.lower() == CANNOT_LABEL:
                answers.append(Answer(str(item), None, name, kind))
            elif text not in self.classes:
                wrong.append(f"row {row}, item {item}: {text!r}{did_you_mean(text, self.classes)}")
            elif str(item) not in asked:
                wrong.append(f"row {row}: item {item!r} was never asked for")
            else:
                answers.append(Answer(str(item), text, name, kind))
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
    try:
        if name.endswith(".parquet"):
            return pq.read_table(io.BytesIO(content))
        text = pa.string()
        # As text, so that a class named 007 or an id of digits stays what it is.
        names = pacsv.open_csv(io.BytesIO(content)).schema.names
        options = pacsv.ConvertOptions(column_types=dict.fromkeys(names, text), strings_can_be_null=False)
        return pacsv.read_csv(io.BytesIO(content), convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise LabelError(f"{path} cannot be read as a table: {error}") from error
