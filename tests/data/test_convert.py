"""One chunk of items -> tensors."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media_files import example, noise_and_tone, textured_frames, write_clip, write_image, write_sound

from raybal.columns import read_tensor
from raybal.data import convert as room
from raybal.data.chunk import Chunk, Preprocessing
from raybal.data.convert import convert
from raybal.data.files import fingerprints
from raybal.data.schema import Modality
from raybal.data.sources import Source
from raybal.errors import InstallationError
from raybal.media.audio import AudioSettings
from raybal.media.clip import decode_audio, decode_video
from raybal.media.container import probe
from raybal.media.image import ImageSettings, decode_image
from raybal.media.video import VideoSettings

SMALL = Preprocessing(
    video=VideoSettings(frames=2, height=8, width=8),
    audio=AudioSettings(seconds=0.2, mels=8),
    image=ImageSettings(height=8, width=8),
)
VIDEO = Modality("video", "video", SMALL.video.shape(), "uint8")
AUDIO = Modality("audio", "audio", SMALL.audio.shape(), "float16")
IMAGE = Modality("image", "image", SMALL.image.shape(), "uint8")
CLIP = Source("uri", "uri", None)


def chunk(count, file=None, rows=None, **uris):
    ids = tuple(f"i{k}" for k in range(count))
    columns = {column: tuple(cell and str(cell) for cell in cells) for column, cells in uris.items()}
    return Chunk("name", ids, columns, file, "1:2" if file else "", tuple(rows or range(count)), (True,) * count)


@pytest.fixture
def files(tmp_path):
    """A file of each kind, by name."""
    frames = textured_frames(3, 16, 16)
    content = {
        "clip": write_clip("mp4", frames, noise_and_tone(0.2)),
        "silent": write_clip("mp4", frames),
        "dark": write_clip("mp4", None, noise_and_tone(0.2)),
        "wav": write_sound("WAV", noise_and_tone(0.2)),
        "png": write_image("PNG", frames[0]),
        "gif": example("gif"),
        "empty": b"",
    }
    for name, source in content.items():
        (tmp_path / name).write_bytes(source)
    return {name: tmp_path / name for name in content}


@pytest.mark.parametrize(
    "error", [RuntimeError("a\nb"), ValueError("x"), MemoryError(), ZeroDivisionError(), KeyError("k")]
)
def test_whatever_a_decoder_raises_is_one_damaged_item(files, monkeypatch, error):
    decode = room.decode_clip

    def sometimes(source, **settings):
        if source == files["dark"].read_bytes():
            raise error
        return decode(source, **settings)

    monkeypatch.setattr(room, "decode_clip", sometimes)
    table, result = convert(chunk(3, uri=[files["clip"], files["dark"], files["clip"]]), (CLIP,), (VIDEO, AUDIO), SMALL)
    assert result.ids == table["id"].to_pylist() == ["i0", "i2"]
    ((item, uri, modality, reason, now),) = result.bad
    assert (item, uri, modality) == ("i1", str(files["dark"]), "clip")
    assert reason == f"cannot be decoded: {type(error).__name__}: {error}"
    assert [now] == fingerprints([uri])


def test_an_installation_that_is_broken_is_no_damage(files, tmp_path, monkeypatch):
    # As of a torchaudio that was built for another torch.
    (tmp_path / "torchaudio.py").write_text("raise OSError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    settings = dataclasses.replace(SMALL, audio=AudioSettings(seconds=0.2, mels=7))
    audio = dataclasses.replace(AUDIO, shape=settings.audio.shape())
    with pytest.raises(InstallationError, match=r"^torchaudio cannot be loaded .*undefined symbol"):
        convert(chunk(2, uri=[files["silent"], files["clip"]]), (CLIP,), (VIDEO, audio), settings)


def test_damage_is_named_by_its_column(files):
    sources = (Source("video_uri", "uri", "video"), Source("audio_uri", "uri", "audio"))
    work = chunk(4, video_uri=[files["clip"]] * 4, audio_uri=[files["wav"], files["empty"], "https://x.org/a", None])
    _, result = convert(work, sources, (VIDEO, AUDIO), SMALL)
    assert result.ids == ["i0", "i3"]
    assert result.present == [[True, True], [True, False]]
    assert [(row[0], row[2]) for row in result.bad] == [("i1", "audio"), ("i2", "audio")]
    assert result.bad[0][3] == "empty"
    assert "https://x.org" in result.bad[1][3]
    clip, empty = fingerprints([str(files["clip"]), str(files["empty"])])
    assert [row[-1] for row in result.bad] == [f"{clip} {empty}", f"{clip} "]


@pytest.mark.parametrize(
    ("modality", "file", "outcome"),
    [
        (VIDEO, "clip", "present"),
        (VIDEO, "silent", "present"),
        (VIDEO, "wav", "wrong type: it has sound and no pictures"),
        (VIDEO, "dark", "wrong type: it has sound and no pictures"),
        (VIDEO, "png", "not a clip: one png image"),
        (AUDIO, "wav", "present"),
        (AUDIO, "silent", "missing"),
        (AUDIO, "png", "not a clip: one png image"),
        (IMAGE, "png", "present"),
        (IMAGE, "wav", "not an image"),
    ],
)
def test_a_file_of_a_column_of_its_own(files, modality, file, outcome):
    numbers = Modality("x", "features", (2,), "float32")
    sources = (Source("m_uri", "uri", modality.name), Source("x", "features", "x"))
    pq.write_table(pa.table({"x": [[1.0, 2.0]]}), files["wav"].parent / "x.parquet")
    work = chunk(1, file=str(files["wav"].parent / "x.parquet"), m_uri=[files[file]])
    _, result = convert(work, sources, (modality, numbers), SMALL)
    if outcome in ("present", "missing"):
        assert result.present == [[outcome == "present", True]]
    else:
        assert [row[2:4] for row in result.bad] == [(modality.name, outcome)]


def test_a_plain_clip_gives_what_no_other_column_gives(files):
    sources = (CLIP, Source("image_uri", "uri", "image"))
    work = chunk(1, uri=[files["clip"]], image_uri=[files["png"]])
    table, result = convert(work, sources, (VIDEO, AUDIO, IMAGE), SMALL)
    assert result.present == [[True, True, True]]
    np.testing.assert_array_equal(
        read_tensor(table, "video")[0][0], decode_video(files["clip"].read_bytes(), SMALL.video)
    )
    np.testing.assert_array_equal(
        read_tensor(table, "image")[0][0], decode_image(files["png"].read_bytes(), SMALL.image)
    )
    # A recording beside the clip is the sound, and the clip's own is not missed.
    sources = (CLIP, Source("audio_uri", "uri", "audio"))
    table, result = convert(chunk(1, uri=[files["clip"]], audio_uri=[files["wav"]]), sources, (VIDEO, AUDIO), SMALL)
    np.testing.assert_array_equal(
        read_tensor(table, "audio")[0][0], decode_audio(files["wav"].read_bytes(), SMALL.audio)
    )
    assert result.unused == {}
    # Where a pool has images and sound, the file tells which it is.
    _, result = convert(chunk(2, uri=[files["png"], files["wav"]]), (CLIP,), (AUDIO, IMAGE), SMALL)
    assert result.present == [[False, True], [True, False]]


def test_items_are_as_long_as_the_longest_of_their_files(files):
    """Three frames at 25 a second and 0.2 s of sound; a whole recording, though 0.2 s of it are prepared."""
    (files["wav"].parent / "long.wav").write_bytes(write_sound("WAV", noise_and_tone(1.3)))
    long = files["wav"].parent / "long.wav"
    _, result = convert(
        chunk(4, uri=[files[n] for n in ("clip", "silent", "dark", "wav")]), (CLIP,), (VIDEO, AUDIO), SMALL
    )
    expected = [probe(files[n].read_bytes()).duration for n in ("clip", "silent", "dark", "wav")]
    np.testing.assert_allclose(result.seconds, expected, atol=0.06)
    assert result.seconds[3] == pytest.approx(0.2)
    sources = (CLIP, Source("audio_uri", "uri", "audio"))
    _, result = convert(chunk(1, uri=[files["clip"]], audio_uri=[long]), sources, (VIDEO, AUDIO), SMALL)
    assert result.seconds == [pytest.approx(1.3)]
    _, result = convert(chunk(1, uri=[files["png"]]), (CLIP,), (IMAGE,), SMALL)
    assert result.seconds == [None]


@pytest.mark.parametrize(
    ("modalities", "unused"), [((VIDEO, AUDIO), {}), ((VIDEO,), {"audio": 2}), ((AUDIO,), {"video": 3})]
)
def test_tracks_that_are_no_modality_are_counted(files, modalities, unused):
    names = ["clip", "clip", "silent", "wav"]
    _, result = convert(chunk(4, uri=[files[n] for n in names]), (CLIP,), modalities, SMALL)
    # What has nothing of the pool's modalities is set aside.
    unused = {track: count - (track == "video") for track, count in unused.items()}
    assert result.unused == unused


def test_an_item_over_which_processes_died_is_not_touched(files, monkeypatch):
    decode, touched, started = room.decode_clip, [], []

    def noted(source, **settings):
        touched.append(started[-1])
        return decode(source, **settings)

    monkeypatch.setattr(room, "decode_clip", noted)
    work = chunk(3, uri=[files["clip"]] * 3)
    _, result = convert(work, (CLIP,), (VIDEO, AUDIO), SMALL, starting=started.append, deadly={"i1"})
    assert started == ["i0", "i1", "i2"]
    assert touched == result.ids == ["i0", "i2"]
    assert result.bad[0][3] == "cannot be decoded: processes that tried it died"


@pytest.mark.parametrize("value", [[], [1.0], [1.0, None], [1.0, float("nan")], None])
def test_numbers_that_do_not_fit(tmp_path, value):
    pq.write_table(pa.table({"x": pa.array([[1.0, 2.0], value], pa.list_(pa.float32()))}), tmp_path / "x.parquet")
    modality = Modality("x", "features", (2,), "float32")
    work = chunk(2, file=str(tmp_path / "x.parquet"))
    _, result = convert(work, (Source("x", "features", "x"),), (modality,), SMALL)
    assert result.ids == ["i0"]
    assert result.fingerprints["i0"].startswith("1:2#")
    assert [row[0] for row in result.bad] == ["i1"]
    assert result.bad[0][-1] == "1:2"
