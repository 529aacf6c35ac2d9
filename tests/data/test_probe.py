"""Which modalities an input has, by looking at some of it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media_files import noise_and_tone, textured_frames, write_clip, write_image, write_sound

from raybal.data import probe as room
from raybal.data.chunk import Preprocessing
from raybal.data.manifest import read_manifest
from raybal.data.probe import find_modalities
from raybal.errors import ConfigError, DataError
from raybal.media.audio import AudioSettings

SECONDS = Preprocessing(audio=AudioSettings(seconds=1.0))


def found(place, settings=SECONDS):
    modalities, _ = find_modalities(read_manifest(str(place)), settings)
    return {m.name: m.kind for m in modalities}


def parquet(place, *, row_group_size=1000, **columns):
    count = len(next(iter(columns.values())))
    ids = [f"{place.stem}-{i}" for i in range(count)]
    pq.write_table(pa.table({"id": ids, **columns}), place, row_group_size=row_group_size)
    return place


@pytest.mark.parametrize("row_group_size", [1000, 50])
def test_a_column_that_begins_empty(tmp_path, row_group_size):
    sound = write_sound("WAV", noise_and_tone(0.1))
    columns = {
        "audio": [None] * 300 + [sound],
        "x": pa.array([None] * 290 + [[1.0, 2.0]] * 11, pa.list_(pa.float32())),
        "steps": pa.array([[[1.0]]] + [None] * 300, pa.list_(pa.list_(pa.float32()))),
    }
    place = parquet(tmp_path / "a.parquet", row_group_size=row_group_size, **columns)
    assert found(place) == {"audio": "audio", "x": "features", "steps": "sequence"}


def test_a_column_that_only_the_last_file_fills(tmp_path):
    for name in "abc":
        value = [1.0, 2.0] if name == "c" else None
        parquet(tmp_path / f"{name}.parquet", x=pa.array([value] * 3, pa.list_(pa.float32())), y=[[1.0]] * 3)
    assert found(tmp_path) == {"x": "features", "y": "features"}


def test_all_files_are_looked_at_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "SAMPLE", 10)
    for number, name in enumerate("abcde"):
        sound = write_sound("WAV", noise_and_tone(0.1 * (number + 1)))
        parquet(tmp_path / f"{name}.parquet", audio=[sound] * 20)
    _, settings = find_modalities(read_manifest(str(tmp_path)), Preprocessing())
    assert settings.audio.seconds == pytest.approx(0.3)


def test_a_few_uris_among_many_empty_cells(tmp_path):
    (tmp_path / "a.wav").write_bytes(write_sound("WAV", noise_and_tone(0.1)))
    (tmp_path / "a.png").write_bytes(write_image("PNG", textured_frames(1)[0]))
    rows = [f"i{i},a.png,{'a.wav' if i % 200 == 7 else ''}" for i in range(1000)]
    (tmp_path / "m.csv").write_text("\n".join(["id,image_uri,audio_uri", *rows, ""]))
    assert found(tmp_path / "m.csv") == {"image": "image", "audio": "audio"}


def test_a_track_that_few_clips_have(tmp_path):
    frames = textured_frames(3, 16, 16)
    clips = [write_clip("mp4", frames)] * 200
    clips[123] = write_clip("mp4", frames, noise_and_tone(0.2))
    assert found(parquet(tmp_path / "a.parquet", media=clips)) == {"video": "video", "audio": "audio"}


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"x": pa.nulls(3, pa.list_(pa.float32())), "y": [[1.0]] * 3}, "column 'x' is empty in all rows; leave it out"),
        ({"x": [[], [], []], "y": [[1.0]] * 3}, None),
        ({"x": pa.array([[], [], []], pa.list_(pa.float32()))}, "column 'x': the lists of all 3 cells .* are empty"),
        ({"x": pa.array([[[]], [[]], []], pa.list_(pa.list_(pa.float32())))}, "column 'x': the lists .* are empty"),
        ({"x": [b"", b"1", b"2"], "y": [[1.0]] * 3}, "column 'x': none of 3 cells looked at could be read; the last"),
        ({"x": [[[1.0], [1.0, 2.0]]]}, "column 'x': none of 1 cells looked at could be read"),
    ],
)
def test_columns_that_hold_nothing_of_use(tmp_path, columns, says):
    place = parquet(tmp_path / "a.parquet", **columns)
    if says is None:
        # Without a type, what is empty is no medium.
        assert found(place) == {"y": "features"}
        return
    with pytest.raises(DataError, match=says):
        found(place)


def test_empty_cells_of_uris(tmp_path):
    (tmp_path / "x.wav").write_bytes(write_sound("WAV", noise_and_tone(0.1)))
    (tmp_path / "m.csv").write_text("id,audio_uri,video_uri\na,x.wav,\n")
    with pytest.raises(DataError, match="column 'video_uri' is empty in all rows"):
        found(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("name", "contents", "kind"),
    [
        ("video", ["wav", "clip"], "video"),
        ("audio", ["clip", "wav"], "audio"),
        ("camera", ["clip", "silent"], "video"),
        ("speech", ["wav", "wav", "clip"], "audio"),
        ("view", ["png", "png", "silent"], "image"),
    ],
)
def test_the_kind_of_a_column_of_its_own(tmp_path, name, contents, kind):
    frames = textured_frames(3, 16, 16)
    media = {
        "wav": write_sound("WAV", noise_and_tone(0.2)),
        "clip": write_clip("mp4", frames, noise_and_tone(0.2)),
        "silent": write_clip("mp4", frames),
        "png": write_image("PNG", frames[0]),
    }
    place = parquet(tmp_path / "a.parquet", **{name: [media[c] for c in contents]})
    assert found(place) == {name: kind}


@pytest.mark.parametrize("name", ["video", "image"])
def test_a_column_whose_files_are_not_what_it_is_called(tmp_path, name):
    place = parquet(tmp_path / "a.parquet", **{name: [write_sound("WAV", noise_and_tone(0.2))] * 3})
    with pytest.raises(DataError, match=f"column '{name}': none of 3 files looked at has {name}, they have audio"):
        found(place)


def test_a_clip_column_beside_columns_of_its_tracks(tmp_path):
    clip = write_clip("mp4", textured_frames(3, 16, 16), noise_and_tone(0.2))
    assert found(parquet(tmp_path / "a.parquet", media=[clip], audio=[clip])) == {"video": "video", "audio": "audio"}
    place = parquet(tmp_path / "b.parquet", media=[clip], audio=[clip], video=[clip])
    with pytest.raises(DataError, match="give nothing that no column of its own gives: 'media'"):
        found(place)


def test_a_window_that_is_longer_than_the_clips(tmp_path):
    place = parquet(tmp_path / "a.parquet", audio=[write_sound("WAV", noise_and_tone(0.2))] * 3)
    with pytest.raises(ConfigError, match=r"^preprocessing\.audio\.seconds: 0\.2 is not accepted; .*the median of 3"):
        found(place, Preprocessing(audio=AudioSettings(window=0.5)))


def test_numbers_keep_their_most_common_size(tmp_path):
    values = [np.ones(4).tolist()] * 3 + [[1.0]] + [[]]
    modalities, _ = find_modalities(read_manifest(str(parquet(tmp_path / "a.parquet", x=values))), SECONDS)
    assert modalities[0].shape == (4,)
