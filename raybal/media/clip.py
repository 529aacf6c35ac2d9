"""Clips: sound and pictures of one file in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybal.media.audio import AudioSettings, log_spectrogram, waveform_from_packets, waveform_from_sound_file
from raybal.media.container import is_sound_file, length, open_container, read_packets
from raybal.media.damage import check_declared_length, ends_as_written
from raybal.media.video import VideoSettings, frames_from_packets


@dataclass(frozen=True)
class Clip:
    """What a clip holds.

    Attributes:
        values: one entry for each modality asked for: "video" uint8 [T, C, H, W], "audio" float16 [1, mels, frames];
            None where the file has no such track, which is no damage.
        seconds: its length, until the last of its tracks ends.
    """

    values: dict[str, NDArray | None]
    seconds: float


def decode_clip(source: bytes, *, video: VideoSettings | None = None, audio: AudioSettings | None = None) -> Clip:
    """Decodes the modalities asked for; the file is read once.

    Args:
        source: the content of the file.
        video: how to prepare the frames; None leaves them out.
        audio: how to prepare the sound; None leaves it out.

    Raises:
        MediaError: the file is empty, no clip, damaged, or shorter than it declares; also if the damage is in the
            modality that was not asked for.
        ConfigError: `audio.seconds` is not set.
    """
    if audio is not None:
        audio.sample_count()
    values: dict[str, NDArray | None] = {}
    kind = check_declared_length(source)
    if is_sound_file(source, kind):
        waveform, rate = waveform_from_sound_file(source)
        if video is not None:
            values["video"] = None
        if audio is not None:
            values["audio"] = log_spectrogram(waveform, rate, audio)
        return Clip(values, len(waveform) / rate)
    with open_container(source, kind) as container:
        packets = read_packets(container, len(source))
        if video is not None:
            values["video"] = frames_from_packets(packets["video"], video) if "video" in packets else None
        elif kind == "mpeg" and "video" in packets and not ends_as_written(source):
            # Only the last picture tells whether such a file is complete.
            frames_from_packets(packets["video"], VideoSettings(frames=1, height=1, width=1))
        if audio is not None:
            values["audio"] = None
            if "audio" in packets:
                values["audio"] = log_spectrogram(*waveform_from_packets(packets["audio"]), audio)
        seconds = length(container, packets)
    return Clip(values, seconds)


def decode_video(source: bytes, settings: VideoSettings) -> NDArray[np.uint8] | None:
    """Decodes T frames of a clip; see `positions` for which and `raybal.media.image.fit` for how they are scaled.

    Brightness (`color="gray"`) is the luma of the file, mapped to 0..255 where the file uses the studio range of
    16..235. Frames are turned upright if the file asks for it. Pixels count as square.

    Args:
        source: the content of the file.
        settings: how many frames, their size and colour.

    Returns:
        uint8 [T, C, H, W], or None if the file has no video track.

    Raises:
        MediaError: empty, not a clip, or damaged.
    """
    return decode_clip(source, video=settings).values["video"]


def decode_audio(source: bytes, settings: AudioSettings) -> NDArray[np.float16] | None:
    """Decodes the sound of a clip to a spectrogram.

    Channels are averaged, the sound is resampled, cropped or padded with silence at both ends alike, and
    transformed: log(mel energy + 1e-6), with a Hann window whose FFT is the next power of two.

    Args:
        source: the content of the file.
        settings: rate, length and spectrogram.

    Returns:
        float16 [1, mels, frames], or None if the file has no audio track.

    Raises:
        MediaError: empty, not a clip, or damaged.
        ConfigError: `settings.seconds` is not set.
    """
    return decode_clip(source, audio=settings).values["audio"]
