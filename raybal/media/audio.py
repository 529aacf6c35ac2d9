"""Audio: bytes to the logarithmic spectrogram of a clip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from raybal.errors import ConfigError, InstallationError
from raybal.media.container import check_rate, decode, open_sound, seconds_at_end
from raybal.media.damage import MediaError
from raybal.settings import Settings, setting

if TYPE_CHECKING:
    from av import Packet

# Added to mel energies before the logarithm: about the energy of 16-bit rounding noise in one band, so that digital
# silence is the finite -13.8 and lies well below any recorded silence.
LOG_OFFSET = 1e-6
# Added to magnitudes of a linear spectrogram, as in the field's audio-visual protocols; the least is then -16.1.
MAGNITUDE_OFFSET = 1e-7
# torchaudio's filter has a coefficient for each pair of an old and a new sample of the rates' common period. For two
# rates with few common factors that is gigabytes; above this many, a Fourier transform does it.
_MOST_COEFFICIENTS = 2**21
# From here on AudioFrame.planes of PyAV reads behind the frame's planes.
_UNSAFE_PLANES = 8


@dataclass(frozen=True)
class AudioSettings(Settings):
    """How sound becomes a logarithmic spectrogram."""

    sample_rate: int = setting(16000, help="Samples a second to which all sound is brought.", ge=1000, le=768_000)
    seconds: float | None = setting(
        None, help="Length of a prepared clip in seconds: longer ones are cut, shorter ones filled up.", gt=0
    )
    keep: Literal["middle", "start"] = setting("middle", help="Which part of a longer clip is kept.")
    fill: Literal["silence", "repeat"] = setting(
        "silence", help="What fills a shorter clip: silence around it, or the clip again and again."
    )
    spectrum: Literal["mel", "linear"] = setting(
        "mel",
        help="Mel: log energies of mel bands. Linear: log magnitudes of all fft / 2 + 1 frequencies; mels, lowest and "
        "highest are then not looked at.",
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
        half = self.sample_rate / 2
        if self.highest is not None and not self.lowest < self.highest <= half:
            raise ConfigError(
                f"highest: {self.highest!r} is not accepted; it must be greater than lowest ({self.lowest}) "
                f"and at most half the sample_rate ({half})"
            )
        if self.lowest >= half:
            raise ConfigError(
                f"lowest: {self.lowest!r} is not accepted; it must be less than half the sample_rate ({half})"
            )
        # The first and the last spectrogram frame mirror the sound at its ends.
        if self.seconds is not None and self.sample_count() <= self.fft_size() // 2:
            raise ConfigError(
                f"seconds: {self.seconds!r} is not accepted; with a window of {self.window} s it must be more than "
                f"{self.fft_size() / 2 / self.sample_rate:g}"
            )

    def fft_size(self) -> int:
        """Returns the length in samples to which a window is filled with zeros: the next power of two, which leaves
        no mel band without a frequency bin."""
        return 1 << (round(self.window * self.sample_rate) - 1).bit_length()

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
        """Returns the shape (1, bands, frames) of a prepared clip; bands are mels, or all frequencies."""
        bands = self.mels if self.spectrum == "mel" else self.fft_size() // 2 + 1
        return 1, bands, self.frame_count()


def log_spectrogram(waveform: NDArray[np.float32], sample_rate: int, settings: AudioSettings) -> NDArray[np.float16]:
    """Returns the logarithmic spectrogram float16 [1, bands, frames] of a mono waveform [samples] in -1..1."""
    sound = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    if sample_rate != settings.sample_rate:
        sound = resample(sound, sample_rate, settings.sample_rate)
    sound = _to_length(sound, settings)
    values = _transform(settings)(sound) + (LOG_OFFSET if settings.spectrum == "mel" else MAGNITUDE_OFFSET)
    return torch.log(values).to(torch.float16).numpy()[None]


def resample(sound: torch.Tensor, old_rate: int, new_rate: int) -> torch.Tensor:
    """Resamples [samples] to another rate: ceil(samples * new_rate / old_rate) samples without what is above half of
    either rate.

    torchaudio's windowed sinc where its filter is small, as with all usual rates; else a Fourier transform of the
    sound, filled up with silence to a length that is a whole number of samples at both rates.
    """
    common = math.gcd(old_rate, new_rate)
    old, new = old_rate // common, new_rate // common
    if old * new <= _MOST_COEFFICIENTS:
        return _resampler(old_rate, new_rate)(sound)
    # At least one period of silence, since to a Fourier transform the end borders on the beginning.
    periods = -(-len(sound) // old) + 1
    spectrum = torch.fft.rfft(sound, periods * old)
    kept = (periods * min(old, new) + 1) // 2
    resampled = torch.fft.irfft(spectrum[:kept], periods * new) * (new / old)
    return resampled[: -(-len(sound) * new // old)]


def waveform_from_packets(packets: list[Packet]) -> tuple[NDArray[np.float32], int]:
    """Decodes the packets of one audio track: (mono waveform [samples] in -1..1, samples a second).

    What an encoder puts in front of the sound and behind it is cropped: an AAC track of 7680 samples decodes to 8
    blocks of 1024. The front is where the presentation times are negative (libav skips what the container marks),
    the end is where the last packet's duration ends.

    Raises:
        MediaError: no sound can be decoded, or its rate or channels change on the way.
    """
    stream: Any = packets[0].stream
    frames = [frame for frame in decode(stream, packets) if frame.samples]
    if not frames:
        raise MediaError("empty: no samples")
    rate = frames[0].sample_rate
    check_rate(rate)
    for frame in frames:
        if _form(frame) != _form(frames[0]):
            raise MediaError(f"cannot be decoded: the sound changes from {_form(frames[0])} to {_form(frame)}")
    waveform = _mono(np.concatenate([_block(frame) for frame in frames], axis=1))
    if frames[0].pts is None:
        return waveform, rate
    start = float(frames[0].pts * frames[0].time_base)
    first = max(0, round(-start * rate))
    last = round((seconds_at_end(packets) - start) * rate)
    cropped = waveform[first:last]
    return cropped if len(cropped) else waveform, rate


def waveform_from_sound_file(source: bytes) -> tuple[NDArray[np.float32], int]:
    """Decodes a WAV, FLAC or Ogg file: (mono waveform [samples] in -1..1, samples a second).

    Raises:
        MediaError: damaged, without a sample, or fewer samples than declared.
    """
    with open_sound(source) as sound:
        samples = sound.read(dtype="float32", always_2d=True)
        if len(samples) < sound.frames:
            raise MediaError(f"cut short: {len(samples)} of {sound.frames} declared samples")
        if not len(samples):
            raise MediaError("empty: no samples")
        return samples.mean(1), sound.samplerate


def _form(frame: Any) -> str:
    channels = frame.layout.nb_channels
    return f"{channels} channel{'s' if channels > 1 else ''} ({frame.format.name}) at {frame.sample_rate} Hz"


def _block(frame: Any) -> NDArray[Any]:
    """Returns the samples [channels, samples] of one decoded frame, of the type that the decoder gives."""
    channels = frame.layout.nb_channels
    if frame.format.is_planar and channels >= _UNSAFE_PLANES:
        from av import AudioResampler

        (frame,) = AudioResampler(format=frame.format.packed).resample(frame)
    samples: NDArray[Any] = frame.to_ndarray()
    return samples if frame.format.is_planar else samples.reshape(-1, channels).T


def _mono(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the mean of the channels, float32 [samples], with integers scaled to -1..1."""
    mixed = samples[0] if len(samples) == 1 else samples.mean(0)
    if samples.dtype.kind in "iu":
        mixed = mixed / 2.0 ** (8 * samples.dtype.itemsize - 1) - (samples.dtype.kind == "u")
    return mixed.astype(np.float32)


def _to_length(sound: torch.Tensor, settings: AudioSettings) -> torch.Tensor:
    length = settings.sample_count()
    missing = length - len(sound)
    if missing > 0 and settings.fill == "repeat":
        return sound.repeat(-(-length // len(sound)))[:length]
    if missing > 0:
        return torch.nn.functional.pad(sound, (missing // 2, missing - missing // 2))
    start = -missing // 2 if settings.keep == "middle" else 0
    return sound[start : start + length]


def _torchaudio() -> ModuleType:
    """Returns torchaudio.

    Raises:
        InstallationError: it cannot be loaded. No file is to blame for that.
    """
    try:
        import torchaudio
    except (ImportError, OSError) as error:
        raise InstallationError(
            f"torchaudio cannot be loaded beside torch {torch.__version__} ({error}), and without it no sound can be "
            "prepared; install the releases that raybal names in its requirements"
        ) from error
    return torchaudio


@lru_cache(maxsize=16)
def _resampler(old_rate: int, new_rate: int) -> torch.nn.Module:
    return _torchaudio().transforms.Resample(old_rate, new_rate)


@lru_cache(maxsize=16)
def _transform(settings: AudioSettings) -> torch.nn.Module:
    transforms = _torchaudio().transforms
    lengths = {
        "n_fft": settings.fft_size(),
        "win_length": round(settings.window * settings.sample_rate),
        "hop_length": round(settings.hop * settings.sample_rate),
    }
    if settings.spectrum == "linear":
        return transforms.Spectrogram(**lengths, power=1.0)
    return transforms.MelSpectrogram(
        sample_rate=settings.sample_rate,
        **lengths,
        f_min=settings.lowest,
        f_max=settings.highest,
        n_mels=settings.mels,
    )
