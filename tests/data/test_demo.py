import csv
import dataclasses
import errno
import io
import json
import os
from collections import Counter

import av
import numpy as np
import pytest

from raybal.data import demo
from raybal.data.demo import demo_folder, make_demo
from raybal.data.demo_clips import SAMPLES, VOICES, WORDS, draw_frames, mix_sound, recipe, write_clip
from raybal.errors import DataError, StoreError
from raybal.media.audio import AudioSettings
from raybal.media.clip import decode_clip
from raybal.media.container import probe
from raybal.media.video import VideoSettings

sklearn = pytest.importorskip("sklearn.datasets")
pytest.importorskip("espeakng_loader")

LIMIT = 40


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "pool", limit=LIMIT, workers=1, progress=False)


@pytest.fixture(scope="module")
def digits():
    data = sklearn.load_digits()
    return data.images.astype(np.uint8), data.target


def test_equal_seeds_give_equal_bytes_on_any_number_of_workers(pool, tmp_path):
    again = make_demo(tmp_path / "again", limit=LIMIT, workers=2, progress=False)
    assert content(again) == content(pool)


def test_the_manifest_lists_a_clip_for_each_digit(pool, digits):
    table = rows(pool)
    assert list(table[0]) == ["id", "uri", "label", "group"]
    assert [row["label"] for row in table] == [WORDS[k] for k in digits[1][:LIMIT]]
    assert len({row["id"] for row in table}) == LIMIT
    assert {row["group"] for row in table} <= set(VOICES)
    assert sorted(path.name for path in (pool / "clips").iterdir()) == sorted(row["uri"][6:] for row in table)


def test_clips_are_real_media(pool):
    for row in rows(pool):
        source = (pool / row["uri"]).read_bytes()
        info = probe(source)
        with av.open(io.BytesIO(source)) as file:
            pictures, sound = file.streams.video[0], file.streams.audio[0]
            assert (pictures.width, pictures.height, pictures.average_rate, sound.rate) == (64, 64, 15, 22050)
        assert info.duration == pytest.approx(0.8, abs=0.01)
        clip = decode_clip(
            source,
            video=VideoSettings(frames=12, height=64, width=64, color="gray"),
            audio=AudioSettings(seconds=0.8),
        ).values
        assert clip["video"].std() > 5
        assert clip["audio"].astype(np.float32).std() > 0.5
        # The digit moves.
        assert np.abs(clip["video"][0].astype(int) - clip["video"][11]).mean() > 1


def test_every_voice_says_every_digit(digits):
    recipes = [recipe(i, int(k), 0) for i, k in enumerate(digits[1])]
    assert len(recipes) == 1797
    pairs = Counter((r.voice, r.label) for r in recipes)
    assert len(pairs) == len(VOICES) * 10
    sizes = Counter(r.voice for r in recipes)
    assert min(sizes.values()) > 50


def test_noise_is_independent_and_hearing_is_easier(digits):
    recipes = [recipe(i, int(k), 0) for i, k in enumerate(digits[1])]
    heard = np.array([r.speech_to_noise > 10 for r in recipes])
    seen = np.array([r.visibility > 0.7 for r in recipes])
    assert heard.mean() > seen.mean() + 0.1
    assert (heard & ~seen).sum() > 20
    assert (seen & ~heard).sum() > 20
    assert abs(np.corrcoef(heard, seen)[0, 1]) < 0.08


def test_another_seed_gives_another_pool(digits):
    one, two = ([recipe(i, 0, seed) for i in range(200)] for seed in (0, 1))
    assert sum(a.voice == b.voice for a, b in zip(one, two, strict=True)) < 30
    assert len({r.noise_seed for r in one + two}) == 400


def test_speech_stands_out_by_its_ratio_to_the_noise():
    word = np.zeros(8000, np.int16)
    word[:] = 8000 * np.sin(np.arange(8000) * 0.3)
    tones = {}
    for ratio in (-10.0, 30.0):
        r = dataclasses.replace(recipe(0, 0, 0), speech_to_noise=ratio)
        sound = mix_sound(r, word, np.random.default_rng(0))
        assert sound.shape == (SAMPLES,)
        assert np.abs(sound.astype(int)).max() < 32768
        spectrum = np.abs(np.fft.rfft(sound.astype(float))) ** 2
        peak = round(0.3 / (2 * np.pi) * SAMPLES)
        tones[ratio] = spectrum[peak - 8 : peak + 9].sum() / spectrum.sum()
    assert tones[30.0] > 0.9
    assert tones[-10.0] < 0.3


def test_a_digit_stands_out_by_its_visibility(digits):
    image, seed = digits[0][0], 5
    for visibility, low, high in ((1.0, 0.95, 1.0), (0.3, 0.0, 0.6)):
        r = dataclasses.replace(recipe(0, 0, 0), visibility=visibility)
        clean = dataclasses.replace(r, visibility=1.0)
        frames = draw_frames(r, image, np.random.default_rng(seed))
        pure = draw_frames(clean, image, np.random.default_rng(seed))
        likeness = np.corrcoef(frames.ravel(), pure.ravel())[0, 1]
        assert frames.shape == (12, 64, 64)
        assert low <= likeness <= high


def test_a_clip_holds_its_frames_and_its_sound(tmp_path):
    frames = np.broadcast_to(np.arange(40, 160, 10, dtype=np.uint8)[:, None, None], (12, 64, 64))
    sound = np.round(9000 * np.sin(np.arange(SAMPLES) * 2 * np.pi * 1000 / 22050)).astype(np.int16)
    write_clip(tmp_path / "clip.mp4", frames, sound)
    clip = decode_clip(
        (tmp_path / "clip.mp4").read_bytes(),
        video=VideoSettings(frames=12, height=8, width=8, color="gray"),
        audio=AudioSettings(seconds=0.8),
    ).values
    assert np.abs(clip["video"].mean((1, 2, 3)) - np.arange(40, 160, 10)).max() < 4
    assert len(set(clip["audio"][0, :, 10:70].argmax(0).tolist())) == 1


def test_an_existing_pool_is_returned_and_never_overwritten(pool, tmp_path):
    before = content(pool)
    assert make_demo(pool, limit=LIMIT, progress=False) == pool
    with pytest.raises(DataError, match="made with"):
        make_demo(pool, seed=3, limit=LIMIT, progress=False)
    assert content(pool) == before
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="holds no demo pool"):
        make_demo(tmp_path / "other", progress=False)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path / "pool", limit=1, workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_finished_first_wins(pool, tmp_path, monkeypatch):
    written = demo._write_manifest

    def meanwhile(path, recipes):
        written(path, recipes)
        (tmp_path / "pool").mkdir()
        (tmp_path / "pool" / "demo.json").write_text(json.dumps({"version": 1, "seed": 0, "limit": 1}))

    monkeypatch.setattr(demo, "_write_manifest", meanwhile)
    assert make_demo(tmp_path / "pool", limit=1, workers=1, progress=False) == tmp_path / "pool"
    assert os.listdir(tmp_path) == ["pool"]
    assert os.listdir(tmp_path / "pool") == ["demo.json"]


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "espeakng_loader" else object())
    with pytest.raises(DataError, match=r'espeakng_loader.*pip install "raybal\[demo\]"'):
        make_demo(tmp_path / "pool", progress=False)


def test_the_folder_is_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_folder() == tmp_path / "raybal" / "demo-v1-seed0"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo_folder(seed=2) == tmp_path / ".cache" / "raybal" / "demo-v1-seed2"


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(StoreError, match=rf"cannot write {tmp_path}/cache/raybal/demo"):
        make_demo(tmp_path / "cache/raybal/demo", limit=1, workers=1, progress=False)


def test_a_disk_that_is_full_is_said_and_nothing_is_left(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(demo, "_make_clips", full)
    with pytest.raises(StoreError, match=rf"cannot write {tmp_path}/pool: the disk is full"):
        make_demo(tmp_path / "pool", limit=1, workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []
