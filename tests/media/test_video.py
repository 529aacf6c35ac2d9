import io

import av
import numpy as np
import pytest
from media_files import RATE, example, noise_and_tone, turned_right, write_clip
from PIL import Image

from raybal.errors import ConfigError
from raybal.media.clip import decode_clip, decode_video
from raybal.media.video import VideoSettings, positions


def numbered(count, height=32, width=32):
    """Frames whose brightness tells their number: 8 levels a frame."""
    levels = (16 + 8 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers(frames):
    """The numbers that decoded frames [T, C, H, W] of `numbered` bear."""
    return np.rint((frames.mean((1, 2, 3)) - 16) / 8).astype(int).tolist()


SHARP = {"crf": "5"}


@pytest.mark.parametrize(
    ("count", "frames", "expected"),
    [
        (25, 5, [2, 7, 12, 17, 22]),
        (24, 8, [1, 4, 7, 10, 13, 16, 19, 22]),
        (12, 12, list(range(12))),
        (3, 8, [0, 0, 0, 1, 1, 2, 2, 2]),
        (7, 1, [3]),
    ],
)
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_the_middle_frame_of_each_part_is_sampled(count, frames, expected, color):
    source = write_clip("mp4", numbered(count), video_options=SHARP)
    decoded = decode_video(source, VideoSettings(frames=frames, height=16, width=16, color=color))
    assert decoded.shape == (frames, 3 if color == "rgb" else 1, 16, 16)
    assert decoded.dtype == np.uint8
    assert numbers(decoded) == expected == positions(count, frames)


@pytest.mark.parametrize("container", ["mpeg", "matroska", "avi"])
def test_sampling_does_not_depend_on_the_container(container):
    codec = "mpeg1video" if container == "mpeg" else "mpeg4"
    options = {"qmin": "1", "qmax": "1", "bf": "2"}
    source = write_clip(container, numbered(25), video_codec=codec, video_options=options)
    assert numbers(decode_video(source, VideoSettings(frames=5, height=16, width=16))) == [2, 7, 12, 17, 22]


def test_frames_that_an_edit_list_hides_do_not_count():
    # Two tenths of a second of lead-in are in the file for the decoder's sake only.
    source = bytearray(write_clip("mp4", numbered(25), video_options=SHARP | {"bf": "0"}))
    at = source.index(b"elst") + 4
    assert int.from_bytes(source[at + 12 : at + 16], "big") == 0
    source[at + 8 : at + 12] = (800).to_bytes(4, "big")
    source[at + 12 : at + 16] = round(0.2 * 12800).to_bytes(4, "big")
    assert numbers(decode_video(bytes(source), VideoSettings(frames=5, height=16, width=16))) == [7, 11, 15, 19, 23]


def test_colours_arrive():
    red, green = np.array([200, 30, 30], np.uint8), np.array([30, 180, 60], np.uint8)
    frames = np.stack([np.full((32, 32, 3), c, np.uint8) for c in (red, red, green, green)])
    decoded = decode_video(write_clip("mp4", frames, video_options=SHARP), VideoSettings(frames=2, height=8, width=8))
    for picture, colour in zip(decoded, (red, green), strict=True):
        assert np.abs(picture.mean((1, 2)) - colour).max() < 6


@pytest.mark.parametrize(
    ("codec", "container", "pixel_format", "limited"),
    [("libx264", "mp4", "yuv420p", True), ("mjpeg", "avi", "yuvj420p", False)],
)
def test_brightness_covers_the_whole_range(codec, container, pixel_format, limited):
    luma = np.repeat(np.array([[16, 126, 235, 235]], np.uint8), 8, 0).repeat(8, 1)
    planes = np.concatenate([luma.ravel(), np.full(luma.size // 2, 128, np.uint8)]).reshape(-1, luma.shape[1])
    frames = [av.VideoFrame.from_ndarray(planes, format=pixel_format) for _ in range(3)]
    options = {"crf": "1"} if codec == "libx264" else {"qmin": "2", "qmax": "2"}
    source = write_clip(container, frames, video_codec=codec, pixel_format=pixel_format, video_options=options)
    gray = decode_video(source, VideoSettings(frames=1, height=8, width=32, color="gray"))[0, 0]
    rgb = decode_video(source, VideoSettings(frames=1, height=8, width=32))[0]
    expected = [0, 128, 255] if limited else [16, 126, 235]
    assert np.abs(gray[4, [4, 12, 24]].astype(int) - expected).max() <= 2
    assert np.abs(rgb[:, 4, [4, 12, 24]].astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("size", "scaled", "corner"),
    [
        ((24, 24), (24, 36), (0, 6)),
        ((16, 60), (40, 60), (12, 0)),
        ((64, 20), (64, 96), (0, 38)),
        ((90, 120), (90, 135), (0, 7)),
    ],
)
def test_pictures_cover_the_target_and_lose_what_is_too_much(size, scaled, corner):
    frame = np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 18, 3), np.uint8)).resize((72, 48))
    )
    source = write_clip("mp4", np.stack([frame] * 3), video_options={"crf": "1"})
    decoded = decode_video(source, VideoSettings(frames=1, height=size[0], width=size[1]))[0].transpose(1, 2, 0)
    with av.open(io.BytesIO(source)) as file:
        picture = next(file.decode(video=0)).to_image()
    expected = np.asarray(picture.resize(scaled[::-1], Image.Resampling.BILINEAR))
    expected = expected[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= 4


def test_pictures_are_turned_upright():
    frames = np.zeros((5, 32, 64, 3), np.uint8)
    frames[:, :16, :32] = 255
    source = turned_right(write_clip("mp4", frames, video_options=SHARP))
    decoded = decode_video(source, VideoSettings(frames=1, height=64, width=32, color="gray"))[0, 0]
    quadrants = decoded.reshape(2, 32, 2, 16).mean((1, 3)) > 128
    assert quadrants.tolist() == [[False, True], [False, False]]


def test_a_clip_without_pictures_gives_none():
    assert decode_video(example("mp4 no pictures"), VideoSettings()) is None
    assert decode_video(example("wav"), VideoSettings()) is None


def test_a_cover_picture_is_no_video():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        audio = file.add_stream("aac", rate=RATE, layout="mono")
        cover = file.add_stream("png", rate=1)
        cover.height = cover.width = 32
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        file.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        block = av.AudioFrame.from_ndarray(
            np.rint(noise_and_tone()[None] * 32767).astype(np.int16), format="s16", layout="mono"
        )
        block.sample_rate = RATE
        file.mux(audio.encode(block))
        file.mux(audio.encode(None))
        file.mux(cover.encode(None))
    assert decode_video(buffer.getvalue(), VideoSettings()) is None


def test_one_pass_gives_what_two_give():
    from raybal.media.audio import AudioSettings
    from raybal.media.clip import decode_audio

    video, audio = VideoSettings(frames=4, height=32, width=32), AudioSettings(seconds=1.0)
    clip = decode_clip(example("mp4"), video=video, audio=audio)
    both = clip.values
    assert np.array_equal(both["video"], decode_video(example("mp4"), video))
    assert np.array_equal(both["audio"], decode_audio(example("mp4"), audio))
    assert set(decode_clip(example("mp4"), audio=audio).values) == {"audio"}


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="frames"):
        VideoSettings(frames=0)
    with pytest.raises(ConfigError, match="color"):
        VideoSettings(color="grey")
    assert VideoSettings(color="gray").shape() == (8, 1, 96, 96)
