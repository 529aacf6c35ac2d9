"""Looking at a few items to find out which modalities there are and to fill in parameters that were left open."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybal import hashing
from raybal.data.convert import Preprocessing, read_media
from raybal.data.manifest import Manifest, Source
from raybal.data.schema import Modality
from raybal.errors import DataError, RaybalError, StoreError
from raybal.media.container import MediaInfo, probe
from raybal.media.damage import MediaError
from raybal.store import Store

SAMPLE = 64

log = logging.getLogger(__name__)


def find_modalities(manifest: Manifest, settings: Preprocessing) -> tuple[tuple[Modality, ...], Preprocessing]:
    """Returns the modalities of the input, and the parameters with nothing left open.

    Up to 64 items are looked at, chosen by a hash of their ids. An audio length or a number of sequence steps that
    is not set becomes the median of what they have.

    Raises:
        DataError: none of the items looked at can be read.
    """
    cells = _sample(manifest)
    media: dict[str, list[MediaInfo]] = {}
    numbers: dict[str, list[np.ndarray]] = {}
    failure: Exception | None = None
    for source, values in cells.items():
        for value in values:
            try:
                if source.kind in ("features", "sequence"):
                    numbers.setdefault(source.column, []).append(np.asarray(value, np.float32))
                else:
                    content = read_media(value)[0] if source.kind == "uri" else value
                    media.setdefault(source.column, []).append(probe(content))
            except (MediaError, StoreError, ValueError) as error:
                failure = error
    if not media and not numbers:
        raise DataError(f"none of {SAMPLE} items looked at could be read; the last one said: {failure}")
    settings = _filled(settings, media, numbers)
    modalities: list[Modality] = []
    for source in manifest.sources:
        if source.column in numbers:
            modalities.append(_of_numbers(source, numbers[source.column], settings))
        elif source.column in media:
            modalities += _of_media(source, media[source.column], settings)
        else:
            raise DataError(f"column {source.column!r}: no item looked at could be read; the last one said: {failure}")
    names = [m.name for m in modalities]
    if len(set(names)) < len(names):
        raise DataError(f"two columns give the same modality: {', '.join(names)}; rename one of them")
    return tuple(modalities), settings


def _sample(manifest: Manifest) -> dict[Source, list[Any]]:
    """Returns the non-null cells of a few rows, by source."""
    ids = manifest.table["id"].to_pylist()
    rows = hashing.order(ids, 0)[:SAMPLE]
    cells: dict[Source, list[Any]] = {}
    for source in manifest.sources:
        if source.kind == "uri":
            cells[source] = manifest.table[source.column].take(pa.array(rows)).to_pylist()
        else:
            # The first rows of the first file: reading random ones would read all of it.
            store = Store(manifest.files[0])
            file = pq.ParquetFile(store.path(), filesystem=store.filesystem)
            batch = next(file.iter_batches(batch_size=SAMPLE, columns=[source.column]))
            cells[source] = batch.column(0).to_pylist()
        cells[source] = [c for c in cells[source] if c is not None]
    return cells


def _filled(
    settings: Preprocessing, media: Mapping[str, list[MediaInfo]], numbers: Mapping[str, list[np.ndarray]]
) -> Preprocessing:
    lengths = [i.duration for infos in media.values() for i in infos if i.has_audio and i.duration]
    if settings.audio.seconds is None and lengths:
        seconds = round(max(float(np.median(lengths)), 0.05), 2)
        log.info("preprocessing.audio.seconds is %g, the median of %d items", seconds, len(lengths))
        settings = dataclasses.replace(settings, audio=dataclasses.replace(settings.audio, seconds=seconds))
    steps = [len(a) for arrays in numbers.values() for a in arrays if a.ndim == 2]
    if settings.sequence.steps is None and steps:
        sequence = dataclasses.replace(settings.sequence, steps=int(np.median(steps)))
        settings = dataclasses.replace(settings, sequence=sequence)
    return settings


def _of_numbers(source: Source, arrays: list[np.ndarray], settings: Preprocessing) -> Modality:
    sizes = [a.shape[-1] for a in arrays if a.ndim]
    size = max(set(sizes), key=sizes.count)
    name = source.column
    if source.kind == "features":
        return Modality(name, "features", (size,), "float32")
    return Modality(name, "sequence", (settings.sequence.steps or 1, size), "float32")


def _of_media(source: Source, infos: list[MediaInfo], settings: Preprocessing) -> list[Modality]:
    """Returns the modalities of a column of files: its own name's, or one a track."""
    kinds = {
        "video": any(i.has_video for i in infos),
        "audio": any(i.has_audio for i in infos),
        "image": any(i.is_image for i in infos),
    }
    shapes = {
        "video": (settings.video.shape, "uint8"),
        "audio": (settings.audio.shape, "float16"),
        "image": (settings.image.shape, "uint8"),
    }
    found = [kind for kind, there in kinds.items() if there]
    if source.modality is not None:
        # A file of its own: its name says which track is meant where it has several.
        if not found:
            raise RaybalError(f"column {source.column!r} holds no media")
        kind = source.modality if source.modality in found else found[0]
        shape, dtype = shapes[kind]
        return [Modality(source.modality, kind, shape(), dtype)]
    if "image" in found and len(found) > 1:
        raise DataError(f"column {source.column!r} mixes images and clips; give them columns of their own")
    return [Modality(kind, kind, shapes[kind][0](), shapes[kind][1]) for kind in found]
