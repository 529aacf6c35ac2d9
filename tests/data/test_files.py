"""Files by path or URI, and what is seen of them when they change."""

from __future__ import annotations

import os

import pyarrow.fs as pafs
import pytest

from raybal.data import files
from raybal.data.files import (
    filesystem_of,
    fingerprint_of,
    fingerprints,
    item_fingerprints,
    read_media,
    without_secrets,
)
from raybal.errors import StoreError
from raybal.media.damage import MediaError

ODD = ["https://example.org/a", "s3://KEY:1a2b3c@bucket/a", "nothing://x", "/tmp/a\0b", "/tmp/" + "x" * 5000]


@pytest.fixture
def paths(tmp_path):
    """Three files of 1, 2 and 3 bytes."""
    for name, size in (("a", 1), ("b c", 2), ("ü", 3)):
        (tmp_path / name).write_bytes(b"x" * size)
        os.utime(tmp_path / name, (5, 5))
    return [str(tmp_path / name) for name in ("a", "b c", "ü")]


def test_size_and_time_in_the_order_asked_for(paths, tmp_path):
    a, b, c = (f"{size}:5000000000" for size in (1, 2, 3))
    assert fingerprints([paths[2], paths[0], paths[1], paths[0]]) == [c, a, b, a]
    assert fingerprints([paths[1], f"{tmp_path}/absent", str(tmp_path), paths[0]]) == [b, "", "", a]
    # One file by several names.
    uri = (tmp_path / "b c").as_uri()
    assert "%20" in uri
    names = [uri, paths[1], f"{tmp_path}//b c", f"{tmp_path}/./b c", f"file://{paths[1]}"]
    assert fingerprints(names) == [b] * 5
    assert fingerprints([]) == []


@pytest.mark.parametrize("odd", ODD)
def test_one_that_cannot_be_looked_up_does_not_hide_the_others(paths, odd):
    expected = [f"{size}:5000000000" for size in (1, 2, 3)]
    assert fingerprints([odd, *paths]) == ["", *expected]
    assert fingerprints([*paths, odd]) == [*expected, ""]
    assert item_fingerprints([[paths[0], odd], [odd, None]]) == [f"{expected[0]} ", ""]


class Unreachable:
    """A bucket that does not answer; it counts how often it is asked."""

    asked = 0

    def get_file_info(self, paths):
        self.asked += 1
        raise OSError("connection refused")


def test_a_bucket_that_does_not_answer_is_not_asked_for_every_file(monkeypatch, paths):
    bucket, local = Unreachable(), pafs.LocalFileSystem()
    monkeypatch.setattr(files, "filesystem_of", lambda uri: (bucket if "://" in uri else local, uri))
    found = fingerprints([*(f"s3://b/{i}" for i in range(1000)), paths[0]])
    assert found == [""] * 1000 + ["1:5000000000"]
    assert bucket.asked < 20


def test_missing_files_beside_one_that_cannot_be_looked_up(paths, tmp_path):
    absent = [f"{tmp_path}/{i}" for i in range(100)]
    assert fingerprints([*absent, ODD[-1], *paths])[-3:] == [f"{size}:5000000000" for size in (1, 2, 3)]


def test_reading(paths, tmp_path):
    assert read_media(paths[1]) == (b"xx", "2:5000000000")
    assert read_media((tmp_path / "b c").as_uri()) == (b"xx", "2:5000000000")
    for absent in (f"{tmp_path}/absent", str(tmp_path)):
        with pytest.raises(MediaError, match="there is no such file"):
            read_media(absent)
    with pytest.raises(StoreError, match="in the environment"):
        read_media(ODD[1])


def test_a_uri_without_secrets():
    assert without_secrets("s3://KEY:1a2b3c@bucket/a@b/c") == "s3://***@bucket/a@b/c"
    for uri in ("s3://bucket/a@b", "/tmp/a@b", "file:///tmp/a@b"):
        assert without_secrets(uri) == uri


def test_a_fingerprint_of_files_and_cells():
    cells = {"x": b"1", "y": None}
    assert fingerprint_of(["1:2", "3:4"], "") == "1:2 3:4"
    assert fingerprint_of(["1:2"], "5:6") == "1:2 5:6"
    assert fingerprint_of([], "5:6", cells).startswith("5:6#")
    assert fingerprint_of([], "5:6", cells) != fingerprint_of([], "5:6", {"x": None, "y": b"1"})


def test_file_uris_share_the_local_file_system():
    assert filesystem_of("file:///a%20b") == (filesystem_of("/")[0], "/a b")
