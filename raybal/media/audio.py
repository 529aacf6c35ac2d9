"""Audio: bytes to the log-mel spectrogram of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from raybal.errors import ConfigError
from raybal.media.container import decode, open_sound, seconds_at_end
from raybal.media.damage import MediaError
from raybal.settings import Settings, setting

if TYPE_CHECKING:
    from av import Packet

# Added to mel energies before the logarithm: about the energy of 16-bit rounding noise in one band, so that digital
# silence is the finite -13.8 and lies well below any recorded silence.
LOG_OFFSET = 1e-6


@dataclass(frozen=True)
class AudioSettings(Settings):
    """How sound becomes a log-mel spectrogram."""

    sample_rate: int = setting(16000, help="Samples a second to which all sound is brought.", ge=1000)
    seconds: float | None = setting(
        None, help="Length of a prepared clip in seconds: longer ones lose both ends, shorter ones gain silence.", gt=0
    )
    mels: int = setting(64, help="Mel bands.", ge=1)
    window: float = setting(0.025, help="Length of a spectrogram window (Hann) in seconds.", gt=0)
    hop: float = setting(0.010, help="Seconds from one spectrogram frame to the next.", gt=0)
    lowest: float = setting(20.0, help="Lower edge of the lowest mel band in Hz.", ge=0)
    highest: float | None = setting(None, help="Upper edge of the highest mel band in Hz; half the rate if not given.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "hop"):
            if round(getattr(self, name) * self.sample_rate) < 1:
                raise ConfigError(
                    f"{name}: {getattr(self, name)!r} is not accepted; it must last at least one sample "
                    f"(sample_rate is {self.sample_rate})"
                )
        if self.highest is not None and not self.lowest < self.highest <= self.sample_rate / 2:
            raise ConfigError(
                f"highest: {self.highest!r} is not accepted; it must be greater than lowest ({self.lowest}) "
                f"and at most half the sample_rate ({self.sample_rate / 2})"
            )

    def sample_count(self) -> int:
        """Returns the number of samples of a prepared clip.

        Raises:
            ConfigError: `seconds` is not set.
        """
        if self.seconds is None:
            raise ConfigError("seconds: not set; give the length of a clip, or let prepare take it from the pool")
        return round(self.seconds * self.sample_rate)

    def frame_count(self) -> int:
        """Returns the number of spectrogram frames: one every hop, the first and the last centred on the clip's ends.

        Raises:
            ConfigError: `seconds` is not set.
        """
        return 1 + self.sample_count() // round(self.hop * self.sample_rate)

    def shape(self) -> tuple[int, int, int]:
        """Returns the shape (1, mels, frames) of a prepared clip."""
        return 1, self.mels, self.frame_count()


def log_mel(waveform: NDArray[np.float32], sample_rate: int, settings: AudioSettings) -> NDArray[np.float16]:
    """Returns the log-mel spectrogram float16 [1, mels, frames] of a mono waveform [samples] in -1..1."""
    sound = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    if sample_rate != settings.sample_rate:
        sound = _resampler(sample_rate, settings.sample_rate)(sound)
    sound = _to_length(sound, settings.sample_count())
    energies = _mel_transform(settings)(sound)
    return torch.log(energies + LOG_OFFSET).to(torch.float16).numpy()[None]


def waveform_from_packets(packets: list[Packet]) -> tuple[NDArray[np.float32], int]:
    """Decodes the packets of one audio track: (mono waveform [samples] in -1..1, samples a second).

    What an encoder puts in front of the sound and behind it is cropped: an AAC track of 7680 samples decodes to 8
    blocks of 1024. The front is where the presentation times are negative (libav skips what the container marks),
    the end is where the last packet's duration ends.

    Raises:
        MediaError: no sound can be decoded.
    """
    stream: Any = packets[0].stream
    frames = list(decode(stream, packets))
    if not frames:
        raise MediaError("cannot be decoded: no sound")
    rate = frames[0].sample_rate
    blocks = [_block(frame) for frame in frames]
    if len({(len(block), block.dtype) for block in blocks}) > 1:
        blocks = [_mono(block)[None] for block in blocks]
    waveform = _mono(np.concatenate(blocks, axis=1))
    if frames[0].pts is None:
        return waveform, rate
    start = float(frames[0].pts * frames[0].time_base)
    first = max(0, round(-start * rate))
    last = round((seconds_at_end(packets) - start) * rate)
    return waveform[first:last] if last > first else waveform, rate


def waveform_from_sound_file(source: bytes) -> tuple[NDArray[np.float32], int]:
    """Decodes a WAV, FLAC or Ogg file: (mono waveform [samples] in -1..1, samples a second).

    Raises:
        MediaError: damaged, or fewer samples than declared.
    """
    with open_sound(source) as sound:
        samples = sound.read(dtype="float32", always_2d=True)
        if len(samples) < sound.frames:
            raise MediaError(f"cut short: {len(samples)} of {sound.frames} declared samples")
        return samples.mean(1), sound.samplerate


def _block(frame: Any) -> NDArray[Any]:
    """Returns the samples [channels, samples] of one decoded frame, of the type that the decoder gives."""
    samples: NDArray[Any] = frame.to_ndarray()
    return samples if frame.format.is_planar else samples.reshape(-1, len(frame.layout.channels)).T


def _mono(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the mean of the channels, float32 [samples], with integers scaled to -1..1."""
    mixed = samples[0] if len(samples) == 1 else samples.mean(0)
    if samples.dtype.kind in "iu":
        mixed = mixed / 2.0 ** (8 * samples.dtype.itemsize - 1) - (samples.dtype.kind == "u")
    return mixed.astype(np.float32)


def _to_length(sound: torch.Tensor, length: int) -> torch.Tensor:
    missing = length - len(sound)
    if missing > 0:
        return torch.nn.functional.pad(sound, (missing // 2, missing - missing // 2))
    start = -missing // 2
    return sound[start : start + length]


@lru_cache(maxsize=16)
def _resampler(old_rate: int, new_rate: int) -> torch.nn.Module:
    from torchaudio.transforms import Resample

    return Resample(old_rate, new_rate)


@lru_cache(maxsize=16)
def _mel_transform(settings: AudioSettings) -> torch.nn.Module:
    from torchaudio.transforms import MelSpectrogram

    window = round(settings.window * settings.sample_rate)
    return MelSpectrogram(
        sample_rate=settings.sample_rate,
        # Zero-padding the window to a power of two leaves no mel band without a frequency bin.
        n_fft=1 << (window - 1).bit_length(),
        win_length=window,
        hop_length=round(settings.hop * settings.sample_rate),
        f_min=settings.lowest,
        f_max=settings.highest,
        n_mels=settings.mels,
    )
