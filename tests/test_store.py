"""The store: the same on a local path, a file URI and a server that speaks S3; whole files or none."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import resource
import subprocess
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import safetensors
import torch

from raybal.errors import StoreError
from raybal.lease import Lease, is_current
from raybal.store import TEMPORARY, Store

CODES = pa.array([[1], [], [2, 3]], pa.list_(pa.field("element", pa.int64())))
TABLE = pa.table({"id": ["a", "b", "c"], "score": [0.5, None, 2.0], "codes": CODES})


def test_keys_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID") as error:
        Store("s3://AKIA:hushhush@bucket/folder")
    assert "hushhush" not in str(error.value)


@pytest.fixture(params=["path", "file URI", "s3"])
def store(request, tmp_path):
    if request.param == "path":
        return Store(tmp_path / "store")
    if request.param == "file URI":
        return Store((tmp_path / "store").as_uri())
    return Store(request.getfixturevalue("s3")())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False)
    if not os.path.ismount(place):
        pytest.skip("nothing may be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_what_is_written_is_read(store):
    for content in (b"first", b"", bytes(range(256)) * 2000):
        store.write_bytes("rounds/003/a.bin", content)
        assert store.read_bytes("rounds/003/a.bin") == content
    store.write_bytes("rounds/003/a.bin", memoryview(b"view"))
    assert store.read_bytes("rounds/003/a.bin") == b"view"
    assert store.names("rounds/003") == ["a.bin"]


def test_names_and_existence(store):
    assert store.names() == store.names("nothing") == []
    assert not store.exists()
    for name in ("b/2.txt", "b/10.txt", "b/c/d.txt", "a.txt"):
        store.write_bytes(name, b"x")
    assert store.names() == ["a.txt", "b"]
    assert store.names("b") == ["10.txt", "2.txt", "c"]
    assert all(store.exists(name) for name in ("", "a.txt", "b", "b/c", "b/c/d.txt"))
    assert not any(store.exists(name) for name in ("a", "b/c/d", "b/1", "c", "a.txt.txt"))


def test_a_folder_is_a_store_of_its_own(store):
    inner = Store(store.where("rounds/003"))
    inner.write_bytes("train/x", b"1")
    assert store.read_bytes("rounds/003/train/x") == b"1"
    assert Store(store.where("rounds/003")).names("train") == ["x"]
    assert inner.path("train") == store.path("rounds/003/train")
    assert store.names() == ["rounds"]


def test_deleting(store):
    store.delete("nothing")
    store.clear("nothing")
    for name in ("keep/a", "keep/b", "gone/a", "gone/deep/er/b"):
        store.write_bytes(name, b"x")
    store.delete("keep/a")
    store.clear("gone")
    assert store.names("keep") == ["b"]
    assert not store.exists("keep/a")
    assert not store.exists("gone")
    assert not store.exists("gone/deep/er/b")
    store.write_bytes("gone/c", b"y")
    assert store.names("gone") == ["c"]


def test_the_last_file_of_a_folder_can_be_deleted(store):
    store.write_bytes("f/a", b"x")
    store.delete("f/a")
    assert store.names("f") == []
    assert not store.exists("f/a")


def test_yaml(store):
    content = {"z": 1, "a": [1.5, None, True, "007", "ä"], "deep": {"k": 1e-3}, "empty": {}}
    store.write_yaml("x.yaml", content)
    back = store.read_yaml("x.yaml")
    assert back == content
    assert list(back) == ["z", "a", "deep", "empty"]
    assert "ä" in store.read_bytes("x.yaml").decode()
    store.write_bytes("bad.yaml", b"a: [1\n")
    with pytest.raises(StoreError, match=rf"{re.escape(store.path('bad.yaml'))} is not readable YAML"):
        store.read_yaml("bad.yaml")


def test_tables(store):
    table = TABLE.replace_schema_metadata({"made by": "a test"})
    store.write_table("t/x.parquet", table)
    back = store.read_table("t/x.parquet")
    assert back.equals(table, check_metadata=True)
    assert store.read_table("t/x.parquet", columns=["score"]).column_names == ["score"]
    store.write_table("t/x.parquet", table.slice(0, 0), compression="none")
    assert store.read_table("t/x.parquet").schema == table.schema
    store.write_bytes("t/bad.parquet", b"PAR1 is not enough")
    with pytest.raises(StoreError, match=re.escape(store.path("t/bad.parquet"))):
        store.read_table("t/bad.parquet")


def test_tensors_with_what_is_known_of_them(store):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=generator, requires_grad=True)
    tensors = {
        "weight": weight,
        "across": weight.detach().T[::2],
        "half": weight.detach().bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
    }
    metadata = {"epoch": 3, "classes": ["ä", "b"], "nested": {"loss": 0.1, "none": None}}
    store.write_tensors("m/x.safetensors", tensors, metadata)
    back, known = store.read_tensors("m/x.safetensors")
    assert known == metadata
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor.detach())
    assert not back["weight"].requires_grad


def test_a_missing_file_is_named(store):
    for read in (store.read_bytes, store.read_yaml, store.read_table, store.read_tensors):
        with pytest.raises(StoreError, match=rf"cannot read {re.escape(store.path('no/such'))}: it does not exist"):
            read("no/such")


def test_a_store_can_be_sent_to_another_process(store):
    store.write_bytes("a", b"1")
    there = pickle.loads(pickle.dumps(store))
    assert there.root == store.root
    assert there.read_bytes("a") == b"1"


def test_a_lease(store, monkeypatch):
    monkeypatch.setattr("raybal.lease.SETTLE_SECONDS", 0.1)
    with Lease(store) as first:
        first.check()
        assert is_current(store, first.token)
    with Lease(store) as second:
        assert second.fence == first.fence + 1
        assert not is_current(store, first.token)


def test_a_path_and_its_uri_are_one_store(tmp_path, monkeypatch):
    folder = tmp_path / "a b"
    path, uri = Store(folder), Store(folder.as_uri())
    assert "%20" in uri.root
    assert path.is_local
    assert uri.is_local
    path.write_bytes("x/y", b"1")
    uri.write_bytes("x/z", b"2")
    assert path.path("x") == uri.path("x") == str(folder / "x")
    assert path.names("x") == uri.names("x") == ["y", "z"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("a b", "./a b/", "~/a b", f"{folder}/", f"{folder}/../a b"):
        assert Store(place).names("x") == ["y", "z"]
        assert Store(Store(place).where("x")).names() == ["y", "z"]
    # A store stays where it was opened.
    there = Store("a b")
    monkeypatch.chdir("/")
    assert there.names("x") == ["y", "z"]


def test_other_readers_open_the_files(tmp_path):
    store = Store(tmp_path)
    store.write_table("x.parquet", TABLE.drop(["codes"]))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "x.parquet"), TABLE.drop(["codes"]).to_pandas())
    store.write_tensors("x.safetensors", {"w": torch.eye(3).T[1:]}, {"epoch": 1})
    with safetensors.safe_open(tmp_path / "x.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("w"), np.eye(3, dtype=np.float32)[1:])
        assert file.metadata() == {"raybal": '{"epoch": 1}'}


def test_a_table_that_is_in_use_outlives_its_file(tmp_path):
    store = Store(tmp_path)
    table = pa.table({"x": np.arange(50_000)})
    store.write_table("x.parquet", table, compression="none")
    held = store.read_table("x.parquet")
    store.write_table("x.parquet", pa.table({"x": np.zeros(50_000, int)}), compression="none")
    store.delete("x.parquet")
    assert held.equals(table)


@pytest.mark.parametrize("root", ["ftp://host/folder", "nonsense://x"])
def test_a_place_that_cannot_be_opened(root):
    with pytest.raises(StoreError, match=rf"'{re.escape(root)}' is not a folder or URI"):
        Store(root)


def test_a_bucket_that_does_not_exist(s3):
    store = Store(s3("nowhere"))
    with pytest.raises(StoreError, match=re.escape(store.path("x"))):
        store.write_bytes("x", b"1")
    with pytest.raises(StoreError, match=re.escape(store.path("x"))):
        store.read_bytes("x")


def test_leftovers_of_a_killed_process_are_hidden(tmp_path):
    store = Store(tmp_path)
    store.write_bytes("x", b"1")
    (tmp_path / f"{TEMPORARY}0123-x").write_bytes(b"half")
    assert store.names() == ["x"]


def test_readers_see_a_whole_file_at_any_moment(tmp_path):
    store = Store(tmp_path)
    contents = [bytes([65 + k]) * size for k, size in enumerate((300_000, 100_000, 200_000))]
    store.write_bytes("x", contents[0])
    seen, listed, done = [], set(), threading.Event()

    def read():
        while not done.is_set():
            seen.append(store.read_bytes("x"))
            listed.update(store.names())

    reader = threading.Thread(target=read)
    reader.start()
    while len({content[:1] for content in seen}) < 3 or len(seen) < 50:
        for content in contents:
            store.write_bytes("x", content)
    done.set()
    reader.join()
    assert set(seen) == set(contents)
    assert listed == {"x"}
    assert os.listdir(tmp_path) == ["x"]


@contextlib.contextmanager
def largest_file(size):
    """Lets this process write no file beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    store.write_table("x.parquet", TABLE)
    before = store.read_bytes("x.parquet")
    with largest_file(4096), pytest.raises(StoreError, match=re.escape(store.path("x.parquet"))):
        store.write_table("x.parquet", pa.table({"x": np.arange(10_000)}))
    with largest_file(4096), pytest.raises(StoreError, match=re.escape(store.path("new"))):
        store.write_bytes("new", b"x" * 5000)
    assert store.read_bytes("x.parquet") == before
    assert os.listdir(tmp_path) == ["x.parquet"]


def test_a_full_disk(small_disk):
    store = Store(small_disk / "store")
    store.write_bytes("x", b"old")
    with pytest.raises(StoreError, match=rf"cannot write {re.escape(store.path('x'))}: the disk is full.*again"):
        store.write_bytes("x", b"n" * 300_000)
    assert store.read_bytes("x") == b"old"
    assert os.listdir(small_disk / "store") == ["x"]
    # What was begun does not stay in the way.
    store.write_bytes("x", b"n" * 100_000)


def test_a_disk_that_can_only_be_read(small_disk):
    store = Store(small_disk)
    store.write_bytes("x", b"old")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for name in ("x", "new/y"):
        with pytest.raises(StoreError, match=rf"cannot write {re.escape(store.path(name))}: .*read-only"):
            store.write_bytes(name, b"new")
    assert store.read_bytes("x") == b"old"
    with pytest.raises(StoreError, match=r"cannot delete .*x"):
        store.delete("x")


def test_places_that_cannot_be_written(tmp_path):
    store = Store(tmp_path)
    store.write_bytes("file", b"1")
    store.write_bytes("folder/x", b"1")
    for name in ("file/x", "file/deep/x", "folder"):
        with pytest.raises(StoreError, match=rf"cannot write {re.escape(store.path(name))}"):
            store.write_bytes(name, b"2")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (store.read_bytes("file"), store.names("folder")) == (b"1", ["x"])
    with pytest.raises(StoreError, match="cannot write /proc/raybal/x"):
        Store("/proc/raybal").write_bytes("x", b"1")


def test_a_folder_with_a_question_mark(tmp_path):
    store = Store(tmp_path / "what?")
    store.write_bytes("a/x", b"1")
    assert Store(store.where("a")).names() == ["x"]


@pytest.mark.parametrize("name", ["my clips", "a#b"])
def test_names_that_a_uri_must_encode(s3, tmp_path, name):
    for store in (Store(tmp_path.as_uri()), Store(s3())):
        store.write_bytes(f"{name}/x", b"1")
        assert Store(store.where(name)).names() == ["x"]


def test_a_damaged_file_of_tensors_is_named(tmp_path):
    store = Store(tmp_path)
    store.write_bytes("x.safetensors", b"abc")
    with pytest.raises(StoreError, match=re.escape(store.path("x.safetensors"))):
        store.read_tensors("x.safetensors")
