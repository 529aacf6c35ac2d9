"""Manifests: what is read from tables and folders, and what is said of those that cannot be used."""

from __future__ import annotations

import logging
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybal.data import manifest as manifest_room
from raybal.data.folder import CLIPS, IMAGES, SOUNDS
from raybal.data.manifest import Source, read_manifest
from raybal.errors import DataError, StoreError
from raybal.store import Store

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
            halves=pa.array([np.ones(2, np.float16)] * 2, number),
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
        Source("halves", "features", "halves"),
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


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_spaces_around_ids_labels_and_groups_are_no_part_of_them(csv, parquet, kind):
    if kind == "csv":
        place = csv("id,label,group,uri\na ,cat , g\xa0,a b .wav\n  b,cat,g,x\n c\t,  ,,y\n")
    else:
        place = parquet(
            id=["a ", "  b", " c\t"], label=["cat ", "cat", "  "], group=[" g\xa0", "g", ""], uri=list("xyz")
        )
    assert rows(read_manifest(place), "id", "label", "group") == [
        ("a", "cat", "g"),
        ("b", "cat", "g"),
        ("c", None, None),
    ]


@pytest.mark.parametrize(
    ("ids", "says"), [(["a", "a "], "1 ids occur more than once: a"), (["a", "  "], "row 2 is empty")]
)
def test_ids_are_compared_without_spaces(parquet, ids, says):
    with pytest.raises(DataError, match=says):
        read_manifest(parquet(id=ids, uri=["x", "y"]))


def test_uris_keep_their_spaces(csv, tmp_path):
    assert rows(read_manifest(csv("id,uri\na,b .wav \n")), "uri") == [(f"{tmp_path}/b .wav ",)]


@pytest.mark.parametrize("column", ["label", "group", "split", "id"])
def test_columns_of_other_types_are_refused(parquet, column):
    content = {"id": ["a"], "uri": ["x"]}
    for value in ([b"a"], [{"k": 1}], [["a"]], pa.array([b"a"], pa.large_binary())):
        with pytest.raises(DataError, match=rf"m\.parquet: column '{column}' must be text or numbers, and is "):
            read_manifest(parquet(**content | {column: value}))


def test_uris_that_are_no_text(parquet):
    with pytest.raises(DataError, match=r"m\.parquet: column 'uri' must be text, and is binary"):
        read_manifest(parquet(id=["a"], uri=[b"x"]))


def test_damaged_pages_are_said(tmp_path):
    table = pa.table({"id": [f"item number {i}" for i in range(5000)], "uri": [f"{i}.wav" for i in range(5000)]})
    pq.write_table(table, tmp_path / "m.parquet", compression="gzip")
    content = bytearray((tmp_path / "m.parquet").read_bytes())
    content[200:4000] = bytes(3800)
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"m\.parquet cannot be read as Parquet: "):
        read_manifest(str(tmp_path / "m.parquet"))


def test_a_column_that_is_there_twice_in_parquet(tmp_path):
    pq.write_table(pa.table([["a"], ["b"], ["x"]], names=["id", "id", "uri"]), tmp_path / "m.parquet")
    with pytest.raises(DataError, match=r"m\.parquet: column 'id' is there more than once"):
        read_manifest(str(tmp_path / "m.parquet"))


@pytest.mark.parametrize("as_folder", [True, False])
def test_names_that_are_not_utf_8(tmp_path, as_folder):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.wav").touch()
    with open(bytes(folder) + b"/\xff.wav", "wb"):
        pass
    if not as_folder:
        (folder / "manifest.csv").write_text("id,uri\na,a.wav\n")
    with pytest.raises(StoreError, match=rf"cannot list {folder}: a file name in it is not UTF-8"):
        read_manifest(str(folder))


def test_a_bucket_that_does_not_answer(monkeypatch, tmp_path):
    class Unreachable:
        def get_file_info(self, path):
            raise OSError("connection refused")

    class Bucket(Store):
        def __init__(self, root):
            super().__init__(tmp_path)
            self.filesystem = Unreachable()

    monkeypatch.setattr(manifest_room, "Store", Bucket)
    with pytest.raises(StoreError, match="cannot look for s3://bucket/in: connection refused"):
        read_manifest("s3://bucket/in")


@pytest.mark.parametrize("name", ["a?b.csv", "a#b%20.csv", "M.CSV"])
def test_a_manifest_of_any_name(csv, name, tmp_path):
    assert rows(read_manifest(csv("id,uri\na,x.wav\n", name=name)), "uri") == [(f"{tmp_path}/x.wav",)]


def test_a_manifest_of_a_name_that_a_uri_encodes(csv, tmp_path):
    csv("id,uri\na,x.wav\n", name="a b.csv")
    assert rows(read_manifest(f"{tmp_path.as_uri()}/a%20b.csv"), "id") == [("a",)]


def test_files_that_are_no_media_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="raybal")
    for name in ("a.wav", "b.TXT", "deep/c.txt", "d.xml", "e", ".hidden", "deep/f.MTS"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert rows(read_manifest(str(tmp_path)), "id") == [("a.wav",), ("deep/f.MTS",)]
    assert f"{tmp_path}: 4 files are no media and left out: 2 .txt, 1 .xml, 1 no suffix" in caplog.text


WRITTEN = {
    "mts": ("mpegts", {}),
    "m2ts": ("mpegts", {"options": {"mpegts_m2ts_mode": "1"}}),
    "ts": ("mpegts", {}),
    "3gp": ("3gp", {}),
    "mov": ("mov", {}),
    "wmv": ("asf", {"video_codec": "wmv2", "audio_codec": "libmp3lame"}),
    "asf": ("asf", {"video_codec": "wmv2", "audio_codec": "libmp3lame"}),
    "nut": ("nut", {}),
    "wma": ("asf", {"frames": None, "audio_codec": "libmp3lame"}),
    "opus": ("ogg", {"frames": None, "audio_codec": "libopus", "rate": 48000}),
    "oga": ("ogg", {"frames": None, "audio_codec": "flac"}),
    "m4a": ("ipod", {"frames": None}),
    "aac": ("adts", {"frames": None}),
    "ac3": ("ac3", {"frames": None, "audio_codec": "ac3", "rate": 48000}),
    "eac3": ("eac3", {"frames": None, "audio_codec": "eac3", "rate": 48000}),
    "aiff": ("aiff", {"frames": None, "audio_codec": "pcm_s16be"}),
    "caf": ("caf", {"frames": None, "audio_codec": "pcm_s16be"}),
    "au": ("au", {"frames": None, "audio_codec": "pcm_s16be"}),
    "w64": ("w64", {"frames": None, "audio_codec": "pcm_s16le"}),
    "wv": ("wv", {"frames": None, "audio_codec": "wavpack"}),
}


@pytest.mark.parametrize("suffix", WRITTEN)
def test_what_a_bare_folder_takes_can_be_decoded(suffix):
    from media_files import noise_and_tone, textured_frames, write_clip

    from raybal.media.audio import AudioSettings
    from raybal.media.clip import decode_clip
    from raybal.media.video import VideoSettings

    container, options = WRITTEN[suffix]
    assert suffix in f"{CLIPS} {SOUNDS}".split()
    frames = textured_frames(5) if "frames" not in options else None
    sound = noise_and_tone(0.4, options.get("rate", 16000))
    source = write_clip(container, **{"frames": frames, "sound": sound, **options})
    clip = decode_clip(source, video=VideoSettings(frames=2), audio=AudioSettings(seconds=0.4)).values
    assert clip["audio"] is not None
    assert (clip["video"] is not None) == (frames is not None)


@pytest.mark.parametrize("suffix", IMAGES.split())
def test_pictures_that_a_bare_folder_takes_can_be_decoded(suffix):
    from media_files import textured_frames, write_image
    from PIL import Image

    from raybal.media.container import probe
    from raybal.media.image import ImageSettings, decode_image

    source = write_image(Image.registered_extensions()[f".{suffix}"], textured_frames(1)[0])
    assert probe(source).is_image
    assert decode_image(source, ImageSettings()).shape == (3, 96, 96)
