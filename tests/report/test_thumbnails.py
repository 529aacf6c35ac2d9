"""Pictures of items: what is in them, and how much is read for them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from report_tools import MadeStore, make_pool, sidecar_of

from raybal.data.schema import Modality
from raybal.report import items
from raybal.report.data import read_experiment
from raybal.report.thumbnails import pictures
from raybal.store import Store


class OneItem:
    """A pool of one item."""

    def __init__(self, modality, array):
        import pyarrow as pa

        self.ids, self.array, self.modality = pa.array(["x"]), array, modality
        self.info = type("Info", (), {"modalities": (modality,)})

    def positions(self, ids):
        return np.arange(len(ids))

    def read(self, positions):
        return {self.modality.name: self.array[None]}, np.ones((1, 1), bool)


def image_of(modality, array):
    (picture,) = pictures(OneItem(modality, array), ["x"])["x"]
    kind, _, data = picture.uri.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (picture.width, picture.height)
    return image, kind


def test_a_video_shows_first_to_last_frames_in_order():
    frames = np.stack([np.full((1, 16, 20), level, np.uint8) for level in (0, 40, 80, 120, 160, 200, 240)])
    image, kind = image_of(Modality("v", "video", frames.shape, "uint8", (0.0,), (1.0,)), frames)
    assert kind == "data:image/jpeg;base64"
    assert image.size == (80, 16)
    levels = np.asarray(image)[8, 10::20]
    np.testing.assert_allclose(levels, [0, 80, 160, 240], atol=6)


def test_colours_keep_their_order_and_large_frames_are_shrunk():
    frames = np.zeros((2, 3, 300, 200), np.uint8)
    frames[:, 0] = 255
    image, _ = image_of(Modality("v", "video", frames.shape, "uint8", (0.0,) * 3, (1.0,) * 3), frames)
    assert image.size == (96, 72)
    red, green, blue = np.asarray(image.convert("RGB"))[30, 30]
    assert red > 240
    assert max(green, blue) < 15


def test_a_spectrogram_has_low_frequencies_at_the_bottom():
    values = np.full((1, 16, 30), -2.0, np.float16)
    values[:, :4] = 2.0
    image, kind = image_of(Modality("a", "audio", values.shape, "float16", (0.0,), (1.0,)), values)
    assert kind == "data:image/png;base64"
    brightness = np.asarray(image.convert("L")).mean(1)
    assert brightness[-4:].min() > 200
    assert brightness[:12].max() < 30


def test_a_long_spectrogram_is_averaged_not_cut():
    values = np.full((1, 8, 1000), -2.0, np.float16)
    values[:, :, 900:] = 2.0
    image, _ = image_of(Modality("a", "audio", values.shape, "float16", (0.0,), (1.0,)), values)
    assert image.width == 160
    assert np.asarray(image.convert("L"))[0, 150] > 200


@pytest.mark.parametrize("count", [1, 7, 97, 200, 5000])
def test_features_of_any_number_fill_a_picture(count):
    image, _ = image_of(Modality("f", "features", (count,), "float32", (0.0,) * count, (1.0,) * count), np.ones(count))
    assert image.width * image.height >= min(count, 2048)


def test_only_the_items_that_are_shown_are_read(tmp_path, monkeypatch):
    made = MadeStore(Store(tmp_path / "store"), make_pool(tmp_path / "pool", train=60))
    for number in range(3):
        made.answer(number, made.query(number, 20))
    asked, read = [], made.pool.read
    monkeypatch.setattr(made.pool, "read", lambda positions: asked.append(positions) or read(positions))
    found = items.choose_items(read_experiment(made.store), made.pool, sidecar_of(made.pool))
    shown = [item.id for r in found.rounds for item in r.items]
    assert [len(r.items) for r in found.rounds] == [items.NEWEST, items.OLDER, items.OLDER]
    assert [r.number for r in found.rounds] == [2, 1, 0]
    (positions,) = asked
    assert sorted(made.pool.ids_at(positions)) == sorted(shown)
    # The first ones in order of choice.
    assert shown[: items.NEWEST] == made.asked[40 : 40 + items.NEWEST]


def test_pictures_stop_where_the_file_would_grow_too_large(made, monkeypatch):
    experiment, sidecar = read_experiment(made.store), sidecar_of(made.pool)
    whole = items.choose_items(experiment, made.pool, sidecar)
    size = sum(len(p.uri) for r in whole.rounds for item in r.items for p in item.pictures)
    monkeypatch.setattr(items, "MOST_BYTES", size // 2)
    part = items.choose_items(experiment, made.pool, sidecar)
    shown = [item.pictures is not None for r in part.rounds for item in r.items]
    assert 0 < sum(shown) < len(shown)
    assert part.without_pictures == len(shown) - sum(shown)
    assert sum(len(p.uri) for r in part.rounds for item in r.items for p in item.pictures or []) <= size // 2


def test_a_missing_modality_is_said_to_be_missing(tmp_path):
    pool = make_pool(tmp_path / "pool", absent={"audio": ["item-001"]})
    found = pictures(pool, ["item-001", "item-002", "nobody"])
    assert [p.uri == "" for p in found["item-001"]] == [False, True]
    assert found["item-001"][1].text == "no audio"
    assert [p.uri == "" for p in found["item-002"]] == [False, False]
    assert "nobody" not in found
