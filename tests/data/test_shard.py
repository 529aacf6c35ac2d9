"""A task that makes one shard, and what the next attempt does after its process died."""

from __future__ import annotations

import json

import pytest
from media_files import noise_and_tone, write_sound

from raybal.data import convert as room
from raybal.data.chunk import Chunk, Preprocessing
from raybal.data.schema import STAGING, Modality
from raybal.data.shard import forget_attempts, make_shard, read_record, read_records
from raybal.data.sources import Source
from raybal.errors import DataError
from raybal.media.audio import AudioSettings
from raybal.store import Store

SMALL = Preprocessing(audio=AudioSettings(seconds=0.1, mels=8))
AUDIO = Modality("audio", "audio", SMALL.audio.shape(), "float16")
COUNT = 6


class DeadError(BaseException):
    """A process that is gone."""


@pytest.fixture
def work(tmp_path):
    paths = [tmp_path / f"{i}.wav" for i in range(COUNT)]
    for i, path in enumerate(paths):
        path.write_bytes(write_sound("WAV", noise_and_tone(0.1, tone=300 + i)))
    ids = tuple(f"i{k}" for k in range(COUNT))
    chunk = Chunk("name", ids, {"uri": tuple(map(str, paths))}, None, "", tuple(range(COUNT)), (True,) * COUNT)
    return chunk, (Source("uri", "uri", None),), (AUDIO,), SMALL, Store(tmp_path / "pool")


def attempts(work):
    """How many attempts it takes, as Ray begins a task again whose process died."""
    for number in range(1, 50):
        try:
            make_shard(*work)
        except DeadError:
            continue
        return number
    raise AssertionError


@pytest.fixture
def poison(monkeypatch, work):
    """Makes some items deadly."""
    read, store = room.read_media, work[-1]

    def set_items(items):
        def deadly(uri):
            if uri.rpartition("/")[2].removesuffix(".wav") in items:
                raise DeadError
            return read(uri)

        monkeypatch.setattr(room, "read_media", deadly)
        return store

    return set_items


@pytest.mark.parametrize("items", ["", "3", "05", "012345"])
def test_deadly_items_are_set_aside_and_no_others(work, poison, items):
    store = poison(items)
    # The first attempt of a shard notes nothing; then every item has two.
    assert attempts(work) == (1 + 2 * len(items) + 1 if items else 1)
    record = read_record(store, "name")
    assert record.ids == [f"i{k}" for k in range(COUNT) if str(k) not in items]
    assert [row[0] for row in record.bad] == [f"i{k}" for k in items]
    assert {row[3] for row in record.bad} <= {"cannot be decoded: processes that tried it died"}
    assert len(store.read_table("shards/name.parquet")) == COUNT - len(items)


def test_a_machine_that_goes_away_once_costs_no_item(work, monkeypatch, poison):
    store = poison("")
    read, gone = room.read_media, [2, 3]

    def sometimes(uri):
        if gone and uri.endswith(f"/{gone[0]}.wav"):
            gone.pop(0)
            raise DeadError
        return read(uri)

    monkeypatch.setattr(room, "read_media", sometimes)
    assert attempts(work) == 3
    assert read_record(store, "name").bad == []


def test_processes_that_die_without_an_item_to_blame_end_it(work, monkeypatch):
    store = work[-1]
    write = Store.write_table

    def dies(self, name, table, compression="none"):
        raise DeadError

    monkeypatch.setattr(Store, "write_table", dies)
    with pytest.raises(DataError, match=r"5 processes died over the items i0 to i5 of the input"):
        attempts(work)
    assert "i5" not in json.loads(store.read_bytes(f"{STAGING}/name.attempts"))["died"]
    # The same command tries again.
    monkeypatch.setattr(Store, "write_table", write)
    forget_attempts(store)
    assert attempts(work) == 1
    assert [c.name for c, _ in read_records(store, [work[0]])] == ["name"]
