"""Looking at some items to find out which modalities there are and to fill in parameters that were left open."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybal import hashing
from raybal.data.cells import read_values
from raybal.data.chunk import Preprocessing
from raybal.data.files import read_media
from raybal.data.manifest import Manifest
from raybal.data.schema import Modality
from raybal.data.sources import Source
from raybal.errors import ConfigError, DataError, StoreError
from raybal.media.container import MediaInfo, probe
from raybal.media.damage import MediaError

SAMPLE = 64
# So many clips are looked at where the first ones have only sound, or only pictures.
LARGE_SAMPLE = 256
# Files that are read at a time: most of the time of a small file in a bucket is spent waiting.
_THREADS = 16

log = logging.getLogger(__name__)


@dataclass
class _Look:
    """What some cells of one column hold.

    Attributes:
        media: of files.
        numbers: of precomputed ones.
        count: cells looked at.
        failure: what the last one said that could not be read.
    """

    media: list[MediaInfo] = field(default_factory=list)
    numbers: list[NDArray] = field(default_factory=list)
    count: int = 0
    failure: Exception | None = None


def find_modalities(manifest: Manifest, settings: Preprocessing) -> tuple[tuple[Modality, ...], Preprocessing]:
    """Returns the modalities of the input, and the parameters with nothing left open.

    Up to 64 cells of each column are looked at that hold something, or up to 256 clips where these have only sound or
    only pictures: files by a hash of their ids, other cells from the beginning of all Parquet files alike. An audio
    length or a number of sequence steps that is not set becomes the median of what they have.

    Raises:
        DataError: none of the cells of a column can be read, or they do not fit together.
        ConfigError: parameters that do not fit what was found.
    """
    looks = {source: _look(source, _cells(manifest, source)) for source in manifest.sources}
    for source, look in looks.items():
        if not look.count:
            raise DataError(f"column {source.column!r} is empty in all rows; leave it out")
        if not look.media and not look.numbers:
            raise DataError(
                f"column {source.column!r}: none of {look.count} cells looked at could be read; the last one said: "
                f"{look.failure}"
            )
    settings = _filled(settings, list(looks.values()))
    modalities: list[Modality] = []
    for source, look in looks.items():
        if look.numbers:
            modalities.append(_of_numbers(source, look.numbers, settings))
        elif source.modality is None:
            of_clips = _of_clips(source, look.media, settings)
            new = [m for m in of_clips if m.name not in {s.modality for s in manifest.sources}]
            if not new:
                raise DataError(
                    f"the clips give nothing that no column of its own gives: {source.column!r}; leave it out"
                )
            modalities += new
        else:
            modalities.append(_of_files(source, source.modality, look.media, settings))
    return tuple(modalities), settings


def _cells(manifest: Manifest, source: Source) -> Iterator[Any]:
    """Yields the cells of a column that hold something."""
    if source.kind == "uri":
        uris = manifest.table[source.column].to_pylist()
        order = hashing.order(manifest.table["id"].to_pylist(), 0).tolist()
        return (uris[row] for row in order if uris[row])
    return _in_turns([read_values(file, source.column) for file in manifest.files])


def _in_turns(files: Sequence[Iterator[Any]]) -> Iterator[Any]:
    """Yields the values of several files, a few of each at a time."""
    left, each = list(files), -(-SAMPLE // len(files))
    while left:
        for values in list(left):
            some = list(itertools.islice(values, each))
            yield from some
            if len(some) < each:
                left.remove(values)


def _look(source: Source, cells: Iterator[Any]) -> _Look:
    """Looks at some cells; of one that cannot be read only the reason is kept."""
    look = _Look()
    _look_at(source, itertools.islice(cells, SAMPLE), look)
    kinds = {kind for info in look.media for kind in _kinds(info)}
    if source.modality is None and kinds in ({"video"}, {"audio"}):
        _look_at(source, itertools.islice(cells, LARGE_SAMPLE - SAMPLE), look)
    return look


def _look_at(source: Source, cells: Iterator[Any], look: _Look) -> None:
    def one(cell: Any) -> MediaInfo | NDArray | Exception:
        try:
            if source.kind in ("features", "sequence"):
                return np.asarray(cell, np.float32)
            return probe(read_media(cell)[0] if source.kind == "uri" else cell)
        except (MediaError, StoreError, ValueError, TypeError) as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        # In a Parquet file there is nothing to wait for, and cells taken ahead only fill the memory.
        for value in pool.map(one, cells) if source.kind == "uri" else map(one, cells):
            look.count += 1
            if isinstance(value, MediaInfo):
                look.media.append(value)
            elif isinstance(value, np.ndarray):
                look.numbers.append(value)
            else:
                look.failure = value


def _filled(settings: Preprocessing, looks: Sequence[_Look]) -> Preprocessing:
    lengths = [i.duration for look in looks for i in look.media if i.has_audio and i.duration]
    if settings.audio.seconds is None and lengths:
        seconds = round(max(float(np.median(lengths)), 0.05), 2)
        log.info("preprocessing.audio.seconds is %g, the median of %d items", seconds, len(lengths))
        try:
            audio = dataclasses.replace(settings.audio, seconds=seconds)
        except ConfigError as error:
            raise ConfigError(
                f"preprocessing.audio.{error} (it is the median of {len(lengths)} items; give another, or a shorter "
                "window)"
            ) from error
        settings = dataclasses.replace(settings, audio=audio)
    steps = [len(a) for look in looks for a in look.numbers if a.ndim == 2]
    if settings.sequence.steps is None and steps:
        sequence = dataclasses.replace(settings.sequence, steps=int(np.median(steps)))
        settings = dataclasses.replace(settings, sequence=sequence)
    return settings


def _of_numbers(source: Source, arrays: Sequence[NDArray], settings: Preprocessing) -> Modality:
    dimensions = 1 if source.kind == "features" else 2
    sizes = [a.shape[-1] for a in arrays if a.ndim == dimensions and a.size]
    if not sizes:
        raise DataError(f"column {source.column!r}: the lists of all {len(arrays)} cells looked at are empty")
    size = max(set(sizes), key=sizes.count)
    if source.kind == "features":
        return Modality(source.column, "features", (size,), "float32")
    return Modality(source.column, "sequence", (settings.sequence.steps or 1, size), "float32")


def _of_files(source: Source, name: str, infos: Sequence[MediaInfo], settings: Preprocessing) -> Modality:
    """Returns the modality of a column of files of its own: its name says which track is meant where there are
    several; else it is what most files have."""
    counts = Counter(kind for info in infos for kind in _kinds(info))
    if name in ("video", "audio", "image"):
        if not counts[name]:
            raise DataError(
                f"column {source.column!r}: none of {len(infos)} files looked at has {name}, they have "
                f"{' and '.join(counts)}; rename the column, or give other files"
            )
        return _of_kind(name, name, settings)
    return _of_kind(name, max(counts, key=lambda kind: counts[kind]), settings)


def _of_clips(source: Source, infos: Sequence[MediaInfo], settings: Preprocessing) -> list[Modality]:
    """Returns the modalities of a column of clips, one a track: what a few of them have, they have."""
    found = [kind for kind in ("video", "audio", "image") if any(kind in _kinds(info) for info in infos)]
    if "image" in found and len(found) > 1:
        raise DataError(f"column {source.column!r} mixes images and clips; give them columns of their own")
    return [_of_kind(kind, kind, settings) for kind in found]


def _kinds(info: MediaInfo) -> list[str]:
    there = {"video": info.has_video, "audio": info.has_audio, "image": info.is_image}
    return [kind for kind, is_there in there.items() if is_there]


def _of_kind(name: str, kind: str, settings: Preprocessing) -> Modality:
    if kind == "audio":
        return Modality(name, kind, settings.audio.shape(), "float16")
    return Modality(name, kind, settings.video.shape() if kind == "video" else settings.image.shape(), "uint8")
