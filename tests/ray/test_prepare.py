"""Preparing real media on a real cluster."""

from __future__ import annotations

import csv
import io
import logging
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media_files import noise_and_tone, textured_frames, write_clip, write_image, write_sound

from raybal.data import prepare as driver
from raybal.data.chunk import Preprocessing
from raybal.data.plan import PrepareConfig
from raybal.data.pool import Pool, Sidecar
from raybal.data.prepare import prepare
from raybal.data.quarantine import read_quarantine
from raybal.data.schema import PoolInfo
from raybal.data.shard import make_shard
from raybal.errors import DataError, StoreError
from raybal.media.audio import AudioSettings
from raybal.media.clip import decode_clip
from raybal.media.video import VideoSettings
from raybal.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

SMALL = Preprocessing(video=VideoSettings(frames=3, height=16, width=24, color="gray"), audio=AudioSettings(mels=16))


def write_manifest(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def clips(tmp_path) -> Path:
    """A folder of 24 clips in six groups; one has no sound."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rows = []
    for i in range(24):
        frames, sound = textured_frames(6)[:, :, :], noise_and_tone(0.4, tone=300 + 20 * i)
        content = write_clip("mp4", np.roll(frames, i, 2), None if i == 5 else sound)
        (folder / f"{i}.mp4").write_bytes(content)
        rows.append({"id": f"clip-{i}", "uri": f"{i}.mp4", "label": str(i % 3), "group": f"g{i // 4}"})
    write_manifest(folder, rows)
    return folder


def run(source: Path, output: Path, **options) -> PoolInfo:
    return prepare(PrepareConfig(input=str(source), output=str(output), **{"preprocessing": SMALL, **options}))


def test_a_folder_of_clips_becomes_a_pool(clips, tmp_path):
    output = tmp_path / "pool"
    info = run(clips, output)
    assert [(m.name, m.kind, m.shape) for m in info.modalities] == [
        ("video", "video", (3, 1, 16, 24)),
        ("audio", "audio", (1, 16, info.modalities[1].shape[2])),
    ]
    assert info.classes == ("0", "1", "2")
    assert info.counts["items"] == info.counts["labelled"] == 24
    assert info.counts["missing"] == {"video": 0, "audio": 1}
    pool, sidecar = Pool(str(output)), Sidecar(str(output))
    ids = pool.ids.to_pylist()
    assert sorted(ids) == sorted(f"clip-{i}" for i in range(24))
    # The tensors are those that decoding each file gives.
    settings = PoolInfo.read(Store(str(output))).preprocessing
    audio = AudioSettings(**settings["audio"])
    inputs, present = pool.read(np.array([7, 3, 20]))
    for row, position in enumerate((7, 3, 20)):
        number = int(ids[position].split("-")[1])
        expected = decode_clip((clips / f"{number}.mp4").read_bytes(), video=SMALL.video, audio=audio).values
        np.testing.assert_array_equal(inputs["video"][row], expected["video"])
        if expected["audio"] is None:
            assert not present[row, 1]
        else:
            np.testing.assert_array_equal(inputs["audio"][row], expected["audio"])
    # No group is on both sides, and models standardise with the training items' statistics.
    groups = sidecar.groups(ids)
    sides = {part: {groups[i] for i, s in zip(ids, pool.split, strict=True) if s == part} for part in ("train", "test")}
    assert sides["train"]
    assert sides["test"]
    assert not sides["train"] & sides["test"]
    train = pool.positions_in("train")
    values, there = pool.read(train)
    for k, m in enumerate(info.modalities):
        kept = values[m.name][there[:, k]].astype(np.float64)
        assert m.mean == pytest.approx([kept.mean()], rel=1e-6)
        assert m.std == pytest.approx([kept.std()], rel=1e-6)
    assert sidecar.labels(["clip-4"]) == {"clip-4": "1"}
    assert sidecar.uris(["clip-4"])["clip-4"].endswith("/clips/4.mp4")


def test_again_does_nothing_and_new_files_are_added(clips, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="raybal")
    output = tmp_path / "pool"
    first = run(clips, output)
    shards = {p: p.stat().st_mtime_ns for p in (output / "shards").iterdir()}
    assert run(clips, output) == first
    assert "nothing to do" in caplog.text
    (clips / "new.mp4").write_bytes((clips / "0.mp4").read_bytes())
    with (clips / "manifest.csv").open("a") as file:
        file.write("clip-new,new.mp4,2,g0\n")
    split = dict(zip(Pool(str(output)).ids.to_pylist(), Pool(str(output)).split, strict=True))
    second = run(clips, output)
    assert second.counts["items"] == 25
    assert second.modalities == first.modalities
    assert second.content_hash != first.content_hash
    assert shards.items() <= {p: p.stat().st_mtime_ns for p in (output / "shards").iterdir()}.items()
    pool = Pool(str(output))
    after = dict(zip(pool.ids.to_pylist(), pool.split, strict=True))
    assert split.items() <= after.items()
    assert after["clip-new"] == split["clip-0"], "a new item of a known group goes where its group is"
    inputs, _ = pool.read(pool.positions(["clip-new", "clip-0"]))
    np.testing.assert_array_equal(inputs["video"][0], inputs["video"][1])
    # Other parameters, or a file that changed, are not mixed in.
    other = Preprocessing(video=VideoSettings(frames=4, height=16, width=24, color="gray"), audio=SMALL.audio)
    with pytest.raises(DataError, match=r"preprocessing\.video\.frames = 3, and now it is 4"):
        run(clips, output, preprocessing=other)
    (clips / "1.mp4").write_bytes((clips / "2.mp4").read_bytes() + b"x")
    with pytest.raises(DataError, match=r"changed since they were prepared: clip-1"):
        run(clips, output)


def test_damage_is_set_aside_and_too_much_of_it_stops(clips, tmp_path):
    content = (clips / "3.mp4").read_bytes()
    (clips / "3.mp4").write_bytes(content[: len(content) // 2])
    (clips / "8.mp4").write_bytes(b"")
    (clips / "9.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (clips / "10.mp4").unlink()
    output = tmp_path / "pool"
    with pytest.raises(DataError, match=r"4 of 24 items \(16\.7 %\) are damaged, more than the 5 % accepted"):
        run(clips, output)
    assert not (output / "pool.yaml").exists()
    info = run(clips, output, max_damage=0.2)
    assert info.counts["items"] == 20
    quarantine = Store(str(output)).read_table("quarantine.parquet").to_pylist()
    assert {q["id"] for q in quarantine} == {"clip-3", "clip-8", "clip-9", "clip-10"}
    reasons = {q["id"]: q["reason"] for q in quarantine}
    assert reasons["clip-8"] == "empty"
    assert reasons["clip-10"] == "there is no such file"
    assert all(q["uri"].endswith(".mp4") and q["reason"] for q in quarantine)
    # Nothing has changed, so nothing is tried again.
    before = (output / "quarantine.parquet").stat().st_mtime_ns
    assert run(clips, output, max_damage=0.2) == info
    assert (output / "quarantine.parquet").stat().st_mtime_ns == before
    # A file that was mended comes in; the rest stays in quarantine.
    (clips / "3.mp4").write_bytes(content)
    info = run(clips, output, max_damage=1.0)
    assert info.counts["items"] == 21
    quarantine = Store(str(output)).read_table("quarantine.parquet").to_pylist()
    assert {q["id"] for q in quarantine} == {"clip-8", "clip-9", "clip-10"}


def test_bytes_features_and_sequences_in_parquet(tmp_path):
    generator = np.random.default_rng(0)
    count = 20
    images = [write_image("PNG", generator.integers(0, 255, (12, 12)).astype(np.uint8)) for _ in range(count)]
    sounds = [write_sound("WAV", noise_and_tone(0.2, rate=8000), 8000) for _ in range(count)]
    features = generator.normal(size=(count, 5)).astype(np.float32)
    steps = [generator.normal(size=(4 + i % 3, 2)).astype(np.float32) for i in range(count)]
    table = pa.table(
        {
            "id": [str(i) for i in range(count)],
            "label": [i % 2 for i in range(count)],
            "split": ["test" if i >= 15 else "train" for i in range(count)],
            "image": images,
            "audio": [None if i == 2 else s for i, s in enumerate(sounds)],
            "omics": pa.array(list(features)),
            "motion": pa.array([s.tolist() for s in steps]),
        }
    )
    pq.write_table(table, tmp_path / "input.parquet", row_group_size=7)
    info = run(tmp_path / "input.parquet", tmp_path / "pool")
    kinds = {m.name: (m.kind, m.shape) for m in info.modalities}
    assert kinds["omics"] == ("features", (5,))
    assert kinds["motion"] == ("sequence", (5, 2))
    assert kinds["image"] == ("image", (3, 96, 96))
    assert kinds["audio"][0] == "audio"
    pool = Pool(str(tmp_path / "pool"))
    assert pool.positions_in("test").tolist() == sorted(pool.positions([str(i) for i in range(15, 20)]).tolist())
    inputs, present = pool.read(pool.positions(["0", "2", "17"]))
    np.testing.assert_array_equal(inputs["omics"], features[[0, 2, 17]])
    np.testing.assert_array_equal(inputs["motion"][0, :4], steps[0])
    assert not inputs["motion"][0, 4:].any()
    assert present[:, list(info.names).index("audio")].tolist() == [True, False, True]
    assert io.BytesIO(images[0]).getvalue()[:4] == b"\x89PNG"


def test_input_that_cannot_be_used(tmp_path):
    path = write_manifest(tmp_path, [{"id": "a", "uri": "a.mp4", "label": "x"}])
    with pytest.raises(DataError, match=r"none of .* could be read"):
        run(path, tmp_path / "pool")
    (tmp_path / "a.mp4").write_bytes(write_clip("mp4", textured_frames(4), None))
    with pytest.raises(DataError, match=r"item a has label 'x', which is not a class; classes are y, z"):
        run(path, tmp_path / "pool", classes=["y", "z"])


def test_the_real_recordings_with_damage(real_data, tmp_path):
    """3 % of the GRID words damaged in three ways: these and no others in quarantine."""
    table = pq.read_table(real_data / "grid_words_babble5db.parquet")
    chosen = np.sort(np.random.default_rng(0).permutation(len(table))[:90])
    media = table["media"].to_pylist()
    for number, row in enumerate(chosen.tolist()):
        whole = media[row]
        media[row] = [whole[: len(whole) // 2], np.random.default_rng(row).bytes(len(whole)), b""][number % 3]
    index = table.column_names.index("media")
    pq.write_table(table.set_column(index, "media", pa.array(media, pa.binary())), tmp_path / "grid.parquet")
    info = run(tmp_path / "grid.parquet", tmp_path / "pool")
    quarantine = Store(str(tmp_path / "pool")).read_table("quarantine.parquet")["id"].to_pylist()
    assert sorted(quarantine) == sorted(table["id"].take(pa.array(chosen)).to_pylist())
    assert info.counts["items"] == 2910


class DiskFullError(Exception):
    pass


@pytest.mark.parametrize("file", ["sidecar/sources.parquet", "index.parquet", "pool.yaml"])
def test_an_addition_that_breaks_off_changes_nothing_and_is_repeated(clips, tmp_path, monkeypatch, file):
    rows = list(csv.DictReader((clips / "manifest.csv").open()))
    write_manifest(clips, rows[:16])
    output = tmp_path / "pool"
    first = run(clips, output)
    write_manifest(clips, rows)
    write = Store.write_bytes

    def breaks(self: Store, name: str, content: bytes) -> None:
        if name.endswith(file) and not name.startswith("staging"):
            raise DiskFullError
        write(self, name, content)

    monkeypatch.setattr(Store, "write_bytes", breaks)
    with pytest.raises(DiskFullError):
        run(clips, output)
    monkeypatch.undo()
    assert PoolInfo.read(Store(str(output))) == first
    assert len(Pool(str(output))) == 16
    assert run(clips, output).counts["items"] == len(Pool(str(output))) == 24


def test_a_preparation_that_stopped_sees_what_changed_meanwhile(clips, tmp_path):
    """Shards that were done before are done again if their files, or the split, are not those they were made with."""
    whole = (clips / "3.mp4").read_bytes()
    for number in (3, 8):
        (clips / f"{number}.mp4").write_bytes(whole[: len(whole) // 2])
    output = tmp_path / "pool"
    with pytest.raises(DataError, match="2 of 24 items"):
        run(clips, output)
    (clips / "3.mp4").write_bytes(whole)
    (clips / "8.mp4").write_bytes(whole)
    info = run(clips, output, seed=5)
    assert info.counts["items"] == 24
    again = run(clips, tmp_path / "again", seed=5)
    assert (info.content_hash, info.modalities) == (again.content_hash, again.modalities)


def test_what_is_prepared_follows_the_labels_and_refuses_other_splits(clips, tmp_path):
    rows = list(csv.DictReader((clips / "manifest.csv").open()))
    output = tmp_path / "pool"
    write_manifest(clips, [{k: v for k, v in row.items() if k != "label"} for row in rows])
    first = run(clips, output)
    assert first.classes is None
    write_manifest(clips, rows)
    second = run(clips, output)
    assert second.classes == ("0", "1", "2")
    assert second.content_hash == first.content_hash
    assert Sidecar(str(output)).labels(["clip-4"]) == {"clip-4": "1"}
    assert Pool(str(output)).positions_in("test").tolist() == []
    with pytest.raises(DataError, match=r"was split with test_share 0\.2, val_share 0\.0, seed 0, and now with"):
        run(clips, output, seed=1)
    write_manifest(clips, [row | {"split": "test" if row["id"] == "clip-7" else "train"} for row in rows])
    with pytest.raises(DataError, match=r"item clip-7 is in the train split of .*, and now in test"):
        run(clips, output)


def test_the_content_hash_knows_splits_and_tensors_but_no_label(clips, tmp_path):
    rows = list(csv.DictReader((clips / "manifest.csv").open()))
    hashes = [run(clips, tmp_path / "a").content_hash, run(clips, tmp_path / "b", seed=3).content_hash]
    write_manifest(clips, [row | {"label": str(i % 2)} for i, row in enumerate(rows)])
    assert run(clips, tmp_path / "c").content_hash == hashes[0]
    (clips / "4.mp4").write_bytes((clips / "5.mp4").read_bytes())
    hashes.append(run(clips, tmp_path / "d").content_hash)
    assert len(set(hashes)) == 3


def test_a_clip_that_kills_its_process_is_set_aside(clips, tmp_path, monkeypatch):
    def deadly(chunk, *work):
        from raybal.data import convert

        read = convert.read_media

        def read_media(uri):
            if uri.endswith("/7.mp4"):
                os.kill(os.getpid(), signal.SIGSEGV)
            return read(uri)

        convert.read_media = read_media
        try:
            make_shard(chunk, *work)
        finally:
            convert.read_media = read

    monkeypatch.setattr(driver, "make_shard", deadly)
    info = run(clips, tmp_path / "pool")
    assert info.counts["items"] == 23
    ((item, _, _, reason, _),) = read_quarantine(Store(tmp_path / "pool")).values()
    assert (item, reason) == ("clip-7", "cannot be decoded: processes that tried it died")


def test_shards_that_cannot_be_written_are_one_error(clips, tmp_path):
    output = tmp_path / "pool"
    output.mkdir()
    (output / "shards").touch()
    with pytest.raises(StoreError, match=rf"^cannot write {output}/shards/[0-9a-f]+\.parquet: .*File exists") as error:
        run(clips, output)
    assert "\n" not in str(error.value)
    (output / "shards").unlink()
    assert run(clips, output).counts["items"] == 24


def test_a_full_disk_is_one_error(clips, tmp_path):
    output = tmp_path / "small"
    output.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(output)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk takes a privilege")
    try:
        with pytest.raises(StoreError, match=r"^cannot write .*: the disk is full; free some space and run the same"):
            run(clips, output / "pool")
        assert not (output / "pool/pool.yaml").exists()
    finally:
        subprocess.run(["umount", str(output)], check=True)
