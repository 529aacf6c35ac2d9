"""Real media files, made on the spot, and where a file keeps what the tests change."""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

RATE = 16000


def noise_and_tone(seconds=1.0, rate=RATE, tone=440.0):
    """A tone in noise, float32 [samples]."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.05, len(time))
    return (0.4 * np.sin(2 * np.pi * tone * time) + noise).clip(-1, 1).astype(np.float32)


def textured_frames(count=25, height=64, width=96):
    """A random texture that moves 3 pixels a frame, uint8 [count, height, width, 3]."""
    tiles = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3)).astype(np.uint8)
    texture = tiles.repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(texture, 3 * i, 1) for i in range(count)])


def write_clip(
    container,
    frames=None,
    sound=None,
    *,
    video_codec="libx264",
    audio_codec="aac",
    pixel_format="yuv420p",
    fps=25,
    rate=RATE,
    layout="mono",
    options=None,
    video_options=None,
):
    """A clip of frames uint8 [n, h, w, 3] (or VideoFrames) and sound float32 [samples] (or [samples, 2]), as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"  # on disk: a faststart file is written twice
        with av.open(str(path), "w", format=container, options=options or {}) as file:
            if frames is not None:
                video = file.add_stream(video_codec, rate=fps, options=video_options or {})
                first = frames[0]
                size = first.shape[:2] if isinstance(first, np.ndarray) else (first.height, first.width)
                video.height, video.width = size
                video.pix_fmt = pixel_format
                video.codec_context.thread_count = 1
            if sound is not None:
                audio = file.add_stream(audio_codec, rate=rate, layout=layout)
            if frames is not None:
                for i, frame in enumerate(frames):
                    if isinstance(frame, np.ndarray):
                        frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
                    frame.pts, frame.time_base = i, Fraction(1, fps)
                    file.mux(video.encode(frame))
            if sound is not None:
                block = av.AudioFrame.from_ndarray(
                    np.rint(sound.reshape(1, -1) * 32767).astype(np.int16), format="s16", layout=layout
                )
                block.sample_rate, block.pts, block.time_base = rate, 0, Fraction(1, rate)
                file.mux(audio.encode(block))
                file.mux(audio.encode(None))
            if frames is not None:
                file.mux(video.encode(None))
        return path.read_bytes()


def write_sound(kind, sound, rate=RATE, subtype=None):
    """A sound file of float32 [samples] or [samples, channels], as bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def write_image(kind, pixels, **options):
    """An image file of uint8 [h, w] or [h, w, 3], as bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def trimmed(source, start, end):
    """What "cut without encoding again" makes of a clip: an MP4 of its packets from start to end, in seconds."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(source)) as old, av.open(buffer, "w", format="mp4") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None and start <= packet.pts * packet.time_base < end:
                shift = round(start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
    return buffer.getvalue()


def turned_right(mp4):
    """The same MP4 with a note that its pictures are to be turned by 90 degrees clockwise."""
    start = mp4.index(b"tkhd") + 4 + 40
    matrix = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    return mp4[:start] + matrix + mp4[start + 36 :]


FRAGMENTED, DASH = {"movflags": "frag_keyframe+empty_moov"}, {"movflags": "frag_keyframe+empty_moov+dash"}
CLIPS = {
    "mp4": {"container": "mp4"},
    "mp4 faststart": {"container": "mp4", "options": {"movflags": "faststart"}},
    "mp4 fragments": {
        "container": "mp4",
        "options": {"movflags": "frag_keyframe+empty_moov"},
        "video_options": {"g": "5"},
    },
    "mp4 dash": {
        "container": "mp4",
        "options": {"movflags": "frag_keyframe+empty_moov+dash"},
        "video_options": {"g": "5"},
    },
    "mp4 no sound": {"container": "mp4", "sound": None},
    "mp4 no pictures": {"container": "mp4", "frames": None},
    "mov": {"container": "mov"},
    "mkv": {"container": "matroska"},
    "webm": {"container": "webm", "video_codec": "libvpx", "audio_codec": "libopus", "rate": 48000},
    "avi": {"container": "avi", "video_codec": "mpeg4", "audio_codec": "libmp3lame"},
    "mpeg": {"container": "mpeg", "video_codec": "mpeg1video", "audio_codec": "mp2"},
    "vob": {"container": "vob", "video_codec": "mpeg2video", "audio_codec": "mp2"},
    "flv": {"container": "flv", "video_codec": "flv1", "audio_codec": "aac"},
    "mp3": {"container": "mp3", "frames": None, "audio_codec": "libmp3lame"},
    "wmv": {"container": "asf", "video_codec": "wmv2", "audio_codec": "libmp3lame"},
    "w64": {"container": "w64", "frames": None, "audio_codec": "pcm_s16le"},
    "caf": {"container": "caf", "frames": None, "audio_codec": "pcm_s16be"},
    "au": {"container": "au", "frames": None, "audio_codec": "pcm_s16be"},
    "ogg flac": {"container": "ogg", "frames": None, "audio_codec": "flac"},
}
SOUNDS = {
    "wav": ("WAV", None),
    "wav 24 bits": ("WAV", "PCM_24"),
    "wav mu-law": ("WAV", "ULAW"),
    "rf64": ("RF64", None),
    "aiff": ("AIFF", None),
    "flac": ("FLAC", None),
    "ogg": ("OGG", None),
    "opus": ("OGG", "OPUS"),
}
IMAGES = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {}),
    "jpeg progressive": ("JPEG", {"progressive": True}),
    "webp": ("WEBP", {}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
}


@lru_cache(maxsize=64)
def example(name):
    """The file of this name in CLIPS, SOUNDS or IMAGES, or one cut out of another clip."""
    if name in SOUNDS:
        kind, subtype = SOUNDS[name]
        return write_sound(kind, noise_and_tone(), RATE, subtype)
    if name in IMAGES:
        kind, options = IMAGES[name]
        return write_image(kind, textured_frames(1)[0], **options)
    if name == "mp4 trimmed":
        whole = write_clip("mp4", textured_frames(50), noise_and_tone(2.0), video_options={"g": "10"})
        return trimmed(whole, 0.4, 1.2)
    options = {"frames": textured_frames(), "sound": noise_and_tone(rate=CLIPS[name].get("rate", RATE))}
    return write_clip(**(options | CLIPS[name]))
