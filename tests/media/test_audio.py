import numpy as np
import pytest
import scipy.signal
import torch
import torchaudio
from media_files import RATE, example, noise_and_tone, write_clip, write_sound

from raybal.errors import ConfigError
from raybal.media.audio import (
    AudioSettings,
    resample,
    waveform_from_packets,
    waveform_from_sound_file,
)
from raybal.media.clip import decode_audio
from raybal.media.container import open_container, probe, read_packets
from raybal.media.damage import MediaError

FLOOR = np.float16(np.log(1e-6))


def waveform(source, kind):
    with open_container(source, kind) as container:
        return waveform_from_packets(read_packets(container, len(source))["audio"])


def spectrogram_by_hand(sound, settings):
    """The log-mel spectrogram by its definition, in numpy: float64 [mels, frames]."""
    window, hop = round(settings.window * RATE), round(settings.hop * RATE)
    size = 2 ** int(np.ceil(np.log2(window)))
    padded = np.pad(sound.astype(np.float64), size // 2, mode="reflect")
    hann = np.zeros(size)
    hann[(size - window) // 2 : (size - window) // 2 + window] = 0.5 - 0.5 * np.cos(
        2 * np.pi * np.arange(window) / window
    )
    frames = np.stack([padded[i : i + size] * hann for i in range(0, len(padded) - size + 1, hop)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)  # noqa: E731
    edges = 700 * (10 ** (np.linspace(mel(settings.lowest), mel(RATE / 2), settings.mels + 2) / 2595) - 1)
    bins = np.arange(size // 2 + 1) * RATE / size
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return np.log(power @ np.maximum(0, np.minimum(rising, falling)) + 1e-6).T


def test_log_mel_follows_its_definition():
    settings = AudioSettings(seconds=1.0)
    sound = noise_and_tone()
    decoded = decode_audio(write_sound("WAV", sound, subtype="FLOAT"), settings)
    assert decoded.dtype == np.float16
    assert decoded.shape == (1, 64, 101) == settings.shape()
    assert np.abs(decoded[0] - spectrogram_by_hand(sound, settings)).max() < 0.02


def test_resampling_mixing_and_cropping_follow_torchaudio():
    settings = AudioSettings(seconds=0.5, mels=40, window=0.032, hop=0.016)
    stereo = np.stack([noise_and_tone(1.0, 44100, 440.0), noise_and_tone(1.0, 44100, 3000.0)], 1)
    decoded = decode_audio(write_sound("WAV", stereo, 44100, "FLOAT"), settings)
    mono = torchaudio.functional.resample(torch.from_numpy(stereo.mean(1)), 44100, RATE)
    middle = mono[4000:12000]
    transform = torchaudio.transforms.MelSpectrogram(RATE, n_fft=512, hop_length=256, f_min=20.0, n_mels=40)
    expected = torch.log(transform(middle) + 1e-6).numpy()
    assert decoded.shape == (1, 40, 32)
    assert np.abs(decoded[0] - expected).max() < 0.02


def test_a_linear_spectrogram_is_scipys():
    """CREMA-D's in the field's protocol: 512 samples, a step of 353, the log of magnitudes, one clip three times."""
    rate = 22050
    settings = AudioSettings(
        sample_rate=rate, seconds=2.0, window=512 / rate, hop=353 / rate, spectrum="linear", fill="repeat"
    )
    sound = noise_and_tone(0.9, rate)
    decoded = decode_audio(write_sound("WAV", sound, rate, "FLOAT"), settings)
    repeated = np.tile(sound, 3)[: 2 * rate]
    padded = np.pad(repeated, 256, mode="reflect")
    _, _, wanted = scipy.signal.stft(padded, nperseg=512, noverlap=512 - 353, boundary=None, padded=False)
    magnitudes = np.abs(wanted) * 256  # scipy divides by the window's sum
    assert decoded.shape == settings.shape() == (1, 257, 125)
    assert np.abs(decoded[0] - np.log(magnitudes + 1e-7)).max() < 0.02


def test_the_start_or_the_middle_of_a_longer_clip_is_kept():
    rising = np.linspace(0.0, 1.0, 2 * RATE) * noise_and_tone(2.0)
    found = {}
    for keep, part in (("start", slice(0, RATE)), ("middle", slice(RATE // 2, 3 * RATE // 2))):
        found[keep] = decode_audio(write_sound("WAV", rising, subtype="FLOAT"), AudioSettings(seconds=1.0, keep=keep))
        wanted = decode_audio(write_sound("WAV", rising[part], subtype="FLOAT"), AudioSettings(seconds=1.0))
        assert np.array_equal(found[keep], wanted)
    assert found["start"].mean() < found["middle"].mean()


@pytest.mark.parametrize("tone", [300.0, 1000.0, 4000.0])
def test_a_tone_lies_in_its_band(tone):
    settings = AudioSettings(seconds=1.0)
    time = np.arange(RATE) / RATE
    decoded = decode_audio(write_sound("FLAC", 0.5 * np.sin(2 * np.pi * tone * time)), settings)
    step = (2595 * np.log10(1 + 8000 / 700) - 2595 * np.log10(1 + 20 / 700)) / 65
    band = (2595 * np.log10(1 + tone / 700) - 2595 * np.log10(1 + 20 / 700)) / step - 1
    assert abs(int(decoded[0, :, 50].argmax()) - band) <= 1


def test_opposite_channels_cancel():
    left = noise_and_tone()
    decoded = decode_audio(write_sound("WAV", np.stack([left, -left], 1), subtype="FLOAT"), AudioSettings(seconds=1.0))
    assert (decoded == FLOOR).all()


def test_short_clips_lie_in_the_middle_of_silence():
    decoded = decode_audio(write_sound("WAV", noise_and_tone(0.5)), AudioSettings(seconds=1.0))
    loud = (decoded[0] > FLOOR + 1).all(0)
    # Half a second is 50 steps; the window reaches half its length beyond either end.
    assert loud[26:75].all()
    assert not loud[:23].any()
    assert not loud[78:].any()


def test_long_clips_keep_their_middle():
    sound = np.zeros(2 * RATE, np.float32)
    sound[RATE - 800 : RATE + 800] = noise_and_tone(0.1)
    decoded = decode_audio(write_sound("WAV", sound), AudioSettings(seconds=0.5))
    loud = (decoded[0] > FLOOR + 3).all(0)
    assert np.flatnonzero(loud).mean() == pytest.approx(25, abs=1)


@pytest.mark.parametrize("samples", [7680, 16000, 16001, 12345])
def test_the_padding_of_aac_is_cropped(samples):
    sound = noise_and_tone()[:samples] if samples <= RATE else noise_and_tone(1.1)[:samples]
    decoded, rate = waveform(write_clip("mp4", sound=sound), "mp4")
    assert rate == RATE
    assert len(decoded) == samples
    lags = range(-20, 21)
    inner = slice(2000, 6000)
    match = [np.dot(decoded[inner], np.roll(sound, lag)[inner]) for lag in lags]
    assert lags[int(np.argmax(match))] == 0
    assert np.corrcoef(decoded[inner], sound[inner])[0, 1] > 0.9


@pytest.mark.parametrize(
    ("codec", "container", "layout"),
    [
        ("pcm_s16le", "matroska", "stereo"),
        ("pcm_u8", "avi", "mono"),
        ("pcm_s32le", "matroska", "mono"),
        ("flac", "matroska", "stereo"),
    ],
)
def test_samples_of_any_type_are_scaled_alike(codec, container, layout):
    sound = noise_and_tone()
    channels = np.stack([sound, 0.5 * sound], 1) if layout == "stereo" else sound
    kind = "avi" if container == "avi" else "matroska"
    decoded, _ = waveform(write_clip(container, sound=channels, audio_codec=codec, layout=layout), kind)
    expected = 0.75 * sound if layout == "stereo" else sound
    assert len(decoded) == len(sound)
    assert np.abs(decoded - expected).max() < (0.01 if codec == "pcm_u8" else 1e-4)


@pytest.mark.parametrize("name", ["flac", "aiff", "rf64", "wav 24 bits", "wav mu-law"])
def test_sound_files_hold_what_was_written(name):
    decoded, rate = waveform_from_sound_file(example(name))
    assert rate == RATE
    assert np.abs(decoded - noise_and_tone()).max() < (0.03 if "mu-law" in name else 1e-4)


@pytest.mark.parametrize("name", ["ogg", "opus", "mp3", "mp4", "mkv", "webm", "avi", "mpeg", "flv"])
def test_lossy_formats_sound_alike(name):
    settings = AudioSettings(seconds=1.0, highest=4000.0)
    original = decode_audio(example("wav"), settings)[0, :, 10:-10].astype(np.float32)
    decoded = decode_audio(example(name), settings)[0, :, 10:-10].astype(np.float32)
    assert np.corrcoef(original.ravel(), decoded.ravel())[0, 1] > 0.8


def test_a_clip_without_sound_gives_none():
    assert decode_audio(example("mp4 no sound"), AudioSettings(seconds=1.0)) is None


def test_the_length_must_be_known():
    with pytest.raises(ConfigError, match="seconds"):
        decode_audio(example("wav"), AudioSettings())
    with pytest.raises(ConfigError, match="seconds"):
        AudioSettings().frame_count()


@pytest.mark.parametrize("seconds", [0.48, 1.0, 2.995])
@pytest.mark.parametrize("hop", [0.01, 0.016])
def test_frame_count_is_what_comes_out(seconds, hop):
    settings = AudioSettings(seconds=seconds, hop=hop)
    assert decode_audio(example("wav"), settings).shape[-1] == settings.frame_count()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"hop": 1e-5}, "hop"),
        ({"highest": 9000.0}, "highest"),
        ({"lowest": 500.0, "highest": 400.0}, "highest"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": 0.01}, "seconds"),
        ({"seconds": 0.2, "window": 0.5}, "seconds"),
        ({"lowest": 9000.0}, "lowest"),
        ({"sample_rate": 10**7}, "sample_rate"),
        ({"mels": 0}, "mels"),
    ],
)
def test_settings_are_checked(options, key):
    with pytest.raises(ConfigError, match=f"^{key}"):
        AudioSettings(**options)


@pytest.mark.parametrize("window", [0.025, 0.032, 0.5])
def test_the_shortest_length_that_is_accepted_decodes(window):
    shortest = AudioSettings(window=window).fft_size() / 2 / RATE
    settings = AudioSettings(window=window, seconds=shortest + 1 / RATE)
    assert decode_audio(example("wav"), settings).shape == settings.shape()
    with pytest.raises(ConfigError, match=r"^seconds: "):
        AudioSettings(window=window, seconds=shortest)


def joined(first, second):
    """Two AAC recordings of half a second, mono at 16 kHz but for what is given, one after the other in one file."""
    parts = []
    for form in (first, second):
        rate, layout = form.get("rate", RATE), form.get("layout", "mono")
        channels = {"mono": 1, "stereo": 2, "7.1": 8}[layout]
        sound = np.stack([noise_and_tone(0.5, rate)] * channels, 1)
        parts.append(write_clip("adts", sound=sound, rate=rate, layout=layout))
    return b"".join(parts)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"rate": 48000}, r"1 channel \(fltp\) at 16000 Hz to 1 channel \(fltp\) at 48000 Hz"),
        ({"layout": "stereo"}, r"1 channel \(fltp\) at 16000 Hz to 2 channels \(fltp\) at 16000 Hz"),
        ({"layout": "7.1"}, r"1 channel \(fltp\) at 16000 Hz to 8 channels \(fltp\) at 16000 Hz"),
    ],
)
def test_sound_that_changes_on_the_way_is_damaged(second, says):
    with pytest.raises(MediaError, match=f"^cannot be decoded: the sound changes from {says}$"):
        decode_audio(joined({}, second), AudioSettings(seconds=1.0))
    assert decode_audio(joined({}, {}), AudioSettings(seconds=1.0)) is not None


def test_eight_channels_are_mixed():
    tones = [300.0 + 200 * i for i in range(8)]
    sound = np.stack([noise_and_tone(tone=tone) for tone in tones], 1)
    decoded, _ = waveform(write_clip("mp4", sound=sound, layout="7.1"), "mp4")
    spectrum = np.abs(np.fft.rfft(decoded[:RATE]))
    loudest = {int(np.argmax(spectrum[round(t) - 50 : round(t) + 51])) - 50 for t in tones if t != 900}
    # The fourth channel is for low frequencies and keeps no tone of 900 Hz.
    assert loudest == {0}


@pytest.mark.parametrize("kind", ["WAV", "AIFF"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_sound_without_a_sample_is_empty(kind, rate):
    with pytest.raises(MediaError, match=r"^empty: no samples$"):
        decode_audio(write_sound(kind, np.zeros(0, np.float32), rate), AudioSettings(seconds=1.0))


def test_a_track_without_a_sample_is_empty(monkeypatch):
    from raybal.media import audio

    class Silent:
        samples = 0

    monkeypatch.setattr(audio, "decode", lambda stream, packets: [Silent()] * 3)
    with pytest.raises(MediaError, match=r"^empty: no samples$"):
        decode_audio(example("mp4"), AudioSettings(seconds=1.0))


@pytest.mark.parametrize("rate", [0, 16, 999, 768_001, 3_030_656])
def test_an_absurd_rate_is_damage(rate):
    source = bytearray(write_sound("WAV", noise_and_tone(0.1)))
    source[24:28] = rate.to_bytes(4, "little")
    for read in (probe, waveform_from_sound_file):
        with pytest.raises(MediaError, match="cannot be decoded"):
            read(bytes(source))


@pytest.mark.parametrize("rate", [1009, 7919, 11127, 22051, 44100, 99991, 767_999])
def test_a_tone_keeps_its_frequency_at_any_rate(rate):
    """Rates with and without a common factor: as the tone itself, at the new rate."""
    time = torch.arange(round(0.7 * rate), dtype=torch.float64) / rate
    resampled = resample(torch.sin(2 * torch.pi * 301 * time).float(), rate, RATE)
    assert len(resampled) == np.ceil(len(time) * RATE / rate)
    expected = torch.sin(2 * torch.pi * 301 * torch.arange(len(resampled), dtype=torch.float64) / RATE)
    inner = slice(3000, 8000)
    assert (resampled - expected)[inner].abs().max() < (0.02 if rate < 2000 else 5e-4)


def test_what_the_new_rate_cannot_hold_is_left_out():
    time = torch.arange(22051, dtype=torch.float64) / 22051
    high, low = (torch.sin(2 * torch.pi * tone * time).float() for tone in (9000, 1000))
    assert resample(high, 22051, RATE)[2000:14000].abs().max() < 2e-3
    both = resample(high + low, 22051, RATE)
    assert (both - resample(low, 22051, RATE))[2000:14000].abs().max() < 2e-3


@pytest.mark.parametrize("rate", [11127, 22051])
def test_rates_without_a_common_factor_take_little_memory(rate):
    sound = torch.from_numpy(noise_and_tone(0.5, rate))
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        resample(sound, rate, RATE)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert 0 < allocated < 10 * 2**20
