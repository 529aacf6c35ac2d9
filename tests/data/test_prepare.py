"""What a preparation does with a pool that is there, without a cluster: all shards are made in this process."""

from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media_files import noise_and_tone, write_sound

from raybal.data import prepare as driver
from raybal.data.chunk import Preprocessing
from raybal.data.pool import Pool, Sidecar
from raybal.data.quarantine import REFUSED, read_quarantine, write_quarantine
from raybal.data.schema import PoolInfo
from raybal.errors import ConfigError, DataError, StoreError
from raybal.lease import Lease
from raybal.media.audio import AudioSettings
from raybal.store import Store

SMALL = Preprocessing(audio=AudioSettings(seconds=0.1, mels=8))


def features(count, start=0, **columns):
    """A table of items item-<start>.. with three numbers each."""
    values = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)[start : start + count]
    ids = [f"item-{i}" for i in range(start, start + count)]
    return pa.table({"id": ids, "x": pa.array(list(values)), **columns})


def write(table, path, **options):
    pq.write_table(table, path, **options)
    return path


def sounds(folder, count, damaged=()):
    """A folder of sounds with a manifest; some of them are empty files."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        content = b"" if i in damaged else write_sound("WAV", noise_and_tone(0.1, tone=300 + i))
        if not (folder / f"{i}.wav").exists() or (folder / f"{i}.wav").read_bytes() != content:
            (folder / f"{i}.wav").write_bytes(content)
    return manifest(folder, [{"id": f"s{i}", "uri": f"{i}.wav"} for i in range(count)])


def manifest(folder, rows, name="manifest.csv"):
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def split_of(output):
    pool = Pool(str(output))
    return dict(zip(pool.ids.to_pylist(), pool.split, strict=True))


def state(folder):
    """Every file of a pool but its lease."""
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and not p.name.startswith("lease")}


# Damage


def test_an_input_that_is_refused_is_refused_again(prepare, tmp_path):
    source, output = sounds(tmp_path / "in", 20), tmp_path / "pool"
    first = prepare(source, output, preprocessing=SMALL)
    before = state(output)
    source = sounds(tmp_path / "in", 26, damaged=range(20, 26))
    for _ in range(3):
        with pytest.raises(DataError, match=r"6 of 26 items \(23\.1 %\) are damaged, more than the 5 % accepted") as e:
            prepare(source, output, preprocessing=SMALL)
        assert str(output / REFUSED) in str(e.value)
        listed = pq.read_table(output / REFUSED)
        assert listed["id"].to_pylist() == [f"s{i}" for i in range(20, 26)]
        assert set(listed["reason"].to_pylist()) == {"empty"}
        assert {p: c for p, c in state(output).items() if "staging" not in str(p)}.items() >= before.items()
        assert PoolInfo.read(Store(output)) == first
        assert read_quarantine(Store(output)) == {}
    info = prepare(source, output, preprocessing=SMALL, max_damage=0.25)
    assert (info.counts["items"], info.counts["quarantined"]) == (20, 6)
    # What was accepted once is no work, and is judged again only with something new.
    assert prepare(source, output, preprocessing=SMALL) == info
    source = sounds(tmp_path / "in", 27, damaged=range(20, 26))
    with pytest.raises(DataError, match="6 of 27 items"):
        prepare(source, output, preprocessing=SMALL)
    assert prepare(source, output, preprocessing=SMALL, max_damage=0.25).counts["items"] == 21


def test_damage_is_a_share_of_the_whole_input(prepare, tmp_path):
    output = tmp_path / "pool"
    prepare(sounds(tmp_path / "in", 30), output, preprocessing=SMALL)
    info = prepare(sounds(tmp_path / "in", 32, damaged=[30]), output, preprocessing=SMALL)
    assert (info.counts["items"], info.counts["quarantined"]) == (31, 1)
    # The next one makes it two of 33.
    with pytest.raises(DataError, match=r"2 of 33 items \(6\.1 %\)"):
        prepare(sounds(tmp_path / "in", 33, damaged=[30, 32]), output, preprocessing=SMALL)


@pytest.mark.parametrize(("there", "share", "fits"), [(30, 0.05, True), (10, 0.05, False), (30, 0.0, False)])
def test_one_damaged_item_of_an_input_of_one_is_measured_against_the_pool(prepare, tmp_path, there, share, fits):
    output = tmp_path / "pool"
    prepare(sounds(tmp_path / "in", there), output, preprocessing=SMALL)
    (tmp_path / "in/new.wav").write_bytes(b"")
    source = manifest(tmp_path / "in", [{"id": "new", "uri": "new.wav"}], "more.csv")
    if fits:
        assert prepare(source, output, preprocessing=SMALL, max_damage=share).counts["quarantined"] == 1
        return
    with pytest.raises(DataError, match="1 of 1 items"):
        prepare(source, output, preprocessing=SMALL, max_damage=share)


def test_rows_that_are_taken_out_of_a_refused_input_leave_no_trace(prepare, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "pool"
    with pytest.raises(DataError, match="2 of 10 items"):
        prepare(sounds(folder, 10, damaged=[3, 4]), output, preprocessing=SMALL)
    assert not (output / "pool.yaml").exists()
    source = manifest(folder, [{"id": f"s{i}", "uri": f"{i}.wav"} for i in range(10) if i not in (3, 4)])
    info = prepare(source, output, preprocessing=SMALL)
    assert (info.counts["items"], info.counts["quarantined"]) == (8, 0)
    assert read_quarantine(Store(output)) == {}


def test_the_quarantine_of_one_input_stays_with_the_next(prepare, tmp_path):
    output = tmp_path / "pool"
    prepare(sounds(tmp_path / "a", 10, damaged=[2]), output, preprocessing=SMALL, max_damage=0.1)
    source = manifest(sounds(tmp_path / "b", 3).parent, [{"id": f"b{i}", "uri": f"{i}.wav"} for i in range(3)])
    info = prepare(source, output, preprocessing=SMALL)
    assert (info.counts["items"], info.counts["quarantined"]) == (12, 1)
    assert list(read_quarantine(Store(output))) == ["s2"]


def test_a_quarantine_without_a_pool_is_nobodys(prepare, tmp_path):
    store = Store(tmp_path / "pool")
    write_quarantine(store, [("s1", "1.wav", "audio", "empty", "")])
    info = prepare(sounds(tmp_path / "in", 3), tmp_path / "pool", preprocessing=SMALL)
    assert (info.counts["items"], info.counts["quarantined"]) == (3, 0)


def test_nothing_that_can_be_prepared(prepare, tmp_path):
    source, output = sounds(tmp_path / "in", 3), tmp_path / "pool"
    broken = write_sound("WAV", noise_and_tone(0.1))[:44]
    for i in range(3):
        (tmp_path / f"in/{i}.wav").write_bytes(broken[:40] + (0).to_bytes(4, "little"))
    with pytest.raises(DataError, match=r"3 of 3 items \(100\.0 %\) are damaged, all there are: s0 \(empty: no"):
        prepare(source, output, preprocessing=SMALL, max_damage=1.0)
    assert not (output / "pool.yaml").exists()


ODD = ["https://example.org/a.wav", "s3://KEY:1a2b3c@bucket/a.wav", "nothing://x/y", "/tmp/" + "x" * 5000]


@pytest.mark.parametrize("uri", ODD)
def test_an_odd_uri_is_one_damaged_item(prepare, tmp_path, uri):
    folder, output = sounds(tmp_path / "in", 30).parent, tmp_path / "pool"
    rows = [{"id": f"s{i}", "uri": f"{i}.wav"} for i in range(30)]
    source = manifest(folder, [*rows, {"id": "odd", "uri": uri}])
    info = prepare(source, output, preprocessing=SMALL)
    assert (info.counts["items"], info.counts["quarantined"]) == (30, 1)
    (row,) = read_quarantine(Store(output)).values()
    assert row[0] == "odd"
    assert "1a2b3c" not in "".join(row)
    assert prepare(source, output, preprocessing=SMALL) == info


# Splits


def test_a_known_group_keeps_its_split_in_an_input_of_new_items_only(prepare, tmp_path):
    groups = [f"g{i % 10}" for i in range(100)]
    first = features(100, group=groups, label=["a", "b"] * 50)
    prepare(write(first, tmp_path / "a.parquet"), tmp_path / "pool")
    sides = dict(zip(groups, (split_of(tmp_path / "pool")[f"item-{i}"] for i in range(100)), strict=True))
    assert set(sides.values()) == {"train", "test"}
    for start, columns in ((100, {"label": ["a", "b"] * 50}), (200, {})):
        more = features(100, start, group=groups, **columns)
        prepare(write(more, tmp_path / f"{start}.parquet"), tmp_path / "pool")
        found = split_of(tmp_path / "pool")
        assert [found[f"item-{start + i}"] for i in range(100)] == [sides[g] for g in groups]


def test_new_groups_get_their_share(prepare, tmp_path):
    options = {"label": ["a", "b"] * 50}
    prepare(
        write(features(100, group=[f"a{i // 5}" for i in range(100)], **options), tmp_path / "1.parquet"),
        tmp_path / "p",
    )
    more = features(100, 100, group=[f"b{i // 5}" for i in range(100)], **options)
    info = prepare(write(more, tmp_path / "2.parquet"), tmp_path / "p")
    assert info.counts["test"] == 40


def test_a_group_that_would_come_to_lie_on_both_sides_is_refused(prepare, tmp_path):
    groups = [f"g{i // 4}" for i in range(40)]
    prepare(write(features(40, group=groups, label=["a", "b"] * 20), tmp_path / "in.parquet"), tmp_path / "pool")
    split = split_of(tmp_path / "pool")
    train, test = (next(i for i in range(40) if split[f"item-{i}"] == part) for part in ("train", "test"))
    before = state(tmp_path / "pool")
    moved = [groups[test] if i == train else g for i, g in enumerate(groups)]
    source = write(features(40, group=moved, label=["a", "b"] * 20), tmp_path / "in.parquet")
    said = (
        rf"item item-{train} is in the train split of .*its group is now '{groups[test]}', which is in test; no group"
    )
    with pytest.raises(DataError, match=said):
        prepare(source, tmp_path / "pool")
    assert state(tmp_path / "pool") == before
    # A group that is called otherwise crosses nothing, and a split of the input's own is the user's.
    renamed = ["other" if g == groups[train] else g for g in groups]
    prepare(write(features(40, group=renamed, label=["a", "b"] * 20), tmp_path / "in.parquet"), tmp_path / "pool")
    assert Sidecar(str(tmp_path / "pool")).groups([f"item-{train}"]) == {f"item-{train}": "other"}
    own = features(40, group=moved, label=["a", "b"] * 20, split=[split[f"item-{i}"] for i in range(40)])
    prepare(write(own, tmp_path / "in.parquet"), tmp_path / "pool")


@pytest.mark.parametrize("group", [["g"] * 10, ["g"] * 5 + ["h"] * 5])
def test_too_few_groups_for_a_test_split_are_said(prepare, tmp_path, caplog, group):
    info = prepare(write(features(10, group=group, label=["a", "b"] * 5), tmp_path / "in.parquet"), tmp_path / "pool")
    assert info.counts["test"] == 0
    (said,) = [r.message for r in caplog.records if "no item is in the test split" in r.message]
    assert f"{len(set(group))} groups" in said
    assert "--test-share" in said


def test_a_split_column_that_parts_groups_is_said(prepare, tmp_path, caplog):
    table = features(4, group=["g", "g", "h", "h"], split=["train", "test", "train", "train"])
    prepare(write(table, tmp_path / "in.parquet"), tmp_path / "pool")
    assert "the split column has 1 groups on more than one side: g" in caplog.text


# Labels, groups and classes of what is there


def test_corrected_labels_come_in_together_with_new_items(prepare, tmp_path):
    prepare(
        write(features(10, label=["a", "b"] * 5, group=list("vvwwxxyyzz")), tmp_path / "in.parquet"), tmp_path / "p"
    )
    more = features(12, label=["b", "a"] * 6, group=[*"vvwwxxyyzz", "new", "new"])
    info = prepare(write(more, tmp_path / "in.parquet"), tmp_path / "p")
    assert info.counts["labelled"] == 12
    found = Sidecar(str(tmp_path / "p")).labels([f"item-{i}" for i in range(12)])
    assert found == {f"item-{i}": "ba"[i % 2] for i in range(12)}
    assert prepare(tmp_path / "in.parquet", tmp_path / "p") == info


def test_an_empty_cell_takes_nothing_away(prepare, tmp_path):
    prepare(write(features(6, label=["a", "b"] * 3, group=list("uvwxyz")), tmp_path / "in.parquet"), tmp_path / "p")
    some = features(6, label=[None, "a", None, None, None, None], group=[None] * 6)
    prepare(write(some, tmp_path / "in.parquet"), tmp_path / "p")
    sidecar = Sidecar(str(tmp_path / "p"))
    assert list(sidecar.labels([f"item-{i}" for i in range(6)]).values()).count("a") == 4
    assert set(sidecar.groups([f"item-{i}" for i in range(6)]).values()) == set("uvwxyz")


# Content that changes


def test_rows_that_are_added_to_a_parquet_file_leave_the_others_as_they_are(prepare, tmp_path):
    source, output = tmp_path / "in.parquet", tmp_path / "pool"
    first = prepare(write(features(20), source), output)
    shards = {p: p.stat().st_mtime_ns for p in (output / "shards").iterdir()}
    info = prepare(write(features(25), source, row_group_size=7), output)
    assert info.counts["items"] == 25
    assert shards.items() <= {p: p.stat().st_mtime_ns for p in (output / "shards").iterdir()}.items()
    assert first.counts["items"] == 20
    # Written again with the same content, in another order and as other numbers.
    table = features(25).take(pa.array(range(24, -1, -1)))
    table = table.set_column(1, "x", table["x"].cast(pa.list_(pa.float64())))
    assert prepare(write(table, source), output) == info


@pytest.mark.parametrize("kind", ["features", "bytes"])
def test_other_content_of_a_parquet_file_is_refused(prepare, tmp_path, kind):
    source, output = tmp_path / "in.parquet", tmp_path / "pool"
    media = [write_sound("WAV", noise_and_tone(0.1, tone=300 + i)) for i in range(20)]

    def table(changed):
        if kind == "bytes":
            cells = [media[0] if i in changed else m for i, m in enumerate(media)]
            return pa.table({"id": [f"item-{i}" for i in range(20)], "audio": cells})
        values = features(20)["x"].to_pylist()
        return features(20).set_column(
            1, "x", pa.array([[1.0, 2.0, 3.0] if i in changed else v for i, v in enumerate(values)])
        )

    info = prepare(write(table([]), source), output, preprocessing=SMALL)
    before = state(output)
    write(table([4, 7]), source)
    with pytest.raises(DataError, match=r"media of 2 items are gone, or have changed since .*: item-4, item-7; "):
        prepare(source, output, preprocessing=SMALL)
    assert state(output) == before
    assert prepare(write(table([]), source), output, preprocessing=SMALL) == info


def test_a_pool_that_keeps_no_fingerprints_of_rows_cannot_tell(prepare, tmp_path):
    source, output = write(features(20), tmp_path / "in.parquet"), tmp_path / "pool"
    info, store = prepare(source, output), Store(output)
    sources = store.read_table(info.sidecar("sources"))
    store.write_table(info.sidecar("sources"), sources.set_column(2, "fingerprint", pa.array([""] * 20)))
    os.utime(source, (1, 1))
    assert prepare(source, output) == info


def test_files_that_are_gone_are_said(prepare, tmp_path):
    source, output = sounds(tmp_path / "in", 5), tmp_path / "pool"
    prepare(source, output, preprocessing=SMALL)
    (tmp_path / "in/3.wav").unlink()
    with pytest.raises(DataError, match="the media of 1 items are gone, or have changed since they were prepared: s3"):
        prepare(source, output, preprocessing=SMALL)


def test_a_mix_of_files_and_cells_is_known_again(prepare, tmp_path):
    folder, output = sounds(tmp_path / "in", 6).parent, tmp_path / "pool"
    columns = {"audio_uri": [f"{i}.wav" for i in range(6)]}
    info = prepare(write(features(6, **columns), folder / "mix.parquet"), output, preprocessing=SMALL)
    assert info.names == ("x", "audio")
    assert prepare(folder / "mix.parquet", output, preprocessing=SMALL) == info
    more = features(7, audio_uri=[f"{i}.wav" for i in range(6)] + ["0.wav"])
    assert prepare(write(more, folder / "mix.parquet"), output, preprocessing=SMALL).counts["items"] == 7
    (folder / "2.wav").write_bytes((folder / "3.wav").read_bytes())
    with pytest.raises(DataError, match="have changed since they were prepared: item-2"):
        prepare(folder / "mix.parquet", output, preprocessing=SMALL)


# Columns that do not fit


def test_a_column_that_the_pool_has_no_modality_for_is_named(prepare, tmp_path):
    source, output = sounds(tmp_path / "in", 5), tmp_path / "pool"
    prepare(source, output, preprocessing=SMALL)
    for start in (0, 5):
        rows = [{"id": f"s{i}", "uri": f"{i}.wav", "video_uri": f"{i}.wav"} for i in range(start, start + 5)]
        with pytest.raises(DataError, match=r"column 'video_uri' does not fit .*modalities are audio \(audio\)"):
            prepare(manifest(tmp_path / "in", rows), output, preprocessing=SMALL)
    pq.write_table(pa.table({"id": ["s9"], "audio": [[1.0, 2.0]]}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match="column 'audio' does not fit"):
        prepare(tmp_path / "f.parquet", output, preprocessing=SMALL)
    prepare(write(features(5), tmp_path / "x.parquet"), tmp_path / "other")
    with pytest.raises(DataError, match=r"column 'uri' does not fit .*modalities are x \(features\)"):
        prepare(sounds(tmp_path / "in", 5), tmp_path / "other", preprocessing=SMALL)


def test_known_items_without_one_of_their_columns_are_refused_and_new_ones_are_missing_it(prepare, tmp_path):
    folder, output = sounds(tmp_path / "in", 8).parent, tmp_path / "pool"
    rows = [{"id": f"s{i}", "a_uri": f"{i}.wav", "b_uri": f"{i}.wav"} for i in range(4)]
    prepare(manifest(folder, rows), output, preprocessing=SMALL)
    with pytest.raises(DataError, match=r"lists items that .* \(s0, .*\), without a column for their modality 'b'"):
        prepare(manifest(folder, [{"id": f"s{i}", "a_uri": f"{i}.wav"} for i in range(6)]), output, preprocessing=SMALL)
    new = manifest(folder, [{"id": f"s{i}", "a_uri": f"{i}.wav"} for i in range(4, 8)])
    assert prepare(new, output, preprocessing=SMALL).counts["missing"] == {"a": 0, "b": 4}


# One driver at a time, and places that cannot be written


def test_a_second_preparation_is_refused(prepare, tmp_path):
    source, output = write(features(5), tmp_path / "in.parquet"), tmp_path / "pool"
    with Lease(Store(output)), pytest.raises(StoreError, match=rf"{output} is in use by another driver"):
        prepare(source, output)
    info = prepare(source, output)
    # With nothing to do it only reads.
    with Lease(Store(output)):
        assert prepare(source, output) == info


def test_nothing_is_written_where_there_is_nothing_to_do(prepare, tmp_path, monkeypatch):
    source, output = write(features(5, label=list("ababa")), tmp_path / "in.parquet"), tmp_path / "pool"
    info = prepare(source, output)

    def refuse(*arguments, **options):
        raise AssertionError

    for name in ("write_bytes", "delete", "clear", "sweep"):
        monkeypatch.setattr(Store, name, refuse)
    monkeypatch.setattr(Lease, "__enter__", refuse)
    assert prepare(source, output) == info


def test_work_that_another_preparation_did_meanwhile_is_not_done_again(prepare, tmp_path, monkeypatch):
    source, output = write(features(5), tmp_path / "in.parquet"), tmp_path / "pool"
    enter = Lease.__enter__
    done = []

    def late(lease):
        if not done:
            done.append(True)
            done.append(prepare(source, output))
        return enter(lease)

    monkeypatch.setattr(Lease, "__enter__", late)
    assert prepare(source, output) == done[1]
    assert PoolInfo.read(Store(output)).generation == 1


def test_a_pool_tells_how_long_its_items_are_also_one_that_did_not_know_before(prepare, tmp_path):
    source, output = sounds(tmp_path / "in", 3), tmp_path / "pool"
    info = prepare(source, output)
    np.testing.assert_allclose(Pool(str(output)).seconds, 0.1, atol=1e-3)
    store = Store(output)
    store.write_table(info.index, store.read_table(info.index).drop_columns(["seconds"]))
    assert np.isnan(Pool(str(output)).seconds).all()
    prepare(sounds(tmp_path / "in", 5), output)
    pool = Pool(str(output))
    assert dict(zip(pool.ids.to_pylist(), np.isnan(pool.seconds).tolist(), strict=True)) == {
        "s0": True, "s1": True, "s2": True, "s3": False, "s4": False
    }  # fmt: skip


def test_what_killed_writers_left_is_swept(prepare, tmp_path):
    source, output = write(features(5), tmp_path / "in.parquet"), tmp_path / "pool"
    prepare(source, output)
    left = [output / name for name in (".tmp-1-pool.yaml", "shards/.tmp-2-a", "tables/0001/sidecar/.tmp-3-b")]
    for path in left:
        path.touch()
    prepare(write(features(6), source), output)
    assert not any(path.exists() for path in left)
    assert sorted(os.listdir(output)) == [
        "lease.lock",
        "lease.yaml",
        "pool.yaml",
        "quarantine.parquet",
        "shards",
        "tables",
    ]


def test_a_driver_that_lost_its_lease_publishes_nothing(prepare, tmp_path, monkeypatch):
    source, output = write(features(5), tmp_path / "in.parquet"), tmp_path / "pool"
    run = driver._run

    def overtaken(*arguments):
        made = run(*arguments)
        store = Store(output)
        store.write_yaml("lease.yaml", store.read_yaml("lease.yaml") | {"token": "another"})
        return made

    monkeypatch.setattr(driver, "_run", overtaken)
    with pytest.raises(StoreError, match="another driver has taken over"):
        prepare(source, output)
    assert not (output / "pool.yaml").exists()


@pytest.mark.parametrize("place", ["{}/in", "{}/in/", "{}/in/../in", "{}/link", "file://{}/in/"])
def test_the_input_folder_is_no_output(prepare, tmp_path, place):
    sounds(tmp_path / "in", 3)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(ConfigError, match=r"output: .* is not accepted, it is the input"):
        prepare(tmp_path / "in", place.format(tmp_path), preprocessing=SMALL)
    assert len(os.listdir(tmp_path / "in")) == 4


def test_an_output_that_cannot_be_written_is_said(prepare, tmp_path):
    source = write(features(5), tmp_path / "in.parquet")
    with pytest.raises(StoreError, match=r"cannot write .*in\.parquet/pool"):
        prepare(source, source / "pool")


# The pool's description


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("modalities"), "is damaged: modalities: this key is missing"),
        (lambda c: c["modalities"][0].pop("shape"), r"is damaged: modalities\[0\]\.shape: this key is missing"),
        (lambda c: c.update(generation="x"), "is damaged: generation: 'x' is not accepted"),
        (lambda c: c.update(surplus=1), "is damaged: surplus: there is no such key"),
        (lambda c: c.update(format=7), "written by another version of raybal; prepare the pool into another folder"),
        (lambda c: c.clear(), "is not a pool description"),
    ],
)
def test_a_pool_description_that_cannot_be_used(prepare, tmp_path, change, says):
    source, output = write(features(5), tmp_path / "in.parquet"), tmp_path / "pool"
    prepare(source, output)
    content = Store(output).read_yaml("pool.yaml")
    change(content)
    Store(output).write_yaml("pool.yaml", content)
    for use in (lambda: prepare(source, output), lambda: Pool(str(output))):
        with pytest.raises((DataError, StoreError), match=says) as error:
            use()
        assert str(output / "pool.yaml") in str(error.value)


def test_a_pool_description_that_is_no_yaml(prepare, tmp_path):
    source, output = write(features(5), tmp_path / "in.parquet"), tmp_path / "pool"
    prepare(source, output)
    (output / "pool.yaml").write_text("format: 1\nmodalities: [")
    with pytest.raises(StoreError, match=r"pool\.yaml is not readable YAML"):
        prepare(source, output)


def test_tracks_that_the_pool_has_no_modality_for_are_said(prepare, tmp_path, caplog, monkeypatch):
    from media_files import textured_frames, write_clip

    from raybal.data import probe
    from raybal.media.video import VideoSettings

    monkeypatch.setattr(probe, "SAMPLE", 2)
    monkeypatch.setattr(probe, "LARGE_SAMPLE", 3)
    folder = tmp_path / "in"
    folder.mkdir()
    frames = textured_frames(3, 16, 16)
    silent, loud = write_clip("mp4", frames), write_clip("mp4", frames, noise_and_tone(0.2))
    ids = [f"c{i}" for i in range(12)]
    looked_at = probe.hashing.order(ids, 0).tolist()[:3]
    others = [i for i in range(12) if i not in looked_at][:4]
    for i in range(12):
        (folder / f"{i}.mp4").write_bytes(loud if i in others else silent)
    source = manifest(folder, [{"id": i, "uri": f"{i[1:]}.mp4"} for i in ids])
    small = Preprocessing(video=VideoSettings(frames=1, height=8, width=8), audio=SMALL.audio)
    info = prepare(source, tmp_path / "pool", preprocessing=small)
    assert info.names == ("video",)
    assert "4 clips have sound, which is no modality of the pool" in caplog.text
    assert "a column audio_uri" in caplog.text
    # As it says: with a column of their own they come in.
    rows = [{"id": i, "uri": f"{i[1:]}.mp4", "audio_uri": f"{i[1:]}.mp4" if int(i[1:]) in others else ""} for i in ids]
    info = prepare(manifest(folder, rows), tmp_path / "both", preprocessing=small)
    assert info.counts["missing"] == {"video": 0, "audio": 8}


def test_the_parameters_of_the_pool_are_taken_where_they_are_left_open(prepare, tmp_path):
    source, output = sounds(tmp_path / "in", 5), tmp_path / "pool"
    prepare(source, output, preprocessing=SMALL)
    info = prepare(sounds(tmp_path / "in", 6), output)
    assert info.counts["items"] == 6
    assert info.preprocessing["audio"]["mels"] == 8
    with pytest.raises(DataError, match=r"preprocessing\.audio\.mels = 8, and now it is 9"):
        prepare(source, output, preprocessing=Preprocessing(audio=AudioSettings(mels=9)))


def test_records_of_a_preparation_that_stopped_are_used(prepare, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="raybal")
    source, output = write(features(200), tmp_path / "in.parquet"), tmp_path / "pool"
    write_bytes = Store.write_bytes

    def full(self, name, content):
        if name.startswith("shards/") and len(os.listdir(output / "staging")) > 4:
            raise StoreError("the disk is full")
        write_bytes(self, name, content)

    monkeypatch.setattr(Store, "write_bytes", full)
    with pytest.raises(StoreError, match="the disk is full"):
        prepare(source, output)
    monkeypatch.setattr(Store, "write_bytes", write_bytes)
    done = [json.loads(p.read_text())["ids"] for p in (output / "staging").glob("*.json")]
    assert 0 < sum(map(len, done)) < 200
    assert prepare(source, output).counts["items"] == 200
    assert f"preparation continues: {len(done)} of 4 shards are done" in caplog.text
