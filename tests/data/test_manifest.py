"""Manifests: what is read from tables and folders, and what is said of those that cannot be used."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybal.data.manifest import Source, read_manifest
from raybal.errors import DataError

COLUMNS = ["id", "label", "group", "split"]


@pytest.fixture
def csv(tmp_path):
    """Writes a CSV manifest; returns its path."""

    def write(text, encoding="utf-8", name="m.csv"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return str(tmp_path / name)

    return write


@pytest.fixture
def parquet(tmp_path):
    """Writes a Parquet manifest; returns its path."""

    def write(name="m.parquet", **columns):
        pq.write_table(pa.table(columns), tmp_path / name)
        return str(tmp_path / name)

    return write


def rows(manifest, *columns):
    """The table's columns, as tuples."""
    return list(zip(*(manifest.table[c].to_pylist() for c in columns or manifest.table.column_names), strict=True))


def test_a_csv_manifest(csv, tmp_path):
    place = csv(
        "uri,split,note,id,group,label\n"
        "clips/a b.mp4,train,x,007,g1,3\n"
        "/data/b.mp4,val,y,1e3,,\n"
        's3://bucket/c.mp4,test,z,"c,3",g2,"ä, ö"\n'
    )
    manifest = read_manifest(place)
    assert manifest.table.column_names == [*COLUMNS, "uri"]
    assert rows(manifest) == [
        ("007", "3", "g1", "train", f"{tmp_path}/clips/a b.mp4"),
        ("1e3", None, None, "val", "/data/b.mp4"),
        ("c,3", "ä, ö", "g2", "test", "s3://bucket/c.mp4"),
    ]
    assert manifest.sources == (Source("uri", "uri", None),)
    assert manifest.files == manifest.file_rows == ()
    assert list(manifest.fingerprints) == [place]


def test_csv_and_parquet_give_the_same(tmp_path):
    frame = pd.DataFrame(
        {
            "id": ["001", "002", "003"],
            "label": ["7", None, "cat"],
            "group": ["g", "g", None],
            "audio_uri": ["a.wav", None, "/c.wav"],
            "video_uri": ["a.mp4", "b.mp4", None],
        }
    )
    frame.to_csv(tmp_path / "m.csv", index=False)
    frame.to_parquet(tmp_path / "m.parquet")
    a, b = read_manifest(str(tmp_path / "m.csv")), read_manifest(str(tmp_path / "m.parquet"))
    assert a.table.equals(b.table)
    assert a.sources == b.sources == (Source("audio_uri", "uri", "audio"), Source("video_uri", "uri", "video"))
    assert rows(a, "audio_uri", "video_uri") == [
        (f"{tmp_path}/a.wav", f"{tmp_path}/a.mp4"),
        (None, f"{tmp_path}/b.mp4"),
        ("/c.wav", None),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_csv_as_spreadsheets_write_it(csv, encoding, line):
    place = csv(line.join(['"id","label","uri"', '"1","ä","a.mp4"', '"2","","b.mp4"', ""]), encoding)
    assert rows(read_manifest(place), "id", "label") == [("1", "ä"), ("2", None)]


def test_the_order_of_the_input_is_kept(parquet):
    ids = np.random.default_rng(0).permutation(500).tolist()
    manifest = read_manifest(parquet(id=ids, uri=[f"{i}.mp4" for i in ids]))
    assert [int(i) for i in manifest.table["id"].to_pylist()] == ids


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([3, 11, 3], ["3", "11", "3"]),
        (pa.array([3.0, None, 11.0]), ["3", None, "11"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array(["a", None, ""]).dictionary_encode(), ["a", None, None]),
        (pa.array(["a", None, "b"], pa.large_string()), ["a", None, "b"]),
        (pa.nulls(3), [None, None, None]),
    ],
)
def test_labels_and_groups_of_any_type_become_text(parquet, values, texts):
    manifest = read_manifest(parquet(id=["a", "b", "c"], label=values, group=values, uri=["x"] * 3))
    assert rows(manifest, "label", "group") == [(t, t) for t in texts]
    assert {manifest.table.schema.field(c).type for c in COLUMNS} == {pa.string()}


def test_ids_of_numbers_are_text(parquet):
    assert rows(read_manifest(parquet(id=[10, -2, 2**60], uri=["x"] * 3)), "id") == [
        ("10",),
        ("-2",),
        ("1152921504606846976",),
    ]


def test_splits_by_any_of_their_names(csv):
    names = ["train", "TRAIN", " val", "valid", "Validation ", "test"]
    place = csv("id,uri,split\n" + "".join(f"{i},x,{name}\n" for i, name in enumerate(names)))
    assert [s for (s,) in rows(read_manifest(place), "split")] == ["train", "train", "val", "val", "val", "test"]


@pytest.mark.parametrize("value", ["dev", "training", "0", ""])
def test_a_split_that_is_none(csv, value):
    with pytest.raises(DataError, match=r"item two has split .*needs one of train, val, test") as error:
        read_manifest(csv(f"id,uri,split\none,x,train\ntwo,x,{value}\n"))
    assert repr(value or None) in str(error.value)


def test_no_split_at_all_is_fine(csv):
    assert rows(read_manifest(csv("id,uri,split\na,x,\nb,x,\n")), "split") == [(None,), (None,)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,uri\na,1\nb,2\na,3\nc,4\nc,5\n", ["2 ids", "more than once: a, c", "unique"]),
        ("id,uri\na,1\n,2\n", ["the id in row 2 is empty"]),
        ("ID,uri\na,1\n", ["no column 'id'", "it has ID, uri"]),
        ("ids,uri\na,1\n", ["no column 'id'", "did you mean 'ids'?"]),
        ("id,label\na,1\n", ["no column that media could come from", "it has id, label", "<modality>_uri"]),
        ("id,uri\n", ["has no rows"]),
        ("", ["cannot be read as CSV"]),
        ("id,label,uri\na,1\n", ["cannot be read as CSV", "Expected 3 columns, got 2"]),
    ],
)
def test_csv_that_cannot_be_used(csv, text, says):
    place = csv(text)
    with pytest.raises(DataError) as error:
        read_manifest(place)
    for part in (place, *says):
        assert part in str(error.value)


def test_text_in_another_encoding_is_refused(csv):
    with pytest.raises(DataError, match=r"cannot be read as CSV.*UTF8"):
        read_manifest(csv("id,label,uri\na,é,x\n", "latin-1"))


def test_parquet_that_cannot_be_used(parquet, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read as Parquet"):
        read_manifest(str(tmp_path / "bad.parquet"))
    for column in ("id", "label"):
        content = {"id": ["a"], "uri": ["x"]} | {column: [["a"]]}
        with pytest.raises(DataError, match=f"column '{column}' must be text or numbers, and is list"):
            read_manifest(parquet(**content))
    with pytest.raises(DataError, match="column 'id' must be text or numbers, and is binary"):
        read_manifest(parquet(id=[b"a"], uri=["x"]))


@pytest.mark.parametrize("name", ["m.txt", "m.json", "m"])
def test_other_files_are_no_manifest(csv, name):
    with pytest.raises(DataError, match=rf"{re.escape(name)} is not a manifest; give a \.csv or \.parquet"):
        read_manifest(csv("id,uri\na,x\n", name=name))


def test_nothing_there(tmp_path):
    for place in (tmp_path / "absent", tmp_path / "absent/m.csv"):
        with pytest.raises(DataError, match=f"there is no file or folder {re.escape(str(place))}"):
            read_manifest(str(place))


def test_columns_by_their_type(parquet):
    number = pa.list_(pa.float16())
    manifest = read_manifest(
        parquet(
            id=["a", "b"],
            media=[b"1", None],
            image=pa.array([b"1", b"2"], pa.large_binary()),
            floats=pa.array([[1.0, 2.0], None], pa.list_(pa.float32())),
            whole=[[1, 2], [3, 4]],
            half=pa.array([np.ones(2, np.float16)] * 2, number),
            fixed=pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float64(), 2)),
            sequence=[[[1.0], [2.0]], [[3.0]]],
            fixed_steps=pa.array([[[1.0, 2.0]]] * 2, pa.large_list(pa.list_(pa.float32(), 2))),
            audio_uri=["x.wav", None],
            note=["text", "text"],
            words=[["a"], ["b"]],
            number=[1.0, 2.0],
            struct=[{"k": 1}] * 2,
            flags=[[True], [False]],
        )
    )
    assert manifest.sources == (
        Source("media", "bytes", None),
        Source("image", "bytes", "image"),
        Source("floats", "features", "floats"),
        Source("whole", "features", "whole"),
        Source("half", "features", "half"),
        Source("fixed", "features", "fixed"),
        Source("sequence", "sequence", "sequence"),
        Source("fixed_steps", "sequence", "fixed_steps"),
        Source("audio_uri", "uri", "audio"),
    )
    # Cells with media stay in the file.
    assert manifest.table.column_names == [*COLUMNS, "audio_uri"]
    assert manifest.file_rows == (2,)


def test_a_folder_with_a_manifest_beside_other_files(tmp_path):
    (tmp_path / "clip.mp4").touch()
    pq.write_table(pa.table({"id": ["p"], "uri": ["p.mp4"]}), tmp_path / "manifest.parquet")
    assert rows(read_manifest(str(tmp_path)), "id", "uri") == [("p", f"{tmp_path}/p.mp4")]
    (tmp_path / "manifest.csv").write_text("id,uri\nc,c.mp4\n")
    assert rows(read_manifest(str(tmp_path)), "id", "uri") == [("c", f"{tmp_path}/c.mp4")]


def test_uris_beside_a_manifest_that_is_given_by_a_uri(csv, tmp_path):
    place = csv("id,uri\na,deep/a.mp4\nb,../b.mp4\nc,/c.mp4\n", name="manifest.csv")
    folder = tmp_path.as_uri()
    wanted = [(f"{folder}/deep/a.mp4",), (f"{folder}/../b.mp4",), ("/c.mp4",)]
    assert rows(read_manifest(f"file://{place}"), "uri") == wanted
    assert rows(read_manifest(folder), "uri") == wanted


def test_a_folder_of_parquet_files(parquet, tmp_path):
    # Not in the order in which they were written.
    second = parquet("b.parquet", id=["3"], x=[[5.0]], label=["cat"])
    first = parquet("a.parquet", id=[1, 2], x=[[1.0], [2.0]], group=["g", None])
    (tmp_path / "notes.txt").touch()
    manifest = read_manifest(str(tmp_path))
    assert rows(manifest) == [("1", None, "g", None), ("2", None, None, None), ("3", "cat", None, None)]
    assert manifest.files == (first, second)
    assert manifest.file_rows == (2, 1)
    assert list(manifest.fingerprints) == [first, second]
    assert manifest.fingerprints[first].split(":")[0] == str((tmp_path / "a.parquet").stat().st_size)


def test_parquet_files_of_which_one_lacks_all_files_of_a_modality(parquet, tmp_path):
    parquet("a.parquet", id=["1"], audio_uri=["1.wav"], video_uri=["1.mp4"])
    parquet("b.parquet", id=["2"], audio_uri=["2.wav"], video_uri=pa.nulls(1, pa.string()))
    assert rows(read_manifest(str(tmp_path)), "id", "video_uri") == [("1", f"{tmp_path}/1.mp4"), ("2", None)]


def test_parquet_files_that_do_not_fit_each_other(parquet, tmp_path):
    parquet("a.parquet", id=["1"], audio=[b""])
    parquet("b.parquet", id=["2"], video=[b""])
    with pytest.raises(DataError, match=r"b\.parquet has other media columns than .*a\.parquet"):
        read_manifest(str(tmp_path))
    parquet("b.parquet", id=["1"], audio=[b""])
    with pytest.raises(DataError, match="1 ids occur more than once: 1"):
        read_manifest(str(tmp_path))


def test_a_bare_folder_of_media(tmp_path):
    for name in ("b.mp4", "a/c.WAV", "a/b/d.flac", "a b.jpg", "notes.txt", "mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    manifest = read_manifest(str(tmp_path))
    ids = ["a b.jpg", "a/b/d.flac", "a/c.WAV", "b.mp4"]
    assert rows(manifest) == [(i, None, None, None, f"{tmp_path}/{i}") for i in ids]
    assert manifest.sources == (Source("uri", "uri", None),)


@pytest.mark.parametrize("names", [[], ["notes.txt"]])
def test_a_folder_with_nothing_to_read(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"folder {re.escape(str(tmp_path))} has no manifest\.csv.*no media files"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("name", ["NA", "null", "nan"])
def test_names_that_look_like_nothing_stay_text(csv, name):
    assert rows(read_manifest(csv(f"id,label,uri\n{name},{name},x\n")), "id", "label") == [(name, name)]


@pytest.mark.parametrize("head", ["id,id,uri", "id,uri,uri"])
def test_a_column_that_is_there_twice(csv, head):
    with pytest.raises(DataError, match=r"twice|more than once|2 times"):
        read_manifest(csv(f"{head}\na,b,c\n"))


def test_lists_of_lists_of_text_are_left_alone(parquet):
    manifest = read_manifest(parquet(id=["a"], uri=["x"], tags=[[["a", "b"]]]))
    assert manifest.sources == (Source("uri", "uri", None),)
