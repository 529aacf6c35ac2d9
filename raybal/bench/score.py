"""Scoring by actors beside processes that run the same model over tensors in memory and write nothing."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from raybal.analysis.contribution import contributions, shapley_values
from raybal.balancing.mlb import MLBSettings
from raybal.bench.toy import make_pool
from raybal.data.pool import Pool
from raybal.models.classifier import ModelSettings
from raybal.predictor import PredictorSpec, load_predictor, save_predictor
from raybal.querying.actors import Scorers
from raybal.querying.base import STRATEGIES, Scored
from raybal.querying.bmmal import BMMALSettings
from raybal.resources import ResourceSettings
from raybal.store import Store

MODEL = "model.safetensors"


def bench_score(items: int, seconds: float, cores: int) -> dict[str, float]:
    """Scores the same items for BMMAL again and again, each way for at least `seconds`.

    Returns:
        Items a second of both, and their ratio.
    """
    query = BMMALSettings(strategy="bmmal")
    with tempfile.TemporaryDirectory() as folder:
        make_pool(f"{folder}/pool", items)
        pool, store = Pool(f"{folder}/pool"), Store(f"{folder}/store")
        classes = pool.info.classes or ()
        spec = PredictorSpec(pool.info.modalities, classes, ModelSettings(), MLBSettings(method="mlb"), seed=0)
        model = {f"model.{k}": v for k, v in spec.build()[0].state_dict().items()}
        save_predictor(store, MODEL, spec, model)
        positions = np.arange(len(pool))
        parts = np.array_split(positions, cores)
        with ProcessPoolExecutor(cores, initializer=_load, initargs=(store.root, pool.store.root, query)) as processes:
            list(processes.map(_read, parts))
            rounds, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                list(processes.map(_forward, parts))
                rounds += 1
            bare = rounds * items / (time.perf_counter() - started)
        shards = {s: positions[pool.shard_of == i] for i, s in enumerate(pool.shards)}
        scorers = Scorers(pool.store.root, store.root, query, len(shards), ResourceSettings(scoring_actors=cores))
        scorers.score("warm", shards, MODEL)
        rounds, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            scorers.score(f"scores-{rounds}", shards, MODEL)
            rounds += 1
        ours = rounds * items / (time.perf_counter() - started)
        scorers.stop()
    return {"bare items/s": bare, "raybal items/s": ours, "ratio": ours / bare}


_STATE: dict = {}


def _load(store: str, pool: str, query: BMMALSettings) -> None:
    torch.set_num_threads(1)
    _STATE["predictor"] = load_predictor(Store(store), MODEL)[0]
    _STATE["pool"] = Pool(pool)
    _STATE["strategy"] = STRATEGIES.get(query.strategy)(query)
    _STATE["batch"] = query.batch_size


def _read(positions: np.ndarray) -> None:
    inputs, present = _STATE["pool"].read(positions)
    _STATE["items"] = {m: torch.from_numpy(a) for m, a in inputs.items()}, torch.from_numpy(present)


@torch.no_grad()
def _forward(positions: np.ndarray) -> int:
    inputs, present = _STATE["items"]
    predictor = _STATE["predictor"]
    for rows in torch.arange(len(present)).split(_STATE["batch"]):
        there = present[rows]
        output = predictor.encode({m: x[rows] for m, x in inputs.items()}, there)
        phi, probabilities = shapley_values(lambda mask, o=output: predictor.logits(o.fusion_inputs, mask), there)  # type: ignore[misc]
        predicted = probabilities.argmax(1)
        scored = Scored(output, probabilities, predicted, contributions(phi, predicted))
        _STATE["strategy"].columns(predictor, scored)
    return len(present)
