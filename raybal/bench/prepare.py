"""Preparation on Ray Data beside a process pool that decodes and writes the same shards."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raybal.bench.machine import processes
from raybal.data.convert import Chunk, Preprocessing, convert
from raybal.data.manifest import Manifest, Source, read_manifest
from raybal.data.plan import PrepareConfig, make_chunks
from raybal.data.prepare import prepare
from raybal.data.probe import find_modalities
from raybal.data.schema import Modality
from raybal.store import Store


def bench_prepare(clips: str, seconds: float, cores: int) -> Iterator[tuple[str, float]]:
    """Prepares a folder of clips, repeated under new ids until there is enough work.

    Args:
        clips: folder of media files, or a manifest of uris.
        seconds: least duration of the timed part.
        cores: processes of the bare loop, as many as the cluster has CPUs.

    Yields:
        (what, value): clips a second of both, and their ratio.
    """
    manifest = read_manifest(clips)
    with tempfile.TemporaryDirectory() as folder:
        few = _repeated(manifest, 4 * cores * 16, Path(folder) / "few.parquet")
        with processes(cores, torch.set_num_threads, (1,)) as pool:
            _bare(pool, few, f"{folder}/bare-warm")
            rate = _bare(pool, few, f"{folder}/bare-probe")
            many = _repeated(manifest, int(rate * seconds * 1.1) + 1, Path(folder) / "many.parquet")
            bare = _bare(pool, many, f"{folder}/bare")
        yield "bare clips/s", bare
        prepare(PrepareConfig(input=few, output=f"{folder}/ray-warm"))
        started = time.perf_counter()
        info = prepare(PrepareConfig(input=many, output=f"{folder}/ray"))
        ours = info.counts["items"] / (time.perf_counter() - started)
    yield "raybal clips/s", ours
    yield "ratio", ours / bare
    yield "clips", info.counts["items"]


def _repeated(manifest: Manifest, count: int, path: Path) -> str:
    uris = list(itertools.islice(itertools.cycle(manifest.table["uri"].to_pylist()), count))
    pq.write_table(pa.table({"id": [f"{i:07d}" for i in range(count)], "uri": uris}), path)
    return str(path)


def _bare(pool: ProcessPoolExecutor, place: str, output: str) -> float:
    """Returns clips a second of a process pool over the same chunks."""
    manifest = read_manifest(place)
    modalities, settings = find_modalities(manifest, Preprocessing())
    rows = np.arange(len(manifest.table))
    chunks = make_chunks(manifest, rows, ["train"] * len(rows), modalities, settings)
    started = time.perf_counter()
    work = [(c, manifest.sources, modalities, settings, output) for c in chunks]
    done = sum(pool.map(_convert, work))
    return done / (time.perf_counter() - started)


def _convert(work: tuple[Chunk, tuple[Source, ...], tuple[Modality, ...], Preprocessing, str]) -> int:
    chunk, sources, modalities, settings, output = work
    table, result = convert(chunk, sources, modalities, settings)
    Store(output).write_table(f"{chunk.name}.parquet", table, compression="none")
    return len(result.ids)
