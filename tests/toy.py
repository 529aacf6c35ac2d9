"""Small things that many tests build on: items, modalities, a classifier, a training context."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from raybal.balancing.base import METHODS, BalancingMethod, Context, Predictor
from raybal.columns import tensor_column, tensor_field
from raybal.data.batches import Batch, Items
from raybal.data.publish import write_tables
from raybal.data.schema import Modality, PoolInfo
from raybal.models.classifier import Classifier, ModelSettings, build_classifier
from raybal.models.encoders import EncoderSettings
from raybal.predictor import PredictorSpec
from raybal.store import Store
from raybal.training.evaluate import evaluate
from raybal.workers import Workers

AUDIO = Modality("audio", "audio", (1, 16, 12), "float32", (-1.0,), (2.0,))
VIDEO = Modality("video", "video", (3, 1, 16, 16), "uint8", (120.0,), (40.0,))
OMICS = tuple(Modality(name, "features", (6,), "float32", (0.0,) * 6, (1.0,) * 6) for name in ("a", "b", "c"))


def make_items(
    count: int, modalities: tuple[Modality, ...] = (AUDIO, VIDEO), classes: int = 3, seed: int = 0, missing: float = 0.0
) -> Items:
    """Random items whose classes can be learnt from the mean of each modality; some modalities missing."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    present = np.ones((count, len(modalities)), bool)
    present[generator.random(count) < missing, 0] = False
    inputs = {}
    for k, m in enumerate(modalities):
        noise = generator.normal(size=(count, *m.shape)) + labels.reshape(-1, *[1] * len(m.shape))
        values = np.clip(noise * 30 + 100, 0, 255) if m.dtype == "uint8" else noise
        inputs[m.name] = (values * present[:, k].reshape(-1, *[1] * len(m.shape))).astype(m.dtype)
    return Items([f"item-{i:03d}" for i in range(count)], inputs, present, labels.astype(np.int64))


def write_pool(
    folder: Any, items: Items, split: Sequence[str], *, modalities: tuple[Modality, ...] = OMICS[:2], **index: Any
) -> str:
    """Writes items with their labels as a prepared pool in two shards; returns where. `index` has further columns."""
    store, classes = Store(folder), tuple(str(k) for k in range(items.labels.max() + 1))
    shards = dict(zip("ab", np.array_split(np.arange(len(items)), 2), strict=True))
    for name, rows in shards.items():
        columns = [pa.array([items.ids[r] for r in rows])]
        columns += [tensor_column(items.inputs[m.name][rows], items.present[rows, k]) for k, m in enumerate(modalities)]
        fields = [pa.field("id", pa.string()), *(tensor_field(m.name, m.shape, m.dtype) for m in modalities)]
        store.write_table(f"shards/{name}.parquet", pa.Table.from_arrays(columns, schema=pa.schema(fields)), "none")
    none = pa.array([], pa.string())
    sidecars = {
        "labels": pa.table({"id": items.ids, "label": [str(k) for k in items.labels]}),
        "groups": pa.table({"id": none, "group": none}),
        "sources": pa.table({"id": none, "uri": none, "fingerprint": none}),
    }
    where = {
        "id": items.ids,
        "shard": [name for name, rows in shards.items() for _ in rows],
        "row": pa.array([row for rows in shards.values() for row in range(len(rows))], pa.int32()),
        "split": list(split),
        **{f"present_{m.name}": items.present[:, k] for k, m in enumerate(modalities)},
    }
    write_tables(store, PoolInfo(modalities, classes, {}, "toy", "toy"), pa.table(where | index), sidecars)
    return store.root


def make_classifier(
    modalities: tuple[Modality, ...] = (AUDIO, VIDEO), classes: int = 3, fusion: str = "concat", **encoder: Any
) -> Classifier:
    settings = ModelSettings(fusion=fusion, encoder=EncoderSettings(**{"dim": 8, "width": 4, **encoder}))  # type: ignore[arg-type]
    return build_classifier(modalities, classes, settings, seed=1)


def make_method(
    name: str, modalities: tuple[str, ...] = ("audio", "video"), classes: int = 3, **options: Any
) -> BalancingMethod:
    method = METHODS.get(name)
    return method(method.Settings(method=name, **options), modalities, classes)


def make_pair(
    name: str, modalities: tuple[Modality, ...] = (AUDIO, VIDEO), fusion: str = "concat", **options: Any
) -> tuple[Classifier, BalancingMethod]:
    """A classifier with all that the method adds to it, and the method."""
    classifier = make_classifier(modalities, fusion=fusion)
    method = make_method(name, tuple(m.name for m in modalities), **options)
    torch.manual_seed(2)
    method.extend(classifier)
    return classifier, method


def make_spec(
    method: str, modalities: tuple[Modality, ...] = (AUDIO, VIDEO), classes: int = 3, **options: Any
) -> PredictorSpec:
    return PredictorSpec(
        modalities=modalities,
        classes=tuple(str(k) for k in range(classes)),
        model=ModelSettings(encoder=EncoderSettings(dim=8, width=4)),
        balancing=METHODS.get(method).Settings(method=method, **options),
        seed=1,
    )


def make_context(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer | None = None,
    steps: int = 10,
    train: Items | None = None,
    held_out: Items | None = None,
    epochs: int = 10,
) -> Context:
    return Context(
        classifier=classifier,
        module=classifier,
        optimizer=optimizer or torch.optim.SGD(classifier.parameters(), lr=0.1),
        groups=classifier.parameter_groups(),
        train=Items([], {}, np.zeros((0, len(classifier.modalities)), bool), np.zeros(0, np.int64))
        if train is None
        else train,
        held_out=held_out,
        device=torch.device("cpu"),
        seed=3,
        workers=Workers(),
        autocast=contextlib.nullcontext,
        evaluate=lambda model, items: evaluate(Predictor(model), items, torch.device("cpu")),
        rehearse=lambda method, epochs: classifier,
        steps=steps,
        epochs=epochs,
    )


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def whole_batch(items: Items) -> Batch:
    from raybal.data.batches import gather

    return gather(items, np.arange(len(items)), torch.device("cpu"))


class Threads:
    """Workers that are threads of this process."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.barrier = threading.Barrier(world)
        self.values: list[torch.Tensor] = [torch.zeros(0)] * world

    def run(self, work: Callable[[Workers], Any]) -> list[Any]:
        """What each worker returned."""
        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(lambda rank: work(_Thread(rank, self)), range(self.world)))


class _Thread(Workers):
    def __init__(self, rank: int, threads: Threads) -> None:
        self.rank, self.world, self.threads = rank, threads.world, threads

    def all_reduce(self, value: torch.Tensor) -> Callable[[], torch.Tensor]:
        values, barrier = self.threads.values, self.threads.barrier
        values[self.rank] = value.clone()
        barrier.wait(60)
        value.copy_(torch.stack(values).sum(0))
        barrier.wait(60)
        return lambda: value
