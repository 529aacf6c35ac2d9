"""Small pictures of items, as data URIs: what the model was given, not the original media."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raybal.data.pool import Pool
from raybal.data.schema import Modality

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES = 4
HEIGHT = 72  # pixels of a frame
IMAGE_HEIGHT = 112
WIDTH = 160  # most columns of a spectrogram or sequence
MOST_FEATURES = 2048  # numbers shown of a feature vector
LEVELS = 64  # of a colour map: fewer levels, smaller files, and no difference to be seen at this size


@dataclass(frozen=True)
class Picture:
    """One modality of one item.

    Attributes:
        modality: its name.
        kind: of the modality.
        uri: `data:` URI; empty where the item lacks the modality.
        width, height: in pixels.
        text: what it shows, for people who do not see it.
    """

    modality: str
    kind: str
    uri: str
    width: int
    height: int
    text: str


def pictures(pool: Pool, ids: Sequence[str]) -> dict[str, list[Picture]]:
    """Returns a picture of each modality, by id; ids that the pool does not have are left out.

    Frames of a video lie beside each other; a spectrogram has low frequencies at the bottom; a sequence has time from
    left to right; features are wrapped into rows.
    """
    known = pc.is_in(pa.array(ids, pa.string()), pool.ids).to_pylist()
    wanted = list(dict.fromkeys(i for i, there in zip(ids, known, strict=True) if there))
    if not wanted:
        return {}
    # One read for all: each shard is opened once.
    values, present = pool.read(pool.positions(wanted))
    found: dict[str, list[Picture]] = {}
    for row, item in enumerate(wanted):
        found[item] = [
            _picture(m, values[m.name][row]) if present[row, k] else Picture(m.name, m.kind, "", 0, 0, f"no {m.name}")
            for k, m in enumerate(pool.info.modalities)
        ]
    return found


def _picture(modality: Modality, array: NDArray) -> Picture:
    kind, name = modality.kind, modality.name
    if kind == "video":
        chosen = np.linspace(0, len(array) - 1, min(FRAMES, len(array))).round().astype(int)
        image = _strip([_shrunk(_rgb(array[i]), HEIGHT) for i in chosen])
        return _encoded(modality, image, f"{len(chosen)} of {len(array)} frames of {name}", photo=True)
    if kind == "image":
        return _encoded(modality, _shrunk(_rgb(array), IMAGE_HEIGHT), name, photo=True)
    values = (array.astype(np.float32) - _broad(modality.mean, modality)) / np.maximum(
        _broad(modality.std, modality), 1e-6
    )
    if kind == "audio":
        return _encoded(modality, _coloured(_pooled(values[0])[::-1], "magma"), f"spectrogram of {name}")
    if kind == "sequence":
        return _encoded(modality, _coloured(_pooled(_pooled(values).T), "viridis"), f"{name} over time")
    return _encoded(modality, _coloured(_wrapped(values), "viridis"), f"{len(values)} numbers of {name}")


def _broad(numbers: tuple[float, ...], modality: Modality) -> NDArray[np.float32]:
    return np.asarray(numbers, np.float32).reshape(modality.statistics_shape())


def _rgb(array: NDArray) -> Image:
    """Returns uint8 [C, H, W] as an image; one channel is grey, and of more than three the first three count."""
    from PIL import Image

    if array.shape[0] < 3:
        return Image.fromarray(np.ascontiguousarray(array[0]))
    return Image.fromarray(np.ascontiguousarray(array[:3].transpose(1, 2, 0)))


def _shrunk(image: Image, height: int) -> Image:
    if image.height <= height:
        return image
    return image.resize((max(1, round(image.width * height / image.height)), height))


def _strip(frames: Sequence[Image]) -> Image:
    from PIL import Image

    first = frames[0]
    strip = Image.new(first.mode, (first.width * len(frames), first.height))
    for i, frame in enumerate(frames):
        strip.paste(frame, (i * first.width, 0))
    return strip


def _pooled(values: NDArray, most: int = WIDTH) -> NDArray:
    """Returns a matrix with at most so many columns, means of neighbours."""
    if values.shape[1] <= most:
        return values
    edges = np.linspace(0, values.shape[1], most + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, values.shape[1]))
    return np.add.reduceat(values, edges, axis=1) / counts


def _wrapped(values: NDArray) -> NDArray:
    """Returns numbers [d] as a matrix about four times as wide as high; what is left over is blank."""
    if len(values) > MOST_FEATURES:
        values = _pooled(values[None], MOST_FEATURES)[0]
    wanted = max(1.0, (4 * len(values)) ** 0.5)
    # Full rows, where a width near the wanted one gives them.
    even = [c for c in range(max(1, round(0.6 * wanted)), round(1.6 * wanted) + 1) if len(values) % c == 0]
    columns = min(even, key=lambda c: abs(c - wanted)) if even else round(wanted)
    rows = -(-len(values) // columns)
    filled = np.full(rows * columns, np.nan, np.float32)
    filled[: len(values)] = values
    return filled.reshape(rows, columns)


def _coloured(values: NDArray, name: str) -> Image:
    """Returns standardised values as an image: -2 is the darkest colour and 2 the lightest."""
    import matplotlib
    from PIL import Image

    blank = ~np.isfinite(values)
    scaled = np.clip((np.where(blank, 0, values) + 2) / 4, 0, 1)
    index = np.round(scaled * (LEVELS - 1)).astype(np.uint8)
    index[blank] = LEVELS
    image = Image.frombytes("P", index.shape[::-1], np.ascontiguousarray(index).tobytes())
    colours = (matplotlib.colormaps[name](np.linspace(0, 1, LEVELS))[:, :3] * 255).round().astype(np.uint8)
    image.putpalette([*colours.ravel().tolist(), 128, 128, 128])
    return image


def _encoded(modality: Modality, image: Image, text: str, *, photo: bool = False) -> Picture:
    sink = io.BytesIO()
    if photo:
        image.save(sink, "JPEG", quality=72)
    else:
        image.save(sink, "PNG", optimize=True, **({"transparency": LEVELS} if image.mode == "P" else {}))
    kind = "jpeg" if photo else "png"
    uri = f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"
    return Picture(modality.name, modality.kind, uri, image.width, image.height, text)
