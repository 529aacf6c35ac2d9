"""Scoring by actors beside processes that run the same model over tensors in memory and write nothing."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import torch

from raybal import memory
from raybal.analysis.contribution import contributions, shapley_values
from raybal.balancing.mlb import MLBSettings
from raybal.bench.machine import processes
from raybal.bench.toy import make_pool
from raybal.data.pool import Pool
from raybal.models.classifier import ModelSettings
from raybal.predictor import PredictorSpec, load_predictor, save_predictor
from raybal.querying.base import STRATEGIES, Scored
from raybal.querying.bmmal import BMMALSettings
from raybal.resources import ResourceSettings
from raybal.scorers import Scorers
from raybal.store import Store

MODEL = "model.safetensors"


def bench_score(items: int, seconds: float, cores: int) -> Iterator[tuple[str, float]]:
    """Scores the same items for BMMAL again and again, each way for at least `seconds`.

    Yields:
        (what, value): items a second of both, and their ratio.
    """
    query = BMMALSettings(strategy="bmmal")
    strategy = STRATEGIES.get(query.strategy)(query)
    with tempfile.TemporaryDirectory() as folder:
        make_pool(f"{folder}/pool", items)
        pool, store = Pool(f"{folder}/pool"), Store(f"{folder}/store")
        classes = pool.info.classes or ()
        spec = PredictorSpec(pool.info.modalities, classes, ModelSettings(), MLBSettings(method="mlb"), seed=0)
        model = {f"model.{k}": v for k, v in spec.build()[0].state_dict().items()}
        save_predictor(store, MODEL, spec, model)
        positions = np.arange(len(pool))
        bare = _bare(store.root, pool.store.root, query, np.array_split(positions, cores), seconds)
        yield "bare items/s", bare
        shards = {s: positions[pool.shard_of == i] for i, s in enumerate(pool.shards)}
        scorers = Scorers(pool.store.root, store.root, len(shards), ResourceSettings(scoring_actors=cores))
        scorers.score("warm", shards, MODEL, strategy)
        rounds, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            scorers.score(f"scores-{rounds}", shards, MODEL, strategy)
            rounds += 1
        ours = rounds * items / (time.perf_counter() - started)
        scorers.stop()
    yield "raybal items/s", ours
    yield "ratio", ours / bare


def _bare(store: str, pool: str, query: BMMALSettings, parts: list[np.ndarray], seconds: float) -> float:
    """Returns items a second of processes that score one part each, all before any goes on."""
    with contextlib.ExitStack() as stack:
        # A pool each: one pool of them all might give a part to a process that holds another.
        each = [stack.enter_context(processes(1, _load, (store, pool, query, part))) for part in parts]
        for future in [process.submit(_forward) for process in each]:
            future.result()
        rounds, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            futures = [process.submit(_forward) for process in each]
            assert [future.result() for future in futures] == [len(part) for part in parts]
            rounds += 1
        return rounds * sum(map(len, parts)) / (time.perf_counter() - started)


_STATE: dict = {}


def _load(store: str, pool: str, query: BMMALSettings, positions: np.ndarray) -> None:
    torch.set_num_threads(1)
    memory.keep_freed()
    inputs, present = Pool(pool).read(positions)
    _STATE["items"] = {m: torch.from_numpy(a) for m, a in inputs.items()}, torch.from_numpy(present)
    _STATE["predictor"] = load_predictor(Store(store), MODEL)[0]
    _STATE["strategy"] = STRATEGIES.get(query.strategy)(query)
    _STATE["batch"] = query.batch_size


@torch.no_grad()
def _forward() -> int:
    inputs, present = _STATE["items"]
    predictor = _STATE["predictor"]
    for rows in torch.arange(len(present)).split(_STATE["batch"]):
        there = present[rows]
        encoded = predictor.encode({m: x[rows] for m, x in inputs.items()}, there)
        phi, probabilities = shapley_values(lambda mask, e=encoded: predictor.logits(e.fusion_inputs, mask), there)  # type: ignore[misc]
        predicted = probabilities.argmax(1)
        scored = Scored(encoded, probabilities, predicted, contributions(phi, predicted))
        _STATE["strategy"].columns(predictor, scored)
    return len(present)
