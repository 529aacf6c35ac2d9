"""Training, in process and under Ray Train, beside a bare loop over tensors in memory."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raybal import memory
from raybal.balancing.base import METHODS
from raybal.bench.toy import make_pool
from raybal.data.pool import Pool
from raybal.models.classifier import ModelSettings
from raybal.predictor import PredictorSpec
from raybal.resources import ResourceSettings
from raybal.training.settings import TrainSettings, build_optimizer
from raybal.training.task import TrainTask
from raybal.training.worker import train


def bench_train(items: int, seconds: float, cores: int, method: str = "multi_loss") -> Iterator[tuple[str, float]]:
    """Trains the same model on the same items, each way for at least `seconds`.

    Yields:
        (what, value): items a second of the bare loop, in process, with one Ray Train worker of all cores and with
        one a core, and the ratios to the bare loop; the median epoch of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_pool(f"{folder}/pool", items)
        pool = Pool(f"{folder}/pool")
        settings = TrainSettings(epochs=3, schedule="constant", device="cpu")
        spec = PredictorSpec(
            modalities=pool.info.modalities,
            classes=pool.info.classes or (),
            model=ModelSettings(),
            balancing=METHODS.get(method).Settings(method=method),
            seed=0,
        )
        labels = np.random.default_rng(0).integers(0, 10, items)
        torch.set_num_threads(cores)
        probe = _bare(pool, spec, labels, settings)
        settings = dataclasses.replace(settings, epochs=max(5, int(seconds / probe) + 2))
        bare = items / _bare(pool, spec, labels, settings)
        yield "bare items/s", bare
        pairs = list(zip(pool.ids.to_pylist(), labels.tolist(), strict=True))
        ways: dict[str, tuple[int, float]] = {
            "in process": (0, 1),
            "1 Ray worker": (1, float(cores)),
            f"{cores} Ray workers": (cores, 1.0),
        }
        for name, (workers, cpus) in ways.items():
            task = TrainTask(
                store=f"{folder}/store",
                folder=name.replace(" ", "-"),
                pool=f"{folder}/pool",
                spec=spec,
                settings=dataclasses.replace(settings, num_workers=workers),
                seed=0,
                token=None,
            )
            task.write_items(pairs, [])
            history = train(task, ResourceSettings(cpus_per_worker=cpus))["history"]
            ours = items / _epoch_seconds([r["seconds"] for r in history])
            yield f"{name} items/s", ours
            yield f"{name} ratio", ours / bare


def _epoch_seconds(seconds: list[float]) -> float:
    """The median epoch, the first one left out as start-up."""
    return statistics.median(seconds[1:])


def _bare(pool: Pool, spec: PredictorSpec, labels: np.ndarray, settings: TrainSettings) -> float:
    """Returns the median seconds of an epoch of the plainest loop: the same model, loss, optimizer and batch size."""
    memory.keep_freed()
    inputs, present = pool.read(np.arange(len(pool)))
    tensors: dict[str, Any] = {m: torch.from_numpy(a) for m, a in inputs.items()}
    everyone, targets = torch.from_numpy(present), torch.from_numpy(labels)
    classifier, _ = spec.build()
    optimizer = build_optimizer(list(classifier.parameters()), settings)
    epochs = []
    for _ in range(settings.epochs):
        started = time.perf_counter()
        for rows in torch.randperm(len(pool)).split(settings.batch_size):
            optimizer.zero_grad(set_to_none=True)
            output = classifier({m: x[rows] for m, x in tensors.items()}, everyone[rows])
            heads = [output.logits, *output.unimodal_logits.values()]
            torch.stack([F.cross_entropy(logits, targets[rows]) for logits in heads]).sum().backward()
            optimizer.step()
        epochs.append(time.perf_counter() - started)
    return _epoch_seconds(epochs)
