import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from media_files import CLIPS, IMAGES, SOUNDS, example, noise_and_tone, textured_frames, write_clip, write_image

from raybal.errors import DataError
from raybal.media.audio import AudioSettings
from raybal.media.clip import decode_audio, decode_clip, decode_video
from raybal.media.container import MediaInfo, probe
from raybal.media.damage import MediaError
from raybal.media.image import ImageSettings, decode_image
from raybal.media.video import VideoSettings

VIDEO = VideoSettings(frames=4, height=32, width=48)
AUDIO = AudioSettings(seconds=1.0)
IMAGE = ImageSettings(height=32, width=48)
PLAYED = [*CLIPS, *SOUNDS, "mp4 trimmed"]


def decode(name, source):
    """Decodes everything that a file of this kind may hold."""
    return decode_image(source, IMAGE) if name in IMAGES else decode_clip(source, video=VIDEO, audio=AUDIO)


@pytest.mark.parametrize("name", [*PLAYED, *IMAGES])
def test_good_files_are_not_damaged(name):
    decode(name, example(name))
    probe(example(name))


@pytest.mark.parametrize("part", [0.25, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("name", [*PLAYED, *IMAGES])
def test_a_cut_is_noticed(name, part):
    source = example(name)
    with pytest.raises(MediaError):
        decode(name, source[: int(part * len(source))])


@pytest.mark.parametrize("name", ["mp4", "mp4 faststart", "mp4 fragments", "mkv", "webm", "avi", "vob", "mp4 trimmed"])
@pytest.mark.parametrize("decoder", [decode_audio, decode_video])
def test_a_cut_is_noticed_by_each_modality_alone(name, decoder):
    source = example(name)
    with pytest.raises(MediaError):
        decoder(source[: len(source) // 2], AUDIO if decoder is decode_audio else VIDEO)


@pytest.mark.parametrize("decoder", [decode_audio, decode_video])
def test_a_program_stream_cut_between_two_packets_lacks_part_of_its_last_picture(decoder):
    pictures = np.random.default_rng(0).integers(0, 255, (25, 64, 96, 3)).astype(np.uint8)
    source = write_clip("mpeg", pictures, noise_and_tone(), video_codec="mpeg1video", audio_codec="mp2")
    settings = AUDIO if decoder is decode_audio else VIDEO
    assert decoder(source, settings) is not None
    cuts = [i for i in range(4096, source.rindex(b"\x00\x00\x01\xe0"), 2048) if source[i : i + 3] == b"\x00\x00\x01"]
    assert len(cuts) > 10
    for cut in cuts:
        with pytest.raises(MediaError, match="damaged picture"):
            decoder(source[:cut], settings)


@pytest.mark.parametrize("name", ["mp4", "wav", "png"])
@pytest.mark.parametrize("size", [1, 10, 1000, 20000])
def test_random_bytes_are_no_media(name, size):
    for seed in range(20):
        with pytest.raises(MediaError):
            decode(name, np.random.default_rng(seed).bytes(size))


@pytest.mark.parametrize("decoder", [decode_audio, decode_video, decode_image])
def test_an_empty_file_says_so(decoder):
    settings = {decode_audio: AUDIO, decode_video: VIDEO, decode_image: IMAGE}[decoder]
    with pytest.raises(MediaError, match=r"^empty$"):
        decoder(b"", settings)


@pytest.mark.parametrize(
    ("decoder", "settings", "source"),
    [
        (decode_audio, AUDIO, b"id,label\nclip-1,dog\n" * 50),
        (decode_video, VIDEO, b"1\n00:00:01,000 --> 00:00:02,000\nA subtitle\n"),
        (decode_video, VIDEO, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n"),
        (decode_image, IMAGE, b"not a picture"),
        (decode_audio, AUDIO, write_image("PNG", textured_frames(1)[0])),
        (decode_video, VIDEO, write_image("JPEG", textured_frames(1)[0])),
        (decode_image, IMAGE, example("mp4")),
        (decode_image, IMAGE, example("wav")),
    ],
)
def test_a_file_of_another_type_is_refused(decoder, settings, source):
    with pytest.raises(MediaError, match=r"not a|cannot be opened"):
        decoder(source, settings)


def test_reasons_count_what_is_missing():
    source = example("mp4 faststart")
    with pytest.raises(MediaError, match=r"^cut short: \d+ of 25 declared video frames$"):
        decode_video(source[: len(source) // 2], VIDEO)
    wav = example("wav")
    with pytest.raises(MediaError, match=f"^cut short: 1000 of {len(wav)} declared bytes$"):
        decode_audio(wav[:1000], AUDIO)


def test_a_recording_of_unknown_size_still_declares_its_duration():
    source = bytearray(example("mkv"))
    size = source.index(b"\x18\x53\x80\x67") + 4
    source[size : size + 8] = b"\x01" + b"\xff" * 7
    assert decode_video(bytes(source), VIDEO) is not None
    with pytest.raises(MediaError, match=r"^cut short: 0\.\d+ of 1\.06 declared seconds$"):
        decode_video(bytes(source[: len(source) // 3]), VIDEO)


@pytest.mark.parametrize("name", ["png", "jpeg", "jpeg progressive", "webp"])
@pytest.mark.parametrize("missing", [1, 2, 5])
def test_probe_notices_that_the_end_of_an_image_is_missing(name, missing):
    with pytest.raises(MediaError, match="cut short"):
        probe(example(name)[:-missing])


def test_the_end_of_a_thumbnail_is_not_the_end_of_a_jpeg():
    source, thumbnail = example("jpeg"), b"Exif\x00\x00" + example("jpeg")
    tagged = source[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + source[2:]
    assert probe(tagged).is_image
    with pytest.raises(MediaError, match="no end marker"):
        probe(tagged[: len(tagged) - len(source) // 2])


def test_text_never_makes_a_decoder_open_other_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(example("mp4"))
    with pytest.raises(MediaError, match="not a media file"):
        decode_video(b"ffconcat version 1.0\nfile clip.mp4\n", VIDEO)


def test_more_declared_samples_than_there_are():
    source = bytearray(example("flac"))
    declared = int.from_bytes(source[18:26], "big")
    assert declared % 2**36 == 16000
    source[18:26] = (declared + 1000).to_bytes(8, "big")
    with pytest.raises(MediaError):
        decode_audio(bytes(source), AUDIO)


def test_errors_survive_the_way_back_from_a_worker_process():
    error = pickle.loads(pickle.dumps(MediaError("empty")))
    assert isinstance(error, DataError)
    assert str(error) == "empty"


def test_flipped_bytes_raise_media_errors_only():
    draw = np.random.default_rng(0)
    found = 0
    for name in ("mp4", "mp4 fragments", "mkv", "avi", "mpeg", "flv", "wav", "ogg", "png", "jpeg"):
        for _ in range(15):
            source = bytearray(example(name))
            for at in draw.integers(0, len(source), 20):
                source[at] ^= int(draw.integers(1, 256))
            try:
                decode(name, bytes(source))
            except MediaError:
                found += 1
    assert found > 75


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mp4", MediaInfo("mp4", True, True, False, 1.0)),
        ("mp4 no sound", MediaInfo("mp4", True, False, False, 1.0)),
        ("mp4 no pictures", MediaInfo("mp4", False, True, False, 1.0)),
        ("wav", MediaInfo("wav", False, True, False, 1.0)),
        ("flac", MediaInfo("flac", False, True, False, 1.0)),
        ("png", MediaInfo("png", is_image=True)),
    ],
)
def test_probe_tells_what_a_file_holds(name, expected):
    assert probe(example(name)) == expected


def test_probe_of_a_program_stream():
    info = probe(example("mpeg"))
    assert (info.has_video, info.has_audio) == (True, True)
    assert info.duration == pytest.approx(1.0, abs=0.1)


def test_a_track_without_a_decoder_is_an_error_only_if_it_is_needed():
    source = example("mp4").replace(b"mp4a", b"zzzz").replace(b"esds", b"zzzz")
    assert probe(source).has_audio
    assert decode_video(source, VIDEO).shape == (4, 3, 32, 48)
    with pytest.raises(MediaError, match="no decoder for the audio track"):
        decode_audio(source, AUDIO)


def test_titles_in_another_encoding_are_no_damage():
    source = example("mp4").replace(b"VideoHandler", b"Vid\xe9oHandler")
    assert decode_video(source, VIDEO) is not None


@pytest.mark.parametrize(
    ("file", "column"),
    [
        ("grid_words_babble5db", "media"),
        ("grid_sentences_mpg", "mpg"),
        ("avmnist", "audio"),
        ("avmnist", "image"),
    ],
)
def test_real_files(real_data, file, column):
    if not (real_data / f"{file}.parquet").exists():
        pytest.skip(f"no {file}.parquet in RAYBAL_DATA")
    cells = pq.read_table(real_data / f"{file}.parquet", columns=[column])[column].to_pylist()
    name = "png" if column == "image" else "clip"
    for cell in cells[:: max(1, len(cells) // 200)]:
        decode(name, cell)
        for damaged in (cell[: len(cell) // 2], np.random.default_rng(0).bytes(len(cell)), b""):
            with pytest.raises(MediaError):
                decode(name, damaged)
