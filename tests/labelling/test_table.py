"""Query sheets, as people and their spreadsheets fill them in."""

from __future__ import annotations

import csv
import io
import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybal.errors import LabelError
from raybal.labelling.journal import Answer, Journal
from raybal.labelling.table import TableLabeller
from raybal.store import Store

CLASSES = ["cat", "dog", "007", "hot dog, mustard", "NA"]
ASKED = {"001", "b", "c", "d"}
SHEET = "sheets/round-000.csv"
CONFLICTS = "sheets/conflicts.csv"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def uris(ids):
    return {i: f"/media/{i}.mp4" for i in ids if i != "d"}


@pytest.fixture
def labeller(store):
    labeller = TableLabeller(store, CLASSES, uris)
    labeller.ask(0, ["001", "b", "c", "d"])
    return labeller


def fill(store, name, **labels):
    """Writes labels into a sheet by id (a leading underscore is dropped), as a CSV editor would."""
    labels = {key.lstrip("_"): value for key, value in labels.items()}
    rows = list(csv.DictReader(io.StringIO(store.read_bytes(name).decode())))
    column = "resolution" if name == CONFLICTS else "label"
    for row in rows:
        row[column] = labels.get(row["id"], row[column])
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    store.write_bytes(name, text.getvalue().encode())


def given(labeller, text=None, name=SHEET, encoding="utf-8"):
    """What is collected, as (id, label), when a sheet has this text."""
    if text is not None:
        labeller.store.write_bytes(name, text.encode(encoding))
    return [(a.id, a.label) for a in labeller.collect(ASKED)]


def test_a_sheet_lists_what_is_asked_in_order(store, labeller):
    rows = list(csv.reader(io.StringIO(store.read_bytes(SHEET).decode())))
    assert rows == [
        ["id", "uri", "label"],
        ["001", "/media/001.mp4", ""],
        ["b", "/media/b.mp4", ""],
        ["c", "/media/c.mp4", ""],
        ["d", "", ""],
    ]
    assert labeller.where(0) == store.path(SHEET)
    assert labeller.collect(ASKED) == []


def test_a_sheet_in_parquet(store):
    labeller = TableLabeller(store, CLASSES, uris, "parquet")
    labeller.ask(3, ["001", "b"])
    assert store.names("sheets") == ["round-003.parquet"]
    assert labeller.collect(ASKED) == []
    frame = pd.read_parquet(labeller.where(3))
    assert frame.to_dict("list") == {
        "id": ["001", "b"],
        "uri": ["/media/001.mp4", "/media/b.mp4"],
        "label": ["", ""],
    }
    frame["label"] = ["007", None]
    frame.to_parquet(labeller.where(3))
    assert labeller.collect(ASKED) == [Answer("001", "007", "round-003.parquet")]


def test_answers_carry_the_name_of_their_sheet(store, labeller):
    fill(store, SHEET, _001="cat", c="cannot label")
    assert labeller.collect(ASKED) == [Answer("001", "cat", "round-000.csv"), Answer("c", None, "round-000.csv")]


def test_sheets_of_all_rounds_are_read_in_order(store, labeller):
    labeller.ask(1, ["b"])
    labeller.ask(10, ["c"])
    labeller.ask(2, ["d"])
    for name, labels in (("010", {"c": "cat"}), ("002", {"d": "dog"}), ("001", {"b": "cat"}), ("000", {"b": "dog"})):
        fill(store, f"sheets/round-{name}.csv", **labels)
    assert given(labeller) == [("b", "dog"), ("b", "cat"), ("d", "dog"), ("c", "cat")]


@pytest.mark.parametrize("other", ["csv", "parquet"])
def test_asking_again_does_not_touch_a_sheet(store, labeller, other):
    fill(store, SHEET, b="dog")
    before = store.read_bytes(SHEET)
    TableLabeller(store, CLASSES, uris, other).ask(0, ["001", "b", "c", "d"])
    assert store.read_bytes(SHEET) == before
    assert store.names("sheets") == ["round-000.csv"]


@pytest.mark.parametrize("label", CLASSES)
def test_every_class_name_stays_what_it_is(store, labeller, label):
    fill(store, SHEET, b=label)
    assert given(labeller) == [("b", label)]


def test_labels_that_are_numbers_in_parquet(store):
    labeller = TableLabeller(store, ["0", "7"], uris, "parquet")
    labeller.ask(0, ["b", "c"])
    pq.write_table(pa.table({"id": ["b", "c"], "label": [7, None]}), labeller.where(0))
    assert given(labeller) == [("b", "7")]


@pytest.mark.parametrize(
    "text",
    [
        "id,uri,label\n001,/x,\nb,/x,cat\nc,/x,cannot label\n",
        '"id","uri","label"\r\n"001","/x",""\r\n"b","/x","cat"\r\n"c","/x","Cannot Label"\r\n',
        "label,note,id,uri\n,?,001,/x\n cat ,sure,b,/x\ncannot label\t,,c,/x\n",
        "id,uri,label\nb,/x,cat\n\nc,/x,cannot label\n\n",
        "id,uri,label,,\nb,/x,cat,,\nc,/x,cannot label,,\n,,,,\n",
        'id,uri,label,comment\nb,/x,cat,"two\nlines, here"\nc,/x,CANNOT LABEL,\n',
        "id,label\nb,cat\nc,cannot label\n001,   \n",
        "id,label\nb,cat\nc,cannot label",
        "id;uri;label\nb;/x;cat\nc;/x;cannot label\n",
        "id\turi\tlabel\nb\t/x\tcat\nc\t/x\tcannot label\n",
        "ID, URI, Label\nb,/x,cat\nc,/x,cannot label\n",
    ],
    ids=[
        "plain",
        "quotes",
        "order",
        "blank lines",
        "empty columns",
        "comments",
        "spaces",
        "no last line end",
        "semicolons",
        "tabs",
        "capitals",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_sheets_as_spreadsheets_save_them(labeller, text, encoding):
    assert given(labeller, text, encoding=encoding) == [("b", "cat"), ("c", None)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "id,uri,label\n001,x,cta\nb,x,cat\nc,x,DOG\n",
            ["row 2, item 001: 'cta' (did you mean 'cat'?)", "row 4", "DOG"],
        ),
        ("id,uri,label\nb,x,cat\nzz,x,dog\n", ["row 3: item 'zz' was never asked for"]),
        ("id,uri,label\nb,x,7\n", ["row 2, item b: '7'", "cat, dog, 007, hot dog, mustard, NA, or 'cannot label'"]),
        ("id,uri\nb,x\n", ["has no column 'label'; it has id, uri"]),
        ("id,uri,label\nb,cat\n", ["cannot be read as a table", "Expected 3 columns, got 2"]),
        ("", ["cannot be read as a table"]),
    ],
)
def test_a_sheet_that_is_wrong_is_named_and_nothing_of_it_is_taken(labeller, text, says):
    labeller.store.write_bytes(SHEET, text.encode())
    with pytest.raises(LabelError) as error:
        labeller.collect(ASKED)
    for part in (labeller.store.path(SHEET), *says):
        assert part in str(error.value)


def test_many_wrong_labels_are_counted(labeller):
    text = "id,uri,label\n" + "b,x,bird\n" * 25
    with pytest.raises(LabelError, match=r"row 11, item b: 'bird'; and 15 more\. Accepted") as error:
        given(labeller, text)
    assert "row 12" not in str(error.value)


def test_text_in_another_encoding_is_refused(labeller):
    with pytest.raises(LabelError, match=r"cannot be read as a table.*UTF8"):
        given(labeller, "id,uri,label\nb,x,caf\xe9\n", encoding="latin-1")


def test_a_damaged_parquet_sheet_is_named(store):
    labeller = TableLabeller(store, CLASSES, uris, "parquet")
    store.write_bytes("sheets/round-000.parquet", b"PAR1")
    with pytest.raises(LabelError, match=re.escape(store.path("sheets/round-000.parquet"))):
        labeller.collect(ASKED)


def test_a_conflict_from_question_to_settlement(store, labeller):
    journal = Journal(store)
    labeller.ask(1, ["b"])

    def take():
        journal.add(labeller.collect(ASKED))
        labels = journal.read()
        return labels, labeller.report_conflicts(labels)

    fill(store, SHEET, b="dog", c="cat", d="cannot label")
    labels, where = take()
    assert (labels.label, where) == ({"b": "dog", "c": "cat", "d": None}, None)
    assert not store.exists(CONFLICTS)

    fill(store, "sheets/round-001.csv", b="cat")
    fill(store, SHEET, d="dog")
    labels, where = take()
    assert labels.label == {"b": "dog", "c": "cat", "d": None}
    assert where == store.path(CONFLICTS)
    assert list(csv.reader(io.StringIO(store.read_bytes(CONFLICTS).decode()))) == [
        ["id", "uri", "answers", "resolution"],
        ["b", "/media/b.mp4", "dog (round-000.csv) | cat (round-001.csv)", ""],
        ["d", "", "cannot label (round-000.csv) | dog (round-000.csv)", ""],
    ]

    # Nothing filled in: it stays, and takes nothing away.
    before = store.read_bytes(CONFLICTS)
    assert take()[1] == where
    assert store.read_bytes(CONFLICTS) == before

    fill(store, CONFLICTS, b="cat")
    labels, where = take()
    assert labels.label["b"] == "cat"
    assert list(labels.conflicts) == ["d"]
    assert [row["id"] for row in csv.DictReader(io.StringIO(store.read_bytes(CONFLICTS).decode()))] == ["d"]

    fill(store, CONFLICTS, d="Cannot label")
    labels, where = take()
    assert (labels.label, labels.conflicts, where) == ({"b": "cat", "c": "cat", "d": None}, {}, None)
    assert not store.exists(CONFLICTS)
    # The sheets still hold what was settled.
    before = store.names("labels")
    assert take()[0].label == labels.label
    assert store.names("labels") == before


def test_a_wrong_resolution_is_named(store, labeller):
    journal = Journal(store)
    journal.add([Answer("b", "cat", "x"), Answer("b", "dog", "x")])
    labeller.report_conflicts(journal.read())
    fill(store, CONFLICTS, b="bird")
    with pytest.raises(LabelError, match=rf"{re.escape(store.path(CONFLICTS))}: row 2, item b: 'bird'"):
        labeller.collect(ASKED)


def test_cannot_label_of_an_item_that_was_never_asked_for(labeller):
    with pytest.raises(LabelError, match="'zz' was never asked for"):
        given(labeller, "id,uri,label\nzz,x,cannot label\n")


def test_a_column_that_is_there_twice(labeller):
    with pytest.raises(LabelError, match=re.escape(labeller.store.path(SHEET))):
        given(labeller, "id,label,label\nb,cat,dog\n")


def test_whole_numbers_beside_empty_cells_in_parquet(store):
    labeller = TableLabeller(store, ["0", "7"], uris, "parquet")
    labeller.ask(0, ["b", "c"])
    pd.DataFrame({"id": ["b", "c"], "label": [7, None]}).to_parquet(labeller.where(0))
    assert given(labeller) == [("b", "7")]
