"""The clips of the built-in pool: what makes each one, a word spoken by eSpeak NG, and a digit that moves."""

from __future__ import annotations

import ctypes
import io
import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybal.errors import DataError
from raybal.hashing import digest

VERSION = 1
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Variants of eSpeak NG's voices and the English that they speak, American or British. Variants with breath are left
# out: their noise is seeded by the clock.
VOICES = {
    **dict.fromkeys(("f1", "f4", "Annie", "linda", "steph", "grandma"), "en-US"),
    **dict.fromkeys(("m1", "m2", "m4", "m5", "m6", "adam", "david", "edward", "robert"), "en-US"),
    **dict.fromkeys(("belinda", "steph3", "m3", "m7", "quincy"), "en"),
}
# The share of clips that can be heard well, and that can be seen well; the others hardly at all. A small network with
# 120 to 350 labels then gets 73 to 87 % of unheard voices right from the sound and 62 to 73 % from the pictures.
HEARD, SEEN = 0.93, 0.7
FRAMES, FRAME_RATE, SIZE = 12, 15, 64
SOUND_RATE = 22050  # what eSpeak NG gives
SAMPLES = SOUND_RATE * FRAMES // FRAME_RATE


@dataclass(frozen=True)
class Recipe:
    """All that makes one clip.

    Attributes:
        id: of the item.
        label: 0 to 9.
        voice, speed, pitch: who says the word, words a minute, and 0 to 100.
        speech_to_noise: in decibels, over the word.
        visibility: brightness of the digit over its background and of the clutter there, together 1: at 0.5 both
            are alike.
        noise_seed: for the random numbers within picture and sound.
    """

    id: str
    label: int
    voice: str
    speed: int
    pitch: int
    speech_to_noise: float
    visibility: float
    noise_seed: int


def recipe(index: int, label: int, seed: int) -> Recipe:
    """Draws the recipe of the clip for one of scikit-learn's digits."""
    item = f"digit-{index:04d}"
    draw = np.random.default_rng(digest("demo", VERSION, seed, item))
    return Recipe(
        id=item,
        label=label,
        voice=str(draw.choice(list(VOICES))),
        speed=int(draw.integers(155, 196)),
        pitch=int(draw.integers(40, 61)),
        speech_to_noise=float(draw.uniform(22, 36) if draw.uniform() < HEARD else draw.uniform(-12, 6)),
        visibility=float(draw.uniform(0.82, 1) if draw.uniform() < SEEN else draw.uniform(0.25, 0.55)),
        noise_seed=int(draw.integers(2**62)),
    )


def speak(recipes: list[Recipe]) -> list[NDArray[np.int16]]:
    """Returns the spoken word of each recipe, int16 [samples] at 22,050 Hz.

    eSpeak NG keeps the phases of its oscillators from one word to the next and has no way to reset them. So one
    process says all words, in order, and it must not have used eSpeak NG before: only then are they the same each time.
    """
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    blocks: list[NDArray[np.int16]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def receive(samples: Any, count: int, events: Any) -> int:
        if samples and count:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    synchronous, rate, pitch, utf8 = 2, 1, 3, 1
    data = Path(espeakng_loader.get_data_path()).parent
    if library.espeak_Initialize(synchronous, 0, os.fsencode(data), 0) != SOUND_RATE:
        raise DataError(f"eSpeak NG cannot start with its data in {data}")
    library.espeak_SetSynthCallback(receive)
    words = []
    for r in recipes:
        voice = f"gmw/{VOICES[r.voice]}+{r.voice}"
        if library.espeak_SetVoiceByName(voice.encode()):
            raise DataError(f"eSpeak NG has no voice {voice!r}")
        library.espeak_SetParameter(rate, r.speed, 0)
        library.espeak_SetParameter(pitch, r.pitch, 0)
        text = WORDS[r.label].encode() + b"\0"
        library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, utf8, None, None)
        words.append(np.concatenate(blocks))
        blocks.clear()
    return words


def write_clips(folder: Path, recipes: list[Recipe], images: NDArray[np.uint8], words: list[NDArray[np.int16]]) -> None:
    """Writes `clips/<id>.mp4` for each recipe; images uint8 [n, 8, 8], words as from `speak`."""
    for r, image, word in zip(recipes, images, words, strict=True):
        draw = np.random.default_rng(r.noise_seed)
        write_clip(folder / "clips" / f"{r.id}.mp4", draw_frames(r, image, draw), mix_sound(r, word, draw))


def draw_frames(r: Recipe, image: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
    """Returns the frames uint8 [12, 64, 64] of a digit [8, 8] that drifts, turns and grows or shrinks over clutter."""
    from PIL import Image

    digit = Image.fromarray(np.pad(image.astype(np.float32) / 16, 2))
    spots = Image.fromarray(draw.uniform(-1, 1, (14, 14)).astype(np.float32))
    clutter = np.asarray(spots.resize((SIZE + 20, SIZE + 20), Image.Resampling.BICUBIC))
    x, y, angle, pixel = np.linspace(
        (*draw.uniform(27, 37, 2), draw.uniform(-0.2, 0.2), draw.uniform(5, 6.5)),
        (*draw.uniform(27, 37, 2), draw.uniform(-0.2, 0.2), draw.uniform(5, 6.5)),
        FRAMES,
    ).T
    slide = np.rint(np.linspace(draw.uniform(0, 20, 2), draw.uniform(0, 20, 2), FRAMES)).astype(int)
    brightness, frames = draw.uniform(0.35, 0.65), []
    for t in range(FRAMES):
        picture = _place(digit, x[t], y[t], angle[t], pixel[t])
        left, top = slide[t]
        behind = clutter[top : top + SIZE, left : left + SIZE]
        frames.append(r.visibility * picture + (1 - r.visibility) * behind)
    moving = np.stack(frames) * 0.5 + brightness - 0.15
    moving += draw.normal(0, 0.04, moving.shape)
    return np.rint(moving.clip(0, 1) * 255).astype(np.uint8)


def _place(picture: Any, x: float, y: float, angle: float, pixel: float) -> NDArray[np.float32]:
    """Returns [64, 64] with a picture centred at (x, y), turned by an angle, each of its pixels `pixel` wide."""
    from PIL import Image

    cos, sin = math.cos(angle) / pixel, math.sin(angle) / pixel
    middle = picture.width / 2
    matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    placed = picture.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(placed)


def mix_sound(r: Recipe, word: NDArray[np.int16], draw: np.random.Generator) -> NDArray[np.int16]:
    """Returns int16 [17640], 0.8 s: the word somewhere in it, under noise with the spectrum of speech."""
    spoken = word[:SAMPLES].astype(np.float64)
    sound = np.zeros(SAMPLES)
    start = int(draw.integers(SAMPLES - len(spoken) + 1))
    sound[start : start + len(spoken)] = spoken
    spectrum = np.fft.rfft(draw.normal(size=SAMPLES))
    spectrum /= 1 + np.arange(len(spectrum)) * (SOUND_RATE / SAMPLES) / 500
    noise = np.fft.irfft(spectrum, SAMPLES)
    noise *= np.sqrt(np.mean(spoken**2) / np.mean(noise**2)) * 10 ** (-r.speech_to_noise / 20)
    mixed = sound + noise
    loudness = 10 ** draw.uniform(-0.2, 0)
    return np.rint(mixed / np.abs(mixed).max() * loudness * 32000).astype(np.int16)


def write_clip(path: Path, frames: NDArray[np.uint8], sound: NDArray[np.int16]) -> None:
    """Writes an MP4 with H.264 video from grey frames uint8 [T, H, W] and AAC sound from int16 [samples]."""
    import av
    from av.video.reformatter import VideoReformatter

    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as file:
        video: Any = file.add_stream("libx264", rate=FRAME_RATE, options={"preset": "superfast", "crf": "24"})
        video.height, video.width = frames.shape[1:]
        video.pix_fmt = "yuv420p"
        audio: Any = file.add_stream(
            "aac", rate=SOUND_RATE, layout="mono", bit_rate=48_000, options={"aac_coder": "fast", "aac_pns": "0"}
        )
        video.codec_context.thread_count = audio.codec_context.thread_count = 1
        to_yuv = VideoReformatter()
        for t, pixels in enumerate(frames):
            picture: Any = av.VideoFrame.from_ndarray(pixels, format="gray")
            picture = to_yuv.reformat(picture, format="yuv420p", threads=1)
            picture.pts, picture.time_base = t, Fraction(1, FRAME_RATE)
            file.mux(video.encode(picture))
        block: Any = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
        for packets in (audio.encode(block), audio.encode(None), video.encode(None)):
            file.mux(packets)
    path.write_bytes(content.getvalue())
